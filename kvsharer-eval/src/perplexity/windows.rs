//! Perplexity by disjoint windows.

use super::{Perplexity, cut};
use crate::EvalError;
use crate::logits::{Reduce, score_positions};
use kvsharer_core::{Cache, Stack};
use kvsharer_models::Decoder;
use rayon::prelude::*;

/// The protocol `windows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a window; a last shorter window is kept if it has at least two tokens.
    pub window: usize,
    /// Tokens of a forward pass; evictions between passes count. 0 runs a window in one pass, which sees sharing but
    /// no eviction, because caches are reduced only after it.
    pub chunk: usize,
    /// The first windows only.
    pub limit: Option<usize>,
    /// Where logits become scores.
    pub reduce: Reduce,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        Self { window: 1024, chunk: 0, limit: None, reduce: Reduce::Host }
    }
}

/// Scores `text`; `stack` makes the policies of each window's cache, `done` is called after each window with the
/// number of tokens it predicted. Windows run in parallel on the threads of the current rayon pool.
///
/// # Errors
/// [`EvalError`] for a text or window too short, or whatever model and cache refuse.
pub fn perplexity<'p>(
    model: &Decoder,
    text: &[u32],
    options: &PerplexityOptions,
    stack: impl Fn() -> Result<Stack<'p>, EvalError> + Sync,
    done: impl Fn(usize) + Sync,
) -> Result<Perplexity, EvalError> {
    let windows = cut(text, options.window, 2, options.limit)?;
    let score = |(index, window): (usize, &&[u32])| -> Result<(f64, usize), EvalError> {
        let cache_options = model.cache_options(1, window.len());
        let mut cache = model.cache(stack()?, cache_options)?;
        let nll = window_nll(model, window, options, &mut cache)?;
        if let Some(token) = nll.iter().position(|nll| !nll.is_finite()) {
            return Err(EvalError::NotFinite { window: index, token: token + 1 });
        }
        done(nll.len());
        Ok((nll.iter().sum(), nll.len()))
    };
    let scored = windows.par_iter().enumerate().map(score).collect::<Result<Vec<_>, _>>()?;
    // Only the last window can be shorter.
    Ok(Perplexity::of(&scored, windows[0].len(), 1))
}

/// Negative log-likelihood of every token of a window but the first, in nats.
fn window_nll(
    model: &Decoder,
    window: &[u32],
    options: &PerplexityOptions,
    cache: &mut Cache<'_>,
) -> Result<Vec<f64>, EvalError> {
    let chunk = if options.chunk == 0 { window.len() } else { options.chunk };
    let mut nll = Vec::with_capacity(window.len());
    for (index, part) in window.chunks(chunk).enumerate() {
        let hidden = model.forward(&[part], cache)?;
        // The state at position i predicts token i + 1; the window's last state predicts nothing.
        let targets = &window[index * chunk + 1..window.len().min((index + 1) * chunk + 1)];
        let positions: Vec<usize> = (0..targets.len()).collect();
        let scores = score_positions(model, hidden, &positions, targets, options.reduce)?;
        nll.extend(scores.into_iter().map(|score| score.nll));
    }
    Ok(nll)
}
