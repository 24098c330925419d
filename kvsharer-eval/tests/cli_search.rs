//! `search`: calibration texts, the gate's verdict, and the strategy file, which is written whole or not at all.

mod support;

use serde_json::Value;
use std::path::Path;
use support::{Run, assert_has, files, folder, keys, program, run, tiny, write};

/// `search` on the tiny model into strategy.json of `folder`.
fn search(folder: &Path, more: &[&str]) -> Run {
    let tiny = tiny();
    let args = [&["search", "-m", &tiny, "--share", "1", "-o", "strategy.json"], more].concat();
    run(folder, &args)
}

/// The strategy that `search` wrote.
fn written(folder: &Path) -> Value {
    serde_json::from_slice(&files(folder)[Path::new("strategy.json")]).expect("the strategy is JSON")
}

#[test]
fn the_strategy_file_has_the_fields_that_others_rely_on() {
    let work = folder();
    search(work.path(), &["--threshold", "-1", "--seed", "7"]).succeeds();
    let strategy = written(work.path());
    let fields = [
        "calibration",
        "key_map",
        "library",
        "model",
        "reached",
        "requested",
        "search",
        "trials",
        "value_map",
        "version",
    ];
    assert_eq!(keys(&strategy), fields);
    assert_has(&strategy["model"], &["architecture", "layers", "heads", "kv_heads", "head_dim", "hash"]);
    assert_has(&strategy["search"], &["name", "order", "distance", "objective", "threshold", "seed"]);
    assert_eq!(keys(&strategy["calibration"]), ["hash", "samples", "tokens"]);
    assert_eq!(keys(&strategy["trials"][0]), ["accepted", "borrower", "distance", "donor", "similarity"]);
    assert_eq!(strategy["version"], 1);
    assert_eq!(strategy["key_map"], serde_json::json!({ "1": 0 }));
    assert_eq!(strategy["key_map"], strategy["value_map"]);
    assert_eq!((&strategy["search"]["seed"], &strategy["search"]["threshold"]), (&7.into(), &(-1.0).into()));
    assert_eq!((&strategy["reached"], &strategy["requested"]), (&1.into(), &1.into()));
    assert_eq!(strategy["model"]["hash"].as_str().map(str::len), Some(64));
    assert!(strategy["library"].as_str().is_some_and(|library| library.starts_with("kvsharer ")));
}

#[test]
fn json_on_stdout_is_the_file_plus_what_the_run_cost() {
    let work = folder();
    let mut printed = search(work.path(), &["--json"]).json();
    let fields = printed.as_object_mut().expect("an object");
    assert!(fields.remove("seconds").and_then(|value| value.as_f64()).is_some_and(|seconds| seconds > 0.0));
    assert_eq!(fields.remove("evaluations"), Some(1.into()));
    fields.remove("layers_run");
    assert_eq!(printed, written(work.path()));
}

#[test]
fn the_same_search_writes_the_same_file_whatever_the_threads() {
    let work = folder();
    for order in ["dissimilar", "similar", "random"] {
        let mut texts = Vec::new();
        for threads in ["1", "1", "2"] {
            search(work.path(), &["--order", order, "--seed", "3", "--threads", threads]).succeeds();
            texts.push(written(work.path()));
        }
        assert_eq!(texts[0], texts[1], "{order}");
        // Sums over batches run in another order with other threads.
        for field in ["key_map", "calibration", "model", "search", "reached"] {
            assert_eq!(texts[0][field], texts[2][field], "{order}: {field}");
        }
    }
}

#[test]
fn calibration_texts_without_a_sample_are_refused() {
    for (content, expected) in [
        (&b""[..], "cal.txt: the calibration set is empty: give a text with at least one non-empty line"),
        (b"\n\n  \n\t\r\n", "cal.txt: the calibration set is empty"),
        (b"good line\nbad \xff line\n", "cal.txt: is no UTF-8 text"),
        (b"\xff\xfeh\0i\0", "cal.txt: is no UTF-8 text"),
    ] {
        let work = folder();
        write(work.path(), "cal.txt", content);
        search(work.path(), &["--calibration", "cal.txt", "--json"]).fails(1, expected);
        assert_eq!(files(work.path()).len(), 1);
    }
    let work = folder();
    search(work.path(), &["--calibration", "cal.txt"]).fails(1, "cal.txt: No such file");
    search(work.path(), &["--calibration", "."]).fails(1, ".: Is a directory");
    assert!(files(work.path()).is_empty());
}

#[test]
fn samples_count_with_the_tokens_they_have() {
    let work = folder();
    // The tokenizer is byte-level and has no merge for digits: one token a digit.
    write(work.path(), "cal.txt", "12345\n\n  123  \n1\r\n1234567890\n99\n");
    for (samples, tokens, expected_samples, expected_tokens) in
        [("30", "64", 5, 5 + 3 + 1 + 10 + 2), ("30", "4", 5, 4 + 3 + 1 + 4 + 2), ("2", "4", 2, 4 + 3), ("5", "1", 5, 5)]
    {
        let options = ["--calibration", "cal.txt", "--samples", samples, "--sample-tokens", tokens, "--json"];
        let calibration = search(work.path(), &options).json()["calibration"].clone();
        assert_eq!(
            (&calibration["samples"], &calibration["tokens"]),
            (&expected_samples.into(), &expected_tokens.into())
        );
    }
}

#[test]
fn a_threshold_that_no_pair_passes_warns_and_reaches_nothing() {
    let work = folder();
    let run = search(work.path(), &["--threshold", "1", "--json"]).succeeds();
    assert!(run.stderr.contains("warning: only 0 of the 1 layers asked for share"), "{}", run.stderr);
    let printed = run.json();
    assert_eq!((&printed["reached"], &printed["requested"]), (&0.into(), &1.into()));
    assert_eq!(printed["trials"][0]["accepted"], false);
    assert!(printed["key_map"].as_object().is_some_and(|map| map.is_empty()));
    // Such a file is a strategy all the same.
    support::run(work.path(), &["plan", "-m", &tiny(), "--strategy", "strategy.json"]).succeeds();
}

#[test]
fn strict_fails_after_the_strategy_was_written() {
    let work = folder();
    let failed = search(work.path(), &["--threshold", "1", "--strict", "--json"]);
    let printed: Value = serde_json::from_str(&failed.stdout).expect("the result is printed all the same");
    failed.fails_after_output(1, "only 0 of the 1 layers asked for share");
    assert_eq!(printed["trials"], written(work.path())["trials"]);
    assert_eq!(written(work.path())["reached"], 0);
    search(work.path(), &["--threshold", "-1", "--strict"]).succeeds();
}

#[test]
fn the_number_of_trials_can_be_bounded() {
    let work = folder();
    let run = search(work.path(), &["--max-trials", "0", "--json"]).succeeds();
    assert!(
        run.stderr.contains("warning: only 0 of the 1 layers asked for share: the search gave up"),
        "{}",
        run.stderr
    );
    let printed = run.json();
    assert_eq!((&printed["evaluations"], &printed["reached"]), (&0.into(), &0.into()));
}

#[test]
fn an_output_that_cannot_be_written_fails_and_leaves_nothing() {
    let work = folder();
    let tiny = tiny();
    for (output, expected) in
        [("no/such/folder/s.json", "no/such/folder/s.json"), (".", ".: "), ("/sys/s.json", "/sys/s.json")]
    {
        for json in [&[][..], &["--json"]] {
            let args = [&["search", "-m", &tiny, "--share", "1", "-o", output], json].concat();
            let failed = run(work.path(), &args).fails(1, expected);
            assert!(!failed.stderr.contains("loading"), "the weights were loaded before the output was tried");
        }
        assert!(files(work.path()).is_empty());
    }
    run(work.path(), &["search", "-m", &tiny, "--share", "1", "-o", ""]).fails(2, "--output");
}

#[cfg(unix)]
#[test]
fn an_output_that_is_no_regular_file_is_refused_and_stays_what_it_is() {
    let work = folder();
    std::os::unix::fs::symlink("/dev/null", work.path().join("null")).expect("a writable folder");
    run(work.path(), &["search", "-m", &tiny(), "--share", "1", "-o", "null"]).fails(1, "null: is no regular file");
    assert!(work.path().join("null").is_symlink());
}

#[test]
fn a_failed_search_leaves_the_old_file_as_it_was_and_a_good_one_replaces_it() {
    let work = folder();
    write(work.path(), "strategy.json", "precious");
    search(work.path(), &["--calibration", "missing.txt"]).fails(1, "missing.txt");
    search(work.path(), &["--threshold", "2"]).fails(2, "threshold");
    assert_eq!(files(work.path())[Path::new("strategy.json")], b"precious");
    search(work.path(), &[]).succeeds();
    assert_eq!(written(work.path())["version"], 1);
    assert_eq!(files(work.path()).len(), 1);
}

#[test]
fn searches_into_one_file_at_the_same_time_leave_one_whole_file() {
    let work = folder();
    let tiny = tiny();
    let start = || {
        let mut command = program();
        command.args(["search", "-m", &tiny, "--share", "1", "-o", "strategy.json"]).current_dir(work.path());
        command.stdout(std::process::Stdio::null()).spawn().expect("the program starts")
    };
    let running: Vec<_> = (0..4).map(|_| start()).collect();
    for mut child in running {
        assert!(child.wait().expect("an end").success());
    }
    assert_eq!(written(work.path())["reached"], 1);
    assert_eq!(files(work.path()).len(), 1);
}

#[test]
fn the_map_is_drawn_for_people() {
    let work = folder();
    let text = search(work.path(), &["--threshold", "-1"]).succeeds().stdout;
    assert!(text.contains("█·") && text.contains("0 is read by 1"), "{text}");
    assert!(text.contains("1 of 2 layers share after 1 trials") && text.contains("written to strategy.json"), "{text}");
}
