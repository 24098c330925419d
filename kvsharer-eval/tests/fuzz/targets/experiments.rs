//! Policy SPECs, experiment files and results files.

use super::{crate_folder, file, read, told};
use crate::driver::{Seed, Target};
use kvsharer_compress::{policies, with_budget};
use kvsharer_core::{KvShape, Lengths, ModelShape, Plan};
use kvsharer_eval::experiment::{Experiment, Record, Work, merge};
use kvsharer_eval::{TaskSpec, build_stack};
use serde_json::json;
use std::path::Path;

const MEMORY: (usize, usize) = (64, 1 << 20);

/// Every policy with its defaults, and SPECs of all forms of numbers; a line is a stack.
pub(crate) fn specs() -> Target {
    let own = [
        "h2o:heavy=64,recent=64,variant=ratio,protect=4",
        "snapkv:budget=25%,window=8,kernel=5\nquant:bits=4,group=32,residual=128",
        "pyramidkv:budget=512,window=32,beta=20",
        "tova:budget=768..256,readers=max",
        "knorm:budget=64/32/16/8",
        "streaming-llm:sinks=4,window=508,positions=original",
    ];
    let all = policies().iter().map(|policy| (policy.name, policy.name));
    let seed = |(name, spec): (&str, &str)| Seed::new(name, [file("specs", spec)]);
    Target {
        name: "specs",
        seeds: all.map(seed).chain(own.iter().map(|spec| seed(("own", spec)))).collect(),
        judge: |folder, _| {
            let text = String::from_utf8_lossy(&read(&folder.join("specs"))).into_owned();
            let specs: Vec<String> = text.lines().map(String::from).collect();
            for spec in &specs {
                if let Some(budget) = with_budget(spec, 64).map_err(told)? {
                    let _ = build_stack(None, &[budget]);
                }
            }
            planned(&specs)
        },
        memory: MEMORY,
    }
}

/// Plans a stack for short and long texts, in small and large batches.
fn planned(specs: &[String]) -> Result<(), String> {
    let stack = build_stack(None, specs).map_err(told)?;
    let plan = Plan::new(&ModelShape::new(vec![KvShape::new(2, 64); 4]), &stack).map_err(told)?;
    for (batch, prompt, tokens) in [(1, 1, 1), (3, 100, 4096), (1 << 10, 1 << 20, 1 << 20)] {
        for lengths in [Lengths::new(prompt, tokens), tokens.into()] {
            assert!(plan.bytes(batch, lengths, 4) > 0);
            let _ = (plan.bookkeeping_bytes(batch, lengths), plan.prefill_peak_bytes(batch, lengths, 64, 4));
        }
    }
    Ok(())
}

/// The experiments that come with the program, and one with every kind of entry.
pub(crate) fn files() -> Target {
    let folder = crate_folder().join("experiments");
    let names = std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut names: Vec<_> =
        names.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
    names.sort();
    let seed = |path: &std::path::PathBuf| {
        Seed::new(&path.file_stem().expect("a name").to_string_lossy(), [file("e.toml", read(path))])
    };
    let own = include_str!("../corpus/experiment.toml");
    Target {
        name: "experiments",
        seeds: names.iter().map(seed).chain([Seed::new("own", [file("e.toml", own)])]).collect(),
        judge: |folder, _| {
            let experiment = Experiment::load(&folder.join("e.toml")).map_err(told)?;
            let cells = experiment.cells();
            assert!(cells.iter().zip(0..).all(|(cell, index)| cell.index == index));
            let again = experiment.clone().with_paths_from(Path::new("data"));
            let _ = (experiment.hash(), again.hash());
            for strategy in experiment.strategies.iter().filter_map(|strategy| strategy.search.as_ref()) {
                if strategy.map.is_none() {
                    strategy.strategy(4, 0).map_err(told)?;
                }
                let shape = ModelShape::new(vec![KvShape::new(2, 64); 4]);
                strategy.options(Work::Threads, 2).check(&shape).map_err(told)?;
            }
            for stack in experiment.stacks.iter().filter(|stack| !stack.policies.is_empty()) {
                planned(&stack.policies)?;
            }
            // Paths lead out of the folder: only tasks without one are read.
            let inside =
                |task: &&TaskSpec| task.dev.is_none() && task.path.iter().all(|path| path == Path::new("builtin:demo"));
            for task in experiment.tasks.iter().filter(inside) {
                if let Ok(job) = task.clone().prepare() {
                    let _ = job.lengths().map(|(batch, lengths)| Lengths { prompt: Some(batch), ..lengths });
                }
            }
            Ok(())
        },
        memory: MEMORY,
    }
}

/// Results of two shards, merged.
pub(crate) fn results() -> Target {
    let record = |cell: usize| Record {
        experiment: "small".into(),
        experiment_hash: "00".into(),
        cell,
        cells: 3,
        library: "kvsharer".into(),
        model: "tiny".into(),
        model_hash: "ff".into(),
        seed: 0,
        strategy: "full".into(),
        strategy_record: json!(null),
        stack: "none".into(),
        policies: vec!["full".into()],
        spec: json!({ "task": "piqa" }),
        result: json!({ "task": "piqa", "metrics": { "acc": { "value": 0.5, "stderr": 0.1 } }, "tokens": 9 }),
        plan_bytes: 1024,
        full_bytes: 2048,
        device: "cpu".into(),
        dtype: "f32".into(),
        threads: 2,
        seconds: 0.5,
        search_seconds: None,
        finished: 1,
    };
    let lines = |cells: &[usize]| {
        cells.iter().map(|&cell| serde_json::to_string(&record(cell)).expect("JSON") + "\n").collect::<String>()
    };
    Target {
        name: "results",
        seeds: vec![Seed::new("shards", [file("a.jsonl", lines(&[0, 2])), file("b.jsonl", lines(&[1, 2]))])],
        judge: |folder, _| {
            let paths = ["a.jsonl", "b.jsonl"].map(|name| folder.join(name));
            let _ = merge(&paths, true);
            merge(&paths, false).map(drop).map_err(told)
        },
        memory: MEMORY,
    }
}
