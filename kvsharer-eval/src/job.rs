//! One measurement, as an experiment file or a command line describes it: read first, run when the model is there.

use crate::needles::NeedleKind;
use crate::tasks::{Protocol, TaskFiles, find_task, tasks};
use crate::{
    Benchmark, BenchmarkOptions, Divergence, EvalError, Evaluated, NeedleTask, PerplexityOptions, Reduce,
    StepwiseOptions, TaskResult, benchmark, perplexity, stepwise, texts,
};
use kvsharer_core::{Lengths, Plan, SearchModel, Stack, hex};
use kvsharer_models::hub::{Hub, HubReference, RepositoryKind};
use kvsharer_models::{Decoder, ModelError, ModelTokenizer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The text that travels with the program, as a path.
const DEMO: &str = "builtin:demo";

/// A task with everything that its number depends on, apart from the model and its stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskSpec {
    /// Name: one of the benchmarks, `perplexity`, `stepwise`, `passkey`, `needle` or `needle-each`.
    pub task: String,
    /// Its items or text: a path, `hf:ORG/NAME/FILE[@REVISION]` of a data set of the hub, or `builtin:demo`, the text
    /// that travels with the program.
    pub path: Option<PathBuf>,
    /// Whose prompts and rules; the first that the task has if `None`.
    pub protocol: Option<Protocol>,
    /// Items for examples.
    pub dev: Option<PathBuf>,
    /// Examples; the protocol's own number if `None`.
    pub shots: Option<usize>,
    /// The first items, windows or documents only.
    pub limit: Option<usize>,
    /// Count and skip bad items.
    pub skip_bad: bool,
    /// Tokens of the longest text of a benchmark; the model's context if `None`.
    pub max_length: Option<usize>,
    /// New tokens of a text to generate.
    pub max_new_tokens: usize,
    /// Tokens of a perplexity window or document.
    pub window: usize,
    /// Tokens of a forward pass of a perplexity window; 0 is all.
    pub chunk: usize,
    /// Whether a perplexity comes with the KL divergence of its predictions from those of the untouched model with a full
    /// cache, which runs beside it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub kl: bool,
    /// First tokens of a stepwise document that run in one pass.
    pub prefill: usize,
    /// Stepwise documents that go through one cache.
    pub batch: usize,
    /// Tokens of retrieval prompts.
    pub lengths: Vec<usize>,
    /// Where the first needle stands, 0 to 1.
    pub depths: Vec<f64>,
    /// Needles of a retrieval prompt.
    pub needles: usize,
    /// Retrieval prompts of each length and depth.
    pub samples: usize,
}

impl Default for TaskSpec {
    fn default() -> Self {
        Self {
            task: String::new(),
            path: None,
            protocol: None,
            dev: None,
            shots: None,
            limit: None,
            skip_bad: false,
            max_length: None,
            max_new_tokens: 100,
            window: 1024,
            chunk: 0,
            kl: false,
            prefill: 0,
            batch: 1,
            lengths: vec![512, 1024],
            depths: vec![0.0, 0.25, 0.5, 0.75, 1.0],
            needles: 4,
            samples: 2,
        }
    }
}

/// How far a job is, in steps of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There will be so many.
    Total(usize),
    /// So many are done.
    Done(usize),
}

/// A measurement whose files were read and judged.
#[derive(Debug)]
pub struct Job {
    spec: TaskSpec,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Windows { text: String },
    Stepwise { text: String },
    Benchmark(Box<Benchmark>),
    Needles(NeedleKind),
}

const NO_FILE: &str = "nothing";

/// Tasks that are no benchmarks: name, what they want, and protocol with what it measures.
pub const OTHER_TASKS: &[(&str, &str, &str)] = &[
    (
        "perplexity",
        "a text file, or builtin:demo",
        "windows: perplexity of disjoint windows, each in one pass or in chunks",
    ),
    ("stepwise", "a text file, or builtin:demo", "stepwise: perplexity token by token, so that every eviction counts"),
    ("passkey", NO_FILE, "retrieval of a pass key, by length and depth"),
    ("needle", NO_FILE, "retrieval of several numbers with one question, by length and depth"),
    ("needle-each", NO_FILE, "retrieval of several numbers, a question each, by length and depth"),
];

impl TaskSpec {
    /// Reads and judges the task's files.
    ///
    /// # Errors
    /// [`EvalError`] for an unknown task, options that do not fit, or a file that cannot be read.
    pub fn prepare(self) -> Result<Job, EvalError> {
        let (path, dev) = (local(self.path.as_ref())?, local(self.dev.as_ref())?);
        let kind = match self.task.as_str() {
            "perplexity" => {
                if self.window < 2 {
                    return Err(EvalError::WindowTooShort { window: self.window });
                }
                Kind::Windows { text: self.text(path)? }
            }
            "stepwise" => {
                self.stepwise().check()?;
                Kind::Stepwise { text: self.text(path)? }
            }
            "passkey" => Kind::Needles(NeedleKind::Passkey),
            "needle" => Kind::Needles(NeedleKind::Needle),
            "needle-each" => Kind::Needles(NeedleKind::NeedleEach),
            name => {
                let entry = find_task(name)
                    .ok_or_else(|| EvalError::UnknownTask { name: name.into(), known: known_tasks() })?;
                let protocol = self.protocol.or_else(|| entry.protocols().next()).unwrap_or(Protocol::LmEval);
                let path = path.ok_or_else(|| EvalError::NoPath { task: name.into(), files: entry.files.into() })?;
                let files =
                    TaskFiles { items: path, dev, shots: self.shots, limit: self.limit, skip_bad: self.skip_bad };
                Kind::Benchmark(Box::new(benchmark(entry, protocol, files)?))
            }
        };
        Ok(Job { spec: self, kind })
    }

    fn text(&self, path: Option<PathBuf>) -> Result<String, EvalError> {
        let Some(path) = path else {
            return Err(EvalError::NoPath { task: self.task.clone(), files: "a text file, or builtin:demo".into() });
        };
        if path.as_os_str() == DEMO {
            return Ok(texts::DEMO.into());
        }
        let io = |source| EvalError::Io { path: path.clone(), source };
        let bytes = std::fs::read(&path).map_err(io)?;
        String::from_utf8(bytes).map_err(|error| {
            let what = format!("is no UTF-8 text ({error})");
            io(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
        })
    }

    fn stepwise(&self) -> StepwiseOptions {
        StepwiseOptions { document: self.window, prefill: self.prefill, batch: self.batch, limit: self.limit }
    }

    fn windows(&self, reduce: Reduce) -> PerplexityOptions {
        PerplexityOptions { window: self.window, chunk: self.chunk, limit: self.limit, reduce }
    }
}

impl Job {
    /// What it measures.
    pub fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    /// Bad items that were skipped.
    pub fn skipped(&self) -> &[String] {
        match &self.kind {
            Kind::Benchmark(benchmark) => benchmark.skipped(),
            _ => &[],
        }
    }

    /// Whether its files can tell of tasks with whole windows in one pass, so that evictions are not seen.
    pub fn runs_in_one_pass(&self) -> bool {
        matches!(self.kind, Kind::Windows { .. }) && self.spec.chunk == 0
    }

    /// Tokens of a first pass that counts as the prompt although it is none, if there is such a pass.
    pub fn stray_prompt(&self) -> Option<usize> {
        match &self.kind {
            Kind::Windows { .. } if self.spec.chunk > 0 => Some(self.spec.chunk),
            Kind::Stepwise { .. } if self.spec.prefill == 0 => Some(1),
            _ => None,
        }
    }

    /// Sequences that share a cache, and their lengths, where the task fixes them.
    ///
    /// # Errors
    /// [`EvalError::NoLengths`].
    pub fn lengths(&self) -> Result<(usize, Lengths), EvalError> {
        match self.kind {
            Kind::Windows { .. } => Ok((1, self.spec.window.into())),
            Kind::Stepwise { .. } => {
                let prompt = self.spec.stepwise().prompt();
                Ok((self.spec.batch, Lengths { prompt, tokens: self.spec.window }))
            }
            _ => Err(EvalError::NoLengths { task: self.spec.task.clone() }),
        }
    }

    /// Sequences that share a cache, and their lengths, as far as the task's text goes; `None` where items differ.
    pub fn run_lengths(&self) -> Option<(usize, Lengths)> {
        let (batch, lengths) = self.lengths().ok()?;
        let (Kind::Windows { text } | Kind::Stepwise { text }) = &self.kind else { return None };
        // A token stands for at least a byte; a few more may be put around a text.
        Some((batch, Lengths { tokens: lengths.tokens.min(text.len() + 8), ..lengths }))
    }

    /// Runs it with `model`, which is `loaded` with what a strategy has made of it; `stack` makes the policies of a cache.
    ///
    /// # Errors
    /// Whatever the task, the model, the policies and the cache refuse.
    pub fn run<'p>(
        &self,
        model: &Decoder,
        loaded: &Decoder,
        tokenizer: &ModelTokenizer,
        options: &BenchmarkOptions,
        stack: impl Fn() -> Result<Stack<'p>, EvalError> + Sync,
        progress: impl Fn(Step) + Sync,
    ) -> Result<Evaluated, EvalError> {
        let run = || self.run_here(model, loaded, tokenizer, options, &stack, &progress);
        let alone = options.score.one_at_a_time.then(|| rayon::ThreadPoolBuilder::new().num_threads(1).build());
        match alone {
            Some(Ok(pool)) => pool.install(run),
            _ => run(),
        }
    }

    fn run_here<'p>(
        &self,
        model: &Decoder,
        loaded: &Decoder,
        tokenizer: &ModelTokenizer,
        options: &BenchmarkOptions,
        stack: impl Fn() -> Result<Stack<'p>, EvalError> + Sync,
        progress: impl Fn(Step) + Sync,
    ) -> Result<Evaluated, EvalError> {
        let done = |steps| progress(Step::Done(steps));
        let options = BenchmarkOptions {
            max_length: self.spec.max_length.or(options.max_length),
            max_new_tokens: self.spec.max_new_tokens,
            ..options.clone()
        };
        match &self.kind {
            Kind::Benchmark(benchmark) => {
                progress(Step::Total(benchmark.texts()));
                benchmark.run(model, tokenizer, &options, stack, done)
            }
            Kind::Needles(kind) => {
                let task = NeedleTask::new(*kind, &self.spec, options.seed, tokenizer)?;
                progress(Step::Total(task.len()));
                task.run(model, tokenizer, stack, done)
            }
            Kind::Windows { text } | Kind::Stepwise { text } => {
                self.perplexity(text, (model, loaded), tokenizer, options.score.reduce, stack, &progress)
            }
        }
    }

    fn perplexity<'p>(
        &self,
        text: &str,
        (model, loaded): (&Decoder, &Decoder),
        tokenizer: &ModelTokenizer,
        reduce: Reduce,
        stack: impl Fn() -> Result<Stack<'p>, EvalError> + Sync,
        progress: &(impl Fn(Step) + Sync),
    ) -> Result<Evaluated, EvalError> {
        let spec = &self.spec;
        let ids = tokenizer.encode(text).map_err(ModelError::from)?;
        let stepwise_options = spec.stepwise();
        let is_windows = matches!(self.kind, Kind::Windows { .. });
        let (chunk, prompt) = match is_windows {
            true if spec.chunk == 0 => (spec.window, None),
            true => (spec.chunk.min(spec.window), None),
            false => (1, stepwise_options.prompt()),
        };
        let read = spec.limit.map_or(ids.len(), |limit| ids.len().min(limit.saturating_mul(spec.window)));
        let unscored = read.div_ceil(spec.window) * prompt.unwrap_or(1);
        progress(Step::Total(read.saturating_sub(unscored)));
        let done = |tokens| progress(Step::Done(tokens));
        let evicts = Plan::new(model.shape(), &stack()?)?.evicts();
        let scored = match is_windows {
            true => perplexity(model, spec.kl.then_some(loaded), &ids, &spec.windows(reduce), &stack, done),
            false => stepwise(model, &ids, &stepwise_options, &stack, done),
        };
        let scored = scored.map_err(|error| match (error, &spec.path) {
            (EvalError::TextTooShort { tokens, least }, Some(path)) => {
                EvalError::FileTooShort { path: path.clone(), tokens, least }
            }
            (error, _) => error,
        })?;
        let metric = |value, stderr| crate::Metric { value, stderr };
        let mut metrics = BTreeMap::from([
            ("perplexity".to_owned(), metric(scored.value, scored.stderr)),
            ("nll".to_owned(), metric(scored.nll, scored.stderr.map(|stderr| stderr / scored.value))),
        ]);
        if let Some(Divergence { kl, same_top }) = scored.divergence {
            metrics.extend([("kl".to_owned(), kl), ("same_top".to_owned(), same_top)]);
        }
        let result = TaskResult {
            task: spec.task.clone(),
            protocol: if is_windows { "windows" } else { "stepwise" }.into(),
            limit: spec.limit,
            metrics,
            items: scored.windows,
            tokens: scored.tokens,
            truncated: 0,
            text_hash: hex(&Sha256::digest(text.as_bytes())),
            window: spec.window,
            chunk,
            prefill: prompt.unwrap_or(0),
            batch: scored.batch,
            sees_evictions: !evicts || chunk < spec.window,
            benchmark: None,
        };
        let lengths = Lengths { prompt, tokens: scored.longest };
        Ok(Evaluated { result, samples: Vec::new(), largest: (scored.batch, lengths) })
    }
}

/// Where a task's file is: `hf:ORG/NAME/FILE` of a data set is fetched if it is missing.
fn local(path: Option<&PathBuf>) -> Result<Option<PathBuf>, EvalError> {
    let Some(text) = path.and_then(|path| path.to_str()).filter(|text| HubReference::is_one(text)) else {
        return Ok(path.cloned());
    };
    let fetch = || Hub::from_env()?.fetch(&HubReference::parse(RepositoryKind::Dataset, text)?, &mut |_| {});
    Ok(Some(fetch().map_err(ModelError::from)?))
}

/// Judges a task as it was named, before anything is read for it.
///
/// # Errors
/// [`EvalError::UnknownTask`], [`EvalError::NoPath`].
pub fn check_task(name: &str, has_path: bool) -> Result<(), EvalError> {
    let no_path = |files: &str| EvalError::NoPath { task: name.into(), files: files.into() };
    match (find_task(name), OTHER_TASKS.iter().find(|(other, ..)| *other == name)) {
        (Some(entry), _) if !has_path => Err(no_path(entry.files)),
        (None, Some((_, files, _))) if !has_path && *files != NO_FILE => Err(no_path(files)),
        (None, None) => Err(EvalError::UnknownTask { name: name.into(), known: known_tasks() }),
        _ => Ok(()),
    }
}

fn known_tasks() -> String {
    let others = OTHER_TASKS.iter().map(|(name, ..)| *name);
    tasks().iter().map(|entry| entry.name).chain(others).collect::<Vec<_>>().join(", ")
}
