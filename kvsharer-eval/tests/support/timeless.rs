//! Results without what a clock told.
// Every test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// JSON without times and speeds.
pub(crate) fn json(mut value: Value) -> Value {
    strip(&mut value);
    value
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // What fitted maps are called depends on what was there before.
            let told = |key: &str| {
                ["finished", "threads", "adapter_file"].contains(&key)
                    || key.contains("seconds")
                    || key.contains("per_second")
            };
            fields.retain(|key, _| !told(key));
            fields.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}

/// All files under `folder`, those of JSON and of JSON lines without times and speeds.
pub(crate) fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let stripped = |text: &[u8]| serde_json::from_slice(text).map(|value| json(value).to_string()).ok();
    let lines = |text: &[u8]| {
        let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        lines.map(stripped).collect::<Option<Vec<String>>>().map(|lines| lines.join("\n"))
    };
    let mut found = super::files(folder);
    for (name, content) in &mut found {
        if name.extension() == Some("seconds".as_ref()) {
            content.clear();
        } else if let Some(text) = stripped(content).or_else(|| lines(content)) {
            *content = text.into();
        }
    }
    found
}
