//! Memory: KV bytes against length, of benches and plans.

use super::filters::Filters;
use super::number::{bytes, hash as short_hash, percent, tick, unit};
use super::plot::{Axis, Chart, Plot, Point, Series};
use super::row::Measure;
use super::table::{Field, Table, Tags};
use super::{Cell, Conditions, Memory, ReportError, Results, Section, Setup};
use std::collections::{BTreeMap, BTreeSet};

/// What plans that are compared have in common: model, its hash, dtype, library, batch.
type Group = (String, Option<String>, String, Option<String>, usize);

/// Bytes by setup, the full cache first, and tokens.
type Sizes = BTreeMap<(bool, Setup), BTreeMap<usize, u64>>;

pub(super) fn sections(results: &Results, cells: &[Cell], filters: &Filters) -> Result<Vec<Section>, ReportError> {
    let of_bench = cells.iter().filter(|cell| cell.metric == "tokens_per_second").filter_map(|cell| {
        let Measure::Bench { batch, prompt, generated, .. } = cell.conditions.measure else { return None };
        let Conditions { model, model_hash, dtype, library, .. } = cell.conditions.clone();
        let (setup, tokens, bytes) = (cell.setup.clone(), prompt + generated, cell.kv_bytes as u64);
        Some(Memory { model, model_hash, dtype, library: Some(library), batch, tokens, setup, bytes })
    });
    let mut groups: BTreeMap<Group, Sizes> = BTreeMap::new();
    for memory in results.memory.iter().cloned().chain(of_bench) {
        let Memory { model, model_hash, dtype, library, batch, tokens, setup, bytes } = memory;
        let sizes = groups.entry((model, model_hash, dtype, library, batch)).or_default();
        sizes.entry((!setup.is_full(), setup)).or_default().insert(tokens, bytes);
    }
    // One length alone is in the table of speeds.
    let lengths = |sizes: &Sizes| sizes.values().flat_map(|sizes| sizes.keys()).collect::<BTreeSet<_>>().len();
    let planned = |group: &Group| {
        let (model, _, dtype, _, batch) = group;
        results.memory.iter().any(|own| own.model == *model && own.dtype == *dtype && own.batch == *batch)
    };
    groups.retain(|group, sizes| lengths(sizes) > 1 || planned(group));
    groups.into_iter().map(|(group, sizes)| section(&group, &sizes, filters)).collect()
}

fn section(
    (model, hash, dtype, library, batch): &Group,
    sizes: &Sizes,
    filters: &Filters,
) -> Result<Section, ReportError> {
    let full = sizes.iter().find(|((shared, _), _)| !shared).map(|(_, sizes)| sizes);
    let mut table = Table::new(&["tokens#", "strategy", "policies", "KV bytes#", "of full#"]);
    let values = sizes.values().flat_map(|sizes| sizes.values()).map(|&size| size as f64);
    let (unit_bytes, unit_name) = unit(values.clone().fold(0.0, f64::max));
    let mut series = Vec::new();
    for ((_, setup), by_tokens) in sizes {
        let (strategy, policy) = (setup.strategy_name(), setup.policy_name());
        let tags = Some(Tags::new(model, setup));
        let mut points = Vec::new();
        for (&tokens, &size) in by_tokens {
            let of_full = full.and_then(|full| full.get(&tokens)).map(|&full| size as f64 / full as f64);
            let fields = vec![
                Field::count(tokens),
                Field::text(strategy),
                Field::text(&policy),
                Field::number(bytes(size as f64), size as f64),
                of_full.map_or_else(Field::default, |part| Field::number(percent(part), part)),
            ];
            table.push(tags.clone(), fields);
            let title = format!("{}: {} at {tokens} tokens", setup.label(), bytes(size as f64));
            let (x, y) = (tokens as f64, size as f64 / unit_bytes);
            points.push(Point { x, y, range: None, hollow: false, title, tags: tags.clone() });
        }
        series.push(Series { name: setup.label(), joined: true, points });
    }
    let table = table.without_empty_columns();
    let lengths = sizes.values().flat_map(|sizes| sizes.keys()).map(|&tokens| tokens as f64);
    let x = Axis::new("tokens", |tokens| format!("{tokens:.0}")).log_if(lengths, 16.0);
    let y = Axis::new(format!("KV cache, {unit_name}"), tick);
    let y = if x.log { y.log_if(values, 16.0) } else { y };
    let chart = Chart::new(x, Axis { zero: true, ..y }, series, Vec::new());
    let (svg, legend) = (chart.svg(filters)?, chart.legend());
    let title = "KV bytes against length".to_owned();
    let about = "exact bytes of the plan; tokens are those of the prompt and after it".to_owned();
    let weights = hash.as_ref().map_or(String::new(), |hash| format!(" (weights {})", short_hash(hash)));
    Ok(Section {
        title: format!("Memory, {model}, {dtype}, batch {batch}"),
        about: vec![format!(
            "Bytes of keys and values by plan, known before anything runs; {model}{weights}; {dtype}; {}",
            library.as_deref().unwrap_or("version not told")
        )],
        plots: vec![Plot { title, about, svg, legend, table: table.clone() }],
        table,
    })
}
