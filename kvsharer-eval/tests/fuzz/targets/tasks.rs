//! Benchmarks in their published files: every task by every protocol, with and without examples.

use super::{crate_folder, file, folder, read, told};
use crate::driver::{Seed, Target};
use kvsharer_eval::tasks::{TaskFiles, find_task, tasks};
use std::path::Path;

/// Fixtures of a task, and which of them is asked for; every task has some.
fn sample(task: &str) -> (&[&str], &str) {
    match task {
        "arc_easy" | "arc_challenge" => (&["arc.jsonl"], "arc.jsonl"),
        "bigbench" => (&["bigbench_b.json"], "bigbench_b.json"),
        "boolq" => (&["boolq.jsonl"], "boolq.jsonl"),
        "c3" => (&["c3.json"], "c3.json"),
        "chid" => (&["chid.jsonl"], "chid.jsonl"),
        "choices" => (&["choices.jsonl"], "choices.jsonl"),
        "cluewsc" => (&["cluewsc.jsonl"], "cluewsc.jsonl"),
        "cmmlu" => (&["cmmlu"], "cmmlu"),
        "cmnli" => (&["cmnli.jsonl"], "cmnli.jsonl"),
        "commonsense_qa" => (&["csqa.jsonl"], "csqa.jsonl"),
        "copa" => (&["copa.jsonl"], "copa.jsonl"),
        "hellaswag" => (&["hellaswag.jsonl"], "hellaswag.jsonl"),
        "lambada_openai" => (&["lambada.jsonl"], "lambada.jsonl"),
        "lambada_standard" => (&["lambada_plain.txt"], "lambada_plain.txt"),
        "mmlu" => (&["mmlu"], "mmlu"),
        "ocnli" => (&["ocnli.jsonl"], "ocnli.jsonl"),
        "openbookqa" => (&["obqa.jsonl"], "obqa.jsonl"),
        "piqa" => (&["piqa.jsonl", "piqa-labels.lst"], "piqa.jsonl"),
        "race" => (&["race"], "race/high"),
        "race-middle" => (&["race"], "race/middle"),
        "race-high" => (&["race"], "race/high"),
        "wikitext" => (&["wiki.raw"], "wiki.raw"),
        "winogrande" => (&["winogrande.jsonl"], "winogrande.jsonl"),
        "wsc" => (&["wsc.jsonl"], "wsc.jsonl"),
        "xsum" => (&["xsum.jsonl"], "xsum.jsonl"),
        other => panic!("no sample of {other}: add one"),
    }
}

pub(crate) fn files() -> Target {
    let fixtures = crate_folder().join("tests/fixtures/tasks");
    let seed = |name: &str| {
        let mut seed = Seed::new(name, []);
        for part in sample(name).0 {
            match fixtures.join(part).is_dir() {
                true => seed.open.extend(folder(&fixtures, part)),
                false => seed.open.extend([file(part, read(&fixtures.join(part)))]),
            }
        }
        seed
    };
    Target {
        name: "tasks",
        seeds: tasks().iter().map(|entry| seed(entry.name)).collect(),
        judge: asked,
        memory: (128, 1 << 20),
    }
}

/// Reads the items, which can be asked then.
fn asked(folder: &Path, task: &str) -> Result<(), String> {
    let entry = find_task(task).expect("a task");
    let path = folder.join(sample(task).1);
    let mut refused = Ok(());
    for protocol in entry.protocols() {
        for (skip_bad, shots) in [(false, 0), (true, 0), (true, 1)] {
            let files = TaskFiles { skip_bad, shots: Some(shots), dev: Some(path.clone()), ..TaskFiles::new(&path) };
            let read = match entry.read(&files, protocol) {
                Ok(read) => read,
                Err(error) => {
                    refused = if skip_bad { refused } else { Err(told(error)) };
                    continue;
                }
            };
            for item in read.items {
                let choices = item.ask.texts();
                assert!(choices > 0 && item.gold.is_none_or(|gold| gold < choices), "{task}: {item:?}");
                assert_eq!(item.shots.len(), shots);
                item.before(shots, protocol);
            }
        }
    }
    refused
}
