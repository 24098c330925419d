//! How fast texts are scored, beside how fast they only run.

use crate::score::{ScoreOptions, Sequence, likelihoods};
use crate::{EvalError, Spread};
use kvsharer_core::Stack;
use kvsharer_models::Decoder;
use std::time::Instant;

/// Runs that are timed, after one to warm up.
const RUNS: usize = 3;

/// Tokens a second, without padding: medians of several runs.
pub(super) struct Speeds {
    /// Where everything is scored that a task asks for.
    pub(super) scored: f64,
    /// Where each text runs whole and only its last token is scored, as a prompt is.
    pub(super) run: f64,
}

pub(super) fn speeds<'p>(
    model: &Decoder,
    items: &[Vec<Sequence>],
    options: &ScoreOptions,
    stack: &(impl Fn() -> Result<Stack<'p>, EvalError> + Sync),
) -> Result<Speeds, EvalError> {
    let median = |items: &[Vec<Sequence>], options: &ScoreOptions| -> Result<f64, EvalError> {
        let rate = |_| {
            let start = Instant::now();
            let scored = likelihoods(model, items, options, stack, |_| ())?;
            Ok(scored.tokens_run as f64 / start.elapsed().as_secs_f64().max(1e-9))
        };
        let rates = (0..=RUNS).map(rate).collect::<Result<Vec<f64>, EvalError>>()?;
        Ok(Spread::of(rates[1..].to_vec()).median)
    };
    let whole = |sequence: &Sequence| {
        let last = sequence.ids.len() - 1;
        Sequence { prompt: last, scored: last..last + 1, ..sequence.clone() }
    };
    let prompts: Vec<Vec<Sequence>> = items.iter().map(|item| item.iter().map(whole).collect()).collect();
    let alone = ScoreOptions { share_prefixes: false, ..*options };
    Ok(Speeds { scored: median(items, options)?, run: median(&prompts, &alone)? })
}
