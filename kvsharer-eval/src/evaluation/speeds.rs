//! How fast texts are scored, beside how fast they only run.

use crate::score::{ScoreOptions, Sequence, likelihoods};
use crate::{EvalError, PrefillSpeed, Spread};
use kvsharer_core::Stack;
use kvsharer_models::Decoder;
use std::time::Instant;

/// Runs that are timed, after one to warm up.
const RUNS: usize = 3;

/// Medians of several runs.
pub(super) struct Speeds {
    /// Tokens a second, without padding, where everything is scored that a task asks for.
    pub(super) scored: f64,
    /// Where each text runs whole and only its last token is scored, as a prompt is.
    pub(super) run: PrefillSpeed,
}

pub(super) fn speeds<'p>(
    model: &Decoder,
    items: &[Vec<Sequence>],
    options: &ScoreOptions,
    stack: &(impl Fn() -> Result<Stack<'p>, EvalError> + Sync),
) -> Result<Speeds, EvalError> {
    let median = |items: &[Vec<Sequence>], options: &ScoreOptions| -> Result<PrefillSpeed, EvalError> {
        let (mut tokens, mut rates) = (0, Vec::new());
        for run in 0..=RUNS {
            let start = Instant::now();
            tokens = likelihoods(model, items, options, stack, |_| ())?.tokens_run;
            if run > 0 {
                rates.push(tokens as f64 / start.elapsed().as_secs_f64().max(1e-9));
            }
        }
        Ok(PrefillSpeed { tokens, tokens_per_second: Spread::of(rates).median })
    };
    let whole = |sequence: &Sequence| {
        let last = sequence.ids.len() - 1;
        Sequence { prompt: last, scored: last..last + 1, ..sequence.clone() }
    };
    let prompts: Vec<Vec<Sequence>> = items.iter().map(|item| item.iter().map(whole).collect()).collect();
    let alone = ScoreOptions { share_prefixes: false, ..*options };
    Ok(Speeds { scored: median(items, options)?.tokens_per_second, run: median(&prompts, &alone)? })
}
