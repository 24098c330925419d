//! Calibration: the token samples and the average keys and values of every layer.

use crate::search::Batch;
use crate::{CacheError, KvShape, ModelShape};
use burn::tensor::Tensor;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Why a calibration set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// No sample has a token.
    #[error("the calibration set is empty: give a text with at least one non-empty line (one sample a line)")]
    Empty,
    /// `sample_tokens` is 0.
    #[error("calibration samples of 0 tokens hold nothing: ask for at least 1 token a sample")]
    NoTokens,
}

/// Token samples, each cut to a common greatest length.
///
/// Shorter samples are used as they are: in averages over samples, a position is divided by the number of samples
/// that reach it, and a sample's output similarity is taken over its own tokens. (The official code drops samples of
/// another length than the first silently and still divides by the nominal count.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalibrationSet {
    samples: Vec<Vec<u32>>,
}

impl CalibrationSet {
    /// Cuts samples to `sample_tokens` tokens; empty ones are left out.
    ///
    /// # Errors
    /// [`CalibrationError`] if nothing is left.
    pub fn new(samples: impl IntoIterator<Item = Vec<u32>>, sample_tokens: usize) -> Result<Self, CalibrationError> {
        if sample_tokens == 0 {
            return Err(CalibrationError::NoTokens);
        }
        let cut = |mut sample: Vec<u32>| {
            sample.truncate(sample_tokens);
            sample
        };
        let samples: Vec<_> = samples.into_iter().map(cut).filter(|sample| !sample.is_empty()).collect();
        if samples.is_empty() {
            return Err(CalibrationError::Empty);
        }
        Ok(Self { samples })
    }

    /// The samples' token ids.
    pub fn samples(&self) -> &[Vec<u32>] {
        &self.samples
    }

    /// Tokens of all samples.
    pub fn tokens(&self) -> usize {
        self.samples.iter().map(Vec::len).sum()
    }

    /// SHA-256 over the samples' lengths and token ids, in hexadecimal.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        for sample in &self.samples {
            hasher.update((sample.len() as u64).to_le_bytes());
            sample.iter().for_each(|id| hasher.update(id.to_le_bytes()));
        }
        hex(&hasher.finalize())
    }
}

/// Bytes in lower-case hexadecimal, as hashes are written in all files of this workspace.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Average keys and values of the untouched model, `[kv_head, position, head_dim]` for every layer, on the host.
#[derive(Clone, Debug)]
pub struct Averages {
    pub(crate) shapes: Vec<KvShape>,
    pub(crate) keys: Vec<Vec<f64>>,
    pub(crate) values: Vec<Vec<f64>>,
}

impl Averages {
    /// Divides every position's sum by the number of samples that reach it.
    pub(crate) fn over(model: &ModelShape, batches: &[&Batch]) -> Result<Self, CacheError> {
        let positions = batches.iter().map(|batch| batch.width()).max().unwrap_or(0);
        let reach =
            |position| batches.iter().flat_map(|batch| batch.lengths()).filter(|&&length| length > position).count();
        let counts: Vec<f64> = (0..positions).map(|position| reach(position) as f64).collect();
        let average = |layer: usize,
                       pick: for<'a> fn(&'a Batch, usize) -> Option<&'a Tensor<4>>|
         -> Result<Vec<f64>, CacheError> {
            let KvShape { kv_heads, head_dim, .. } = model.layers()[layer];
            let mut total = vec![0.0; kv_heads * positions * head_dim];
            for batch in batches {
                let Some(tensor) = pick(batch, layer) else { continue };
                let row = batch.width() * head_dim;
                for (head, sum) in batch.sum(tensor)?.chunks(row).enumerate() {
                    let average = &mut total[head * positions * head_dim..];
                    average.iter_mut().zip(sum).for_each(|(total, sum)| *total += f64::from(*sum));
                }
            }
            for (index, value) in total.iter_mut().enumerate() {
                *value /= counts[index / head_dim % positions];
            }
            Ok(total)
        };
        Ok(Self {
            shapes: model.layers().to_vec(),
            keys: (0..model.len()).map(|layer| average(layer, Batch::keys)).collect::<Result<_, _>>()?,
            values: (0..model.len()).map(|layer| average(layer, Batch::values)).collect::<Result<_, _>>()?,
        })
    }
}
