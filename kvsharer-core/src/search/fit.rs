//! Maps fitted by ridge least squares that make up for a borrowed cache.
//!
//! # Deviations
//! The attention's outputs are fitted, not the values themselves: `Z_own ~ Z_borrowed W + b` weighs tokens as the
//! attention does, and makes up for borrowed keys as well. The target is what the untouched model's layer gave on the
//! same text, so that part of what replacements below have spoiled is mended too. The ridge pulls towards reading the
//! borrowed cache as it is, not towards zero.

use super::low_rank::low_rank;
use super::replay::{Captured, host};
use crate::adapter::{Mix, Turn, reorder};
use crate::kernels::product;
use crate::{CacheError, axis};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use nalgebra::{Cholesky, DMatrix, DVector};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Right-hand sides that one thread solves for at a time.
const SOLVED_AT_ONCE: usize = 64;

/// Which maps may be fitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// None: borrowed caches are read as they are.
    #[default]
    None,
    /// Keys turned by a complex factor a rotary frequency, values mapped head by head.
    Heads,
    /// Keys likewise, the output of all heads mapped together. Costs `(heads * head_dim)^3` a candidate.
    Full,
}

/// Token rows of one batch that are no padding.
pub(crate) struct Sample<'a> {
    pub(crate) captured: &'a Captured,
    /// What the untouched layer gave, `[batch, query_head, token, head_dim]`.
    pub(crate) target: &'a Tensor<4>,
    /// Indices into `[batch * token]`.
    pub(crate) rows: &'a [i64],
}

/// A matrix, a row an input channel, and a bias.
type Affine = (DMatrix<f64>, DVector<f64>);

/// What a least-squares fit needs of rows `x` and `y`: their means, and sums of products without them.
struct Moments {
    x: DVector<f64>,
    y: DVector<f64>,
    xx: DMatrix<f64>,
    xy: DMatrix<f64>,
}

/// Fits the factors of [`Turn`] for groups of heads that read the slot's `heads`.
pub(crate) fn turn(samples: &[Sample<'_>], heads: Option<&[usize]>) -> Result<Turn, CacheError> {
    let [_, kv_heads, _, dim] = samples[0].captured.own_keys.dims();
    let (half, device) = (dim / 2, samples[0].captured.own_keys.device());
    let mut sums = vec![0.0_f64; 3 * kv_heads * half];
    for sample in samples {
        let rows = |keys: &Tensor<4>| pick(keys, sample.rows).cast(DType::F32);
        let read_keys = match heads {
            Some(heads) => reorder(sample.captured.read_keys.clone(), heads),
            None => sample.captured.read_keys.clone(),
        };
        let (own, read) = (rows(&sample.captured.own_keys), rows(&read_keys));
        let parts = |x: Tensor<3>| (x.clone().slice_dim(2, 0..half), x.slice_dim(2, half..dim));
        let ((a, b), (c, d)) = (parts(own), parts(read));
        let real = a.clone() * c.clone() + b.clone() * d.clone();
        let imaginary = b * c.clone() - a * d.clone();
        let power = c.square() + d.square();
        let sum = |x: Tensor<3>| x.sum_dim(1).reshape([kv_heads * half]);
        let all = host(Tensor::cat(vec![sum(real), sum(imaginary), sum(power)], 0))?;
        sums.iter_mut().zip(all).for_each(|(sum, term)| *sum += f64::from(term));
    }
    let (parts, power) = sums.split_at(2 * kv_heads * half);
    let factor = |part: &[f64], of_nothing: f64| {
        let factors = part.iter().zip(power).map(|(&part, &power)| if power > 0.0 { part / power } else { of_nothing });
        let factors: Vec<f32> = factors.map(|factor| factor as f32).collect();
        Tensor::from_data(TensorData::new(factors, [kv_heads, half]), &device)
    };
    let (real, imaginary) = parts.split_at(kv_heads * half);
    Ok(Turn { real: factor(real, 1.0), imaginary: factor(imaginary, 0.0) })
}

/// Fits a [`Mix`] of the wanted kind; `ridge` is relative to the mean variance of an input channel, `rank` that of what a
/// full one adds.
pub(crate) fn mix(
    fit: Fit,
    samples: &[Sample<'_>],
    kv_heads: usize,
    (ridge, rank): (f64, Option<usize>),
) -> Result<Option<Mix>, CacheError> {
    let device = samples[0].target.device();
    let [_, heads, _, dim] = samples[0].target.dims();
    match fit {
        Fit::None => Ok(None),
        Fit::Heads => {
            let maps = solve_heads(samples, kv_heads, ridge)?;
            let weight = maps.iter().flat_map(|(weight, _)| rows_of(weight)).collect::<Vec<f32>>();
            let bias = maps.iter().flat_map(|(_, bias)| bias.iter().map(|&x| x as f32)).collect::<Vec<f32>>();
            Ok(Some(Mix::Heads {
                weight: Tensor::from_data(TensorData::new(weight, [kv_heads, dim, dim]), &device),
                bias: Tensor::from_data(TensorData::new(bias, [kv_heads, dim]), &device),
            }))
        }
        Fit::Full => {
            let group = heads / kv_heads;
            let mut prior = DMatrix::zeros(heads * dim, heads * dim);
            let by_head = solve_heads(samples, kv_heads, ridge)?;
            for (kv_head, (weight, _)) in by_head.iter().enumerate() {
                for head in kv_head * group..(kv_head + 1) * group {
                    prior.view_mut((head * dim, head * dim), (dim, dim)).copy_from(weight);
                }
            }
            let moments = Moments::over(samples, |x| flat(x, heads * dim))?;
            let (weight, bias) = moments.ridge(&prior, ridge)?;
            if let Some(rank) = rank {
                let (left, right) = low_rank(&(weight - &prior), &moments.xx, rank);
                let bias = moments.bias(&(prior + &left * &right));
                let heads = by_head.iter().flat_map(|(weight, _)| rows_of(weight)).collect::<Vec<f32>>();
                return Ok(Some(Mix::LowRank {
                    heads: Tensor::from_data(TensorData::new(heads, [kv_heads, dim, dim]), &device),
                    left: matrix(&left, &device),
                    right: matrix(&right, &device),
                    bias: Tensor::from_data(
                        TensorData::new(bias.iter().map(|&x| x as f32).collect(), [bias.len()]),
                        &device,
                    ),
                }));
            }
            let bias: Vec<f32> = bias.iter().map(|&x| x as f32).collect();
            Ok(Some(Mix::Full {
                weight: matrix(&weight, &device),
                bias: Tensor::from_data(TensorData::new(bias, [heads * dim]), &device),
            }))
        }
    }
}

/// The share of the target's variance that stays unexplained, over rows that a fit has not seen.
pub(crate) fn residual(mix: Option<&Mix>, samples: &[Sample<'_>]) -> Result<f64, CacheError> {
    let (mut error, mut variance) = (0.0, 0.0);
    for sample in samples {
        let [_, heads, _, dim] = sample.target.dims();
        let mapped = mix.map_or(sample.captured.mixed.clone(), |mix| mix.apply(sample.captured.mixed.clone()));
        let rows = |x: &Tensor<4>| flat(pick(x, sample.rows).cast(DType::F32), heads * dim);
        let (mapped, target) = (rows(&mapped), rows(sample.target));
        let sum = |x: Tensor<2>| Ok::<f64, CacheError>(host(x.square().sum())?.into_iter().map(f64::from).sum());
        error += sum(mapped - target.clone())?;
        variance += sum(target.clone() - target.mean_dim(0))?;
    }
    Ok(error / variance)
}

/// For each group of query heads, the squared error that a map head by head leaves.
pub(crate) fn head_errors(samples: &[Sample<'_>], kv_heads: usize, ridge: f64) -> Result<Vec<f64>, CacheError> {
    let Some(mix) = mix(Fit::Heads, samples, kv_heads, (ridge, None))? else { return Ok(Vec::new()) };
    let mut errors = vec![0.0; kv_heads];
    for sample in samples {
        let [_, heads, _, dim] = sample.target.dims();
        let error = mix.apply(sample.captured.mixed.clone()) - sample.target.clone();
        let error = pick(&error, sample.rows).cast(DType::F32).square();
        let rows = error.dims()[1];
        let by_group = error.reshape([kv_heads, heads / kv_heads * rows * dim]).sum_dim(1);
        errors.iter_mut().zip(host(by_group)?).for_each(|(sum, error)| *sum += f64::from(error));
    }
    Ok(errors)
}

/// A permutation with a low sum of `errors[group][head]`, reached by exchanging two or three heads at a time: the least
/// of all up to three heads.
pub(crate) fn assign(errors: &[Vec<f64>]) -> Vec<usize> {
    let sum = |order: &[usize]| order.iter().zip(errors).map(|(&head, errors)| errors[head]).sum::<f64>();
    let mut best: Vec<usize> = (0..errors.len()).collect();
    loop {
        let mut better = None;
        let mut least = sum(&best);
        for (a, b) in (0..best.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
            let mut order = best.clone();
            order.swap(a, b);
            if sum(&order) < least {
                least = sum(&order);
                better = Some(order);
            }
            for c in 0..b {
                let mut order = best.clone();
                (order[a], order[b], order[c]) = (best[b], best[c], best[a]);
                if sum(&order) < least {
                    least = sum(&order);
                    better = Some(order);
                }
            }
        }
        match better {
            Some(order) => best = order,
            None => return best,
        }
    }
}

fn solve_heads(samples: &[Sample<'_>], kv_heads: usize, ridge: f64) -> Result<Vec<Affine>, CacheError> {
    let [_, heads, _, dim] = samples[0].target.dims();
    let group = heads / kv_heads;
    let solve = |kv_head: usize| {
        let of_group = |x: Tensor<3>| {
            let rows = x.dims()[1];
            x.slice_dim(0, kv_head * group..(kv_head + 1) * group).reshape([group * rows, dim])
        };
        Moments::over(samples, of_group)?.ridge(&DMatrix::identity(dim, dim), ridge)
    };
    (0..kv_heads).map(solve).collect()
}

impl Moments {
    /// Sums over the rows that `shape` makes of `[head, row, head_dim]` outputs and targets. Means are taken off on the
    /// device before anything is multiplied: products there may be of 10 bits only.
    fn over(samples: &[Sample<'_>], shape: impl Fn(Tensor<3>) -> Tensor<2>) -> Result<Self, CacheError> {
        let rows = |x: &Tensor<4>, sample: &Sample<'_>| shape(pick(x, sample.rows).cast(DType::F32));
        let pairs: Vec<(Tensor<2>, Tensor<2>)> =
            samples.iter().map(|s| (rows(&s.captured.mixed, s), rows(s.target, s))).collect();
        let n: f64 = pairs.iter().map(|(x, _)| x.dims()[0] as f64).sum();
        let read = |x: Tensor<2>| Ok::<_, CacheError>(host(x)?.into_iter().map(f64::from));
        let mean = |of: fn(&(Tensor<2>, Tensor<2>)) -> &Tensor<2>| -> Result<(Tensor<2>, DVector<f64>), CacheError> {
            let sums = pairs.iter().map(|pair| of(pair).clone().sum_dim(0)).reduce(|a, b| a + b);
            let mean = sums.ok_or(CacheError::Unsupported("a fit without samples"))? / n;
            let width = mean.dims()[1];
            Ok((mean.clone(), DVector::from_iterator(width, read(mean)?)))
        };
        let ((x_mean, x), (y_mean, y)) = (mean(|pair| &pair.0)?, mean(|pair| &pair.1)?);
        let (inputs, outputs) = (x.len(), y.len());
        let mut moments = Moments { x, y, xx: DMatrix::zeros(inputs, inputs), xy: DMatrix::zeros(inputs, outputs) };
        for (x, y) in pairs {
            let (x, y) = (x - x_mean.clone(), y - y_mean.clone());
            // Row-major data of a symmetric matrix, and of a transposed product.
            moments.xx += DMatrix::from_iterator(inputs, inputs, read(product(x.clone().transpose(), x.clone()))?);
            moments.xy += DMatrix::from_iterator(inputs, outputs, read(product(y.transpose(), x))?);
        }
        Ok(moments)
    }

    /// The map next to `prior` that minimises `|Y - X W - b|^2 + ridge * v * |W - prior|^2`, `v` the mean variance of
    /// an input channel times the number of rows.
    fn ridge(&self, prior: &DMatrix<f64>, ridge: f64) -> Result<Affine, CacheError> {
        let mut xx = self.xx.clone();
        let mean = xx.trace() / xx.nrows() as f64;
        let rest = &self.xy - &xx * prior;
        for i in 0..xx.nrows() {
            xx[(i, i)] += (ridge * mean).max(f64::MIN_POSITIVE);
        }
        let factor = Cholesky::new(xx).ok_or(CacheError::Unsupported("a fit to values that are not finite"))?;
        let columns: Vec<DMatrix<f64>> = (0..rest.ncols())
            .step_by(SOLVED_AT_ONCE)
            .map(|first| rest.columns(first, SOLVED_AT_ONCE.min(rest.ncols() - first)).into_owned())
            .collect();
        let solved: Vec<DMatrix<f64>> = columns.par_iter().map(|columns| factor.solve(columns)).collect();
        let mut weight = prior.clone();
        for (index, solved) in solved.iter().enumerate() {
            let mut columns = weight.columns_mut(index * SOLVED_AT_ONCE, solved.ncols());
            columns += solved;
        }
        let bias = self.bias(&weight);
        Ok((weight, bias))
    }

    /// The bias that leaves no mean error.
    fn bias(&self, weight: &DMatrix<f64>) -> DVector<f64> {
        &self.y - weight.transpose() * &self.x
    }
}

/// `[batch, head, token, head_dim]` to the wanted rows, `[head, row, head_dim]`.
fn pick(x: &Tensor<4>, rows: &[i64]) -> Tensor<3> {
    let [batch, heads, tokens, dim] = x.dims();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows.to_vec(), [rows.len()]), &x.device());
    x.clone().swap_dims(axis::BATCH, axis::HEAD).reshape([heads, batch * tokens, dim]).select(1, rows)
}

/// `[head, row, head_dim]` to `[row, head * head_dim]`.
fn flat(x: Tensor<3>, width: usize) -> Tensor<2> {
    let rows = x.dims()[1];
    x.swap_dims(0, 1).reshape([rows, width])
}

fn rows_of(matrix: &DMatrix<f64>) -> Vec<f32> {
    matrix.row_iter().flat_map(|row| row.iter().map(|&x| x as f32).collect::<Vec<_>>()).collect()
}

fn matrix(matrix: &DMatrix<f64>, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(rows_of(matrix), [matrix.nrows(), matrix.ncols()]), device)
}
