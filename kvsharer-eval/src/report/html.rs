//! The report as one page that needs nothing else. Whatever comes from files is escaped by the template engine; the drawings
//! escape their own texts.

use super::filters::Filters;
use super::plot::Plot;
use super::table::Table;
use super::{ReportError, Results, Section};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};

/// Lines of a page above which sections begin folded, and so are laid out when they are opened.
const UNFOLDED: usize = 400;

/// The page.
///
/// # Errors
/// [`ReportError::Page`] if the template fails.
pub fn html(results: &Results, sections: &[Section]) -> Result<String, ReportError> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    // The name's ending turns escaping on.
    environment.add_template("page.html", include_str!("page/page.html"))?;
    let filters = Filters::new(results);
    let mut lines = 0;
    let sections: Vec<Value> = sections
        .iter()
        .map(|section| {
            let open = lines == 0 || lines + section.table.lines.len() <= UNFOLDED;
            lines += section.table.lines.len();
            context! {
                title => &section.title,
                about => section.about.clone(),
                table => table(&section.table, &filters),
                plots => section.plots.iter().map(|own| plot(own, &filters)).collect::<Vec<_>>(),
                open,
            }
        })
        .collect();
    let choices = [("model", &filters.models), ("strategy", &filters.strategies), ("policies", &filters.policies)];
    let choices: Vec<Value> = choices.map(|(name, values)| context! { name, values }).into();
    let problems = results.problems.iter().map(|own| context! { place => &own.place, what => &own.what });
    let problems: Vec<Value> = problems.collect();
    let page = context! {
        style => Value::from_safe_string(include_str!("page/page.css").into()),
        script => Value::from_safe_string(include_str!("page/page.js").into()),
        library => concat!("kvsharer ", env!("CARGO_PKG_VERSION")),
        files => results.files.clone(),
        problems => problems,
        choices,
        sections,
    };
    Ok(environment.get_template("page.html")?.render(page)?)
}

fn plot(plot: &Plot, filters: &Filters) -> Value {
    let legend: Vec<Value> = plot.legend.iter().map(|(name, colour)| context! { name, colour }).collect();
    context! {
        title => &plot.title,
        about => &plot.about,
        legend,
        svg => Value::from_safe_string(plot.svg.clone()),
        table => table(&plot.table, filters),
    }
}

fn table(table: &Table, filters: &Filters) -> Value {
    let line = |line: &super::Line| {
        let fields =
            line.fields.iter().map(|field| context! { text => &field.text, sort => field.sort, tone => field.tone });
        context! {
            tags => line.tags.as_ref().map(|tags| filters.indices(tags)),
            fields => fields.collect::<Vec<_>>(),
        }
    };
    let columns = table.columns.iter().map(|own| context! { name => &own.name, number => own.number });
    context! { columns => columns.collect::<Vec<_>>(), lines => table.lines.iter().map(line).collect::<Vec<_>>() }
}
