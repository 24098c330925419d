//! Listings, help, and streams that cannot be written: a full stdout, readers that went away.
#![allow(clippy::print_stdout)] // skipped checks say why

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use support::{Run, TEXT, assert_has, files, folder, program, run, tiny, write};

const COMMANDS: [&str; 8] = ["demo", "fetch", "models", "policies", "search", "eval", "generate", "plan"];

#[test]
fn every_command_explains_itself() {
    let work = folder();
    let overview = run(work.path(), &["--help"]).succeeds().stdout;
    for command in COMMANDS {
        assert!(overview.contains(command), "{command} is not in the overview");
        for option in ["--help", "-h"] {
            let help = run(work.path(), &[command, option]).succeeds().stdout;
            assert!(help.contains(&format!("Usage: kvsharer {command}")), "{help}");
            for global in ["--device", "--dtype", "--seed", "--json", "--threads"] {
                assert!(help.contains(global), "{command}: no {global}");
            }
        }
    }
    let version = run(work.path(), &["--version"]).succeeds().stdout;
    assert_eq!(version, format!("kvsharer {}\n", env!("CARGO_PKG_VERSION")));
    assert!(files(work.path()).is_empty());
}

#[test]
fn models_are_listed() {
    let work = folder();
    let listed = run(work.path(), &["models", "--json"]).json();
    assert_has(&listed, &["fetchable", "random", "hugging_face", "gguf"]);
    assert_eq!(
        (&listed["fetchable"][0]["name"], &listed["fetchable"][0]["path"]),
        (&"smollm2-135m-instruct".into(), &Value::Null)
    );
    let text = run(work.path(), &["models"]).succeeds().stdout;
    assert!(text.contains("not fetched"), "{text}");
    for name in listed["random"].as_array().expect("a list").iter().filter_map(Value::as_str) {
        assert!(text.contains(name), "{name} is not in the table");
        // Whatever is listed can be planned for, without its weights.
        run(work.path(), &["plan", "-m", name, "--json"]).json();
    }
}

#[test]
fn policies_are_listed_and_whatever_is_listed_can_be_used() {
    let work = folder();
    let listed = run(work.path(), &["policies", "--json"]).json();
    let text = run(work.path(), &["policies"]).succeeds().stdout;
    let policies = listed.as_array().expect("a list");
    assert!(policies.len() > 1);
    for policy in policies {
        assert_has(policy, &["name", "summary", "options", "source"]);
        let name = policy["name"].as_str().expect("a name");
        assert!(text.contains(name));
        run(work.path(), &["plan", "-m", "random:tiny", "--policy", name]).succeeds();
    }
}

#[test]
fn a_plan_counts_every_byte() {
    let work = folder();
    let plan = |more: &[&str]| run(work.path(), &[&["plan", "-m", &tiny(), "--json"], more].concat()).json();
    // K and V of 2 layers, 2 heads of 8 channels.
    for (options, batch, tokens, element) in [
        (&[][..], 1, 2048, 4),
        (&["--batch", "3", "--tokens", "7"], 3, 7, 4),
        (&["--dtype", "f16", "--tokens", "1"], 1, 1, 2),
        (&["--batch", "134217728", "--tokens", "67108864"], 1 << 27, 1 << 26, 4),
    ] {
        let plan = plan(options);
        assert_eq!(plan["plan_bytes"].as_u64(), Some(batch * tokens * 2 * 2 * 2 * 8 * element));
        assert_eq!((&plan["full_bytes"], &plan["prefill_peak_bytes"]), (&plan["plan_bytes"], &plan["plan_bytes"]));
    }
    // 32 tokens stay; sinks that move have their unrotated keys beside them, in 2 layers.
    for (positions, originals) in [("original", 0), ("cache", 2 * 4 * 2 * 8 * 4)] {
        let policy = format!("streaming-llm:sinks=4,window=28,positions={positions}");
        let streaming = plan(&["--policy", &policy, "--tokens", "1000", "--chunk", "10"]);
        assert_eq!(streaming["plan_bytes"].as_u64(), Some(32 * 2 * 2 * 2 * 8 * 4 + originals));
        assert_eq!(streaming["full_bytes"], 1000 * 2 * 2 * 2 * 8 * 4);
    }
    let text = run(work.path(), &["plan", "-m", &tiny()]).succeeds().stdout;
    assert!(text.contains("full cache") && text.contains("524288"), "{text}");
}

/// Runs with stdout or stderr going to /dev/full, where every write fails as on a full disk.
#[cfg(target_os = "linux")]
fn run_full(folder: &Path, args: &[&str], stderr: bool) -> Run {
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").expect("/dev/full"));
    let mut command = program();
    command.args(args).current_dir(folder);
    if stderr {
        command.stderr(full())
    } else {
        command.stdout(full())
    };
    command.output().expect("the program starts").into()
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_is_a_failure() {
    let work = folder();
    write(work.path(), "text.txt", TEXT);
    let tiny = tiny();
    for args in [
        &["models"][..],
        &["policies", "--json"],
        &["plan", "-m", &tiny],
        &["plan", "-m", &tiny, "--json"],
        &["eval", "-m", &tiny, "--task", "perplexity=text.txt"],
        &["generate", "-m", &tiny, "-p", "hello", "-n", "4"],
        &["generate", "-m", &tiny, "-p", "hello", "-n", "4", "--json"],
        &["search", "-m", &tiny, "--share", "1", "--json", "-o", "strategy.json"],
    ] {
        run_full(work.path(), args, false).fails(1, "stdout: No space left on device");
    }
    // The strategy was complete before it was printed.
    assert!(serde_json::from_slice::<Value>(&files(work.path())[Path::new("strategy.json")]).is_ok());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_stderr_changes_nothing() {
    let work = folder();
    let tiny = tiny();
    for (args, code) in [
        (&["search", "-m", &tiny, "--share", "1", "--threshold", "1"][..], 0),
        (&["generate", "-m", &tiny, "-p", "hello", "-n", "4"], 0),
        (&["plan", "-m", &tiny, "--policy", "magic"], 2),
        (&["plan", "-m", &tiny, "--strategy", "missing.json"], 1),
        (&["bogus"], 2),
    ] {
        assert_eq!(run_full(work.path(), args, true).code, Some(code), "{args:?}");
    }
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let work = folder();
    let tiny = tiny();
    for args in [
        &["models"][..],
        &["policies", "--json"],
        &["plan", "-m", &tiny],
        &["search", "-m", &tiny, "--share", "1", "-o", "strategy.json"],
        &["generate", "-m", &tiny, "-p", "hello", "-n", "64", "--ignore-eos"],
        &["generate", "-m", &tiny, "-p", "hello", "-n", "64", "--json"],
        &["--help"],
    ] {
        let mut command = program();
        command.args(args).current_dir(work.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        drop(child.stdout.take());
        let run: Run = child.wait_with_output().expect("an end").into();
        run.succeeds();
    }
    assert_eq!(files(work.path()).len(), 1);
}
