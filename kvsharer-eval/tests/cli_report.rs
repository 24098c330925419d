//! `report`: what may be compared, what is left out and named, and that names from files stay names.

mod results;
mod support;

use results::{lines, many, record};
use serde_json::{Value, json};
use std::path::Path;
use support::{Run, TEXT, files, folder, run, strategy, tiny, write};

fn report(folder: &Path, args: &[&str]) -> Run {
    run(folder, &[&["report"], args].concat())
}

/// The cells of perplexity that a file of records gives.
fn cells(records: &[Value]) -> Vec<Value> {
    let work = folder();
    write(work.path(), "r.jsonl", lines(records));
    let printed = report(work.path(), &["r.jsonl", "--json"]).json();
    let cells = printed["cells"].as_array().expect("a list").iter();
    cells.filter(|cell| cell["metric"] == "perplexity").cloned().collect()
}

#[test]
fn deltas_to_the_full_cache_are_those_computed_by_hand() {
    let cells = cells(&[record(0, 0, "full", "none", 20.0), record(1, 0, "paper", "none", 50.0)]);
    let [full, shared] = &cells[..] else { panic!("{cells:?}") };
    assert_eq!((&full["delta"], &full["runs"]), (&Value::Null, &1.into()));
    let delta = &shared["delta"];
    assert_eq!((&delta["full"], &delta["difference"], &delta["ratio"]), (&20.0.into(), &30.0.into(), &2.5.into()));
    // The square root of 3² + 3².
    assert!((delta["stderr"].as_f64().expect("a number") - 18.0_f64.sqrt()).abs() < 1e-12);
    assert_eq!((&shared["kv_bytes"], &shared["full_bytes"]), (&750.0.into(), &1000.0.into()));
}

#[test]
fn seeds_of_a_cell_are_summarised_and_what_stands_twice_counts_once() {
    let full = record(0, 0, "full", "none", 20.0);
    let seeds = [record(1, 0, "random", "none", 40.0), record(2, 1, "random", "none", 60.0)];
    let cells = cells(&[full.clone(), seeds[0].clone(), seeds[1].clone(), full, seeds[0].clone()]);
    let [full, random] = &cells[..] else { panic!("{cells:?}") };
    assert_eq!((&full["runs"], &random["runs"], &random["seeds"]), (&1.into(), &2.into(), &json!([0, 1])));
    assert_eq!((&random["value"], &random["range"]), (&50.0.into(), &json!([40.0, 60.0])));
    // The seeds share their text, so that two of them make its sampling error no smaller.
    assert_eq!(random["stderr"], 3.0);
}

#[test]
fn results_of_different_protocols_texts_windows_models_or_versions_stay_apart() {
    let changes: [fn(&mut Value); 10] = [
        |r| r["result"]["protocol"] = "other".into(),
        |r| r["result"]["text_hash"] = "t1".into(),
        |r| r["result"]["window"] = 1024.into(),
        |r| r["result"]["chunk"] = 64.into(),
        |r| r["result"]["items"] = 5.into(),
        |r| r["result"]["limit"] = 5.into(),
        |r| r["model_hash"] = "m1".into(),
        |r| r["library"] = "kvsharer 0.2.0".into(),
        |r| r["device"] = "cuda".into(),
        |r| r["dtype"] = "f16".into(),
    ];
    for change in changes {
        let mut other = record(2, 1, "paper", "none", 60.0);
        change(&mut other);
        let cells = cells(&[record(0, 0, "full", "none", 20.0), record(1, 0, "paper", "none", 40.0), other]);
        assert_eq!(cells.len(), 3, "{cells:?}");
        assert_eq!(cells.iter().filter(|cell| cell["delta"].is_object()).count(), 1, "{cells:?}");
        assert!(cells.iter().all(|cell| cell["runs"] == 1));
    }
    // The same name in another experiment is another strategy.
    let mut other = record(2, 1, "paper", "none", 60.0);
    other["experiment_hash"] = "e1".into();
    assert_eq!(cells(&[record(1, 0, "paper", "none", 40.0), other]).len(), 2);
}

#[test]
fn a_second_number_of_one_cell_and_seed_is_left_out_and_named() {
    let work = folder();
    let twice = [record(1, 0, "paper", "none", 40.0), record(1, 0, "paper", "none", 41.0)];
    write(work.path(), "r.jsonl", lines(&twice));
    let run = report(work.path(), &["r.jsonl", "--json"]).succeeds();
    let expected = "warning: left out r.jsonl:2: perplexity 41 of a cell and seed for which r.jsonl:1 has 40";
    assert!(run.stderr.contains(expected), "{}", run.stderr);
    assert!(run.json()["cells"].as_array().is_some_and(|cells| cells.iter().all(|cell| cell["value"] != 41.0)));
}

#[test]
fn broken_and_foreign_results_are_skipped_by_name_and_refused_if_nothing_is_left() {
    let work = folder();
    let good = record(0, 0, "full", "none", 20.0).to_string();
    let mut without = record(1, 0, "paper", "none", 20.0);
    without.as_object_mut().expect("an object").remove("model_hash");
    write(work.path(), "r.jsonl", format!("{good}\nno JSON\n{without}\n{{\"a\": 1}}\n{}", &good[..100]));
    write(work.path(), "foreign.json", "{\"loss\": [1, 2]}");
    write(work.path(), "others.jsonl", "{\"name\": \"full\"}\n{\"name\": \"paper\"}\n");
    write(work.path(), "text.txt", "a text\nof two lines\n");
    write(work.path(), "empty.json", "");
    write(work.path(), "cut.json", "{\n  \"results\": [\n    {\"task\":");
    write(work.path(), "version.json", r#"{"version": 9, "key_map": {}, "trials": []}"#);
    write(work.path(), "deep.json", "[".repeat(100_000));
    write(work.path(), "zero.json", [0_u8; 64]);
    let bad = [
        "foreign.json",
        "others.jsonl",
        "text.txt",
        "empty.json",
        "cut.json",
        "version.json",
        "deep.json",
        "zero.json",
    ];
    let run = report(work.path(), &[&["r.jsonl", "--html", "r.html"], &bad[..]].concat()).succeeds();
    let page = String::from_utf8(files(work.path())[Path::new("r.html")].clone()).expect("UTF-8");
    for (place, what) in [
        ("r.jsonl:2", "no JSON"),
        ("r.jsonl:3", "missing field `model_hash`"),
        ("r.jsonl:4", "no result of kvsharer"),
        ("r.jsonl:5", "an incomplete last line"),
        ("foreign.json", "no result of kvsharer"),
        ("others.jsonl:1", "no result of kvsharer"),
        ("text.txt:1", "no result of kvsharer"),
        ("empty.json", "the file is empty"),
        ("cut.json:3", "no result of kvsharer: EOF"),
        ("version.json", "strategy version 9 is not supported"),
        ("deep.json:1", "recursion limit exceeded"),
        ("zero.json:1", "no result of kvsharer"),
    ] {
        let told = |line: &str| line.starts_with(&format!("warning: left out {place}: ")) && line.contains(what);
        assert!(run.stderr.lines().any(told), "{place}: {what} not in {}", run.stderr);
        assert!(page.contains(&format!("<code>{place}</code>")), "{place}");
    }
    let before = files(work.path());
    report(work.path(), &["foreign.json", "text.txt", "--html", "r.html"])
        .fails(1, "nothing to report: none of 2 files holds results of kvsharer (foreign.json: no result");
    report(work.path(), &["r.jsonl", "nowhere.jsonl", "--html", "r.html"]).fails(1, "nowhere.jsonl: No such file");
    report(work.path(), &["r.jsonl", "--html", "no/r.html"]).fails(1, "no/r.html: No such file");
    report(work.path(), &["r.jsonl", "--csv", "r.jsonl"]).fails(2, "r.jsonl is given twice");
    report(work.path(), &["r.jsonl", "--csv", "-", "--json"]).fails(2, "can go to stdout");
    report(work.path(), &[]).fails(2, "required");
    assert!(files(work.path()) == before, "a refused report changed something");
}

#[test]
fn extreme_numbers_are_drawn_or_left_out_but_stop_nothing() {
    let work = folder();
    let mut records = Vec::new();
    let values = [1e308, -1e308, 1e-308, 0.0, -3.0, 1e17, 1e17 + 16.0, 5.0, 5.0 + 1e-12];
    for (cell, value) in values.into_iter().enumerate() {
        let mut record = record(cell, 0, &format!("s{cell}"), "none", 2.0);
        record["plan_bytes"] = [0, 1, u64::MAX, 1 << 62, 7, 8][cell % 6].into();
        for (metric, stderr) in [("acc", 1e308), ("perplexity", 0.0), ("a_perplexity", 0.5)] {
            record["result"]["metrics"][metric] = json!({ "value": value, "stderr": stderr });
        }
        records.push(record);
    }
    write(work.path(), "r.jsonl", lines(&records));
    let found = strategy(work.path());
    let mut deep: Value = serde_json::from_slice(&std::fs::read(found).expect("a file")).expect("JSON");
    deep["model"]["layers"] = (1_u64 << 60).into();
    write(work.path(), "deep.json", deep.to_string());
    let run = report(work.path(), &["r.jsonl", "shared.json", "deep.json", "--html", "r.html"]).succeeds();
    assert!(run.stderr.contains("left out deep.json"), "{}", run.stderr);
    // Alone, each is drawn on an axis of its own.
    for (index, record) in records.iter().enumerate() {
        let other = &records[(index + 1) % records.len()];
        write(work.path(), "two.jsonl", lines(&[record.clone(), other.clone()]));
        report(work.path(), &["two.jsonl", "--html", "r.html"]).succeeds();
    }
}

#[test]
fn names_from_files_are_names_wherever_they_stand() {
    let work = folder();
    let hostile = "</title></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&";
    let mut shared = record(1, 0, hostile, hostile, 30.0);
    shared["model"] = hostile.into();
    let mut formula = record(0, 0, "=HYPERLINK(\"x\")", "none", 20.0);
    formula["model"] = hostile.into();
    for record in [&mut shared, &mut formula] {
        record["result"]["task"] = hostile.into();
        record["result"]["metrics"][format!("perplexity {hostile}")] = json!({ "value": 2.0, "stderr": null });
    }
    formula["plan_bytes"] = 900.into();
    let name = "<img src=x onerror=alert(3)>.jsonl";
    write(work.path(), name, format!("{}<b>broken\n", lines(&[shared, formula])));
    let outputs = ["--html", "r.html", "--markdown", "r.md", "--csv", "r.csv"];
    let run = report(work.path(), &[&[name], &outputs[..]].concat());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let all = files(work.path());
    let text = |name: &str| String::from_utf8(all[Path::new(name)].clone()).expect("UTF-8");
    let page = text("r.html");
    assert_eq!(page.matches("<script").count(), 1);
    assert!(!page.contains("<img") && !page.contains("<b>") && page.contains("&lt;img"));
    assert!(!text("r.md").contains("<img") && !text("r.md").contains("<script"));
    let table = text("r.csv");
    assert!(table.contains("'=HYPERLINK") && !table.contains(",=") && !table.contains("\"="), "{table}");
}

#[test]
fn two_thousand_rows_make_a_page_below_five_megabytes() {
    let work = folder();
    write(work.path(), "many.jsonl", many());
    report(work.path(), &["many.jsonl", "--html", "many.html"]).succeeds();
    let size = files(work.path())[Path::new("many.html")].len();
    assert!(size < 5_000_000, "{size} bytes");
}

#[test]
fn what_the_commands_write_can_be_reported() {
    let work = folder();
    let at = work.path();
    let (tiny, text) = (tiny(), write(at, "text.txt", TEXT));
    let shared = strategy(at);
    let task = format!("perplexity={text}");
    let eval = ["eval", "-m", &tiny, "--task", &task, "--window", "16"];
    run(at, &[&eval[..], &["-o", "full.json"]].concat()).succeeds();
    run(at, &[&eval[..], &["--strategy", &shared, "-o", "eval.json"]].concat()).succeeds();
    let bench =
        ["bench", "-m", &tiny, "--prompt", "4", "--generate", "2", "--repeats", "1", "--batch", "1,2", "--json"];
    write(at, "bench.json", run(at, &bench).succeeds().stdout);
    write(at, "plan.json", run(at, &["plan", "-m", &tiny, "--tokens", "64", "--json"]).succeeds().stdout);
    let case = json!({ "case": "append", "device": "cuda", "dtype": "f16", "worst_error": 0.5, "tolerance": 1.0,
        "verdict": "passed", "note": null, "more": 1 });
    write(at, "conformance.json", json!({ "conformance": [case] }).to_string());
    // A folder stands for its .json files.
    let printed = report(at, &[".", "--json"]).json();
    assert_eq!(printed["left_out"], json!([]));
    assert_eq!(printed["conformance"].as_array().map(Vec::len), Some(1));
    let cells = printed["cells"].as_array().expect("a list");
    let of = |file: &str| -> Value { serde_json::from_slice(&files(at)[Path::new(file)]).expect("JSON") };
    let value = |file: &str| of(file)["results"][0]["metrics"]["perplexity"]["value"].as_f64().expect("a number");
    let deltas: Vec<&Value> = cells.iter().filter(|cell| cell["metric"] == "perplexity").map(|c| &c["delta"]).collect();
    let [Value::Null, delta] = deltas[..] else { panic!("{deltas:?}") };
    assert_eq!(delta["difference"].as_f64(), Some(value("eval.json") - value("full.json")));
    assert_eq!(cells.iter().filter(|cell| cell["metric"] == "tokens_per_second").count(), 2);
    let shown = report(at, &["."]).succeeds().stdout;
    for part in ["perplexity (windows)", "Speed", "Memory", "Strategy shared.json", "Conformance", "shared.json"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    report(at, &[".", "--html", "r.html"]).succeeds();
    let page = String::from_utf8(files(at)[Path::new("r.html")].clone()).expect("UTF-8").replace("&#x2f;", "/");
    for plot in [
        "perplexity against KV bytes",
        "Tokens/s against batch, 4 + 2 tokens",
        "KV bytes against length",
        "Sharing map",
        "Objective along the search",
        "Acceptance against rank",
        "Distances of keys",
        "Distances of values",
    ] {
        assert!(page.contains(&format!("<figcaption>{plot}</figcaption>")), "{plot}");
    }
    assert!(!page.contains("src=\"http") && !page.contains("href=\"http") && !page.contains("url("));
}
