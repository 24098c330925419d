//! Strategy files from elsewhere: refused with the reason, or resolved to the same bytes.

mod support;

use serde_json::{Value, json};
use std::path::Path;
use support::{Run, folder, run, strategy, tiny, write};

fn plan(folder: &Path, model: &str, strategy: &str, more: &[&str]) -> Run {
    run(folder, &[&["plan", "-m", model, "--strategy", strategy], more].concat())
}

/// A good strategy of `random:tiny`, which has four layers, with `map` for keys and values.
///
/// Random weights have no tokenizer, so nothing can be searched on them: the fingerprint's hash is taken from the
/// program's refusal of a wrong one.
fn random_tiny(folder: &Path, keys: &Value, values: &Value) -> String {
    let mut strategy: Value = serde_json::from_slice(&std::fs::read(strategy(folder)).expect("a file")).expect("JSON");
    let fingerprint =
        json!({ "architecture": "llama", "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 16, "hash": "0" });
    (strategy["model"], strategy["key_map"], strategy["value_map"]) = (fingerprint, json!({}), json!({}));
    let path = write(folder, "probe.json", strategy.to_string());
    let refused = plan(folder, "random:tiny", &path, &[]).fails(1, "weight hash is 0, the loaded model's is ");
    let hash =
        refused.stderr.split("the loaded model's is ").nth(1).expect("a hash").split(';').next().expect("a hash");
    strategy["model"]["hash"] = hash.into();
    (strategy["key_map"], strategy["value_map"]) = (keys.clone(), values.clone());
    write(folder, "random.json", strategy.to_string())
}

#[test]
fn a_strategy_of_another_model_is_refused_with_what_differs() {
    let work = folder();
    let path = strategy(work.path());
    plan(work.path(), &tiny(), &path, &[]).succeeds();
    plan(work.path(), "random:tiny", &path, &["--json"]).fails(1, "number of layers is 2, the loaded model's is 4");
    let good: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    for (field, value, expected) in [
        ("architecture", json!("mamba"), "architecture is mamba, the loaded model's is llama"),
        ("heads", json!(8), "number of heads is 8, the loaded model's is 4"),
        ("kv_heads", json!(4), "number of key-value heads is 4, the loaded model's is 2"),
        ("head_dim", json!(16), "head dimension is 16, the loaded model's is 8"),
        ("hash", json!("abc"), "weight hash is abc"),
    ] {
        let mut other = good.clone();
        other["model"][field] = value;
        let path = write(work.path(), "other.json", other.to_string());
        plan(work.path(), &tiny(), &path, &[]).fails(1, expected);
    }
    let task = format!("perplexity={}", write(work.path(), "text.txt", support::TEXT));
    let other = write(work.path(), "other.json", good.to_string().replace("\"head_dim\":8", "\"head_dim\":9"));
    for command in [&["eval", "--task", &task][..], &["generate", "-p", "a"]] {
        run(work.path(), &[command, &["-m", &tiny(), "--strategy", &other]].concat())
            .fails(1, "search again on this model");
    }
}

#[test]
fn the_seed_is_part_of_a_random_model() {
    let work = folder();
    let path = random_tiny(work.path(), &json!({ "2": 0 }), &json!({ "2": 0 }));
    plan(work.path(), "random:tiny", &path, &[]).succeeds();
    plan(work.path(), "random:tiny", &path, &["--seed", "1"]).fails(1, "weight hash");
}

#[test]
fn files_that_are_no_strategy_are_refused() {
    let work = folder();
    let good = String::from_utf8(std::fs::read(strategy(work.path())).expect("a file")).expect("UTF-8");
    let without = |field: &str| {
        let mut strategy: Value = serde_json::from_str(&good).expect("JSON");
        strategy.as_object_mut().expect("an object").remove(field);
        strategy.to_string()
    };
    let rows = [
        (String::new(), "not a strategy file"),
        ("{".into(), "not a strategy file"),
        ("[]".into(), "not a strategy file"),
        ("null".into(), "not a strategy file"),
        ("{}".into(), "missing field `version`"),
        ("{\"version\": 1}".into(), "missing field `model`"),
        (
            "{\"version\": 2, \"unheard\": []}".into(),
            "strategy version 2 is not supported, this library reads version 1",
        ),
        ("{\"version\": 0}".into(), "strategy version 0 is not supported"),
        ("{\"version\": -1}".into(), "not a strategy file"),
        (good[..good.len() / 2].into(), "make one with `kvsharer search --output`"),
        (format!("{good}{good}"), "not a strategy file"),
        (good.replace("\"1\": 0", "\"one\": 0"), "not a strategy file"),
        (good.replace("\"1\": 0", "\"1\": -1"), "not a strategy file"),
        (good.replace("\"1\": 0", "\"1\": \"0\""), "not a strategy file"),
        (without("key_map"), "missing field `key_map`"),
        (without("trials"), "missing field `trials`"),
        (without("calibration"), "missing field `calibration`"),
        ("[".repeat(100_000), "not a strategy file"),
    ];
    for (content, expected) in rows {
        let path = write(work.path(), "broken.json", &content);
        plan(work.path(), &tiny(), &path, &[]).fails(1, expected);
    }
    write(work.path(), "broken.json", b"{\"version\": 1, \"model\": \"\xff\"}");
    plan(work.path(), &tiny(), "broken.json", &[]).fails(1, "broken.json: not a strategy file");
}

#[test]
fn a_missing_file_or_a_folder_is_no_strategy() {
    let work = folder();
    plan(work.path(), &tiny(), "missing.json", &["--json"]).fails(1, "missing.json: No such file");
    plan(work.path(), &tiny(), ".", &[]).fails(1, ".: Is a directory");
    plan(work.path(), &tiny(), "", &[]).fails(2, "--strategy");
}

#[test]
fn fields_of_a_later_version_are_ignored() {
    let work = folder();
    let path = strategy(work.path());
    let good = std::fs::read_to_string(&path).expect("a file");
    let more = write(work.path(), "more.json", good.replacen('{', "{\"comment\": \"by hand\",", 1));
    assert_eq!(
        plan(work.path(), &tiny(), &path, &[]).succeeds().stdout,
        plan(work.path(), &tiny(), &more, &[]).succeeds().stdout
    );
}

#[test]
fn impossible_maps_are_refused() {
    let work = folder();
    let none = json!({});
    for (map, expected) in [
        (json!({ "1": 1 }), "layer 1 cannot borrow"),
        (json!({ "1": 2 }), "a donor must come before its borrower"),
        (json!({ "1": 2, "2": 1 }), "a donor must come before its borrower"),
        (json!({ "0": 3, "3": 0 }), "layer 0 cannot borrow"),
        (json!({ "4": 0 }), "layer 4 does not exist: the model has layers 0 to 3"),
        (json!({ "4000000000": 0 }), "layer 4000000000 does not exist"),
        (json!({ "3": 4 }), "a donor must come before its borrower"),
    ] {
        for (keys, values, kind) in [(&map, &none, "key"), (&none, &map, "value")] {
            let path = random_tiny(work.path(), keys, values);
            let refused = plan(work.path(), "random:tiny", &path, &["--json"]).fails(1, expected);
            assert!(expected.contains("exist") || refused.stderr.contains(kind), "{}", refused.stderr);
        }
    }
}

#[test]
fn a_chain_in_a_map_written_by_hand_is_resolved_to_the_same_bytes() {
    let work = folder();
    let bytes = |map: Value| {
        let path = random_tiny(work.path(), &map, &map);
        let mut planned = plan(work.path(), "random:tiny", &path, &["--json"]).json();
        planned.as_object_mut().and_then(|plan| plan.remove("strategy_hash")).expect("two files");
        planned
    };
    let (chain, resolved) = (bytes(json!({ "1": 0, "2": 1, "3": 2 })), bytes(json!({ "1": 0, "2": 0, "3": 0 })));
    assert_eq!(chain, resolved);
    assert_eq!(chain["policies"], json!(["sharing:1=0,2=0,3=0"]));
    assert_eq!(chain["plan_bytes"].as_u64().map(|bytes| bytes * 4), chain["full_bytes"].as_u64());
}

#[test]
fn keys_and_values_may_be_shared_apart() {
    let work = folder();
    let path = random_tiny(work.path(), &json!({ "1": 0, "3": 2 }), &json!({ "2": 0 }));
    let plan = plan(work.path(), "random:tiny", &path, &["--json"]).json();
    assert_eq!((&plan["slots"], &plan["full_slots"]), (&5.into(), &8.into()));
    assert_eq!(plan["policies"], json!(["sharing:keys(1=0,3=2),values(2=0)"]));
}
