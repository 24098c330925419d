//! Log-likelihoods of texts after texts, many at once: what several texts begin with is run once, and texts of like
//! length go through one cache.

mod batch;
mod family;

use crate::{EvalError, Reduce};
use batch::{Batch, batches};
use family::families;
use kvsharer_core::{Plan, SearchModel, Stack, Storage};
use kvsharer_models::Decoder;
use rayon::prelude::*;
use std::ops::Range;

/// A text whose end, or all of it, is scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Tokens that are the prompt: a policy that evicts reduces them before the rest is run.
    pub prompt: usize,
    /// Tokens that are scored, each after those before it; the first token of a text cannot be.
    pub scored: Range<usize>,
}

/// What a model says of a [`Sequence`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Sum of the log-probabilities of the scored tokens, in nats.
    pub log_likelihood: f64,
    /// Whether greedy decoding gives every scored token.
    pub greedy: bool,
}

/// How much is run at once. It makes no difference but for rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreOptions {
    /// Tokens of a forward pass, about.
    pub tokens: usize,
    /// Sequences of a forward pass at most.
    pub rows: usize,
    /// What a forward pass costs whatever is in it, in tokens that run in that time: it may have so much padding, if
    /// what that evens out would otherwise need one more pass.
    pub padding: usize,
    /// Run what sequences of an item begin with once, unless running all of them whole costs less.
    pub share_prefixes: bool,
    /// Where logits become scores.
    pub reduce: Reduce,
    /// Run one batch after the other in [`Job::run`](crate::Job::run), instead of one a thread: for devices that one
    /// batch fills. Threads would each have a queue and a memory pool of their own there, and wait for each other.
    pub one_at_a_time: bool,
}

impl Default for ScoreOptions {
    fn default() -> Self {
        Self { tokens: 1024, rows: 64, padding: 64, share_prefixes: true, reduce: Reduce::Host, one_at_a_time: false }
    }
}

/// Scores of all sequences of all items.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// One list an item, one entry a sequence.
    pub likelihoods: Vec<Vec<Likelihood>>,
    /// Tokens that went through the model, without padding.
    pub tokens_run: usize,
    /// Sequences that shared a cache, at most.
    pub batch: usize,
    /// Tokens of the longest sequence, as far as it was run.
    pub longest: usize,
}

/// Scores the sequences of `items`; `stack` makes the policies of a cache, `done` is told of finished sequences.
/// Batches run in parallel on the threads of the current rayon pool.
///
/// Without an evicting policy or quantised storage, everything that the sequences of an item have in common is run
/// once, unless the passes that this takes cost more than it saves. With one, exactly the prompt is, so that every
/// sequence goes on from what stays of it, as if it ran alone; lengths are then not mixed in a batch, as padding could
/// count.
///
/// # Errors
/// [`EvalError::BadSequence`] for a sequence with nothing to score, [`EvalError::NotFiniteItem`], or whatever model,
/// policies and cache refuse.
pub fn likelihoods<'p>(
    model: &Decoder,
    items: &[Vec<Sequence>],
    options: &ScoreOptions,
    stack: impl Fn() -> Result<Stack<'p>, EvalError> + Sync,
    done: impl Fn(usize) + Sync,
) -> Result<Scored, EvalError> {
    check(items)?;
    let plan = Plan::new(model.shape(), &stack()?)?;
    let exact = plan.evicts() || plan.groups().iter().any(|group| group.storage != Storage::Full);
    let mut plans = vec![families(items, exact, options.share_prefixes)];
    if options.share_prefixes && !exact {
        plans.push(families(items, exact, false));
    }
    let cost = |batches: &Vec<Batch<'_>>| batches.iter().map(|batch| batch.cost(items, exact, options)).sum::<usize>();
    let batches = plans.iter().map(|families| batches(families, exact, options)).min_by_key(cost).unwrap_or_default();
    let run = |batch: &Batch<'_>| {
        let running = batch.run(model, items, exact, options, &stack)?;
        done(batch.rows());
        Ok(running)
    };
    // A device goes on with one batch while the host prepares the next.
    let running: Vec<_> = batches.par_iter().map(run).collect::<Result<_, EvalError>>()?;
    let none = Likelihood { log_likelihood: 0.0, greedy: true };
    let mut found: Vec<Vec<Likelihood>> = items.iter().map(|item| vec![none; item.len()]).collect();
    for running in running {
        for (member, likelihood) in running.read()? {
            if !likelihood.log_likelihood.is_finite() {
                return Err(EvalError::NotFiniteItem { item: member.item });
            }
            found[member.item][member.sequence] = likelihood;
        }
    }
    Ok(Scored {
        likelihoods: found,
        tokens_run: batches.iter().map(Batch::tokens).sum(),
        batch: batches.iter().map(Batch::rows).max().unwrap_or(0),
        longest: items.iter().flatten().map(|sequence| sequence.ids.len() - 1).max().unwrap_or(0),
    })
}

fn check(items: &[Vec<Sequence>]) -> Result<(), EvalError> {
    for (item, sequences) in items.iter().enumerate() {
        for Sequence { ids, prompt, scored } in sequences {
            if scored.is_empty() || scored.start == 0 || scored.end > ids.len() || *prompt >= ids.len() {
                let (tokens, prompt, scored) = (ids.len(), *prompt, scored.clone());
                return Err(EvalError::BadSequence { item, tokens, prompt, scored });
            }
        }
    }
    Ok(())
}
