//! Perplexity token by token, after StreamingLLM (arXiv 2309.17453, `eval_long_ppl.py`).

use super::{Perplexity, cut};
use crate::EvalError;
use crate::logits::target_nll;
use kvsharer_core::{Cache, CacheOptions, Stack};
use kvsharer_models::Decoder;
use rayon::prelude::*;
use std::ops::Range;

/// The protocol `stepwise`: every eviction counts, as in generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepwiseOptions {
    /// Tokens of a document; a last shorter one is kept if it has a token to predict.
    pub document: usize,
    /// First tokens of a document that run in one pass, as a prompt does, and are not scored. What they leave in the
    /// cache predicts the next one.
    pub prefill: usize,
    /// Documents of equal length that go through one cache at once: the weights are read once for all of them.
    pub batch: usize,
    /// The first documents only.
    pub limit: Option<usize>,
}

impl Default for StepwiseOptions {
    fn default() -> Self {
        Self { document: 1024, prefill: 0, batch: 1, limit: None }
    }
}

impl StepwiseOptions {
    /// The prompt that caches are made for; `None` without a prefill.
    pub fn prompt(&self) -> Option<usize> {
        (self.prefill > 0).then_some(self.prefill)
    }

    /// Tokens of a document's first pass, the only ones that are not predicted.
    fn first(&self) -> usize {
        self.prompt().unwrap_or(1)
    }

    /// Refuses what no text could be scored with.
    ///
    /// # Errors
    /// [`EvalError::WindowTooShort`], [`EvalError::PrefillTooLong`] and [`EvalError::EmptyBatch`].
    pub fn check(&self) -> Result<(), EvalError> {
        let &Self { document: window, prefill, batch, .. } = self;
        if window < 2 {
            Err(EvalError::WindowTooShort { window })
        } else if prefill >= window {
            Err(EvalError::PrefillTooLong { prefill, window })
        } else if batch == 0 {
            Err(EvalError::EmptyBatch)
        } else {
            Ok(())
        }
    }
}

/// Scores `text`; `stack` makes the policies of each batch's cache, `done` is called after each step with the number
/// of tokens it predicted. Batches run in parallel on the threads of the current rayon pool.
///
/// # Errors
/// [`EvalError`] for options that [`StepwiseOptions::check`] refuses, a text too short, or whatever model and cache
/// refuse.
pub fn stepwise<'p>(
    model: &Decoder,
    text: &[u32],
    options: &StepwiseOptions,
    stack: impl Fn() -> Result<Stack<'p>, EvalError> + Sync,
    done: impl Fn(usize) + Sync,
) -> Result<Perplexity, EvalError> {
    options.check()?;
    let documents = cut(text, options.document, options.first() + 1, options.limit)?;
    let score = |batch: &Range<usize>| -> Result<Vec<(f64, usize)>, EvalError> {
        let rows = &documents[batch.clone()];
        let tokens = rows[0].len();
        let cache_options = CacheOptions { prompt: options.prompt(), ..model.cache_options(rows.len(), tokens) };
        let mut cache = model.cache(stack()?, cache_options)?;
        let mut sums = vec![0.0; rows.len()];
        // What the next pass runs; the state after its last token predicts the token behind it.
        let mut pass = 0..options.first();
        while pass.end < tokens {
            let target = pass.end;
            for (row, nll) in step_nll(model, rows, pass, &mut cache)?.into_iter().enumerate() {
                if !nll.is_finite() {
                    return Err(EvalError::NotFinite { window: batch.start + row, token: target });
                }
                sums[row] += nll;
            }
            done(rows.len());
            pass = target..target + 1;
        }
        Ok(sums.into_iter().map(|sum| (sum, tokens - options.first())).collect())
    };
    let batches = batches(&documents, options.batch);
    let scored = batches.par_iter().map(score).collect::<Result<Vec<_>, _>>()?.concat();
    let batch = batches.iter().map(Range::len).max().unwrap_or(0);
    Ok(Perplexity::of(&scored, documents[0].len(), batch))
}

/// At most `size` documents each, all of one length: a last shorter document is a batch of its own.
fn batches(documents: &[&[u32]], size: usize) -> Vec<Range<usize>> {
    let full = documents.partition_point(|document| document.len() == documents[0].len());
    let equal = (0..full).step_by(size).map(|start| start..full.min(start.saturating_add(size)));
    equal.chain((full..documents.len()).map(|rest| rest..rest + 1)).collect()
}

/// Runs the tokens `pass` of every row; NLL of the token behind them in each row, in nats.
fn step_nll(
    model: &Decoder,
    rows: &[&[u32]],
    pass: Range<usize>,
    cache: &mut Cache<'_>,
) -> Result<Vec<f64>, EvalError> {
    let last = pass.len() - 1;
    let targets: Vec<u32> = rows.iter().map(|row| row[pass.end]).collect();
    let parts: Vec<&[u32]> = rows.iter().map(|row| &row[pass.clone()]).collect();
    let hidden = model.forward(&parts, cache)?.slice_dim(1, last..last + 1);
    Ok(target_nll(model.logits(hidden), &targets)?)
}
