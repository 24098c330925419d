//! Perplexity by disjoint windows.

use super::{Divergence, Perplexity, cut, mean};
use crate::EvalError;
use crate::logits::{Reduce, divergence, score_positions};
use burn::tensor::Tensor;
use kvsharer_core::Stack;
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
/// number of tokens it predicted. `full` is the untouched model if the divergence from its predictions is wanted; its
/// windows run in one pass with a full cache. Windows run in parallel on the threads of the current rayon pool.
///
/// # Errors
/// [`EvalError`] for a text or window too short, or whatever model and cache refuse.
pub fn perplexity<'p>(
    model: &Decoder,
    full: Option<&Decoder>,
    text: &[u32],
    options: &PerplexityOptions,
    stack: impl Fn() -> Result<Stack<'p>, EvalError> + Sync,
    done: impl Fn(usize) + Sync,
) -> Result<Perplexity, EvalError> {
    let windows = cut(text, options.window, 2, options.limit)?;
    let score = |(index, window): (usize, &&[u32])| -> Result<Window, EvalError> {
        let mut cache = model.cache(stack()?, model.cache_options(1, window.len()))?;
        let full = full.map(|full| Ok::<_, EvalError>((full, untouched(full, window)?))).transpose()?;
        let mut sums = Window { tokens: window.len() - 1, ..Window::default() };
        let chunk = if options.chunk == 0 { window.len() } else { options.chunk };
        for (part, tokens) in window.chunks(chunk).enumerate() {
            let hidden = model.forward(&[tokens], &mut cache)?;
            // The state at position i predicts token i + 1; the window's last state predicts nothing.
            let start = part * chunk;
            let targets = &window[start + 1..window.len().min(start + chunk + 1)];
            let positions: Vec<usize> = (0..targets.len()).collect();
            let scores = score_positions(model, hidden.clone(), &positions, targets, options.reduce)?.read()?;
            if let Some(token) = scores.iter().position(|score| !score.nll.is_finite()) {
                return Err(EvalError::NotFinite { window: index, token: start + token + 1 });
            }
            sums.nll += scores.iter().map(|score| score.nll).sum::<f64>();
            if let Some((full, states)) = &full {
                let states = states.clone().slice_dim(1, start..start + targets.len());
                let (kl, same) = divergence((full, states), (model, hidden.slice_dim(1, 0..targets.len())))?;
                sums.kl += kl;
                sums.same += same;
            }
        }
        done(sums.tokens);
        Ok(sums)
    };
    let scored = windows.par_iter().enumerate().map(score).collect::<Result<Vec<_>, _>>()?;
    let sums = |of: fn(&Window) -> f64| scored.iter().map(|window| (of(window), window.tokens)).collect::<Vec<_>>();
    let divergence = full.map(|_| Divergence {
        kl: mean(&sums(|window| window.kl)),
        same_top: mean(&sums(|window| window.same as f64)),
    });
    // Only the last window can be shorter.
    Ok(Perplexity { divergence, ..Perplexity::of(&sums(|window| window.nll), windows[0].len(), 1) })
}

/// Sums over a window's predicted tokens.
#[derive(Default)]
struct Window {
    tokens: usize,
    nll: f64,
    kl: f64,
    same: usize,
}

/// States of a window with a full cache.
fn untouched(model: &Decoder, window: &[u32]) -> Result<Tensor<3>, EvalError> {
    let mut cache = model.cache(Stack::new(), model.cache_options(1, window.len()))?;
    Ok(model.forward(&[window], &mut cache)?)
}
