//! Measuring shared and compressed KV caches: perplexity, bytes and speed; the library behind the program `kvsharer`.
//!
//! No backend is named here: the caller brings the model, which brings its device.
#![forbid(unsafe_code)]

pub mod conformance;
mod error;
mod evaluation;
pub mod experiment;
mod job;
mod journal;
mod logits;
pub mod metrics;
pub mod needles;
mod perplexity;
mod requests;
mod results;
mod retrieval;
pub mod score;
mod share;
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
pub use perplexity::{Perplexity, PerplexityOptions, StepwiseOptions, perplexity, stepwise};
pub use results::{BenchmarkResult, Metric, Results, Sample, TaskResult};
pub use retrieval::NeedleTask;
pub use share::{BadShare, Share};
pub use solve::{Solved, Target, solve_budget};
pub use speed::{DecodeSpeed, Spread, decode_speed};
pub use stack::build_stack;

/// Compiles and runs what the README shows.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
