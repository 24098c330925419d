//! The same command with the same seed gives the same bytes, whatever the number of threads.

mod support;

use std::path::Path;
use support::{folder, run, timeless, tiny};

/// Asserts that stdout and all files are the same with 1, 2 and 4 threads.
fn same_with_all_threads(args: &str) {
    let outcome = |threads: &str| {
        let work = folder();
        let args = format!("{args} -m TINY --json --seed 3 --threads {threads}").replace("TINY", &tiny());
        let printed = run(work.path(), &args.split(' ').collect::<Vec<_>>()).json();
        (timeless::json(printed).to_string(), timeless::files(work.path()))
    };
    let one = outcome("1");
    for threads in ["2", "4"] {
        let other = outcome(threads);
        assert_eq!(other.0, one.0, "{threads} threads");
        assert!(other.1 == one.1, "{threads} threads: the files differ");
    }
}

#[test]
fn searches_are_the_same_with_all_threads() {
    for options in [
        "--threshold -1",
        "--threshold -1 --order random --samples 7",
        "--strategy-search greedy --units apart --fit heads --held-back 25%",
        "--strategy-search lazy-greedy --objective nll --fit full",
    ] {
        same_with_all_threads(&format!("search --share 1 -o s.json {options}"));
    }
}

#[test]
fn evaluations_are_the_same_with_all_threads() {
    let items = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tasks/choices.jsonl");
    for task in [
        "--task perplexity=builtin:demo --window 96 --limit 9",
        "--task perplexity=builtin:demo --window 96 --limit 9 --chunk 8 --policy h2o:heavy=8,recent=8",
        "--task stepwise=builtin:demo --window 48 --limit 6 --batch 4 --policy quant:bits=8,group=8,residual=8",
        &format!("--task choices={} --max-length 64 --samples-out items.jsonl", items.display()),
        "--task passkey --lengths 256 --depths 0,1",
    ] {
        same_with_all_threads(&format!("eval {task}"));
    }
}

#[test]
fn texts_are_the_same_with_all_threads() {
    for options in ["", "--temperature 0.9 --top-k 20", "--policy snapkv:budget=12,window=4 --policy quant:group=8"] {
        same_with_all_threads(
            format!("generate -p Hello,_the_others_of_the_world -n 24 --ignore-eos {options}").trim(),
        );
    }
}
