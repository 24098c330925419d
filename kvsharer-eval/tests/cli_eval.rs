//! `eval`: the results file, perplexity under sharing and eviction, and texts that cannot be scored.
#![allow(clippy::print_stdout)] // skipped checks say why

mod support;

use serde_json::Value;
use std::path::Path;
use support::{Run, TEXT, assert_has, files, folder, run, strategy, tiny, write};

/// `eval` of perplexity on [`TEXT`], which it writes to text.txt of `folder`.
fn eval(folder: &Path, more: &[&str]) -> Run {
    write(folder, "text.txt", TEXT);
    run(folder, &[&["eval", "-m", &tiny(), "--task", "perplexity=text.txt"], more].concat())
}

fn perplexity(results: &Value) -> f64 {
    results["results"][0]["metrics"]["perplexity"]["value"].as_f64().expect("a number")
}

#[track_caller]
fn assert_close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-4 * b.abs(), "{a} and {b} differ");
}

#[test]
fn results_have_the_fields_that_others_rely_on() {
    let work = folder();
    let results = eval(work.path(), &["--json", "--window", "16"]).json();
    assert_has(
        &results,
        &["results", "model", "strategy", "policies", "plan_bytes", "device", "dtype", "seconds", "library"],
    );
    let task = &results["results"][0];
    assert_has(task, &["task", "protocol", "limit", "metrics", "items", "tokens", "truncated"]);
    assert_eq!(
        (&task["task"], &task["protocol"], &task["limit"]),
        (&"perplexity".into(), &"windows".into(), &Value::Null)
    );
    assert_eq!(support::keys(&task["metrics"]["perplexity"]), ["stderr", "value"]);
    assert!(
        perplexity(&results) > 1.0
            && task["metrics"]["perplexity"]["stderr"].as_f64().is_some_and(|stderr| stderr > 0.0)
    );
    assert_eq!(task["truncated"], 0);
    // The first token of a window is not predicted.
    let (items, tokens) = (task["items"].as_u64().expect("a number"), task["tokens"].as_u64().expect("a number"));
    assert!(items > 1 && tokens > 15 * (items - 1) && tokens <= 15 * items, "{items} windows, {tokens} tokens");
    assert_eq!(
        (&results["model"], &results["strategy"], &results["device"]),
        (&"tiny.gguf".into(), &Value::Null, &"cpu".into())
    );
    assert_eq!((&results["policies"], &results["dtype"]), (&serde_json::json!(["full"]), &"f32".into()));
    // K and V of 2 layers, 16 tokens, 2 heads of 8 channels, 4 bytes each.
    assert_eq!(results["plan_bytes"], 2 * 2 * 16 * 2 * 8 * 4);
}

#[test]
fn the_file_is_what_stdout_shows_as_json_and_nothing_else_is_written() {
    let work = folder();
    let printed = eval(work.path(), &["--json", "-o", "results.json"]).json();
    let left = files(work.path());
    assert_eq!(serde_json::from_slice::<Value>(&left[Path::new("results.json")]).expect("JSON"), printed);
    assert_eq!(left.len(), 2);
    let text = eval(work.path(), &["-o", "results.json"]).succeeds().stdout;
    assert!(text.contains("perplexity") && text.contains("tiny.gguf with full"), "{text}");
}

#[test]
fn sharing_changes_the_perplexity_and_halves_the_bytes() {
    let work = folder();
    let (full, path) = (eval(work.path(), &["--json"]).json(), strategy(work.path()));
    let shared = eval(work.path(), &["--json", "--strategy", &path]).json();
    assert!((perplexity(&full) / perplexity(&shared) - 1.0).abs() > 1e-3, "the strategy had no effect");
    assert_eq!(shared["plan_bytes"].as_u64().map(|bytes| bytes * 2), full["plan_bytes"].as_u64());
    assert_eq!((&shared["strategy"], &shared["policies"][0]), (&path.into(), &"sharing:1=0".into()));
}

#[test]
fn divergence_is_measured_from_the_full_cache() {
    let work = folder();
    let path = strategy(work.path());
    let metrics = |more: &[&str]| {
        let results = eval(work.path(), &[&["--json", "--kl"], more].concat()).json();
        ["kl", "same_top", "perplexity"].map(|name| results["results"][0]["metrics"][name]["value"].as_f64().unwrap())
    };
    let [kl, same, full] = metrics(&[]);
    assert!(kl.abs() < 1e-6 && same == 1.0, "{kl} {same}");
    let [kl, same, shared] = metrics(&["--strategy", &path]);
    assert!(kl > 1e-3 && same < 1.0, "{kl} {same}");
    // The expectation of the difference in NLL over the full cache's own predictions, which the text only samples.
    assert!(((shared / full).ln() - kl).abs() < 1.0, "{kl}");
    // Evictions count where passes let them.
    let [chunked, ..] = metrics(&["--policy", "streaming-llm:sinks=1,window=7", "--chunk", "4"]);
    assert!(chunked > 1e-3, "{chunked}");
    eval(work.path(), &["--task", "stepwise=text.txt", "--kl"]).succeeds();
    run(work.path(), &["eval", "-m", &tiny(), "--task", "stepwise=text.txt", "--kl"]).fails(2, "--kl");
}

#[test]
fn a_map_that_shares_nothing_changes_nothing() {
    let work = folder();
    run(work.path(), &["search", "-m", &tiny(), "--share", "1", "--threshold", "1", "-o", "none.json"]).succeeds();
    let (full, none) =
        (eval(work.path(), &["--json"]).json(), eval(work.path(), &["--json", "--strategy", "none.json"]).json());
    assert_eq!((perplexity(&full), &full["plan_bytes"]), (perplexity(&none), &none["plan_bytes"]));
}

#[test]
fn passes_of_any_length_give_the_same_perplexity_where_nothing_is_evicted() {
    let work = folder();
    let path = strategy(work.path());
    for stack in [&[][..], &["--strategy", &path], &["--policy", "streaming-llm:sinks=4,window=1020"]] {
        let whole = perplexity(&eval(work.path(), &[&["--json"], stack].concat()).json());
        for chunk in ["1", "3", "64", "5000"] {
            assert_close(
                perplexity(&eval(work.path(), &[&["--json", "--chunk", chunk], stack].concat()).json()),
                whole,
            );
        }
    }
}

#[test]
fn an_eviction_that_one_pass_cannot_see_is_warned_of() {
    let work = folder();
    let policy = ["--policy", "streaming-llm:sinks=1,window=7", "--json"];
    let blind = eval(work.path(), &policy).succeeds();
    assert!(
        blind.stderr.contains("warning: a window runs in one pass") && blind.stderr.contains("--chunk 64"),
        "{}",
        blind.stderr
    );
    let blind = blind.json();
    assert_eq!(blind["results"][0]["sees_evictions"], false);
    let seeing = eval(work.path(), &[&policy[..], &["--chunk", "2"]].concat()).succeeds();
    assert!(!seeing.stderr.contains("warning"), "{}", seeing.stderr);
    let seeing = seeing.json();
    assert_eq!(seeing["results"][0]["sees_evictions"], true);
    assert_close(perplexity(&blind), perplexity(&eval(work.path(), &["--json"]).json()));
    assert!((perplexity(&seeing) / perplexity(&blind) - 1.0).abs() > 1e-3, "the eviction had no effect");
    assert_eq!(seeing["policies"], serde_json::json!(["streaming-llm:sinks=1,window=7"]));
    let (kept, full) = (seeing["plan_bytes"].as_u64(), eval(work.path(), &["--json"]).json()["plan_bytes"].as_u64());
    assert!(kept < full, "{kept:?} bytes of {full:?}");
}

#[test]
fn a_text_without_a_token_to_predict_is_refused() {
    let work = folder();
    for (content, expected) in [("", "short.txt: the text has 0 tokens"), ("a", "short.txt: the text has 1 tokens")] {
        write(work.path(), "short.txt", content);
        let args = ["eval", "-m", &tiny(), "--task", "perplexity=short.txt", "-o", "results.json", "--json"];
        run(work.path(), &args).fails(1, expected);
        assert_eq!(files(work.path()).len(), 1);
    }
    write(work.path(), "short.txt", "ab");
    let results = run(work.path(), &["eval", "-m", &tiny(), "--task", "perplexity=short.txt", "--json"]).json();
    assert_eq!(
        (&results["results"][0]["tokens"], &results["results"][0]["metrics"]["perplexity"]["stderr"]),
        (&1.into(), &Value::Null)
    );
}

#[test]
fn a_last_window_of_one_token_is_left_out() {
    let work = folder();
    write(work.path(), "digits.txt", "12345");
    let score = |window: &str, limit: &[&str]| {
        let args = ["eval", "-m", &tiny(), "--task", "perplexity=digits.txt", "--json", "--window", window];
        let task = run(work.path(), &[&args[..], limit].concat()).json()["results"][0].clone();
        (task["items"].as_u64(), task["tokens"].as_u64(), task["limit"].as_u64())
    };
    assert_eq!(score("4", &[]), (Some(1), Some(3), None));
    assert_eq!(score("3", &[]), (Some(2), Some(3), None));
    assert_eq!(score("2", &[]), (Some(2), Some(2), None));
    assert_eq!(score("2", &["--limit", "1"]), (Some(1), Some(1), Some(1)));
    assert_eq!(score("2", &["--limit", "9"]), (Some(2), Some(2), Some(9)));
    assert_eq!(score("4294967295", &["--limit", "4294967295"]), (Some(1), Some(4), Some(u64::from(u32::MAX))));
}

#[test]
fn texts_that_cannot_be_read_are_named() {
    let work = folder();
    write(work.path(), "latin1.txt", b"caf\xe9 au lait");
    for (task, expected) in [
        ("perplexity=missing.txt", "missing.txt: No such file"),
        ("perplexity=.", ".: Is a directory"),
        ("perplexity=latin1.txt", "latin1.txt: is no UTF-8 text"),
    ] {
        let failed =
            run(work.path(), &["eval", "-m", &tiny(), "--task", task, "-o", "results.json"]).fails(1, expected);
        assert!(!failed.stderr.contains("loading"), "the weights were loaded before the text was read");
    }
    assert_eq!(files(work.path()).len(), 1);
}

#[test]
fn several_tasks_give_several_results_in_order() {
    let work = folder();
    let other = write(work.path(), "other.txt", "hello world, hello");
    let results = eval(work.path(), &["--json", "--task", &format!("perplexity={other}")]).json();
    let hashes: Vec<&Value> =
        results["results"].as_array().expect("a list").iter().map(|task| &task["text_hash"]).collect();
    assert_eq!(hashes.len(), 2);
    assert_ne!(hashes[0], hashes[1]);
    // The bytes are those of the longest window of all.
    assert_eq!(results["plan_bytes"], eval(work.path(), &["--json"]).json()["plan_bytes"]);
}

#[test]
fn an_output_that_cannot_be_written_fails_and_leaves_nothing() {
    let work = folder();
    for output in ["no/such/folder/results.json", ".", "/sys/results.json"] {
        for json in [&[][..], &["--json"]] {
            eval(work.path(), &[&["-o", output], json].concat()).fails(1, &format!("{output}: "));
        }
        assert_eq!(files(work.path()).len(), 1);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let closed = work.path().join("closed");
        std::fs::create_dir(&closed).expect("a folder");
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o555)).expect("its owner may");
        if std::fs::write(closed.join("probe"), "").is_ok() {
            println!("skipped the read-only folder: this user may write everywhere");
        } else {
            eval(work.path(), &["-o", "closed/results.json"]).fails(1, "closed/results.json: ");
        }
    }
}

#[test]
fn a_failed_run_leaves_the_old_results_as_they_were() {
    let work = folder();
    write(work.path(), "results.json", "precious");
    run(work.path(), &["eval", "-m", &tiny(), "--task", "perplexity=missing.txt", "-o", "results.json"])
        .fails(1, "missing.txt");
    assert_eq!(files(work.path())[Path::new("results.json")], b"precious");
    eval(work.path(), &["-o", "results.json"]).succeeds();
    assert_eq!(files(work.path()).len(), 2);
}

#[test]
fn every_dtype_gives_about_the_same_perplexity_and_half_the_bytes_of_f32() {
    let work = folder();
    let full = eval(work.path(), &["--json"]).json();
    for dtype in ["f16", "bf16"] {
        let half = eval(work.path(), &["--json", "--dtype", dtype]).json();
        assert!((perplexity(&half) / perplexity(&full) - 1.0).abs() < 0.1, "{dtype}: {}", perplexity(&half));
        assert_eq!(
            (half["plan_bytes"].as_u64().map(|bytes| bytes * 2), &half["dtype"]),
            (full["plan_bytes"].as_u64(), &dtype.into())
        );
        let kept = eval(work.path(), &["--json", "--weights", dtype]).json();
        assert!((perplexity(&kept) / perplexity(&full) - 1.0).abs() < 0.1, "{dtype}: {}", perplexity(&kept));
        assert_eq!(kept["plan_bytes"], full["plan_bytes"], "only matrices are smaller");
        assert_eq!(kept["dtype"], format!("f32, matrices in {dtype}"));
    }
}
