//! Scores on SmolLM2 against plain transformers (`fixtures/task_reference.py`): the log-likelihood or loss of every
//! choice, the picked answers and the metrics, by both harnesses' rules; and that batches change nothing.

mod task_cases;

use burn::tensor::{DType, Device};
use kvsharer_core::Stack;
use kvsharer_eval::score::ScoreOptions;
use kvsharer_eval::tasks::TaskFiles;
use kvsharer_eval::{BenchmarkOptions, Evaluated, Sample, benchmark, build_stack};
use kvsharer_models::{DEFAULT_MODEL, Decoder, ModelTokenizer, open_model};
use serde_json::Value;
use std::sync::LazyLock;
use task_cases::{cases, entry, files, prompts, protocol, scores};

/// The reference rounds to six decimals; kernels of different libraries differ in the fifth.
const TOLERANCE: f64 = 1e-3;

static MODEL: LazyLock<(Decoder, ModelTokenizer)> = LazyLock::new(|| {
    let files = open_model(DEFAULT_MODEL, 0).unwrap();
    (files.load(&Device::flex(), DType::F32).unwrap(), files.tokenizer().unwrap())
});

fn run(case: &Value, limit: Option<usize>, score: ScoreOptions, policies: &[&str]) -> Evaluated {
    let (model, tokenizer) = &*MODEL;
    let shots = case["shots"].as_u64().unwrap();
    // The path and examples of a case stand with its prompts.
    let golden = prompts();
    let same = |other: &&Value| {
        ["task", "protocol", "path", "max_length"].iter().all(|key| other[*key] == case[*key])
            && other["shots"] == shots
    };
    let files = TaskFiles { limit, ..files(cases(&golden).find(same).unwrap()) };
    let options = BenchmarkOptions {
        max_length: case["max_length"].as_u64().map(|length| length as usize),
        score,
        ..BenchmarkOptions::default()
    };
    let policies: Vec<String> = policies.iter().map(|policy| (*policy).into()).collect();
    let stack = || match policies.is_empty() {
        true => Ok(Stack::new()),
        false => build_stack(None, &policies),
    };
    let benchmark = benchmark(entry(case), protocol(case), files).unwrap();
    benchmark.run(model, tokenizer, &options, stack, |_| {}).unwrap()
}

#[test]
fn scores_picks_and_metrics_are_those_of_plain_transformers() {
    let mut compared = 0;
    for case in cases(&scores()) {
        let name = format!("{} {} {} {}", case["task"], case["protocol"], case["path"], case["max_length"]);
        let found = run(case, None, ScoreOptions::default(), &[]);
        let expected = case["items"].as_array().unwrap();
        assert_eq!(found.samples.len(), expected.len(), "{name}");
        for (sample, expected) in found.samples.iter().zip(expected) {
            compare(sample, expected, &name);
            compared += sample.scores.len();
        }
        for (metric, expected) in case["metrics"].as_object().unwrap().iter().filter(|(name, _)| *name != "acc_loader")
        {
            let Some(metric) = found.result.metrics.get(metric) else {
                // The reference gives all three accuracies; a task reports those that its harness does.
                assert!(metric.starts_with("acc_"), "{name}: no {metric}");
                continue;
            };
            let (found, expected) = (metric.value, expected.as_f64().unwrap());
            assert!((found - expected).abs() <= TOLERANCE * expected.max(1.0), "{name}: {found} for {expected}");
        }
    }
    assert!(compared > 600, "{compared}");
}

fn compare(sample: &Sample, expected: &Value, name: &str) {
    let scores: Vec<f64> = expected["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect();
    // A document's windows are summed there.
    let found = if scores.len() == 1 { vec![sample.scores.iter().sum()] } else { sample.scores.clone() };
    assert_eq!(found.len(), scores.len(), "{name}: {}", sample.place);
    for (found, expected) in found.iter().zip(&scores) {
        let error = (found - expected).abs();
        // Of a long document's sum, relative: it has hundreds of terms.
        assert!(
            error <= TOLERANCE * (expected.abs() / 100.0).max(1.0),
            "{name}: {}: {found} for {expected}",
            sample.place
        );
    }
    if let Some(picks) = expected["picks"].as_object() {
        for (measure, pick) in picks {
            assert_eq!(
                sample.picks.get(measure).map(|&pick| pick as u64),
                pick.as_u64(),
                "{name}: {} by {measure}",
                sample.place
            );
        }
    }
    if let Some(greedy) = expected["greedy"].as_array() {
        let greedy: Vec<bool> = greedy.iter().map(|greedy| greedy.as_bool().unwrap()).collect();
        assert_eq!(sample.greedy, greedy, "{name}: {}", sample.place);
    }
}

#[test]
fn batches_and_shared_prefixes_change_nothing_whatever_the_stack_keeps() {
    // As on a GPU: few large passes, for which whole texts may be cheaper than shared prefixes.
    let large = ScoreOptions { tokens: 32_768, rows: 4096, padding: 8192, ..ScoreOptions::default() };
    let apart = ScoreOptions { tokens: 1, rows: 1, share_prefixes: false, ..ScoreOptions::default() };
    let golden = scores();
    for (task, wanted) in
        [("piqa", "lm-eval"), ("arc_easy", "lm-eval"), ("winogrande", "lm-eval"), ("copa", "opencompass")]
    {
        let same = |case: &&Value| case["task"] == task && case["protocol"] == wanted && case["shots"] == 0;
        let case = cases(&golden).find(same).unwrap();
        for policies in
            [&[][..], &["streaming-llm:sinks=2,window=8"], &["h2o:heavy=4,recent=5"], &["quant:bits=8,residual=32"]]
        {
            let single = run(case, Some(3), apart, policies);
            for options in [ScoreOptions::default(), large] {
                let batched = run(case, Some(3), options, policies);
                for (batched, single) in batched.samples.iter().zip(&single.samples) {
                    for (a, b) in batched.scores.iter().zip(&single.scores) {
                        assert!((a - b).abs() <= 1e-4, "{task} under {policies:?}: {a} or {b} at {}", batched.place);
                    }
                    assert_eq!(batched.picks, single.picks);
                }
                assert_eq!(batched.result.metrics, single.result.metrics);
            }
        }
    }
}
