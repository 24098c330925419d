//! The parts of a report, in order.

use super::filters::Filters;
use super::number::short;
use super::plot::Plot;
use super::table::{Field, Table};
use super::{Cell, ReportError, Results, memory, quality, speed, strategy};

/// A part of a report: one table and the plots to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// What it shows.
    pub title: String,
    /// What its numbers depend on, and how to read them.
    pub about: Vec<String>,
    /// The numbers.
    pub table: Table,
    /// Their plots.
    pub plots: Vec<Plot>,
}

/// All parts: quality, speed, memory, strategies, conformance.
///
/// # Errors
/// [`ReportError::Plot`].
pub fn sections(results: &Results, cells: &[Cell]) -> Result<Vec<Section>, ReportError> {
    let filters = Filters::new(results);
    let mut sections = quality::sections(cells, &filters)?;
    sections.extend(speed::sections(cells, &filters)?);
    sections.extend(memory::sections(results, cells, &filters)?);
    sections.extend(strategy::sections(results, &filters)?);
    sections.extend(conformance(results));
    Ok(sections)
}

fn conformance(results: &Results) -> Option<Section> {
    let mut table = Table::new(&["case", "device", "dtype", "worst error#", "tolerance#", "verdict", "note"]);
    for case in &results.conformance {
        let number = |value: Option<f64>| value.map_or_else(Field::default, |value| Field::number(short(value), value));
        let fields = vec![
            Field::text(&case.case),
            Field::text(&case.device),
            Field::text(&case.dtype),
            number(case.worst_error),
            number(case.tolerance),
            Field::text(&case.verdict),
            Field::text(case.note.clone().unwrap_or_default()),
        ];
        table.push(None, fields);
    }
    let about = vec!["How backends agree with the reference, case by case.".into()];
    (!table.lines.is_empty()).then(|| Section {
        title: "Conformance".into(),
        about,
        table: table.without_empty_columns(),
        plots: Vec::new(),
    })
}
