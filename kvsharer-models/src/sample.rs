//! Choosing the next token, on the host, reproducibly.

use crate::ModelError;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How the next token is chosen. The order of steps is Hugging Face's: repetition penalty, temperature, top-k, top-p.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the best token (greedy), 1 samples from the model's own distribution.
    pub temperature: f64,
    /// Only the `k` best tokens; 0 is all.
    pub top_k: usize,
    /// Only the smallest set of best tokens whose probabilities reach `p`; 1 is all.
    pub top_p: f64,
    /// Divides positive and multiplies negative scores of tokens seen before (CTRL, arXiv 1909.05858); 1 is off.
    pub repetition_penalty: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Draws tokens one after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// Checks the options and seeds the draws.
    ///
    /// # Errors
    /// [`ModelError::BadSampling`] names an option out of range.
    pub fn new(options: Sampling) -> Result<Self, ModelError> {
        let bad = |option, found, rule| Err(ModelError::BadSampling { option, found, rule });
        if !(options.temperature >= 0.0 && options.temperature.is_finite()) {
            return bad("temperature", options.temperature, "is 0 (greedy) or more");
        }
        if !(options.top_p > 0.0 && options.top_p <= 1.0) {
            return bad("top-p", options.top_p, "is more than 0 and at most 1");
        }
        if !(options.repetition_penalty > 0.0 && options.repetition_penalty.is_finite()) {
            return bad("repetition penalty", options.repetition_penalty, "is more than 0 (1 is off)");
        }
        Ok(Self { rng: ChaCha8Rng::seed_from_u64(options.seed), options })
    }

    /// The next token by its scores, `logits[token]`, given the tokens before it. Equal scores go to the lower id.
    pub fn next(&mut self, mut logits: Vec<f32>, history: &[u32]) -> u32 {
        let Sampling { temperature, top_k, top_p, repetition_penalty, .. } = self.options;
        if repetition_penalty != 1.0 {
            let penalty = repetition_penalty as f32;
            let mut seen = history.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                let Some(score) = logits.get_mut(id as usize) else { continue };
                *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
            }
        }
        if temperature == 0.0 {
            return argmax(&logits);
        }
        let mut ranked: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(id, &score)| (id as u32, f64::from(score))).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if top_k > 0 {
            ranked.truncate(top_k);
        }
        let best = ranked.first().map_or(0.0, |best| best.1);
        ranked.iter_mut().for_each(|(_, score)| *score = ((*score - best) / temperature).exp());
        let total: f64 = ranked.iter().map(|(_, weight)| weight).sum();
        let mut reached = 0.0;
        let kept = ranked.iter().take_while(|(_, weight)| {
            let before = reached;
            reached += weight / total;
            before < top_p
        });
        let kept = kept.count().max(1);
        ranked.truncate(kept);
        let total: f64 = ranked.iter().map(|(_, weight)| weight).sum();
        let mut draw = self.rng.random::<f64>() * total;
        for &(id, weight) in &ranked {
            draw -= weight;
            if draw <= 0.0 {
                return id;
            }
        }
        ranked.last().map_or(0, |last| last.0)
    }
}

/// The first of the highest scores; NaN never wins.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, score) in logits.iter().enumerate() {
        if *score > logits[best] || logits[best].is_nan() {
            best = id;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(options: Sampling) -> Sampler {
        Sampler::new(options).unwrap()
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(sampler(Sampling::default()).next(vec![0.0, 3.0, 3.0, f32::NAN], &[]), 1);
    }

    #[test]
    fn top_k_and_top_p_leave_only_the_best() {
        let logits = vec![0.0, 5.0, 4.9, 1.0];
        for options in [Sampling { top_k: 1, ..hot() }, Sampling { top_p: 0.01, ..hot() }] {
            let mut sampler = sampler(options);
            assert!((0..50).all(|_| sampler.next(logits.clone(), &[]) == 1));
        }
        let mut two = sampler(Sampling { top_p: 0.9, temperature: 1.0, ..hot() });
        let drawn: Vec<u32> = (0..200).map(|_| two.next(logits.clone(), &[])).collect();
        assert!(drawn.iter().all(|id| [1, 2].contains(id)) && drawn.contains(&2));
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let draw = |seed| -> Vec<u32> {
            let mut sampler = sampler(Sampling { temperature: 1.0, seed, ..Sampling::default() });
            (0..4000).map(|_| sampler.next(vec![0.0, 3.0_f32.ln()], &[])).collect()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let ones = draw(7).iter().filter(|&&id| id == 1).count();
        assert!((2850..3150).contains(&ones), "{ones} of 4000, expected 3000");
    }

    #[test]
    fn the_repetition_penalty_lowers_seen_tokens_whatever_their_sign() {
        let mut sampler = sampler(Sampling { repetition_penalty: 2.0, ..Sampling::default() });
        assert_eq!(sampler.next(vec![3.0, 2.0], &[0]), 1);
        assert_eq!(sampler.next(vec![-1.5, -2.0], &[0, 0]), 1);
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for options in [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { repetition_penalty: f64::NAN, ..Sampling::default() },
        ] {
            assert!(matches!(Sampler::new(options), Err(ModelError::BadSampling { .. })));
        }
    }

    fn hot() -> Sampling {
        Sampling { temperature: 2.0, ..Sampling::default() }
    }
}
