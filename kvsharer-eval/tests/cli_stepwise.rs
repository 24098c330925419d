//! `eval --task stepwise=FILE`: its results, and options that do not fit it.

mod support;

use serde_json::{Value, json};
use std::path::Path;
use support::{Run, TEXT, assert_has, files, folder, run, tiny, write};

/// `eval` of `task` on [`TEXT`], in windows of 16 tokens.
fn eval(folder: &Path, task: &str, more: &[&str]) -> Run {
    write(folder, "text.txt", TEXT);
    let task = format!("{task}=text.txt");
    run(folder, &[&["eval", "-m", &tiny(), "--task", &task, "--window", "16"], more].concat())
}

#[test]
fn results_tell_the_protocol_and_its_options() {
    let work = folder();
    let results = eval(work.path(), "stepwise", &["--json", "--prefill", "6", "--batch", "3", "--limit", "4"]).json();
    let task = &results["results"][0];
    assert_has(task, &["metrics", "text_hash", "truncated"]);
    for (field, expected) in [
        ("task", json!("stepwise")),
        ("protocol", json!("stepwise")),
        ("limit", json!(4)),
        ("items", json!(4)),
        ("tokens", json!(4 * (16 - 6))),
        ("window", json!(16)),
        ("chunk", json!(1)),
        ("prefill", json!(6)),
        ("batch", json!(3)),
        ("sees_evictions", json!(true)),
    ] {
        assert_eq!(task[field], expected, "{field}");
    }
    // Three sequences; K and V of 2 layers, 16 tokens, 2 heads of 8 channels, 4 bytes each.
    assert_eq!(results["plan_bytes"], 3 * 2 * 2 * 16 * 2 * 8 * 4);
}

#[test]
fn both_protocols_can_be_asked_for_and_agree_where_nothing_is_evicted() {
    let work = folder();
    let results = eval(work.path(), "stepwise", &["--json", "--batch", "4", "--task", "perplexity=text.txt"]).json();
    let [steps, windows] = [0, 1].map(|index| &results["results"][index]);
    let value = |task: &Value| task["metrics"]["perplexity"]["value"].as_f64().expect("a number");
    assert!((value(steps) / value(windows) - 1.0).abs() < 1e-4, "{} and {}", value(steps), value(windows));
    assert_eq!((&steps["items"], &steps["tokens"]), (&windows["items"], &windows["tokens"]));
    assert_eq!((&windows["batch"], &windows["prefill"], &steps["batch"]), (&json!(1), &json!(0), &json!(4)));
    // The bytes are those of the largest batch of all.
    assert_eq!(results["plan_bytes"], 4 * 2 * 2 * 16 * 2 * 8 * 4);
}

#[test]
fn every_eviction_counts_and_none_is_warned_of() {
    let work = folder();
    let policy = ["--json", "--policy", "streaming-llm:sinks=1,window=7"];
    let steps = eval(work.path(), "stepwise", &policy).succeeds();
    assert!(!steps.stderr.contains("warning"), "{}", steps.stderr);
    let value = |run: Run| run.json()["results"][0]["metrics"]["perplexity"]["value"].as_f64().expect("a number");
    let chunks = value(eval(work.path(), "perplexity", &[&policy[..], &["--chunk", "1"]].concat()));
    let (steps, full) = (value(steps), value(eval(work.path(), "stepwise", &["--json"])));
    assert!((steps / chunks - 1.0).abs() < 1e-4 && (steps / full - 1.0).abs() > 1e-3, "{steps}, {chunks}, {full}");
}

#[test]
fn options_that_do_not_fit_are_wrong_usage_before_the_model_is_looked_for() {
    let work = folder();
    for (task, more, expected) in [
        ("stepwise", &["--prefill", "16"][..], "a prefill of 16 tokens leaves nothing to predict in a window of 16"),
        ("stepwise", &["--prefill", "99"], "a prefill of 99 tokens leaves nothing to predict in a window of 16"),
        ("stepwise", &["--prefill", "-1"], "'-1'"),
        ("stepwise", &["--batch", "0"], "0 is not in 1.."),
        ("stepwise", &["--chunk", "4"], "--chunk is for --task perplexity=PATH"),
        ("perplexity", &["--prefill", "4"], "--prefill and --batch are for --task stepwise=PATH"),
        ("perplexity", &["--batch", "4"], "--prefill and --batch are for --task stepwise=PATH"),
    ] {
        let task = format!("{task}=text.txt");
        let args = ["eval", "-m", "no-such-model", "--task", &task, "--window", "16", "-o", "results.json"];
        run(work.path(), &[&args[..], more].concat()).fails(2, expected);
    }
    assert!(files(work.path()).is_empty());
}

#[test]
fn a_text_shorter_than_its_prefill_is_named() {
    let work = folder();
    write(work.path(), "short.txt", "123456");
    let score = |prefill| {
        let task = ["eval", "-m", &tiny(), "--task", "stepwise=short.txt", "--json", "--prefill"];
        run(work.path(), &[&task[..], &[prefill]].concat())
    };
    score("6").fails(1, "short.txt: the text has 6 tokens: perplexity needs at least 7");
    assert_eq!(score("5").json()["results"][0]["tokens"], 1);
}
