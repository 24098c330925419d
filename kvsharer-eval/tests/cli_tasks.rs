//! Benchmarks on the command line: what is printed, written, counted and refused.

mod support;

use std::path::Path;
use support::{assert_has, folder, run, tiny, write};

fn items(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tasks").join(name);
    path.to_str().unwrap().to_owned()
}

#[test]
fn all_tasks_are_listed_with_their_files_and_protocols() {
    let folder = folder();
    let tasks = run(folder.path(), &["tasks", "--json"]).json();
    let names: Vec<&str> = tasks.as_array().unwrap().iter().map(|task| task["name"].as_str().unwrap()).collect();
    for name in ["hellaswag", "mmlu", "race-middle", "chid", "xsum", "wikitext", "choices", "perplexity", "passkey"] {
        assert!(names.contains(&name), "{name}");
    }
    let table = run(folder.path(), &["tasks"]).succeeds().stdout;
    assert!(names.iter().all(|name| table.contains(name)), "{table}");
}

#[test]
fn several_tasks_give_their_metrics_and_every_item_a_line() {
    let folder = folder();
    let (piqa, mmlu) = (format!("piqa={}", items("piqa.jsonl")), format!("mmlu={}", items("mmlu")));
    let args = [
        "eval",
        "-m",
        &tiny(),
        "--task",
        &piqa,
        "--task",
        &mmlu,
        "--shots",
        "0",
        "--limit",
        "5",
        "--max-length",
        "128",
        "--samples-out",
        "samples.jsonl",
        "-o",
        "results.json",
        "--json",
    ];
    let results = run(folder.path(), &args).json();
    let [piqa, mmlu] = &results["results"].as_array().unwrap()[..] else { panic!("two results") };
    assert_has(&piqa["metrics"], &["acc", "acc_norm"]);
    assert_has(mmlu, &["shots", "max_length", "source", "skipped", "left_out", "subsets", "text_hash", "truncated"]);
    assert_eq!((piqa["items"].as_u64(), piqa["protocol"].as_str()), (Some(5), Some("lm-eval")));
    let samples = std::fs::read_to_string(folder.path().join("samples.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 10);
    let first: serde_json::Value = serde_json::from_str(samples.lines().next().unwrap()).unwrap();
    assert_has(&first, &["task", "place", "gold", "texts", "scores", "greedy", "picks", "metrics"]);
    let written: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("results.json")).unwrap()).unwrap();
    assert_eq!(written, results);
}

#[test]
fn texts_and_retrieval_are_generated_and_judged() {
    let folder = folder();
    let xsum = format!("xsum={}", items("xsum.jsonl"));
    let args = [
        "eval",
        "-m",
        &tiny(),
        "--task",
        &xsum,
        "--limit",
        "2",
        "--max-new-tokens",
        "4",
        "--max-length",
        "100",
        "--json",
    ];
    let results = run(folder.path(), &args).json();
    assert_has(&results["results"][0]["metrics"], &["rouge1", "rouge2", "rougeL"]);
    let args =
        ["eval", "-m", &tiny(), "--task", "passkey", "--lengths", "300", "--depths", "0,1", "--samples", "1", "--json"];
    let results = run(folder.path(), &args).json();
    assert_eq!(results["results"][0]["items"], 2);
    assert_eq!(results["results"][0]["subsets"].as_object().unwrap().len(), 2);
}

#[test]
fn a_bad_item_is_named_and_can_be_counted_and_skipped() {
    let folder = folder();
    let good = r#"{"query": "a", "choices": ["b", "c"], "gold": 0}"#;
    let path = write(
        folder.path(),
        "items.jsonl",
        format!("{good}\n{{\"query\": \"a\", \"choices\": [\"b\"], \"gold\": 0}}\n{good}\n"),
    );
    let task = format!("choices={path}");
    run(folder.path(), &["eval", "-m", &tiny(), "--task", &task]).fails(1, "items.jsonl:2: has 1 choices");
    let skipped = run(folder.path(), &["eval", "-m", &tiny(), "--task", &task, "--skip-bad", "--json"]);
    assert!(
        skipped.stderr.contains("warning: skipped") && skipped.stderr.contains("items.jsonl:2"),
        "{}",
        skipped.stderr
    );
    let results = skipped.json();
    assert_eq!((&results["results"][0]["items"], &results["results"][0]["skipped"]), (&2.into(), &1.into()));
}

#[test]
fn a_text_longer_than_the_context_is_cut_and_counted_and_a_choice_longer_than_it_is_refused() {
    let folder = folder();
    let long = "word ".repeat(50);
    let cut = write(
        folder.path(),
        "cut.jsonl",
        format!("{{\"query\": \"{long}\", \"choices\": [\"b\", \"c\"], \"gold\": 0}}\n"),
    );
    let task = format!("choices={cut}");
    let results = run(folder.path(), &["eval", "-m", &tiny(), "--task", &task, "--max-length", "16", "--json"]).json();
    assert_eq!(results["results"][0]["truncated"], 1);
    let wide = write(
        folder.path(),
        "wide.jsonl",
        format!("{{\"query\": \"a\", \"choices\": [\"b\", \"{long}\"], \"gold\": 0}}\n"),
    );
    run(folder.path(), &["eval", "-m", &tiny(), "--task", &format!("choices={wide}"), "--max-length", "16"])
        .fails(1, "wide.jsonl:1: has a choice longer than the model's context");
}

#[test]
fn the_speed_of_scoring_stands_beside_that_of_running_the_same_texts_if_asked_for() {
    let folder = folder();
    let item = format!("{{\"query\": \"{}\", \"choices\": [\"b c\", \"d\"], \"gold\": 0}}\n", "word ".repeat(50));
    let path = write(folder.path(), "items.jsonl", item);
    let task = format!("choices={path}");
    let args = ["eval", "-m", &tiny(), "--task", &task, "--json"];
    let result = |more: &[&str]| run(folder.path(), &[&args[..], more].concat()).json()["results"][0].clone();
    assert!(result(&[]).get("compared_prefill").is_none());
    let compared = result(&["--compare-prefill"]);
    for speed in [&compared, &compared["compared_prefill"]] {
        assert!(speed["tokens_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{compared}");
    }
    // What the choices begin with is run once, or in each text.
    assert!(compared["tokens_run"].as_u64() < compared["compared_prefill"]["tokens"].as_u64(), "{compared}");
    run(folder.path(), &["eval", "-m", &tiny(), "--task", "perplexity=builtin:demo", "--compare-prefill"])
        .fails(2, "--compare-prefill is for benchmarks");
}

#[test]
fn what_cannot_be_asked_is_refused_before_the_model_is_loaded() {
    let folder = folder();
    let (c3, mmlu) = (format!("c3={}", items("c3.json")), format!("mmlu={}", items("mmlu/test")));
    let csqa = format!("commonsense_qa={}", items("csqa.jsonl"));
    for (args, code, expected) in [
        (&["--task", "nothing=x"][..], 2, "no task `nothing`: known are hellaswag"),
        (&["--task", "piqa"], 2, "task piqa needs"),
        (&["--task", "piqa=missing.jsonl"], 1, "missing.jsonl"),
        (&["--task", &c3, "--protocol", "lm-eval"], 2, "c3 has no protocol lm-eval; it has opencompass"),
        (&["--task", &csqa, "--protocol", "opencompass"], 2, "needs 8 examples"),
        (&["--task", &mmlu, "--shots", "9"], 2, "needs 9 examples"),
        (&["--task", "passkey", "--lengths", "3"], 2, "is too short"),
        (&["--task", "passkey", "--depths", "2"], 2, "a depth of 2"),
    ] {
        let model = tiny();
        let run = run(folder.path(), &[&["eval", "-m", &model], args].concat());
        assert_eq!(run.code, Some(code), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(expected), "{args:?}: {}", run.stderr);
    }
}
