//! Tables as Markdown.

use super::{Problem, Section, Table};

/// All sections as Markdown, and what was left out.
pub fn markdown(sections: &[Section], problems: &[Problem]) -> String {
    let mut text = String::from("# Results\n");
    for section in sections {
        text += &format!("\n## {}\n\n", escaped(&section.title));
        for line in &section.about {
            text += &format!("{}\n\n", escaped(line));
        }
        if !section.table.lines.is_empty() {
            text += &table(&section.table);
        }
    }
    if !problems.is_empty() {
        text += "\n## Left out\n\n";
        for Problem { place, what } in problems {
            text += &format!("- {}: {}\n", escaped(place), escaped(what));
        }
    }
    text
}

fn table(table: &Table) -> String {
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = row(table.columns.iter().map(|column| escaped(&column.name)).collect());
    text += &row(table.columns.iter().map(|column| if column.number { "--:" } else { "---" }.to_owned()).collect());
    for line in &table.lines {
        text += &row(line.fields.iter().map(|field| escaped(&field.text)).collect());
    }
    text
}

/// Text that Markdown takes as text, on one line.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' | '\t' => escaped.push(' '),
            '<' => escaped += "&lt;",
            '&' => escaped += "&amp;",
            '|' | '*' | '`' | '[' | ']' | '\\' | '!' | '~' => escaped.extend(['\\', character]),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::{Field, Table};
    use super::*;

    #[test]
    fn names_break_no_table_and_make_no_markup() {
        let mut own = Table::new(&["name", "n#"]);
        own.push(None, vec![Field::text("a|b\n<img src=x> [l](u) `c`"), Field::count(3)]);
        assert_eq!(table(&own), "| name | n |\n| --- | --: |\n| a\\|b &lt;img src=x> \\[l\\](u) \\`c\\` | 3 |\n");
    }
}
