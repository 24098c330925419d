//! What differs between two strategies.

use super::{load, plain};
use crate::cli::Global;
use crate::cli::error::CliError;
use crate::cli::output::{emit, emit_json, table};
use crate::cli::search::{parted, parted_json};
use kvsharer_core::{LayerId, Strategy};
use kvsharer_eval::Share;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A thing that differs: its name, and what it is here and there.
struct Difference {
    what: String,
    values: [Value; 2],
}

pub(super) fn run(paths: [&PathBuf; 2], at: Option<Share>, global: &Global) -> Result<(), CliError> {
    let [a, b] = [load(paths[0], at)?, load(paths[1], at)?];
    let parts = a.parts_from(&b);
    let differences = differences(&a, &b);
    let same = differences.is_empty() && parts.is_none();
    if global.json {
        let rows =
            differences.iter().map(|Difference { what, values: [a, b] }| json!({ "what": what, "a": a, "b": b }));
        return emit_json(&json!({
            "a": paths[0], "b": paths[1], "same": same, "differences": rows.collect::<Vec<_>>(),
            "trials": parted_json(parts),
        }));
    }
    if same {
        return emit("the strategies are the same\n");
    }
    let name = |path: &PathBuf| path.display().to_string();
    let text = |value: &Value| match value.as_str() {
        // A hash is known by its start.
        Some(hash) if hash.len() == 64 => format!("{hash:.12}…"),
        _ if value.is_null() => "-".into(),
        _ => plain(value),
    };
    let rows =
        differences.iter().map(|Difference { what, values }| vec![what.clone(), text(&values[0]), text(&values[1])]);
    let rows: Vec<Vec<String>> = rows.collect();
    let table =
        if rows.is_empty() { String::new() } else { table(&["", &name(paths[0]), &name(paths[1])], &rows, true) };
    emit(&format!("{table}{}", parted(parts)))
}

/// Settings and maps that are not the same.
fn differences(a: &Strategy, b: &Strategy) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut compare = |what: String, values: [Value; 2]| {
        if values[0] != values[1] {
            found.push(Difference { what, values });
        }
    };
    // Fields as the file has them, so that none is left out here.
    for (part, of) in [
        ("model", (|strategy| json!(strategy.model)) as fn(&Strategy) -> Value),
        ("search", |strategy| json!(strategy.search)),
        ("calibration", |strategy| json!(strategy.calibration)),
    ] {
        let values = [of(a), of(b)];
        let fields: BTreeSet<&String> = values.iter().filter_map(Value::as_object).flat_map(|x| x.keys()).collect();
        for field in fields {
            compare(format!("{part}: {field}"), [values[0][field].clone(), values[1][field].clone()]);
        }
    }
    compare("saved".into(), [json!(a.saved), json!(b.saved)]);
    compare("reached".into(), [json!(a.reached), json!(b.reached)]);
    compare("requested".into(), [json!(a.requested), json!(b.requested)]);
    compare("without attention".into(), [json!(a.dropped), json!(b.dropped)]);
    compare("written by".into(), [json!(a.library), json!(b.library)]);
    let layers = |maps: [&BTreeMap<LayerId, LayerId>; 2]| -> BTreeSet<LayerId> {
        maps.into_iter().flat_map(|map| map.keys().copied()).collect()
    };
    for (kind, maps) in [("keys", [&a.key_map, &b.key_map]), ("values", [&a.value_map, &b.value_map])] {
        for layer in layers(maps) {
            compare(format!("{kind} of layer {layer}: read from"), maps.map(|map| json!(map.get(&layer))));
        }
    }
    let fitted = |strategy: &Strategy| json!(strategy.adapters.keys().collect::<Vec<_>>());
    compare("layers with fitted maps".into(), [fitted(a), fitted(b)]);
    let hash = |strategy: &Strategy| json!(strategy.adapter_file.as_ref().map(|file| &file.sha256));
    compare("file of fitted maps".into(), [hash(a), hash(b)]);
    found
}
