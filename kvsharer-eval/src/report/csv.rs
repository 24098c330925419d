//! All cells as CSV, unrounded: for spreadsheets and scripts.

use super::ReportError;
use super::cells::Cell;
use super::row::Measure;

const HEADER: [&str; 38] = [
    "model",
    "model_hash",
    "device",
    "dtype",
    "library",
    "task",
    "protocol",
    "source",
    "text_hash",
    "items",
    "limit",
    "skipped",
    "left_out",
    "shots",
    "max_length",
    "window",
    "chunk",
    "prefill",
    "batch",
    "prompt",
    "generated",
    "threads",
    "strategy",
    "strategy_id",
    "policies",
    "metric",
    "value",
    "stderr",
    "runs",
    "seeds",
    "least",
    "greatest",
    "kv_bytes",
    "full_bytes",
    "full_value",
    "difference",
    "difference_stderr",
    "ratio",
];

/// One line a cell; what does not apply is empty.
///
/// # Errors
/// [`ReportError::Csv`].
pub fn csv(cells: &[Cell]) -> Result<String, ReportError> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record(HEADER)?;
    for cell in cells {
        writer.write_record(fields(cell).into_iter().map(inert))?;
    }
    let bytes = writer.into_inner().map_err(|error| ::csv::Error::from(error.into_error()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A name that spreadsheets would take for a formula becomes text; numbers stay numbers.
fn inert(field: String) -> String {
    match field.starts_with(['=', '+', '-', '@', '\t', '\r']) && field.parse::<f64>().is_err() {
        true => format!("'{field}"),
        false => field,
    }
}

fn fields(cell: &Cell) -> Vec<String> {
    let conditions = &cell.conditions;
    let mut fields = vec![
        conditions.model.clone(),
        conditions.model_hash.clone().unwrap_or_default(),
        conditions.device.clone(),
        conditions.dtype.clone(),
        conditions.library.clone(),
    ];
    let count = |count: usize| count.to_string();
    let maybe = |count: Option<usize>| count.map_or(String::new(), |count| count.to_string());
    match &conditions.measure {
        Measure::Task(rules) => fields.extend([
            rules.task.clone(),
            rules.protocol.clone(),
            rules.source.clone().unwrap_or_default(),
            rules.text_hash.clone(),
            count(rules.items),
            maybe(rules.limit),
            count(rules.without[0]),
            count(rules.without[1]),
            maybe(rules.shots),
            maybe(rules.max_length),
            count(rules.window),
            count(rules.chunk),
            count(rules.prefill),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ]),
        Measure::Bench { batch, prompt, generated, threads } => {
            fields.push("bench".into());
            fields.extend(std::iter::repeat_n(String::new(), 12));
            fields.extend([count(*batch), count(*prompt), count(*generated), count(*threads)]);
        }
    }
    let number = |number: Option<f64>| number.map_or(String::new(), |number| number.to_string());
    let (range, delta) = (cell.range, cell.delta);
    fields.extend([
        cell.setup.strategy_name().to_owned(),
        cell.setup.strategy.as_ref().map_or(String::new(), |strategy| strategy.id.clone()),
        cell.setup.policies.join(" + "),
        cell.metric.clone(),
        cell.value.to_string(),
        number(cell.stderr),
        count(cell.runs),
        cell.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(" "),
        number(range.map(|range| range.0)),
        number(range.map(|range| range.1)),
        cell.kv_bytes.to_string(),
        number(cell.full_bytes),
        number(delta.map(|delta| delta.full)),
        number(delta.map(|delta| delta.difference)),
        number(delta.and_then(|delta| delta.stderr)),
        number(delta.and_then(|delta| delta.ratio)),
    ]);
    fields
}
