//! Log-likelihoods of tokens from logits.

use burn::tensor::{DType, Tensor, TensorData};
use kvsharer_core::logit_stats;
use kvsharer_models::{Decoder, ModelError};
use rayon::prelude::*;

/// Positions scored at once: their logits are `[rows, vocab]`.
const ROWS: usize = 256;

/// The same on a device of its own, which many rows keep busy.
const DEVICE_ROWS: usize = 2048;

/// How well the model foresaw a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TokenScore {
    /// `-log softmax(logits)[token]`, in nats.
    pub(crate) nll: f64,
    /// Whether it is the token that greedy decoding would give (the first of several with one score).
    pub(crate) greedy: bool,
}

/// Where logits become scores: read back in full, which costs nothing where the device is the host, or reduced on the
/// device first, by a kernel of ours if there is one for it ([`logit_stats`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduce {
    /// On the host's threads.
    #[default]
    Host,
    /// On the device; four numbers a token are read back, and not before they are asked for.
    Device,
}

/// Scores that may still be on their way: a device works on them while the host goes on.
pub(crate) struct Scores(Vec<Part>);

enum Part {
    Found(Vec<TokenScore>),
    /// What [`logit_stats`] tells of each row, and the rows' targets.
    Coming(Tensor<2>, Vec<u32>),
}

impl Scores {
    /// Waits for them.
    pub(crate) fn read(self) -> Result<Vec<TokenScore>, ModelError> {
        let mut scores = Vec::new();
        for part in self.0 {
            match part {
                Part::Found(found) => scores.extend(found),
                Part::Coming(stats, targets) => {
                    let stats = to_host(stats)?;
                    scores.extend(stats.chunks(4).zip(targets).map(|(row, target)| TokenScore {
                        nll: f64::from(row[0]) + f64::from(row[1]).ln() - f64::from(row[2]),
                        greedy: row[3] == target as f32,
                    }));
                }
            }
        }
        Ok(scores)
    }
}

/// Scores `targets[i]` after the state `hidden[positions[i]]`.
///
/// # Shapes
/// `hidden`: `[batch, token, hidden]` after the final norm; positions count `batch * token`.
pub(crate) fn score_positions(
    model: &Decoder,
    hidden: Tensor<3>,
    positions: &[usize],
    targets: &[u32],
    reduce: Reduce,
) -> Result<Scores, ModelError> {
    let [batch, tokens, width] = hidden.dims();
    let states = hidden.reshape([batch * tokens, width]);
    let rows = match reduce {
        Reduce::Host => ROWS,
        Reduce::Device => DEVICE_ROWS,
    };
    let parts = positions.chunks(rows).zip(targets.chunks(rows)).map(|(positions, targets)| {
        let ints = |ints: Vec<i64>| Tensor::from_data(TensorData::new(ints, [positions.len()]), &states.device());
        let index = ints(positions.iter().map(|&position| position as i64).collect());
        let logits = model.logits(states.clone().select(0, index).unsqueeze::<3>());
        if reduce == Reduce::Device {
            let wanted = ints(targets.iter().map(|&target| i64::from(target)).collect());
            if let Some(stats) = logit_stats(&logits.clone().squeeze_dim(0), &wanted) {
                return Ok(Part::Coming(stats, targets.to_vec()));
            }
        }
        Ok(Part::Found(score_on_host(logits, targets)?))
    });
    Ok(Scores(parts.collect::<Result<_, ModelError>>()?))
}

/// How far `other` is from `full`, each a model and its states after the final norm: the sum of `KL(full || other)` of
/// the next token's distribution over all positions, in nats and in f64, and at how many of them both find the same token
/// most likely.
///
/// # Shapes
/// States: `[1, token, hidden]`.
pub(crate) fn divergence(
    full: (&Decoder, Tensor<3>),
    other: (&Decoder, Tensor<3>),
) -> Result<(f64, usize), ModelError> {
    let tokens = full.1.dims()[1];
    let (mut kl, mut same) = (0.0, 0);
    for start in (0..tokens).step_by(ROWS) {
        let rows = start..tokens.min(start + ROWS);
        let logits = |(model, states): &(&Decoder, Tensor<3>)| {
            let logits = model.logits(states.clone().slice_dim(1, rows.clone()));
            Ok::<_, ModelError>((logits.dims()[2], to_host(logits)?))
        };
        let ((vocab, full), (_, other)) = (logits(&full)?, logits(&other)?);
        let pairs = full.par_chunks(vocab).zip(other.par_chunks(vocab));
        let found: Vec<(f64, bool)> = pairs.map(|(full, other)| row_divergence(full, other)).collect();
        kl += found.iter().map(|(kl, _)| kl).sum::<f64>();
        same += found.iter().filter(|(_, same)| *same).count();
    }
    Ok((kl, same))
}

/// The same of one row of logits each.
fn row_divergence(full: &[f32], other: &[f32]) -> (f64, bool) {
    let top = |row: &[f32]| {
        row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best })
    };
    let ((full_token, full_best), (token, best)) = (top(full), top(other));
    let (mut mass, mut other_mass, mut product) = (0.0_f64, 0.0_f64, 0.0_f64);
    for (&a, &b) in full.iter().zip(other) {
        let (a, b) = (a - full_best, b - best);
        let weight = f64::from(a.exp());
        mass += weight;
        other_mass += f64::from(b.exp());
        product += weight * f64::from(a - b);
    }
    (product / mass - mass.ln() + other_mass.ln(), full_token == token)
}

/// [`score_on_host`] without what only the device could tell.
pub(crate) fn target_nll(logits: Tensor<3>, targets: &[u32]) -> Result<Vec<f64>, ModelError> {
    Ok(score_on_host(logits, targets)?.into_iter().map(|score| score.nll).collect())
}

/// Scores one target a row, summed on the host in f64: a backend's softmax adds up a vocabulary of probabilities in
/// f32, which was seen to shift the mean by 1e-4.
///
/// # Shapes
/// `logits`: `[batch, token, vocab]`.
fn score_on_host(logits: Tensor<3>, targets: &[u32]) -> Result<Vec<TokenScore>, ModelError> {
    let vocab = logits.dims()[2];
    let logits = to_host(logits)?;
    let score = |(row, &target): (&[f32], &u32)| {
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|score| f64::from((score - best).exp())).sum();
        let greedy = row.iter().position(|&score| score == best) == Some(target as usize);
        TokenScore { nll: f64::from(best) + sum.ln() - f64::from(row[target as usize]), greedy }
    };
    Ok(logits.par_chunks(vocab).zip(targets).map(score).collect())
}

fn to_host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, ModelError> {
    tensor.cast(DType::F32).try_into_vec_as::<f32>().map_err(|error| ModelError::Device(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn a_large_vocabulary_of_small_probabilities_is_summed_exactly() {
        // Half of the mass in one token, the rest spread over 200,000: too many for a sum in f32.
        const VOCAB: usize = 200_001;
        let mut logits = vec![0.0_f32; VOCAB];
        logits[7] = (VOCAB as f32 - 1.0).ln();
        let logits = Tensor::from_data(TensorData::new(logits, [1, 1, VOCAB]), &Device::flex());
        let [found] = score_on_host(logits, &[7]).unwrap()[..] else { panic!("one score") };
        assert!((found.nll - 2.0_f64.ln()).abs() < 1e-6, "{found:?}");
        assert!(found.greedy);
    }

    #[test]
    fn divergence_is_that_of_the_distributions() {
        let [p, q] = [[0.5_f64, 0.25, 0.25], [0.2, 0.3, 0.5]];
        // Logits are logarithms up to a constant.
        let [full, other] = [(p, 3.0), (q, -7.0)].map(|(p, shift)| p.map(|p| (p.ln() + shift) as f32));
        let exact: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        let (kl, same) = row_divergence(&full, &other);
        assert!((kl - exact).abs() < 1e-6 && !same, "{kl} instead of {exact}");
        let (kl, same) = row_divergence(&full, &full);
        assert!(kl.abs() < 1e-12 && same);
    }

    #[test]
    fn of_two_equal_tokens_the_first_is_greedy() {
        let logits: Vec<f32> = (0..700).map(|i| ((i * 37 % 101) as f32) / 20.0).collect();
        let first = logits.iter().position(|&score| score == 5.0).unwrap() as u32;
        let second = logits.iter().rposition(|&score| score == 5.0).unwrap() as u32;
        assert_ne!(first, second);
        let logits = Tensor::from_data(TensorData::new(logits.repeat(2), [1, 2, 700]), &Device::flex());
        let greedy: Vec<bool> =
            score_on_host(logits, &[first, second]).unwrap().iter().map(|score| score.greedy).collect();
        assert_eq!(greedy, [true, false]);
    }

    #[test]
    fn what_a_device_tells_of_a_row_is_its_score() {
        let stats = Tensor::<2>::from_data([[2.0, 1.5, 1.0, 7.0], [3.0, 1.0, 3.0, 9.0]], &Device::flex());
        let scores =
            Scores(vec![Part::Found(vec![TokenScore { nll: 0.5, greedy: true }]), Part::Coming(stats, vec![8, 9])]);
        let [first, second, third] = scores.read().unwrap()[..] else { panic!("three scores") };
        assert_eq!(first, TokenScore { nll: 0.5, greedy: true });
        assert!((second.nll - (1.0 + 1.5_f64.ln())).abs() < 1e-12 && !second.greedy);
        assert_eq!(third, TokenScore { nll: 0.0, greedy: true });
    }
}
