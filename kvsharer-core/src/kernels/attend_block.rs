//! A block of queries: scores of some rows at a time, so that they stay in the processor's cache, softmax on whole
//! vectors, and work for all threads whatever the number of heads.

use super::exp::exp;
use super::rows::{Rows, primitives};
use burn::backend::Flex;
use burn::backend::tensor::BoolTensor;
use burn::tensor::{Bool, Tensor, TensorData};
use nalgebra::{DMatrixView, DMatrixViewMut, Dyn};
use rayon::prelude::*;

/// Scores in work on one thread.
const SCORES: usize = 1 << 16;

/// Queries in work on one thread.
const QUERIES: usize = 64;

/// Parts of the work for each thread: early queries see less than late ones.
const PARTS: usize = 8;

pub(super) fn attend_block(
    query: &Tensor<4>,
    keys: &Tensor<4>,
    values: &Tensor<4>,
    mask: Option<&Tensor<4, Bool>>,
) -> Option<Tensor<4>> {
    let [batch, heads, queries, dim] = query.dims();
    let cells = keys.dims()[2];
    let device = query.device();
    let [query, keys, values] = &primitives(query, keys, values)?;
    let mask = mask.map(|mask| mask.clone().try_into_primitive::<Flex>()).transpose().ok()?;
    let query = query.as_slice::<f32>()?;
    let (keys, values) = (Rows::of(keys, dim)?, Rows::of(values, dim)?);
    let mask = match &mask {
        Some(mask) => Some(Mask::of(mask)?),
        None => None,
    };
    let mut output = vec![0.0; batch * heads * queries * dim];
    let rows = (SCORES / cells).clamp(8, QUERIES).min(queries);
    let mut tiles: Vec<(usize, (usize, &mut [f32]))> = output
        .chunks_mut(queries * dim)
        .enumerate()
        .flat_map(|(head, output)| output.chunks_mut(rows * dim).enumerate().map(move |tile| (head, tile)))
        .collect();
    let arch = pulp::Arch::new();
    let part = tiles.len().div_ceil(PARTS * rayon::current_num_threads());
    tiles.par_chunks_mut(part).for_each(|tiles| {
        let mut scores = Vec::new();
        for (index, (tile, output)) in tiles {
            let (sequence, head, first) = (*index / heads, *index % heads, *tile * rows);
            let start = (*index * queries + first) * dim;
            let lines = mask.map(|mask| mask.lines(sequence, head, first));
            let place = (sequence, head, cells * dim);
            let tile = Tile { query: &query[start..start + output.len()], dim, lines };
            tile.attend(arch, keys.head(place), values.head(place), &mut scores, output);
        }
    });
    Some(Tensor::from_data(TensorData::new(output, [batch, heads, queries, dim]), &device))
}

/// `[batch, head, query, cell]`, nonzero where a query must not look; axes of length 1 are repeated.
#[derive(Clone, Copy)]
struct Mask<'a> {
    all: &'a [u8],
    start: usize,
    strides: [usize; 3],
}

impl<'a> Mask<'a> {
    fn of(mask: &'a BoolTensor<Flex>) -> Option<Self> {
        let layout = mask.layout();
        let mut strides = [0; 3];
        for (axis, stride) in strides.iter_mut().enumerate() {
            *stride = if layout.shape()[axis] == 1 { 0 } else { usize::try_from(layout.strides()[axis]).ok()? };
        }
        (layout.strides()[3] == 1).then(|| Self { all: mask.storage(), start: layout.start_offset(), strides })
    }

    /// The lines of queries from `first` on, and how far one is from the next.
    fn lines(self, sequence: usize, head: usize, first: usize) -> (&'a [u8], usize) {
        let [of_sequence, of_head, of_query] = self.strides;
        (&self.all[self.start + sequence * of_sequence + head * of_head + first * of_query..], of_query)
    }
}

/// Some queries of one head of one sequence.
struct Tile<'a> {
    query: &'a [f32],
    dim: usize,
    lines: Option<(&'a [u8], usize)>,
}

impl Tile<'_> {
    fn attend(&self, arch: pulp::Arch, keys: &[f32], values: &[f32], scores: &mut Vec<f32>, output: &mut [f32]) {
        let (dim, queries) = (self.dim, self.query.len() / self.dim);
        let all = keys.len() / dim;
        // Cells behind the last one that any of these queries sees cost nothing.
        let line = |row: usize| self.lines.map(|(lines, stride)| &lines[row * stride..row * stride + all]);
        let last = |row: usize| {
            line(row).map_or(all, |line| line.iter().rposition(|&hidden| hidden == 0).map_or(0, |i| i + 1))
        };
        let cells = (0..queries).map(last).max().unwrap_or(0).max(1);
        scores.resize(queries * cells, 0.0);
        let scale = 1.0 / (dim as f32).sqrt();
        products(scores, self.query, &keys[..cells * dim], dim, scale);
        let mut masses = [0.0; QUERIES];
        arch.dispatch(|| {
            for (row, (scores, mass)) in scores.chunks_exact_mut(cells).zip(&mut masses).enumerate() {
                if let Some(line) = line(row) {
                    for (score, &hidden) in scores.iter_mut().zip(line) {
                        *score = if hidden == 0 { *score } else { f32::NEG_INFINITY };
                    }
                }
                *mass = powers(scores);
            }
        });
        let values = DMatrixView::from_slice(values, dim, cells);
        let weights = DMatrixView::from_slice(scores, cells, queries);
        DMatrixViewMut::from_slice(output, dim, queries).gemm(1.0, &values, &weights, 0.0);
        for (output, mass) in output.chunks_exact_mut(dim).zip(masses) {
            output.iter_mut().for_each(|x| *x /= mass);
        }
    }
}

/// Scaled products `[query, cell]` of rows `[query, head_dim]` and `[cell, head_dim]`.
fn products(scores: &mut [f32], query: &[f32], keys: &[f32], dim: usize, scale: f32) {
    let (queries, cells) = (query.len() / dim, keys.len() / dim);
    // For smaller matrices nalgebra 0.34 takes a way that reads beyond a view with strides.
    if queries.min(cells).min(dim) < 8 {
        for (scores, query) in scores.chunks_exact_mut(cells).zip(query.chunks_exact(dim)) {
            for (score, key) in scores.iter_mut().zip(keys.chunks_exact(dim)) {
                *score = query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() * scale;
            }
        }
        return;
    }
    // A row-major matrix is the transpose of a column-major one.
    let keys = DMatrixView::from_slice_with_strides_generic(keys, Dyn(cells), Dyn(dim), Dyn(dim), Dyn(1));
    let query = DMatrixView::from_slice(query, dim, queries);
    DMatrixViewMut::from_slice(scores, cells, queries).gemm(scale, &keys, &query, 0.0);
}

/// Replaces scores by `e^(score - largest)` and gives their sum.
#[inline(always)]
fn powers(scores: &mut [f32]) -> f32 {
    const LANES: usize = 16;
    let mut tops = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    for scores in &*whole {
        tops.iter_mut().zip(scores).for_each(|(top, &score)| *top = if score > *top { score } else { *top });
    }
    let top = tops.iter().chain(&*rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0; LANES];
    for scores in whole {
        for (sum, score) in sums.iter_mut().zip(scores) {
            *score = exp(*score - top);
            *sum += *score;
        }
    }
    let mut sum = sums.iter().sum::<f32>();
    for score in rest {
        *score = exp(*score - top);
        sum += *score;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution, activation::softmax};

    #[test]
    fn a_block_attends_as_the_formula_says_whatever_the_mask() {
        let device = Device::flex();
        let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        for (batch, heads, queries, dim, cells, masked) in [
            (1, 1, 1, 4, 1, [1, 1]),
            (2, 3, 65, 64, 65, [1, 1]),
            (2, 3, 70, 20, 33, [2, 3]),
            (1, 2, 200, 7, 300, [1, 2]),
            (3, 1, 9, 80, 9000, [3, 1]),
        ] {
            let query = random([batch, heads, queries, dim]);
            // As a cache gives them: the first cells of a longer buffer.
            let [keys, values] = [(); 2].map(|()| random([batch, heads, cells + 3, dim]).slice_dim(2, 0..cells));
            let [rows, columns] = masked;
            let shape = [rows, columns, queries, cells];
            let hidden = Tensor::<4>::random(shape, Distribution::Default, &device).lower_elem(0.4);
            // Every query sees the first cell; the later half is hidden from the first queries.
            let cell = Tensor::arange(0..cells as i64, &device).reshape([1, 1, 1, cells]).expand(shape);
            let half = cell.clone().greater_elem((cells / 2) as i64);
            let hidden = hidden.bool_or(half).bool_and(cell.greater_elem(0));
            for mask in [None, Some(hidden)] {
                let scores = (query.clone() / (dim as f64).sqrt()).matmul(keys.clone().swap_dims(2, 3));
                let scores = match mask.clone() {
                    Some(mask) => scores.mask_fill(mask.expand([batch, heads, queries, cells]), f32::NEG_INFINITY),
                    None => scores,
                };
                let wanted = softmax(scores, 3).matmul(values.clone());
                let got = attend_block(&query, &keys, &values, mask.as_ref()).expect("a kernel");
                let worst = (got - wanted).abs().max().into_scalar::<f32>();
                assert!(worst < 1e-5, "{batch} {heads} {queries} {dim} {cells}: {worst}");
            }
        }
    }
}
