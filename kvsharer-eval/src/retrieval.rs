//! Retrieval from long prompts, by length and depth.

use crate::needles::{NeedleKind, NeedleOptions, NeedlePrompt, found, prompts};
use crate::{BenchmarkResult, EvalError, Evaluated, Metric, Sample, TaskResult, TaskSpec, metrics};
use kvsharer_core::{Lengths, Stack, hex};
use kvsharer_models::{Decoder, GenerateOptions, ModelTokenizer, generate};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Instant;

/// Prompts that hide numbers, ready to be run.
#[derive(Clone, Debug)]
pub struct NeedleTask {
    name: String,
    prompts: Vec<NeedlePrompt>,
    new_tokens: usize,
}

impl NeedleTask {
    /// Makes the prompts of a task.
    ///
    /// # Errors
    /// [`EvalError::Needles`] for options that make none.
    pub fn new(kind: NeedleKind, spec: &TaskSpec, seed: u64, tokenizer: &ModelTokenizer) -> Result<Self, EvalError> {
        let options = NeedleOptions {
            lengths: spec.lengths.clone(),
            depths: spec.depths.clone(),
            needles: spec.needles,
            samples: spec.samples,
            seed,
        };
        let prompts = prompts(kind, &options, |text| tokenizer.encode(text))?;
        let prompts: Vec<NeedlePrompt> = prompts.into_iter().take(spec.limit.unwrap_or(usize::MAX)).collect();
        // A digit may be a token of its own, and words may stand between numbers.
        let numbers = prompts.iter().map(|prompt| prompt.answers.len()).max().unwrap_or(1);
        Ok(Self { name: spec.task.clone(), prompts, new_tokens: 16 * numbers + 8 })
    }

    /// Prompts.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there is no prompt.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Continues every prompt greedily and looks for the numbers; `done` is told of each finished prompt.
    ///
    /// # Errors
    /// Whatever model, policies and cache refuse.
    pub fn run<'p>(
        &self,
        model: &Decoder,
        tokenizer: &ModelTokenizer,
        stack: impl Fn() -> Result<Stack<'p>, EvalError> + Sync,
        done: impl Fn(usize) + Sync,
    ) -> Result<Evaluated, EvalError> {
        let start = Instant::now();
        let options = GenerateOptions { max_tokens: self.new_tokens, ..GenerateOptions::default() };
        let answer = |(index, prompt): (usize, &NeedlePrompt)| -> Result<(Sample, usize), EvalError> {
            let tokens = prompt.ids.len() + self.new_tokens;
            let cache_options = model.cache_options(1, tokens).for_prompt(prompt.ids.len());
            let mut cache = model.cache(stack()?, cache_options)?;
            let written = generate(model, tokenizer, &prompt.ids, &mut cache, &options, |_| {})?;
            done(1);
            let accuracy = found(&prompt.answers, &written.text);
            let sample = Sample {
                task: self.name.clone(),
                protocol: "greedy".into(),
                index,
                place: place(prompt),
                subset: Some(place(prompt)),
                gold: None,
                texts: vec![(prompt.text.clone(), prompt.answers.join(", "))],
                scores: Vec::new(),
                greedy: Vec::new(),
                picks: BTreeMap::new(),
                metrics: BTreeMap::from([("accuracy".to_owned(), accuracy)]),
                generated: Some(written.text),
                truncated: false,
            };
            Ok((sample, prompt.ids.len() + written.ids.len()))
        };
        let answered: Vec<(Sample, usize)> =
            self.prompts.par_iter().enumerate().map(answer).collect::<Result<_, _>>()?;
        let seconds = start.elapsed().as_secs_f64();
        let tokens: usize = answered.iter().map(|(_, tokens)| tokens).sum();
        let samples: Vec<Sample> = answered.into_iter().map(|(sample, _)| sample).collect();
        let longest = self.prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        let mut by_place: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for sample in &samples {
            by_place.entry(sample.place.clone()).or_default().push(sample.metrics["accuracy"]);
        }
        let accuracy = |values: &[f64]| BTreeMap::<String, Metric>::from([("accuracy".into(), metrics::mean(values))]);
        let all: Vec<f64> = samples.iter().map(|sample| sample.metrics["accuracy"]).collect();
        let texts: Vec<&str> = self.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        let result = TaskResult {
            task: self.name.clone(),
            protocol: "greedy".into(),
            limit: None,
            metrics: accuracy(&all),
            items: samples.len(),
            tokens,
            truncated: 0,
            text_hash: hex(&Sha256::digest(texts.join("\n").as_bytes())),
            window: longest,
            chunk: 0,
            prefill: longest,
            batch: 1,
            sees_evictions: true,
            benchmark: Some(BenchmarkResult {
                shots: 0,
                max_length: longest + self.new_tokens,
                source: "kvsharer".into(),
                skipped: 0,
                left_out: 0,
                subsets: by_place.iter().map(|(place, values)| (place.clone(), accuracy(values))).collect(),
                tokens_run: tokens,
                tokens_per_second: tokens as f64 / seconds.max(1e-9),
                compared_prefill: None,
            }),
        };
        let lengths = Lengths::new(longest, longest + self.new_tokens);
        Ok(Evaluated { result, samples, largest: (1, lengths) })
    }
}

/// Length and depth, such that names sort by them.
fn place(prompt: &NeedlePrompt) -> String {
    format!("length {:6}, depth {:.2}", prompt.length, prompt.depth)
}
