//! One query a sequence: keys and values are read where they lie, each once for the whole group of query heads.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

/// Elements of keys that are worth other threads.
const WORTH_THREADS: usize = 1 << 20;

pub(super) fn attend_one(query: &Tensor<4>, keys: &Tensor<4>, values: &Tensor<4>) -> Option<Tensor<4>> {
    let [batch, heads, group, dim] = query.dims();
    let cells = keys.dims()[2];
    if [query, keys, values].iter().any(|tensor| tensor.dtype() != DType::F32) || values.dims()[3] != dim || cells == 0
    {
        return None;
    }
    let device = query.device();
    let query = query.clone().try_into_primitive::<Flex>().ok()?.to_contiguous();
    let keys = keys.clone().try_into_primitive::<Flex>().ok()?;
    let values = values.clone().try_into_primitive::<Flex>().ok()?;
    let query = query.as_slice::<f32>()?;
    let (keys, values) = (Rows::of(&keys, dim)?, Rows::of(&values, dim)?);
    let mut output = vec![0.0; batch * heads * group * dim];
    let arch = pulp::Arch::new();
    let one = |(index, (output, query)): (usize, (&mut [f32], &[f32]))| {
        let (sequence, head) = (index / heads, index % heads);
        arch.dispatch(|| {
            attend_head(query, output, dim, keys.head(sequence, head), values.head(sequence, head), cells)
        });
    };
    let (size, work) = (group * dim, batch * heads * cells * dim);
    if work < WORTH_THREADS {
        output.chunks_mut(size).zip(query.chunks(size)).enumerate().for_each(one);
    } else {
        output.par_chunks_mut(size).zip(query.par_chunks(size)).enumerate().for_each(one);
    }
    Some(Tensor::from_data(TensorData::new(output, [batch, heads, group, dim]), &device))
}

/// Rows of a `[batch, head, cell, head_dim]` view whose last two axes lie row behind row.
#[derive(Clone, Copy)]
struct Rows<'a> {
    all: &'a [f32],
    start: usize,
    batch: usize,
    head: usize,
}

impl<'a> Rows<'a> {
    fn of(tensor: &'a FloatTensor<Flex>, dim: usize) -> Option<Self> {
        let layout = tensor.layout();
        let strides = layout.strides().iter().map(|&stride| usize::try_from(stride).ok());
        let strides = strides.collect::<Option<Vec<usize>>>()?;
        let &[batch, head, cell, channel] = &strides[..] else { return None };
        (cell == dim && channel == 1).then(|| Self { all: tensor.storage(), start: layout.start_offset(), batch, head })
    }

    /// The rows of one head from its first cell on; there may be more behind the last one.
    fn head(self, sequence: usize, head: usize) -> &'a [f32] {
        &self.all[self.start + sequence * self.batch + head * self.head..]
    }
}

/// Softmax over the cells as they come, so that each is read once (Milakov and Gimelshein, arXiv 1805.02867, over blocks).
#[inline(always)]
fn attend_head(query: &[f32], output: &mut [f32], dim: usize, keys: &[f32], values: &[f32], cells: usize) {
    const BLOCK: usize = 64;
    let scale = 1.0 / (dim as f32).sqrt();
    for (query, output) in query.chunks_exact(dim).zip(output.chunks_exact_mut(dim)) {
        let (mut top, mut mass) = (f32::NEG_INFINITY, 0.0_f32);
        for first in (0..cells).step_by(BLOCK) {
            let count = BLOCK.min(cells - first);
            let rows = first * dim..(first + count) * dim;
            let mut weights = [0.0_f32; BLOCK];
            for (weight, key) in weights.iter_mut().zip(keys[rows.clone()].chunks_exact(dim)) {
                *weight = dot(query, key) * scale;
            }
            let weights = &mut weights[..count];
            let best = weights.iter().copied().fold(top, f32::max);
            // Of the first block: nothing was added up yet.
            let shrink = if mass > 0.0 { (top - best).exp() } else { 0.0 };
            weights.iter_mut().for_each(|weight| *weight = (*weight - best).exp());
            mass = mass * shrink + weights.iter().sum::<f32>();
            top = best;
            output.iter_mut().for_each(|sum| *sum *= shrink);
            for (&weight, value) in weights.iter().zip(values[rows].chunks_exact(dim)) {
                for (sum, value) in output.iter_mut().zip(value) {
                    *sum += weight * value;
                }
            }
        }
        output.iter_mut().for_each(|sum| *sum /= mass);
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
        let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 2.0), &device);
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
            let wanted = softmax(scores, 3).matmul(values.clone());
            let got = attend_one(&query, &keys, &values).expect("a kernel");
            let worst = (got - wanted).abs().max().into_scalar::<f32>();
            assert!(worst < 1e-5, "{batch} {heads} {group} {dim} {cells}: {worst}");
        }
        let turned = random([1, 2, 4, 8]).swap_dims(2, 3);
        assert!(attend_one(&random([1, 2, 1, 4]), &turned, &turned).is_none(), "rows that do not lie in line");
    }
}
