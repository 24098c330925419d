//! Rotary frequencies and the ways they are stretched for texts longer than those a model was first trained for.

use kvsharer_core::Rope;
use serde::Serialize;
use std::f64::consts::TAU;

/// How rotary frequencies are stretched. Names and formulas are those of transformers' `modeling_rope_utils.py`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    Default,
    /// All frequencies divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// By how much longer texts get.
        factor: f64,
    },
    /// A base that grows with the text once it is longer than `original` (NTK-aware scaling, see arXiv 2309.00071).
    ///
    /// As in transformers, the tokens of one forward pass are turned with the base for the text so far, and cached keys
    /// keep the turn they got: the passes a text comes in make a difference.
    Dynamic {
        /// By how much longer texts may get.
        factor: f64,
        /// Length up to which nothing changes.
        original: usize,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a smooth passage between.
    Llama3 {
        /// By how much longer texts get.
        factor: f64,
        /// Wavelengths above `original / low` are stretched in full.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// Length of the texts of the first training.
        original: usize,
    },
    /// YaRN (arXiv 2309.00071): as Llama 3.1 by number of rotations, with a scale of the scores.
    Yarn {
        /// By how much longer texts get.
        factor: f64,
        /// Length of the texts of the first training.
        original: usize,
        /// Rotations over that length above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is stretched in full.
        beta_slow: f64,
        /// Whether the passage starts and ends at whole channels.
        truncate: bool,
        /// Scale of queries and keys.
        attention: f64,
    },
    /// A divisor for each pair of channels, as GGUF files carry them (`rope_freqs.weight`).
    Divisors {
        /// One a pair of channels.
        by_pair: Vec<f32>,
    },
}

/// Rotary encoding of some layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// Frequencies of `theta`, as they are.
    pub fn new(theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::Default }
    }

    /// The encoding for a forward pass that ends at `length` tokens; but for [`RopeScaling::Dynamic`] it is always
    /// the same.
    pub fn rope(&self, head_dim: usize, length: usize) -> Rope {
        Rope::from_inverse_frequencies(self.frequencies(head_dim, length))
    }

    /// Radians a token by which each pair of channels is turned.
    pub(crate) fn frequencies(&self, head_dim: usize, length: usize) -> Vec<f64> {
        let dim = head_dim as f64;
        let plain = |theta: f64| (0..head_dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / dim));
        match &self.scaling {
            RopeScaling::Default => plain(self.theta).collect(),
            RopeScaling::Linear { factor } => plain(self.theta).map(|f| f / factor).collect(),
            &RopeScaling::Dynamic { factor, original } => {
                let stretch = factor * length.max(original) as f64 / original as f64 - (factor - 1.0);
                plain(self.theta * stretch.powf(dim / (dim - 2.0))).collect()
            }
            &RopeScaling::Llama3 { factor, low, high, original } => {
                let stretch = |f: f64| {
                    let rotations = original as f64 * f / TAU;
                    let kept = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                    kept * f + (1.0 - kept) * f / factor
                };
                plain(self.theta).map(stretch).collect()
            }
            &RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                // The channel pair that turns `rotations` times over the original length.
                let pair = |rotations: f64| dim * (original as f64 / (rotations * TAU)).ln() / (2.0 * self.theta.ln());
                let (low, high) = (pair(beta_fast), pair(beta_slow));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let high = if low == high { high + 0.001 } else { high };
                let stretch = |(i, f): (usize, f64)| {
                    let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - stretched) * f + stretched * f / factor
                };
                plain(self.theta).enumerate().map(stretch).collect()
            }
            RopeScaling::Divisors { by_pair } => {
                plain(self.theta).zip(by_pair).map(|(f, &divisor)| f / f64::from(divisor)).collect()
            }
        }
    }

    /// Whether the encoding depends on the length of the text.
    pub fn is_dynamic(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. })
    }

    /// What scores are multiplied by: YaRN scales queries and keys, which comes to its square on either alone.
    pub fn score_scale(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention, .. } => attention * attention,
            _ => 1.0,
        }
    }

    /// What makes the numbers unusable, if anything does.
    pub(crate) fn flaw(&self, head_dim: usize) -> Option<(&'static str, String, &'static str)> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let factor = match &self.scaling {
            RopeScaling::Default => 1.0,
            RopeScaling::Divisors { by_pair } => {
                if by_pair.len() != head_dim / 2 || !by_pair.iter().all(|&divisor| positive(f64::from(divisor))) {
                    return Some(("rope divisors", format!("{by_pair:?}"), "are positive, one a pair of channels"));
                }
                1.0
            }
            RopeScaling::Linear { factor } => *factor,
            RopeScaling::Dynamic { factor, .. }
            | RopeScaling::Llama3 { factor, .. }
            | RopeScaling::Yarn { factor, .. } => *factor,
        };
        let original = match &self.scaling {
            RopeScaling::Dynamic { original, .. }
            | RopeScaling::Llama3 { original, .. }
            | RopeScaling::Yarn { original, .. } => *original,
            _ => 1,
        };
        if !(positive(self.theta)) {
            return Some(("rope theta", self.theta.to_string(), "is positive"));
        }
        if !(factor.is_finite() && factor >= 1.0) {
            return Some(("rope scaling factor", factor.to_string(), "is at least 1"));
        }
        if original == 0 {
            return Some(("original context of the rope scaling", "0".into(), "is positive"));
        }
        match self.scaling {
            RopeScaling::Llama3 { low, high, .. } if !(positive(low) && high > low && high.is_finite()) => {
                Some(("pair of rope frequency factors", format!("{low}, {high}"), "is positive and ascending"))
            }
            RopeScaling::Yarn { beta_fast, beta_slow, attention, .. }
                if ![beta_fast, beta_slow, attention].into_iter().all(positive) || self.theta == 1.0 =>
            {
                Some(("YaRN scaling", format!("{:?}", self.scaling), "has positive numbers"))
            }
            RopeScaling::Dynamic { .. } if head_dim <= 2 => {
                Some(("head dimension", head_dim.to_string(), "is more than 2 for dynamic rope scaling"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta: 1e4, scaling }
    }

    #[test]
    fn a_factor_of_one_changes_nothing() {
        let plain = RopeConfig::new(1e4).rope(16, 100);
        for scaling in [
            RopeScaling::Linear { factor: 1.0 },
            RopeScaling::Dynamic { factor: 1.0, original: 100 },
            RopeScaling::Llama3 { factor: 1.0, low: 1.0, high: 4.0, original: 8 },
            RopeScaling::Divisors { by_pair: vec![1.0; 8] },
        ] {
            assert_eq!(with(scaling.clone()).rope(16, 100), plain, "{scaling:?}");
        }
    }

    #[test]
    fn dynamic_scaling_starts_behind_the_original_length() {
        let dynamic = with(RopeScaling::Dynamic { factor: 4.0, original: 32 });
        assert_eq!(dynamic.rope(16, 5), dynamic.rope(16, 32));
        assert_ne!(dynamic.rope(16, 33), dynamic.rope(16, 32));
        assert!(dynamic.is_dynamic());
    }

    #[test]
    fn impossible_numbers_are_named() {
        for (scaling, part) in [
            (RopeScaling::Linear { factor: 0.5 }, "factor"),
            (RopeScaling::Linear { factor: f64::NAN }, "factor"),
            (RopeScaling::Dynamic { factor: 2.0, original: 0 }, "original"),
            (RopeScaling::Llama3 { factor: 2.0, low: 4.0, high: 4.0, original: 8 }, "frequency factors"),
            (RopeScaling::Divisors { by_pair: vec![1.0; 3] }, "divisors"),
        ] {
            let (field, ..) = with(scaling).flaw(16).unwrap();
            assert!(field.contains(part), "{field}");
        }
        assert!(RopeConfig::new(0.0).flaw(16).is_some());
    }
}
