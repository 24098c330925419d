//! Reading tensors and comparing numbers on the host.

use super::Unmeasured;
use crate::{Cache, KeptTokens, LayerId};
use burn::tensor::{DType, Tensor};

/// A tensor's elements in f64.
///
/// # Errors
/// If the device fails.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f64>, Unmeasured> {
    let elements: Vec<f32> = tensor.cast(DType::F32).try_into_vec_as()?;
    Ok(elements.into_iter().map(f64::from).collect())
}

/// The largest absolute difference; NaN if any is NaN or infinite, infinite if the lengths differ.
pub fn worst(found: &[f64], expected: &[f64]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    largest(found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()))
}

/// The largest number; NaN if any is not finite, 0 if there is none.
pub fn largest(numbers: impl IntoIterator<Item = f64>) -> f64 {
    numbers.into_iter().fold(
        0.0,
        |largest: f64, number| {
            if largest.is_nan() || !number.is_finite() { f64::NAN } else { largest.max(number) }
        },
    )
}

/// Text positions of the tokens a layer can read, oldest first, for each row and head.
///
/// # Errors
/// If the device fails.
pub fn kept_tokens(cache: &Cache<'_>, layer: LayerId) -> Result<Vec<Vec<i64>>, Unmeasured> {
    Ok(match cache.kept(layer) {
        KeptTokens::Uniform(kept) => {
            let heads = cache.plan().slot(cache.plan().layers()[layer.0].key).shape.kv_heads;
            vec![kept.iter().map(|&position| position as i64).collect(); cache.options().batch * heads]
        }
        KeptTokens::PerHead(positions) => {
            let cells = positions.dims()[2];
            let positions: Vec<i64> = positions.clone().try_into_vec_as()?;
            let head = |head: &[i64]| {
                let mut head: Vec<i64> = head.iter().copied().filter(|&position| position >= 0).collect();
                head.sort_unstable();
                head
            };
            positions.chunks(cells).map(head).collect()
        }
    })
}
