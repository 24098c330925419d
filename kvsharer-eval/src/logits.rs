//! Log-likelihoods of tokens from logits.

use burn::tensor::{DType, Int, Tensor, TensorData};
use kvsharer_models::{Decoder, ModelError};
use rayon::prelude::*;

/// Positions scored at once: their logits are `[rows, vocab]`.
const ROWS: usize = 256;

/// The same on a device of its own, which many rows keep busy.
const DEVICE_ROWS: usize = 2048;

/// Terms added up on the device in f32 before the rest is added on the host in f64.
const BLOCK: usize = 256;

/// How well the model foresaw a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TokenScore {
    /// `-log softmax(logits)[token]`, in nats.
    pub(crate) nll: f64,
    /// Whether it is the token that greedy decoding would give (the first of several with one score).
    pub(crate) greedy: bool,
}

/// Where logits become scores: read back in full, which costs nothing where the device is the host, or reduced on the
/// device first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduce {
    /// On the host's threads.
    #[default]
    Host,
    /// On the device; a few hundred numbers a token are read back.
    Device,
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
) -> Result<Vec<TokenScore>, ModelError> {
    let [batch, tokens, width] = hidden.dims();
    let states = hidden.reshape([batch * tokens, width]);
    let mut scores = Vec::with_capacity(targets.len());
    let rows = match reduce {
        Reduce::Host => ROWS,
        Reduce::Device => DEVICE_ROWS,
    };
    for (positions, targets) in positions.chunks(rows).zip(targets.chunks(rows)) {
        let index: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
        let index = Tensor::from_data(TensorData::new(index, [positions.len()]), &states.device());
        let logits = model.logits(states.clone().select(0, index).unsqueeze::<3>());
        scores.extend(match reduce {
            Reduce::Host => score_on_host(logits, targets)?,
            Reduce::Device => score_on_device(logits, targets)?,
        });
    }
    Ok(scores)
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

/// The same without reading the logits back: of each block of [`BLOCK`] tokens its best logit and its sum of
/// exponentials in f32, and the whole block of the target. Blocks are added up in f64. Two short reductions also are
/// what a GPU does well: one over a whole vocabulary leaves all but a row's thread idle.
fn score_on_device(logits: Tensor<3>, targets: &[u32]) -> Result<Vec<TokenScore>, ModelError> {
    let [_, rows, vocab] = logits.dims();
    let block = BLOCK.min(vocab);
    let logits = logits.cast(DType::F32).reshape([rows, vocab]);
    let start = |target: u32| (target as usize / block * block).min(vocab - block);
    let starts: Vec<i64> = targets.iter().map(|&target| start(target) as i64).collect();
    let starts = Tensor::<2, Int>::from_data(TensorData::new(starts, [rows, 1]), &logits.device());
    let within = Tensor::<1, Int>::arange(0..block as i64, &logits.device()).reshape([1, block]);
    let index = starts.expand([rows, block]) + within.expand([rows, block]);
    let around = logits.clone().gather(1, index);
    let (whole, blocks) = (vocab / block * block, vocab / block);
    let by_block = |x: &Tensor<2>| x.clone().slice_dim(1, 0..whole).reshape([rows, blocks, block]);
    let tail = |x: &Tensor<2>| (whole < vocab).then(|| x.clone().slice_dim(1, whole..vocab));
    let mut best = vec![by_block(&logits).max_dim(2).reshape([rows, blocks])];
    best.extend(tail(&logits).map(|tail| tail.max_dim(1)));
    let best = Tensor::cat(best, 1);
    let mass = (logits - best.clone().max_dim(1)).exp();
    let mut sums = vec![by_block(&mass).sum_dim(2).reshape([rows, blocks])];
    sums.extend(tail(&mass).map(|tail| tail.sum_dim(1)));
    let parts = best.dims()[1];
    let numbers = Tensor::cat([vec![around, best], sums].concat(), 1);
    let width = numbers.dims()[1];
    let numbers = to_host(numbers)?;
    let score = |(row, &target): (&[f32], &u32)| {
        let (around, rest) = row.split_at(block);
        let (best, sums) = rest.split_at(parts);
        let top = best.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = sums.iter().map(|&part| f64::from(part)).sum();
        let (target, start) = (target as usize, start(target));
        let own = around[target - start];
        // The first of several with one score: none before it, in earlier blocks or in its own.
        let earlier = best[..target / block].contains(&top) || around[..target - start].contains(&top);
        TokenScore { nll: f64::from(top) + sum.ln() - f64::from(own), greedy: own == top && !earlier }
    };
    Ok(numbers.chunks(width).zip(targets).map(score).collect())
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
        for score in [score_on_host, score_on_device] {
            let [found] = score(logits.clone(), &[7]).unwrap()[..] else { panic!("one score") };
            assert!((found.nll - 2.0_f64.ln()).abs() < 1e-6, "{found:?}");
            assert!(found.greedy);
        }
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
    fn host_and_device_agree_and_of_two_equal_tokens_the_first_is_greedy() {
        let logits: Vec<f32> = (0..3 * 700).map(|i| ((i * 37 % 101) as f32) / 20.0).collect();
        let first = logits[..700].iter().position(|&score| score == 5.0).unwrap() as u32;
        let second = logits[..700].iter().rposition(|&score| score == 5.0).unwrap() as u32;
        assert_ne!(first, second);
        for targets in [[first, 3, 699], [second, 0, 1]] {
            let logits = || Tensor::from_data(TensorData::new(logits.clone(), [1, 3, 700]), &Device::flex());
            let (host, device) =
                (score_on_host(logits(), &targets).unwrap(), score_on_device(logits(), &targets).unwrap());
            assert_eq!(host[0].greedy, targets[0] == first);
            for (host, device) in host.iter().zip(&device) {
                assert!((host.nll - device.nll).abs() < 1e-5 && host.greedy == device.greedy, "{host:?} {device:?}");
            }
        }
    }
}
