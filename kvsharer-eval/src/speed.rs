//! Speed of decoding through the cache.

use crate::EvalError;
use kvsharer_core::Stack;
use kvsharer_models::{Decoder, ModelError};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Median, least and greatest of repeated measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
}

impl Spread {
    /// Sorts the measurements; all zeros without any.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        let middle = values.len() / 2;
        let median =
            if values.len().is_multiple_of(2) { (at(middle.saturating_sub(1)) + at(middle)) / 2.0 } else { at(middle) };
        Self { median, min: at(0), max: at(values.len().saturating_sub(1)) }
    }

    /// Each measurement as `f` of it; `f` must be monotonic.
    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        let (a, b) = (f(self.min), f(self.max));
        Self { median: f(self.median), min: a.min(b), max: a.max(b) }
    }
}

/// Decoding speed of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DecodeSpeed {
    /// Milliseconds a step.
    pub ms_per_step: Spread,
    /// Tokens a second.
    pub tokens_per_second: Spread,
    /// Bytes the cache held.
    pub kv_bytes: usize,
}

/// Prefills `prompt`, then times `steps` single-token steps after two to warm up; each ends when its scores are on
/// the host. The tokens decoded are the prompt's own, so that every configuration does the same work.
///
/// # Errors
/// [`EvalError`] if the prompt is empty, or whatever model and cache refuse.
pub fn decode_speed(model: &Decoder, prompt: &[u32], steps: usize, stack: Stack<'_>) -> Result<DecodeSpeed, EvalError> {
    const WARM_UP: usize = 2;
    let options = model.cache_options(1, prompt.len() + steps + WARM_UP);
    let mut cache = model.cache(stack, options)?;
    model.forward(&[prompt], &mut cache)?;
    let mut times = Vec::with_capacity(steps);
    for (step, id) in prompt.iter().cycle().take(steps + WARM_UP).enumerate() {
        let start = Instant::now();
        let logits = model.logits(model.forward(&[&[*id]], &mut cache)?);
        // Elements, not data alone: that may come only when its elements are asked for.
        logits.try_into_vec_as::<f32>().map_err(|error| ModelError::Device(error.to_string()))?;
        if step >= WARM_UP {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let ms_per_step = Spread::of(times);
    Ok(DecodeSpeed { ms_per_step, tokens_per_second: ms_per_step.map(|ms| 1e3 / ms), kv_bytes: cache.bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_order_free_and_its_image_keeps_min_below_max() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0]);
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of(vec![1.0, 4.0]).median, 2.5);
        assert_eq!(spread.map(|x| 1.0 / x), Spread { median: 0.5, min: 0.25, max: 1.0 });
    }
}
