//! The commands of the READMEs, run on the tiny model; `src/cli/readme.rs` parses all of them.

mod readme_lines;
mod support;

use readme_lines::{READMES, arguments, shell_lines};
use std::path::Path;
use support::{folder, program, run, tiny, write};

/// Lines that are parsed, but not run here, and why.
const PARSED_ONLY: [(&str, &str); 10] = [
    ("cargo run --release -- demo", "minutes with the real model; .ci/run has a smaller one"),
    ("kvsharer run experiments/", "minutes with the real model; cli_run.rs runs experiments"),
    ("kvsharer run table1.toml", "a model of 7 billion weights; cli_run.rs runs shards"),
    ("kvsharer merge table1-", "the shards of the line before; cli_run.rs merges some"),
    ("kvsharer report table1.jsonl", "results of the lines before; cli_report.rs reports"),
    ("kvsharer report *.jsonl", "a star for the shell; likewise"),
    ("kvsharer chat", "the tiny model has no chat template; cli_chat.rs talks to one that has"),
    ("printf 'Hello!", "likewise"),
    ("kvsharer fetch hf:", "the network; cli_hub.rs fetches from a server of its own"),
    ("kvsharer eval --model hf:", "likewise"),
];

/// Commands that take a model.
const WITH_MODEL: [&str; 6] = ["bench", "eval", "generate", "plan", "search", "export"];

/// What the lines find beside them.
fn prepare(folder: &Path) {
    let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tasks");
    for (from, to) in [
        ("piqa.jsonl", "valid.jsonl"),
        ("piqa-labels.lst", "valid-labels.lst"),
        ("hellaswag.jsonl", "hellaswag_val.jsonl"),
    ] {
        std::fs::copy(tasks.join(from), folder.join(to)).expect("a fixture");
    }
    // The README takes five examples, the fixture has three.
    let examples = std::fs::read_to_string(tasks.join("hellaswag_dev.jsonl")).expect("a fixture");
    write(folder, "hellaswag_train.jsonl", examples.repeat(2));
    for part in ["dev", "test"] {
        std::fs::create_dir_all(folder.join("data").join(part)).expect("a folder");
        for entry in std::fs::read_dir(tasks.join("mmlu").join(part)).expect("a fixture") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name");
            std::fs::copy(&path, folder.join("data").join(part).join(name)).expect("a fixture");
        }
    }
    let text = support::TEXT.repeat(40);
    for name in ["wiki.txt", "wiki.test.raw"] {
        write(folder, name, &text);
    }
    write(folder, "questions.jsonl", "{\"prompt\": \"hello\"}\n{\"prompt\": \"the world\"}\n");
    let search = ["search", "-m", &tiny(), "--share", "1", "--threshold", "-1", "-o"];
    for name in ["shared.json", "strategy.json", "other.json"] {
        run(folder, &[&search[..], &[name]].concat()).succeeds();
    }
}

#[test]
fn the_commands_of_the_readmes_run() {
    let ci = include_str!("../../.ci/run");
    let mut ran = 0;
    for (readme, text) in READMES {
        let work = folder();
        prepare(work.path());
        for line in shell_lines(text) {
            if PARSED_ONLY.iter().any(|(start, _)| line.starts_with(start)) {
                continue;
            }
            let Some(mut words) = arguments(&line) else {
                assert!(ci.contains(&line), "{readme}: `{line}` is run neither here nor by .ci/run");
                continue;
            };
            words.remove(0);
            // The tiny model stands in for every other one.
            match words.iter().position(|word| word == "--model") {
                Some(at) => words[at + 1] = tiny(),
                None if WITH_MODEL.contains(&words[0].as_str()) => words.extend(["--model".into(), tiny()]),
                None => {}
            }
            let output = program().args(&words).current_dir(work.path()).output().expect("the program starts");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{readme}: `{line}`: {error}");
            ran += 1;
        }
    }
    assert!(ran > 10, "only {ran} commands were found");
}

#[test]
fn the_list_of_those_that_are_not_run_is_not_stale() {
    let lines: Vec<String> = READMES.iter().flat_map(|(_, text)| shell_lines(text)).collect();
    for (start, why) in PARSED_ONLY {
        assert!(lines.iter().any(|line| line.starts_with(start)), "no README has `{start}` ({why})");
    }
}
