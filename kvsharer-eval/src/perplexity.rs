//! Perplexity by disjoint windows.

use crate::EvalError;
use burn::tensor::{DType, Tensor};
use kvsharer_core::{Cache, SearchModel, Stack};
use kvsharer_models::{Decoder, ModelError};
use rayon::prelude::*;

/// Positions scored at once: their logits are `[rows, vocab]`.
const SCORED_ROWS: usize = 256;

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
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        Self { window: 1024, chunk: 0, limit: None }
    }
}

/// Perplexity of a text, `exp(sum of NLL / predicted tokens)`; the first token of a window is not predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// The perplexity.
    pub value: f64,
    /// Its standard error by the delta method, windows taken as independent; `None` for a single window.
    pub stderr: Option<f64>,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: f64,
    /// Windows scored.
    pub windows: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// Tokens of the longest window.
    pub longest: usize,
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
    if options.window < 2 {
        return Err(EvalError::WindowTooShort { window: options.window });
    }
    let windows: Vec<&[u32]> = text.chunks(options.window).filter(|window| window.len() >= 2).collect();
    let windows = &windows[..options.limit.map_or(windows.len(), |limit| limit.min(windows.len()))];
    if windows.is_empty() {
        return Err(EvalError::TextTooShort { tokens: text.len() });
    }
    let score = |(index, window): (usize, &&[u32])| -> Result<(f64, usize), EvalError> {
        let cache_options = model.cache_options(1, window.len());
        let mut cache = Cache::new(model.shape(), stack()?, cache_options, &model.device())?;
        let nll = window_nll(model, window, options.chunk, &mut cache)?;
        if let Some(token) = nll.iter().position(|nll| !nll.is_finite()) {
            return Err(EvalError::NotFinite { window: index, token: token + 1 });
        }
        done(nll.len());
        Ok((nll.iter().sum(), nll.len()))
    };
    let scored = windows.par_iter().enumerate().map(score).collect::<Result<Vec<_>, _>>()?;
    let tokens: usize = scored.iter().map(|(_, tokens)| tokens).sum();
    let nll = scored.iter().map(|(sum, _)| sum).sum::<f64>() / tokens as f64;
    let count = scored.len() as f64;
    let residuals: f64 = scored.iter().map(|(sum, tokens)| (sum - nll * *tokens as f64).powi(2)).sum();
    let stderr = (residuals * count / (count - 1.0)).sqrt() / tokens as f64;
    let longest = windows.iter().map(|window| window.len()).max().unwrap_or(0);
    let value = nll.exp();
    let stderr = (scored.len() > 1).then_some(value * stderr);
    Ok(Perplexity { value, stderr, nll, windows: scored.len(), tokens, longest })
}

/// Negative log-likelihood of every token of a window but the first, in nats.
fn window_nll(model: &Decoder, window: &[u32], chunk: usize, cache: &mut Cache<'_>) -> Result<Vec<f64>, EvalError> {
    let chunk = if chunk == 0 { window.len() } else { chunk };
    let mut nll = Vec::with_capacity(window.len());
    for (index, part) in window.chunks(chunk).enumerate() {
        let hidden = model.forward(&[part], cache)?;
        // The state at position i predicts token i + 1; the window's last state predicts nothing.
        let targets = &window[index * chunk + 1..window.len().min((index + 1) * chunk + 1)];
        for (block, targets) in targets.chunks(SCORED_ROWS).enumerate() {
            let start = block * SCORED_ROWS;
            let rows = hidden.clone().slice_dim(1, start..start + targets.len());
            nll.extend(target_nll(model.logits(rows), targets)?);
        }
    }
    Ok(nll)
}

/// `-log softmax(logits)[target]` for each row, summed on the host in f64: a backend's softmax adds up a vocabulary of
/// probabilities in f32, which was seen to shift the mean by 1e-4.
///
/// # Shapes
/// `logits`: `[1, row, vocab]`, one target a row.
fn target_nll(logits: Tensor<3>, targets: &[u32]) -> Result<Vec<f64>, ModelError> {
    let vocab = logits.dims()[2];
    let logits = logits.cast(DType::F32).try_into_vec_as::<f32>();
    let logits = logits.map_err(|error| ModelError::Device(error.to_string()))?;
    let nll = |(row, &target): (&[f32], &u32)| {
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|score| f64::from((score - best).exp())).sum();
        f64::from(best) + sum.ln() - f64::from(row[target as usize])
    };
    Ok(logits.par_chunks(vocab).zip(targets).map(nll).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    #[test]
    fn a_large_vocabulary_of_small_probabilities_is_summed_exactly() {
        // Half of the mass in one token, the rest spread over 200,000: too many for a sum in f32.
        const VOCAB: usize = 200_001;
        let mut logits = vec![0.0_f32; VOCAB];
        logits[7] = (VOCAB as f32 - 1.0).ln();
        let logits = Tensor::from_data(TensorData::new(logits, [1, 1, VOCAB]), &Device::flex());
        let nll = target_nll(logits, &[7]).unwrap();
        assert!((nll[0] - 2.0_f64.ln()).abs() < 1e-6, "{}", nll[0]);
    }
}
