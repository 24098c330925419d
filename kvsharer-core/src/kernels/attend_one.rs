//! One query a sequence: keys and values are read where they lie, each once for the whole group of query heads.

use super::exp::exp;
use super::rows::{Rows, primitives};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

/// Elements of keys that are worth other threads.
const WORTH_THREADS: usize = 1 << 20;

pub(super) fn attend_one(query: &Tensor<4>, keys: &Tensor<4>, values: &Tensor<4>) -> Option<(Tensor<4>, Tensor<4>)> {
    let [batch, heads, group, dim] = query.dims();
    let cells = keys.dims()[2];
    let device = query.device();
    let [query, keys, values] = &primitives(query, keys, values)?;
    let query = query.as_slice::<f32>()?;
    let (keys, values) = (Rows::of(keys, dim)?, Rows::of(values, dim)?);
    let mut output = vec![0.0; batch * heads * group * dim];
    let mut weights = vec![0.0; batch * heads * group * cells];
    let arch = pulp::Arch::new();
    let (size, seen) = (group * dim, group * cells);
    let parts = query.chunks(size).zip(output.chunks_mut(size)).zip(weights.chunks_mut(seen));
    let all = parts.map(|((query, output), weights)| Head { query, output, weights }).collect::<Vec<_>>();
    let one = |(index, head): (usize, Head<'_>)| {
        let place = (index / heads, index % heads, cells * dim);
        arch.dispatch(|| head.attend(keys.head(place), values.head(place), dim));
    };
    if batch * heads * cells * dim < WORTH_THREADS {
        all.into_iter().enumerate().for_each(one);
    } else {
        all.into_par_iter().enumerate().for_each(one);
    }
    let tensor =
        |values: Vec<f32>, last| Tensor::from_data(TensorData::new(values, [batch, heads, group, last]), &device);
    Some((tensor(output, dim), tensor(weights, cells)))
}

/// One head of one sequence with the queries of its group.
struct Head<'a> {
    query: &'a [f32],
    output: &'a mut [f32],
    weights: &'a mut [f32],
}

impl Head<'_> {
    #[inline(always)]
    fn attend(self, keys: &[f32], values: &[f32], dim: usize) {
        let (scale, cells) = (1.0 / (dim as f32).sqrt(), keys.len() / dim);
        let heads = self.query.chunks_exact(dim).zip(self.output.chunks_exact_mut(dim));
        for ((query, output), weights) in heads.zip(self.weights.chunks_exact_mut(cells)) {
            for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(dim)) {
                *weight = dot(query, key) * scale;
            }
            let top = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            weights.iter_mut().for_each(|weight| *weight = exp(*weight - top));
            let mass = weights.iter().map(|&weight| f64::from(weight)).sum::<f64>() as f32;
            for (weight, value) in weights.iter_mut().zip(values.chunks_exact(dim)) {
                *weight /= mass;
                for (sum, value) in output.iter_mut().zip(value) {
                    *sum += *weight * value;
                }
            }
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution, activation::softmax};

    #[test]
    fn one_query_attends_as_the_formula_says_whatever_lies_around_the_cells() {
        let device = Device::flex();
        let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        for (batch, heads, group, dim, cells, capacity) in [
            (1, 1, 1, 4, 1, 1),
            (2, 3, 3, 64, 65, 80),
            (1, 2, 1, 7, 63, 64),
            (3, 1, 8, 20, 64, 64),
            (1, 4, 2, 64, 5000, 5001),
        ] {
            let query = random([batch, heads, group, dim]);
            // As a cache gives them: the first cells of a longer buffer.
            let [keys, values] = [(); 2].map(|()| random([batch, heads, capacity, dim]).slice_dim(2, 0..cells));
            let scores = (query.clone() / (dim as f64).sqrt()).matmul(keys.clone().swap_dims(2, 3));
            let wanted = softmax(scores, 3);
            let (got, weights) = attend_one(&query, &keys, &values).expect("a kernel");
            for (got, wanted) in [(weights, wanted.clone()), (got, wanted.matmul(values))] {
                let worst = (got - wanted).abs().max().into_scalar::<f32>();
                assert!(worst < 1e-5, "{batch} {heads} {group} {dim} {cells}: {worst}");
            }
        }
        let turned = random([1, 2, 4, 8]).swap_dims(2, 3);
        assert!(attend_one(&random([1, 2, 1, 4]), &turned, &turned).is_none(), "rows that do not lie in line");
    }
}
