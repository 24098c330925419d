//! `{% generation %}` blocks, which mark the answers in a template for training and change nothing in the text.

/// The template with `generation` blocks turned into `with` blocks: the engine knows no tags of others. Both open a
/// scope of their own and print what is inside; the whitespace control of the tags stays as it is.
pub(super) fn without_generation_blocks(template: &str) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = ["{#", "{{", "{%"].iter().filter_map(|open| rest.find(open)).min() {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = match &rest[..2] {
            "{#" => rest.find("#}").map_or(rest.len(), |end| end + 2),
            "{{" => end_of_code(rest, "}}"),
            _ => end_of_code(rest, "%}"),
        };
        let (tag, after) = rest.split_at(end);
        match renamed(tag) {
            Some(tag) => text.push_str(&tag),
            None => text.push_str(tag),
        }
        rest = after;
    }
    text + rest
}

/// Bytes up to and with `close`, which does not count inside quotes.
fn end_of_code(code: &str, close: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in code.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if code[at..].starts_with(close) => return at + close.len(),
            None => {}
        }
    }
    code.len()
}

fn renamed(tag: &str) -> Option<String> {
    let name = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let name = name.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
    let to = match name {
        "generation" => "with",
        "endgeneration" => "endwith",
        _ => return None,
    };
    Some(tag.replacen(name, to, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_generation_tags_are_renamed() {
        for (template, expected) in [
            ("a{%- generation -%}b{% endgeneration %}c", "a{%- with -%}b{% endwith %}c"),
            ("{{ 'generation %} {% generation %}' }}", "{{ 'generation %} {% generation %}' }}"),
            ("{# {% generation %} #}{% set generation = 1 %}", "{# {% generation %} #}{% set generation = 1 %}"),
            ("{%generation%}{{ \"\\\"}}\" }}{%endgeneration", "{%with%}{{ \"\\\"}}\" }}{%endgeneration"),
            ("{% if x == '%}' %}é{% generation %}", "{% if x == '%}' %}é{% with %}"),
            ("no tags {", "no tags {"),
        ] {
            assert_eq!(without_generation_blocks(template), expected);
        }
    }
}
