//! Measuring shared and compressed KV caches: perplexity, bytes and speed; the library behind the program `kvsharer`.
//!
//! No backend is named here: the caller brings the model, which brings its device.
//!
//! # Running an ablation
//!
//! An [`Experiment`](experiment::Experiment) is a matrix of models, seeds, strategies, stacks and tasks; a
//! [`Runner`](experiment::Runner) appends one JSON line for each cell to a file and goes on where a killed run stopped.
//! This one asks what the order of trial is worth, on the text that comes with the program:
//!
//! ```no_run
//! use burn::tensor::{DType, Device};
//! use kvsharer_eval::BenchmarkOptions;
//! use kvsharer_eval::experiment::{Experiment, Records, Runner, Shard, Watch, Work};
//! use std::path::Path;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! std::fs::write("order.toml", r#"
//! name = "order"
//! models = ["smollm2-135m-instruct"]
//! seeds = [0, 1]
//! [[strategy]]
//! name = "full"
//! [[strategy]]
//! name = "dissimilar"
//! search = { share = "25%", order = "dissimilar" }
//! [[strategy]]
//! name = "random"
//! search = { share = "25%", order = "random", threshold = -1 }
//! [[stack]]
//! name = "plain"
//! [[task]]
//! task = "perplexity"
//! path = "builtin:demo"
//! window = 512
//! limit = 8
//! "#)?;
//! let experiment = Experiment::load(Path::new("order.toml"))?;
//! let runner = Runner {
//!     device: Device::flex(), // the CPU, by burn's feature `flex`
//!     device_name: "cpu".into(),
//!     dtypes: DType::F32.into(), // or matrices in 16 bits
//!     dtype_name: "f32".into(),
//!     options: BenchmarkOptions::default(),
//!     work: Work::Threads, // of calibration samples; Work::Tokens(8192) suits a GPU
//!     free_memory: || None, // not known: nothing is refused for it
//!     shard: Shard::default(), // all cells
//!     data: ".".into(),
//!     output: "order.jsonl".into(),
//! };
//! let failed = runner.run(&experiment, |told| {
//!     if let Watch::Finished(record) = told {
//!         println!("{} {}: {}", record.model, record.policies.join(" + "), record.result);
//!     }
//! })?;
//! assert_eq!(failed, 0);
//! println!("{} results", Records::open(Path::new("order.jsonl"))?.records().len());
//! # Ok(())
//! # }
//! ```
//!
//! `kvsharer run order.toml` does the same. A single measurement is [`perplexity()`], [`stepwise()`] or a [`Benchmark`]
//! under a stack of one's own; strategies go to other programs by [`export`].
#![forbid(unsafe_code)]

pub mod conformance;
mod error;
mod evaluation;
pub mod experiment;
pub mod export;
mod job;
mod journal;
mod logits;
mod memory;
pub mod metrics;
pub mod needles;
mod perplexity;
pub mod report;
mod requests;
mod results;
mod retrieval;
pub mod score;
mod share;
mod shipped;
mod solve;
mod speed;
mod stack;
pub mod tasks;
pub mod texts;

pub use error::EvalError;
pub use evaluation::{Benchmark, BenchmarkOptions, Evaluated, benchmark};
pub use job::{Job, OTHER_TASKS, Step, TaskSpec, check_task};
pub use journal::{Journal, Journaled};
pub use logits::Reduce;
pub use memory::{DoesNotFit, check_memory, free_host_memory};
pub use perplexity::{Divergence, Perplexity, PerplexityOptions, StepwiseOptions, perplexity, stepwise};
pub use results::{BenchmarkResult, Metric, PrefillSpeed, Results, Sample, TaskResult};
pub use retrieval::NeedleTask;
pub use share::{BadShare, Share};
pub use shipped::{Shipped, shipped, shipped_for, strategy_path};
pub use solve::{Solved, Target, solve_budget};
pub use speed::{DecodeSpeed, Spread, decode_speed};
pub use stack::build_stack;

/// Compiles and runs what the README shows.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
