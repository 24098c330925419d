//! Speed: one section for all timings of a model on a device.

use super::filters::Filters;
use super::number::{bytes, percent, short, tick};
use super::plot::{Axis, Chart, Plot, Point, Series};
use super::quality::setting;
use super::row::Measure;
use super::table::{Field, Table, Tags};
use super::{Cell, Conditions, ReportError, Section, Setup};
use std::collections::BTreeMap;

/// Conditions without lengths, and threads.
type Place<'a> = (Conditions, usize);

/// Batch, prompt and generated tokens.
type Lengths = (usize, usize, usize);

/// Metrics of one timing by name.
type Timing<'a> = BTreeMap<&'a str, &'a Cell>;

pub(super) fn sections(cells: &[Cell], filters: &Filters) -> Result<Vec<Section>, ReportError> {
    let mut groups: BTreeMap<Place<'_>, BTreeMap<(Lengths, bool, &Setup), Timing<'_>>> = BTreeMap::new();
    for cell in cells {
        let Measure::Bench { batch, prompt, generated, threads } = cell.conditions.measure else { continue };
        let measure = Measure::Bench { batch: 0, prompt: 0, generated: 0, threads };
        let place = (Conditions { measure, ..cell.conditions.clone() }, threads);
        let setup = ((batch, prompt, generated), !cell.setup.is_full(), &cell.setup);
        groups.entry(place).or_default().entry(setup).or_default().insert(&cell.metric, cell);
    }
    let section = |((conditions, threads), timings): (Place<'_>, BTreeMap<(Lengths, bool, &Setup), Timing<'_>>)| {
        let mut shapes: BTreeMap<(usize, usize), Vec<&Cell>> = BTreeMap::new();
        for ((lengths, ..), timing) in &timings {
            if let Some(cell) = timing.get("tokens_per_second") {
                shapes.entry((lengths.1, lengths.2)).or_default().push(cell);
            }
        }
        let plots = shapes.into_iter().map(|(shape, cells)| plot(shape, &cells, filters));
        Ok(Section {
            title: format!("Speed, {} on {}", conditions.model, conditions.device),
            about: vec![
                format!("{}; {threads} threads", setting(&conditions)),
                "Medians, with the least and greatest of the repeats (of several runs, of their medians).".into(),
            ],
            plots: plots.collect::<Result<_, _>>()?,
            table: table(&timings),
        })
    };
    groups.into_iter().map(section).collect()
}

fn table(timings: &BTreeMap<(Lengths, bool, &Setup), Timing<'_>>) -> Table {
    let mut table = Table::new(&[
        "batch#",
        "prompt#",
        "new#",
        "strategy",
        "policies",
        "KV bytes#",
        "of full#",
        "prefill ms#",
        "ms a step#",
        "tokens/s#",
        "x full#",
        "with prefill#",
        "in use#",
        "peak RSS so far#",
        "runs#",
    ]);
    for (((batch, prompt, generated), _, setup), timing) in timings {
        let Some(any) = timing.values().next() else { continue };
        let spread = |metric: &str| match timing.get(metric) {
            Some(cell) => {
                let range = cell.range.filter(|(low, high)| low < high);
                let range = range.map_or(String::new(), |(low, high)| format!(" ({} to {})", short(low), short(high)));
                Field::number(format!("{}{range}", short(cell.value)), cell.value)
            }
            None => Field::default(),
        };
        let size = |metric: &str| {
            timing.get(metric).map_or_else(Field::default, |cell| Field::number(bytes(cell.value), cell.value))
        };
        let ratio = timing.get("tokens_per_second").and_then(|cell| cell.delta?.ratio);
        let fields = vec![
            Field::count(*batch),
            Field::count(*prompt),
            Field::count(*generated),
            Field::text(setup.strategy_name()),
            Field::text(setup.policy_name()),
            Field::number(bytes(any.kv_bytes), any.kv_bytes),
            any.share().map_or_else(Field::default, |share| Field::number(percent(share), share)),
            spread("prefill_ms"),
            spread("decode_ms_per_step"),
            spread("tokens_per_second"),
            ratio.map_or_else(Field::default, |ratio| Field::number(format!("{ratio:.3}"), ratio)),
            spread("tokens_per_second_with_prefill"),
            size("bytes_in_use"),
            size("peak_rss_so_far"),
            if any.runs > 1 { Field::count(any.runs) } else { Field::default() },
        ];
        table.push(Some(Tags::new(&any.conditions.model, setup)), fields);
    }
    table.without_empty_columns()
}

/// Tokens a second against batch.
fn plot((prompt, generated): (usize, usize), cells: &[&Cell], filters: &Filters) -> Result<Plot, ReportError> {
    let mut table = Table::new(&["strategy", "policies", "batch#", "tokens/s#", "least#", "greatest#"]);
    let mut series: BTreeMap<&Setup, Series> = BTreeMap::new();
    let batch = |cell: &Cell| match cell.conditions.measure {
        Measure::Bench { batch, .. } => batch,
        Measure::Task(_) => 0,
    };
    for cell in cells {
        let tags = Some(Tags::new(&cell.conditions.model, &cell.setup));
        let (strategy, policy) = (cell.setup.strategy_name(), cell.setup.policy_name());
        let (low, high) = cell.range.unwrap_or((cell.value, cell.value));
        let title = format!("{}: {} tokens/s at batch {}", cell.setup.label(), short(cell.value), batch(cell));
        let own = series.entry(&cell.setup).or_default();
        (own.name, own.joined) = (cell.setup.label(), true);
        let (x, y) = (batch(cell) as f64, cell.value);
        own.points.push(Point { x, y, range: Some((low, high)), hollow: false, title, tags: tags.clone() });
        let number = |value: f64| Field::number(short(value), value);
        let fields = vec![
            Field::text(strategy),
            Field::text(policy),
            Field::count(batch(cell)),
            number(y),
            number(low),
            number(high),
        ];
        table.push(tags, fields);
    }
    let whole = |batch: f64| if (batch - batch.round()).abs() < 1e-6 { format!("{batch:.0}") } else { String::new() };
    let x = Axis::new("batch", whole).log_if(cells.iter().map(|cell| batch(cell) as f64), 3.0);
    let y = Axis { zero: true, ..Axis::new("tokens/s", tick) };
    let chart = Chart::new(x, y, series.into_values().collect(), Vec::new());
    Ok(Plot {
        title: format!("Tokens/s against batch, {prompt} + {generated} tokens"),
        about: "tokens generated a second by all sequences, decoding alone; bars from least to greatest".into(),
        svg: chart.svg(filters)?,
        legend: chart.legend(),
        table,
    })
}
