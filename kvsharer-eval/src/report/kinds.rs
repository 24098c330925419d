//! The rows in one JSON document of each kind that this project writes.

use super::row::{Conditions, Measure, Row, Setup, StrategyId, TaskRules};
use super::{Conformance, Memory};
use crate::experiment::{BenchRow, Record};
use crate::{Results, Spread, TaskResult};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// What a document holds.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) rows: Vec<Row>,
    pub(super) memory: Vec<Memory>,
    pub(super) conformance: Vec<Conformance>,
}

/// Reads a document that is no strategy file; the error says what is wrong with it.
pub(super) fn content(value: Value, place: &str) -> Result<Content, String> {
    let has = |field: &str| value.get(field).is_some();
    match &value {
        Value::Object(_) if has("experiment_hash") => record(from(value, "a line of `kvsharer run`")?, place),
        Value::Object(_) if has("results") => Ok(results(from(value, "a result of `kvsharer eval`")?, place)),
        Value::Object(_) if has("conformance") => {
            #[derive(Deserialize)]
            struct Listed {
                conformance: Vec<Conformance>,
            }
            let Listed { conformance } = from(value, "a result of `kvsharer conformance`")?;
            Ok(Content { conformance, ..Content::default() })
        }
        Value::Object(_) if has("plan_bytes") && has("tokens") => {
            let plan: Planned = from(value, "a result of `kvsharer plan`")?;
            let strategy = plan.strategy.map(|path| of_file(&path, plan.strategy_hash, &plan.policies));
            let memory = Memory {
                model: plan.model,
                model_hash: plan.model_hash,
                dtype: plan.dtype,
                library: plan.library,
                batch: plan.batch,
                tokens: plan.tokens,
                setup: Setup::new(&plan.policies, strategy),
                bytes: plan.plan_bytes,
            };
            Ok(Content { memory: vec![memory], ..Content::default() })
        }
        Value::Array(rows) if rows.first().is_some_and(|row| row.get("tokens_per_second").is_some()) => {
            let rows: Vec<Timed> = from(value, "rows of `kvsharer bench`")?;
            Ok(Content { rows: rows.into_iter().flat_map(|row| timed(row, place)).collect(), ..Content::default() })
        }
        _ => Err("no result of kvsharer (run, eval, bench, plan, conformance or search)".into()),
    }
}

fn from<T: for<'de> Deserialize<'de>>(value: Value, what: &str) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("broken as {what}: {error}"))
}

/// What `plan --json` prints, as far as it is used.
#[derive(Deserialize)]
struct Planned {
    model: String,
    #[serde(default)]
    model_hash: Option<String>,
    dtype: String,
    #[serde(default)]
    library: Option<String>,
    batch: usize,
    tokens: usize,
    #[serde(default)]
    strategy: Option<String>,
    #[serde(default)]
    strategy_hash: Option<String>,
    policies: Vec<String>,
    plan_bytes: u64,
}

/// A row of `bench --json`.
#[derive(Deserialize)]
struct Timed {
    #[serde(flatten)]
    row: BenchRow,
    model: String,
    #[serde(default)]
    model_hash: Option<String>,
    strategy: Option<String>,
    #[serde(default)]
    strategy_hash: Option<String>,
    policies: Vec<String>,
    device: String,
    dtype: String,
    threads: usize,
    library: String,
}

fn record(record: Record, place: &str) -> Result<Content, String> {
    let base = Conditions {
        model: record.model,
        model_hash: Some(record.model_hash),
        measure: Measure::Bench { batch: 0, prompt: 0, generated: 0, threads: record.threads },
        device: record.device,
        dtype: record.dtype,
        library: record.library,
    };
    // Seeds may find different maps: the experiment's name for the strategy is what they have in common.
    let strategy = (!record.strategy_record.is_null())
        .then(|| StrategyId { name: record.strategy, id: format!("experiment {}", record.experiment_hash) });
    let setup = Setup::new(&record.policies, strategy);
    let (seed, full) = (Some(record.seed), Some(record.full_bytes as u64));
    let rows = if record.result.is_array() {
        let rows: Vec<BenchRow> = from(record.result, "a bench of `kvsharer run`")?;
        rows.into_iter().flat_map(|row| bench(row, &base, &setup, seed, place)).collect()
    } else {
        let result: TaskResult = from(record.result, "a task of `kvsharer run`")?;
        task(result, &base, &setup, (seed, record.plan_bytes as u64, full), place)
    };
    Ok(Content { rows, ..Content::default() })
}

fn results(results: Results, place: &str) -> Content {
    let Results { model, model_hash, strategy, strategy_hash, policies, plan_bytes, device, dtype, library, .. } =
        results;
    let measure = Measure::Bench { batch: 0, prompt: 0, generated: 0, threads: 0 };
    let base = Conditions { model, model_hash: Some(model_hash), measure, device, dtype, library };
    let setup = Setup::new(&policies, strategy.map(|path| of_file(&path, strategy_hash, &policies)));
    let rows = results.results.into_iter();
    let rows = rows.flat_map(|result| task(result, &base, &setup, (None, plan_bytes as u64, None), place)).collect();
    Content { rows, ..Content::default() }
}

fn timed(timed: Timed, place: &str) -> Vec<Row> {
    let Timed { row, model, model_hash, strategy, strategy_hash, policies, device, dtype, threads, library } = timed;
    let measure = Measure::Bench { batch: 0, prompt: 0, generated: 0, threads };
    let base = Conditions { model, model_hash, measure, device, dtype, library };
    let setup = Setup::new(&policies, strategy.map(|path| of_file(&path, strategy_hash, &policies)));
    bench(row, &base, &setup, None, place)
}

/// A strategy by its file. One file holds several maps (`--at`), so that the map itself counts too.
fn of_file(path: &str, hash: Option<String>, policies: &[String]) -> StrategyId {
    let name = Path::new(path).file_name().map_or(path.into(), |name| name.to_string_lossy().into_owned());
    let map = policies.iter().find(|name| name.starts_with("sharing:")).map_or("", String::as_str);
    StrategyId { name, id: format!("{} {map}", hash.unwrap_or_else(|| path.into())) }
}

fn task(
    result: TaskResult,
    base: &Conditions,
    setup: &Setup,
    (seed, kv_bytes, full_bytes): (Option<u64>, u64, Option<u64>),
    place: &str,
) -> Vec<Row> {
    let benchmark = result.benchmark.as_ref();
    let rules = TaskRules {
        task: result.task.clone(),
        protocol: result.protocol.clone(),
        source: benchmark.map(|benchmark| benchmark.source.clone()),
        text_hash: result.text_hash.clone(),
        items: result.items,
        limit: result.limit,
        without: benchmark.map_or([0, 0], |benchmark| [benchmark.skipped, benchmark.left_out]),
        shots: benchmark.map(|benchmark| benchmark.shots),
        max_length: benchmark.map(|benchmark| benchmark.max_length),
        window: result.window,
        chunk: result.chunk,
        prefill: result.prefill,
    };
    let mut notes = Vec::new();
    if !result.sees_evictions {
        notes.push("does not see what is evicted".to_owned());
    }
    if result.truncated > 0 {
        notes.push(format!("{} items cut", result.truncated));
    }
    let conditions = Conditions { measure: Measure::Task(rules), ..base.clone() };
    let row = |(metric, number): (String, crate::Metric)| Row {
        conditions: conditions.clone(),
        setup: setup.clone(),
        metric,
        seed,
        value: number.value,
        stderr: number.stderr,
        range: None,
        kv_bytes,
        full_bytes,
        notes: notes.clone(),
        place: place.into(),
    };
    result.metrics.into_iter().map(row).collect()
}

fn bench(row: BenchRow, base: &Conditions, setup: &Setup, seed: Option<u64>, place: &str) -> Vec<Row> {
    let threads = match base.measure {
        Measure::Bench { threads, .. } => threads,
        Measure::Task(_) => 0,
    };
    let measure = Measure::Bench { batch: row.batch, prompt: row.prompt, generated: row.generated, threads };
    let told = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64).map(|bytes| Spread::of(vec![bytes]));
    let numbers = [
        ("prefill_ms", Some(row.prefill_ms)),
        ("decode_ms_per_step", Some(row.decode_ms_per_step)),
        ("tokens_per_second", Some(row.tokens_per_second)),
        ("tokens_per_second_with_prefill", Some(row.tokens_per_second_with_prefill)),
        ("bytes_in_use", told(row.bytes_in_use)),
        ("bytes_reserved", told(row.bytes_reserved)),
        // Of the process so far, with whatever ran in it before.
        ("peak_rss_so_far", told(row.peak_rss)),
    ];
    let row = |(metric, spread): (&str, Option<Spread>)| {
        let Spread { median, min, max } = spread?;
        Some(Row {
            conditions: Conditions { measure: measure.clone(), ..base.clone() },
            setup: setup.clone(),
            metric: metric.into(),
            seed,
            value: median,
            stderr: None,
            range: Some((min, max)),
            kv_bytes: row.kv_bytes_plan as u64,
            full_bytes: None,
            notes: Vec::new(),
            place: place.into(),
        })
    };
    numbers.into_iter().filter_map(row).collect()
}
