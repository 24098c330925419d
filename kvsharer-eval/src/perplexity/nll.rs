//! Negative log-likelihoods from logits.

use burn::tensor::{DType, Tensor};
use kvsharer_models::ModelError;
use rayon::prelude::*;

/// `-log softmax(logits)[target]` for each row, summed on the host in f64: a backend's softmax adds up a vocabulary of
/// probabilities in f32, which was seen to shift the mean by 1e-4.
///
/// # Shapes
/// `logits`: `[batch, token, vocab]`, one target a row of `vocab`.
pub(super) fn target_nll(logits: Tensor<3>, targets: &[u32]) -> Result<Vec<f64>, ModelError> {
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
