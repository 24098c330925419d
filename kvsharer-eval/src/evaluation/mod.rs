//! A benchmark from its files to its scores.

mod answer;
mod measure;
mod speeds;
mod summary;

use crate::requests::{Asker, Request};
use crate::score::{ScoreOptions, likelihoods};
use crate::tasks::{Entry, Item, Protocol, TaskFiles};
use crate::{BenchmarkResult, EvalError, Metric, Sample, TaskResult};
use answer::answer;
use kvsharer_core::{Lengths, Plan, SearchModel, Stack};
use kvsharer_models::{Decoder, ModelTokenizer};
use measure::{aggregate, by_subset};
use speeds::speeds;
use std::collections::BTreeMap;
use std::time::Instant;
use summary::summaries;

/// How a benchmark is run.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchmarkOptions {
    /// Tokens of the longest text; the model's context if `None`.
    pub max_length: Option<usize>,
    /// How much is run at once.
    pub score: ScoreOptions,
    /// New tokens of a text to generate, at most.
    pub max_new_tokens: usize,
    /// Seed of bootstrapped standard errors.
    pub seed: u64,
    /// Also time the same texts run whole, with no more than their last token scored, as a prompt is: of this and of
    /// scoring the median of three runs after one to warm up.
    pub compare_prefill: bool,
}

impl Default for BenchmarkOptions {
    fn default() -> Self {
        Self { max_length: None, score: ScoreOptions::default(), max_new_tokens: 100, seed: 0, compare_prefill: false }
    }
}

/// A benchmark with its items read, ready to be run: files are judged before weights are loaded.
#[derive(Clone, Debug)]
pub struct Benchmark {
    entry: &'static Entry,
    protocol: Protocol,
    files: TaskFiles,
    items: Vec<Item>,
    shots: usize,
    skipped: Vec<String>,
    left_out: usize,
    hash: String,
}

/// What a benchmark gave.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// Its scores.
    pub result: TaskResult,
    /// Its items, one by one.
    pub samples: Vec<Sample>,
    /// Sequences of a batch and their greatest lengths, for which the plan's bytes are told.
    pub largest: (usize, Lengths),
}

/// Reads the items of a benchmark.
///
/// # Errors
/// [`EvalError::Task`] names the file, the line and what is wrong with it.
pub fn benchmark(entry: &'static Entry, protocol: Protocol, files: TaskFiles) -> Result<Benchmark, EvalError> {
    let read = entry.read(&files, protocol)?;
    let hash = files.hash(entry, read.shots)?;
    let (items, shots, skipped, left_out) = (read.items, read.shots, read.bad, read.left_out);
    Ok(Benchmark { entry, protocol, files, items, shots, skipped, left_out, hash })
}

impl Benchmark {
    /// Items that will be scored.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether no item is left.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bad items that were skipped: where each stands and what is wrong with it.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Runs it; `stack` makes the policies of a cache, `done` is told of finished texts, of which there are
    /// [`texts`](Self::texts).
    ///
    /// # Errors
    /// [`EvalError::BadText`] for an item that cannot be asked, or whatever model, policies and cache refuse.
    pub fn run<'p>(
        &self,
        model: &Decoder,
        tokenizer: &ModelTokenizer,
        options: &BenchmarkOptions,
        stack: impl Fn() -> Result<Stack<'p>, EvalError> + Sync,
        done: impl Fn(usize) + Sync,
    ) -> Result<Evaluated, EvalError> {
        let max_length = options.max_length.unwrap_or(model.config().max_positions).max(2);
        let asker = Asker { tokenizer, protocol: self.protocol, max_length };
        let requests: Vec<Request> = self.items.iter().map(|item| asker.ask(item)).collect::<Result<_, _>>()?;
        let sequences: Vec<_> = requests.iter().map(|request| request.sequences.clone()).collect();
        let compare = options.compare_prefill && sequences.iter().any(|of_item| !of_item.is_empty());
        let speeds = compare.then(|| speeds(model, &sequences, &options.score, &stack)).transpose()?;
        let start = Instant::now();
        let scored = likelihoods(model, &sequences, &options.score, &stack, &done)?;
        let texts = summaries(model, tokenizer, &self.items, max_length, options, &stack, &done)?;
        let seconds = start.elapsed().as_secs_f64();
        let rules = self.entry.rules(self.protocol)?;
        let mut samples = Vec::with_capacity(self.items.len());
        for (index, (item, request)) in self.items.iter().zip(&requests).enumerate() {
            let found = answer(item, request, &scored.likelihoods[index], texts.get(index).and_then(Option::as_ref));
            samples.push(Sample {
                task: self.entry.name.into(),
                protocol: self.protocol.name().into(),
                index,
                place: item.place.to_string(),
                subset: item.subset.clone(),
                gold: item.gold,
                texts: request.texts.clone(),
                scores: found.scores,
                greedy: scored.likelihoods[index].iter().map(|likelihood| likelihood.greedy).collect(),
                picks: found.picks,
                metrics: found.metrics,
                generated: texts.get(index).and_then(|text| text.as_ref().map(|text| text.text.clone())),
                truncated: request.truncated || texts.get(index).and_then(Option::as_ref).is_some_and(|t| t.truncated),
            });
        }
        let generated: usize = texts.iter().flatten().map(|text| text.tokens).sum();
        let subsets = by_subset(&self.items, &samples, rules.metrics, options.seed);
        let metrics = aggregate(&self.items, &samples, &subsets, rules.metrics, options.seed);
        let predicted: usize = sequences.iter().flatten().map(|sequence| sequence.scored.len()).sum();
        let longest = scored.longest.max(texts.iter().flatten().map(|text| text.longest).max().unwrap_or(0));
        let (batch, tokens_run) = (scored.batch.max(usize::from(generated > 0)), scored.tokens_run + generated);
        let evicts = Plan::new(model.shape(), &stack()?)?.evicts();
        let prompts = sequences.iter().flatten().all(|sequence| sequence.prompt > 0);
        let result = TaskResult {
            task: self.entry.name.into(),
            protocol: self.protocol.name().into(),
            limit: self.files.limit,
            metrics,
            items: samples.len(),
            tokens: predicted + generated,
            truncated: samples.iter().filter(|sample| sample.truncated).count(),
            text_hash: self.hash.clone(),
            window: longest,
            chunk: 0,
            prefill: 0,
            batch,
            sees_evictions: !evicts || prompts,
            benchmark: Some(BenchmarkResult {
                shots: self.shots,
                max_length,
                source: rules.source.into(),
                skipped: self.skipped.len(),
                left_out: self.left_out,
                subsets,
                tokens_run,
                tokens_per_second: speeds
                    .as_ref()
                    .map_or(tokens_run as f64 / seconds.max(1e-9), |speeds| speeds.scored),
                compared_prefill: speeds.map(|speeds| speeds.run),
            }),
        };
        Ok(Evaluated { result, samples, largest: (batch, longest.max(1).into()) })
    }

    /// Texts that [`run`](Self::run) will tell of; a document may be several.
    pub fn texts(&self) -> usize {
        self.items.iter().map(|item| item.ask.texts()).sum()
    }
}

/// Values by name.
type Values = BTreeMap<String, f64>;

/// Metrics by name.
type Metrics = BTreeMap<String, Metric>;
