//! Quality: one section a task under the same conditions, with deltas to the full cache.

use super::filters::Filters;
use super::number::{bytes, hash, percent, short, signed, tick, unit, with_error};
use super::plot::{Axis, Chart, Plot, Point, Series};
use super::row::{Measure, TaskRules, greater_is_better};
use super::table::{Field, Table, Tags};
use super::{Cell, Conditions, ReportError, Section, front};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn sections(cells: &[Cell], filters: &Filters) -> Result<Vec<Section>, ReportError> {
    let mut groups: BTreeMap<&Conditions, Vec<&Cell>> = BTreeMap::new();
    // NLL is the logarithm of the perplexity beside it; it is in the CSV.
    for cell in cells.iter().filter(|cell| cell.metric != "nll") {
        if let Measure::Task(_) = cell.conditions.measure {
            groups.entry(&cell.conditions).or_default().push(cell);
        }
    }
    groups.into_iter().map(|(conditions, cells)| section(conditions, &cells, filters)).collect()
}

fn section(conditions: &Conditions, cells: &[&Cell], filters: &Filters) -> Result<Section, ReportError> {
    let Measure::Task(rules) = &conditions.measure else { return Err(ReportError::Plot("no task".into())) };
    let mut metrics: BTreeMap<&str, Vec<&Cell>> = BTreeMap::new();
    cells.iter().for_each(|cell| metrics.entry(&cell.metric).or_default().push(cell));
    let plots = metrics.iter().filter_map(|(metric, cells)| plot(metric, cells, filters).transpose());
    let mut about = vec![rules_of(rules), setting(conditions)];
    if !cells.iter().any(|cell| cell.setup.is_full()) {
        about.push("No result of the full cache under these conditions, so there are no deltas.".into());
    }
    Ok(Section {
        title: format!("{} ({}), {}", rules.task, rules.protocol, conditions.model),
        about,
        plots: plots.collect::<Result<_, _>>()?,
        table: table(cells),
    })
}

/// The rules of a task in words.
fn rules_of(rules: &TaskRules) -> String {
    let mut parts = vec![format!("{} items", rules.items)];
    parts.extend(rules.limit.map(|limit| format!("limit {limit}")));
    parts.extend(rules.shots.map(|shots| format!("{shots} examples")));
    parts.extend(rules.source.as_ref().map(|source| format!("configuration {source}")));
    match rules.max_length {
        Some(length) => parts.push(format!("texts up to {length} tokens, the longest {}", rules.window)),
        None => parts.push(format!("windows of {} tokens", rules.window)),
    }
    if rules.chunk > 0 {
        parts.push(format!("{} tokens a pass", rules.chunk));
    }
    if rules.prefill > 0 && rules.max_length.is_none() {
        parts.push(format!("the first {} unscored", rules.prefill));
    }
    let [skipped, left_out] = rules.without;
    if skipped + left_out > 0 {
        parts.push(format!("{skipped} bad items skipped, {left_out} left out by the harness"));
    }
    parts.push(format!("text {}", hash(&rules.text_hash)));
    parts.join("; ")
}

/// The other conditions in words.
pub(super) fn setting(conditions: &Conditions) -> String {
    let Conditions { model, model_hash, device, dtype, library, .. } = conditions;
    let weights = model_hash.as_ref().map_or(String::new(), |own| format!(" (weights {})", hash(own)));
    format!("{model}{weights}; {device}; {dtype}; {library}")
}

fn table(cells: &[&Cell]) -> Table {
    let mut table = Table::new(&[
        "metric",
        "strategy",
        "policies",
        "KV bytes#",
        "of full#",
        "value#",
        "to full#",
        "x full#",
        "runs#",
        "range#",
        "notes",
    ]);
    for cell in cells {
        table.push(Some(Tags::new(&cell.conditions.model, &cell.setup)), fields(cell));
    }
    table.without_empty_columns()
}

fn fields(cell: &Cell) -> Vec<Field> {
    let delta = cell.delta;
    let tone = tone(cell);
    let to_full = delta.map_or_else(Field::default, |delta| {
        let text = signed(delta.difference, delta.stderr);
        Field { tone, ..Field::number(text, delta.difference) }
    });
    let ratio = delta.and_then(|delta| delta.ratio);
    let several = cell.runs > 1;
    vec![
        Field::text(&cell.metric),
        Field::text(cell.setup.strategy_name()),
        Field::text(cell.setup.policy_name()),
        Field::number(bytes(cell.kv_bytes), cell.kv_bytes),
        cell.share().map_or_else(Field::default, |share| Field::number(percent(share), share)),
        Field::number(with_error(cell.value, cell.stderr), cell.value),
        to_full,
        ratio.map_or_else(Field::default, |ratio| Field { tone, ..Field::number(format!("{ratio:.3}"), ratio) }),
        if several { Field::count(cell.runs) } else { Field::default() },
        match cell.range.filter(|(low, high)| several && low < high) {
            Some((low, high)) => Field::number(format!("{} to {}", short(low), short(high)), high - low),
            None => Field::default(),
        },
        Field::text(cell.notes.join("; ")),
    ]
}

/// Whether the difference is beyond its standard error, and where it goes.
fn tone(cell: &Cell) -> Option<&'static str> {
    let (delta, greater) = (cell.delta?, greater_is_better(&cell.metric)?);
    if delta.difference.abs() <= delta.stderr.unwrap_or(0.0) {
        return None;
    }
    Some(if (delta.difference > 0.0) == greater { "better" } else { "worse" })
}

/// Quality against bytes; nothing to draw where all setups take as many.
fn plot(metric: &str, cells: &[&Cell], filters: &Filters) -> Result<Option<Plot>, ReportError> {
    let Some(greater) = greater_is_better(metric) else { return Ok(None) };
    if cells.iter().all(|cell| cell.kv_bytes == cells[0].kv_bytes) {
        return Ok(None);
    }
    let (size, unit) = unit(cells.iter().map(|cell| cell.kv_bytes).fold(0.0, f64::max));
    let worth = |cell: &Cell| if greater { cell.value } else { -cell.value };
    let on_front = front(&cells.iter().map(|cell| (cell.kv_bytes, worth(cell))).collect::<Vec<_>>());
    let values = cells.iter().map(|cell| cell.value);
    let mut table = Table::new(&["strategy", "policies", "KV bytes#", &format!("{metric}#"), "on the front"]);
    let by_strategy = cells.iter().map(|cell| cell.setup.strategy_name()).collect::<BTreeSet<_>>().len() > 1;
    let mut series: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    for (index, cell) in cells.iter().enumerate() {
        let tags = Some(Tags::new(&cell.conditions.model, &cell.setup));
        let (strategy, policy) = (cell.setup.strategy_name(), cell.setup.policy_name());
        let value = with_error(cell.value, cell.stderr);
        let of_full = cell.share().map_or(String::new(), |share| format!(" ({})", percent(share)));
        let title = format!("{}: {value} at {}{of_full}", cell.setup.label(), bytes(cell.kv_bytes));
        let range = cell.stderr.map(|stderr| (cell.value - stderr, cell.value + stderr));
        let name = if by_strategy { strategy.to_owned() } else { policy.clone() };
        let point = Point { x: cell.kv_bytes / size, y: cell.value, range, hollow: false, title, tags: tags.clone() };
        series.entry(name).or_default().push(point);
        let is_on = on_front.contains(&index);
        let fields = vec![
            Field::text(strategy),
            Field::text(policy),
            Field::number(bytes(cell.kv_bytes), cell.kv_bytes),
            Field::number(value, cell.value),
            Field::text(if is_on { "yes" } else { "" }),
        ];
        table.push(tags, fields);
    }
    let y = Axis::new(metric, tick).log_if(values, 8.0);
    let direction = if greater { "greater" } else { "smaller" };
    let about = format!(
        "{direction} is better{}; bars are one standard error, the grey line joins what nothing beats in both (Pareto front)",
        if y.log { ", logarithmic" } else { "" }
    );
    let series = series.into_iter().map(|(name, points)| Series { name, joined: false, points }).collect();
    let front = on_front.iter().map(|&index| (cells[index].kv_bytes / size, cells[index].value)).collect();
    let x = Axis { zero: true, ..Axis::new(format!("KV cache, {unit}"), tick) };
    let chart = Chart::new(x, y, series, front);
    let (svg, legend) = (chart.svg(filters)?, chart.legend());
    Ok(Some(Plot { title: format!("{metric} against KV bytes"), about, svg, legend, table }))
}
