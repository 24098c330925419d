//! The cases of `fixtures/task_prompts.json` and `fixtures/task_smollm2.json`.
// Every test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

use kvsharer_eval::tasks::{Entry, Protocol, TaskFiles, find_task};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

pub(crate) fn prompts() -> Value {
    golden("task_prompts.json")
}

pub(crate) fn scores() -> Value {
    golden("task_smollm2.json")
}

pub(crate) fn cases(golden: &Value) -> impl Iterator<Item = &Value> {
    golden["cases"].as_array().unwrap().iter()
}

/// The task of a case; the reference has one name for RACE's two levels.
pub(crate) fn entry(case: &Value) -> &'static Entry {
    let name = match (case["task"].as_str().unwrap(), case["protocol"].as_str().unwrap()) {
        ("race", "opencompass") => case["path"].as_str().unwrap().replace('/', "-"),
        (name, _) => name.into(),
    };
    find_task(&name).unwrap_or_else(|| panic!("no task {name}"))
}

pub(crate) fn protocol(case: &Value) -> Protocol {
    match case["protocol"].as_str().unwrap() {
        "lm-eval" => Protocol::LmEval,
        _ => Protocol::OpenCompass,
    }
}

pub(crate) fn files(case: &Value) -> TaskFiles {
    let path = |key: &str| case[key].as_str().map(|path| fixture("tasks").join(path));
    TaskFiles {
        dev: path("dev"),
        shots: Some(case["shots"].as_u64().unwrap() as usize),
        ..TaskFiles::new(path("path").unwrap())
    }
}
