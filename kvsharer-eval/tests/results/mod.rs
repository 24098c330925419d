//! Result files of the tests of `report`.
// Every test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

use serde_json::{Value, json};

/// A line of `kvsharer run` for perplexity: the full cache unless `strategy` names another.
pub(crate) fn record(cell: usize, seed: u64, strategy: &str, policy: &str, value: f64) -> Value {
    let shared = strategy != "full";
    let policies = match (shared, policy) {
        (true, "none") => vec!["sharing:1=0"],
        (true, policy) => vec!["sharing:1=0", policy],
        (false, "none") => vec!["full"],
        (false, policy) => vec![policy],
    };
    let strategy_record = if shared { json!({ "key_map": { "1": 0 }, "reached": 1 }) } else { Value::Null };
    let bytes = 1000 - if shared { 250 } else { 0 } - if policy == "none" { 0 } else { 500 };
    json!({
        "experiment": "made", "experiment_hash": "e0", "cell": cell, "cells": 100, "library": "kvsharer 0.1.0",
        "model": "tiny", "model_hash": "m0", "seed": seed, "strategy": strategy, "strategy_record": strategy_record,
        "stack": policy, "policies": policies, "spec": null,
        "result": {
            "task": "perplexity", "protocol": "windows", "limit": null, "items": 4, "tokens": 100, "truncated": 0,
            "metrics": { "perplexity": { "value": value, "stderr": 3.0 }, "nll": { "value": value.ln(), "stderr": 0.1 } },
            "text_hash": "t0", "window": 512, "chunk": 0, "prefill": 0, "batch": 1, "sees_evictions": true,
        },
        "plan_bytes": bytes, "full_bytes": 1000, "device": "cpu", "dtype": "f32", "threads": 2, "seconds": 1.0,
        "finished": 0, "a field of later versions": [1, 2],
    })
}

/// JSON lines.
pub(crate) fn lines(values: &[Value]) -> String {
    values.iter().map(|value| format!("{value}\n")).collect()
}

/// 2,000 results of one experiment: 5 models x 20 strategies x 5 stacks x 4 texts.
pub(crate) fn many() -> String {
    let mut records = Vec::new();
    for model in 0..5 {
        for text in 0..4 {
            for strategy in 0..20 {
                for stack in 0..5 {
                    let (at, name) = (records.len(), format!("strategy {strategy}"));
                    let policy = format!("h2o:heavy={0},recent={0}", 32 << stack);
                    let strategy = if strategy == 0 { "full" } else { &name };
                    let policy = if stack == 0 { "none" } else { &policy };
                    let mut record = record(at, 0, strategy, policy, 20.0 + (at * 7919 % 1000) as f64 / 10.0);
                    record["model"] = format!("model-{model}").into();
                    record["model_hash"] = format!("hash {model}").into();
                    record["result"]["text_hash"] = format!("text {text}").into();
                    record["plan_bytes"] = (200 + at * 31 % 800).into();
                    records.push(record);
                }
            }
        }
    }
    lines(&records)
}
