//! Perplexity of a text, which every protocol cuts into pieces of equal length with a cache of their own: windows that
//! run in a few passes, or documents that run token by token.

mod stepwise;
mod windows;

use crate::{EvalError, Metric};
pub use stepwise::{StepwiseOptions, stepwise};
pub use windows::{PerplexityOptions, perplexity};

/// Perplexity of a text, `exp(sum of NLL / predicted tokens)`; the first token of a piece is not predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// The perplexity.
    pub value: f64,
    /// Its standard error by the delta method, pieces taken as independent; `None` for a single one.
    pub stderr: Option<f64>,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: f64,
    /// Windows or documents scored.
    pub windows: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// Tokens of the longest piece.
    pub longest: usize,
    /// Pieces that shared a cache, at most; those of the greatest number are of the longest.
    pub batch: usize,
    /// How far the predictions are from those of the untouched model, if that was asked for.
    pub divergence: Option<Divergence>,
}

/// How far the next token's distribution is from that of the untouched model with the full cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// Mean of `KL(full || this)` over predicted tokens, in nats.
    pub kl: Metric,
    /// Part of the positions at which both find the same token most likely.
    pub same_top: Metric,
}

impl Perplexity {
    /// From each piece's sum of NLL and number of predicted tokens.
    fn of(scored: &[(f64, usize)], longest: usize, batch: usize) -> Self {
        let Metric { value: nll, stderr } = mean(scored);
        let value = nll.exp();
        let tokens = scored.iter().map(|(_, tokens)| tokens).sum();
        let stderr = stderr.map(|stderr| value * stderr);
        Self { value, stderr, nll, windows: scored.len(), tokens, longest, batch, divergence: None }
    }
}

/// The mean over tokens, of each piece's sum and number of tokens.
fn mean(scored: &[(f64, usize)]) -> Metric {
    let tokens: usize = scored.iter().map(|(_, tokens)| tokens).sum();
    let value = scored.iter().map(|(sum, _)| sum).sum::<f64>() / tokens as f64;
    let count = scored.len() as f64;
    let residuals: f64 = scored.iter().map(|(sum, tokens)| (sum - value * *tokens as f64).powi(2)).sum();
    let stderr = (residuals * count / (count - 1.0)).sqrt() / tokens as f64;
    Metric { value, stderr: (scored.len() > 1).then_some(stderr) }
}

/// The first `limit` pieces of `length` tokens, a last shorter one among them if it has at least `least`.
fn cut(text: &[u32], length: usize, least: usize, limit: Option<usize>) -> Result<Vec<&[u32]>, EvalError> {
    if length < 2 {
        return Err(EvalError::WindowTooShort { window: length });
    }
    let pieces = text.chunks(length).filter(|piece| piece.len() >= least);
    let pieces: Vec<&[u32]> = pieces.take(limit.unwrap_or(usize::MAX)).collect();
    if pieces.is_empty() { Err(EvalError::TextTooShort { tokens: text.len(), least }) } else { Ok(pieces) }
}
