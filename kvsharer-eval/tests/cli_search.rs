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
        "distances",
        "key_map",
        "library",
        "model",
        "reached",
        "requested",
        "saved",
        "search",
        "steps",
        "trials",
        "value_map",
        "version",
    ];
    assert_eq!(keys(&strategy), fields);
    assert_has(&strategy["model"], &["architecture", "layers", "heads", "kv_heads", "head_dim", "hash"]);
    assert_has(&strategy["search"], &["name", "order", "distance", "objective", "threshold", "seed"]);
    assert_eq!(keys(&strategy["calibration"]), ["hash", "samples", "tokens"]);
    assert_eq!(keys(&strategy["trials"][0]), ["accepted", "borrower", "distance", "donor", "similarity", "units"]);
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
    for field in ["layers_run", "evaluations_exhaustive", "evaluations_resumed"] {
        assert!(fields.remove(field).is_some(), "{field}");
    }
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
    assert!(
        text.contains("1 of 2 layers share, 50.0 % of the KV bytes saved, after 1 trials")
            && text.contains("written to strategy.json"),
        "{text}"
    );
}

#[test]
fn every_strategy_searches_and_what_it_finds_can_be_run() {
    let strategies: [&[&str]; 10] = [
        &["--strategy-search", "random", "--threshold", "-1"],
        &["--strategy-search", "adjacent"],
        &["--strategy-search", "greedy", "--units", "values"],
        &["--strategy-search", "lazy-greedy", "--units", "apart", "--fit", "heads", "--plain-too"],
        &["--strategy-search", "lazy-greedy,refine,refit", "--units", "apart", "--fit", "full", "--held-back", "25%"],
        &["--strategy-search", "greedy", "--units", "keys", "--fit", "heads", "--permute-heads", "--reach", "1"],
        &["--strategy-search", "beam", "--beams", "2", "--objective", "nll"],
        &["--strategy-search", "drop"],
        &["--strategy-search", "fixed", "--layer-types", "0_0"],
        &["--strategy-search", "greedy", "--objective", "hidden-cosine", "--gate", "paper"],
    ];
    let tiny = tiny();
    for options in strategies {
        let work = folder();
        let share = if options.contains(&"values") || options.contains(&"keys") { "20%" } else { "50%" };
        let more = [&["--share", share, "--samples", "8", "--sample-tokens", "16", "--json"], options].concat();
        let args = [&["search", "-m", &tiny, "-o", "s.json"], &more[..]].concat();
        let printed = run(work.path(), &args).json();
        assert_eq!(printed["reached"], printed["requested"], "{options:?}");
        assert!(printed["steps"].as_array().is_some_and(|steps| !steps.is_empty()), "{options:?}");
        assert!(!work.path().join("s.journal").exists());
        let fitted = options.contains(&"--fit");
        assert_eq!(work.path().join("s.safetensors").exists(), fitted, "{options:?}");
        write(work.path(), "text.txt", "a few words to score, and a few more of them behind.");
        let task = ["--task", "perplexity=text.txt", "--window", "16", "-o", "r.json", "--json"];
        let scored = [&["eval", "-m", &tiny, "--strategy", "s.json", "--at", share], &task[..]].concat();
        let results = run(work.path(), &scored).json();
        let saved = printed["saved"].as_f64().expect("a fraction");
        let full = run(work.path(), &[&["eval", "-m", &tiny], &task[..]].concat()).json();
        let bytes = |results: &Value| results["plan_bytes"].as_f64().expect("bytes");
        assert!((bytes(&results) / bytes(&full) - (1.0 - saved)).abs() < 1e-9, "{options:?}");
    }
}

#[test]
fn a_killed_search_goes_on_where_it_was() {
    let whole = folder();
    let options = ["--strategy-search", "greedy", "--units", "apart", "--fit", "heads"];
    search(whole.path(), &options).succeeds();
    let work = folder();
    // What a search leaves that was killed after some trials: its journal.
    let cut = search(work.path(), &[&options[..], &["--max-trials", "2"]].concat()).succeeds();
    assert!(cut.stderr.contains("gave up"), "{}", cut.stderr);
    let mut child = program()
        .args([&["search", "-m", &tiny(), "--share", "1", "-o", "strategy.json"], &options[..]].concat())
        .current_dir(work.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the program starts");
    let journal = work.path().join("strategy.journal");
    let begun = (0..2000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        std::fs::metadata(&journal).is_ok_and(|metadata| metadata.len() > 100)
    });
    child.kill().expect("it can be killed");
    child.wait().expect("an end");
    let resumed = search(work.path(), &[&options[..], &["--json"]].concat()).json();
    assert!(!begun || resumed["evaluations_resumed"].as_u64() > Some(0) || !journal.exists());
    for field in ["key_map", "value_map", "trials", "steps"] {
        assert_eq!(resumed[field], written(whole.path())[field], "{field}");
    }
}

#[test]
fn searches_of_the_same_options_can_be_compared_trial_by_trial() {
    let work = folder();
    search(work.path(), &["--threshold", "-1"]).succeeds();
    std::fs::rename(work.path().join("strategy.json"), work.path().join("other.json")).expect("a file");
    let same = search(work.path(), &["--threshold", "-1", "--compare", "other.json", "--json"]).json();
    assert_eq!(same["parts"]["same"], true);
    let other = search(work.path(), &["--threshold", "1", "--compare", "other.json", "--json"]).json();
    assert_eq!((&other["parts"]["same"], &other["parts"]["trial"]), (&false.into(), &0.into()));
}

#[test]
fn maps_that_cannot_be_carried_out_are_refused_with_the_reason() {
    let work = folder();
    write(work.path(), "late.json", r#"{"0": 1}"#);
    write(work.path(), "none.json", "[1, 2]");
    for (options, expected) in [
        (&["--layer-types", "0_2"][..], "later layers"),
        (&["--layer-types", "0_0_0"], "3 layer types for a model of 2 layers"),
        (&["--layer-types", "0s_1"], "sliding window"),
        (&["--map", "late.json"], "a donor must come before its borrower"),
        (&["--map", "none.json"], "none.json: no map"),
        (&["--map", "missing.json"], "missing.json: No such file"),
        (&[], "wants a map or layer types"),
    ] {
        search(work.path(), &[&["--strategy-search", "fixed"], options].concat()).fails(2, expected);
    }
    search(work.path(), &["--held-back", "100%"]).fails(2, "from 0% to below 100%");
    run(work.path(), &["search", "-m", &tiny(), "--share", "90%"]).fails(2, "can be");
}
