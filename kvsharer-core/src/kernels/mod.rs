//! Kernels of our own, where burn's are far from what the memory allows: for its CPU backend with the feature
//! `cpu-kernels`, for GPUs with `gpu-kernels`. For other tensors there are none, and callers use burn's operations.

#[cfg(feature = "cpu-kernels")]
mod attend_block;
#[cfg(feature = "cpu-kernels")]
mod attend_one;
#[cfg(feature = "cpu-kernels")]
mod exp;
#[cfg(feature = "gpu-kernels")]
mod gpu;
#[cfg(feature = "cpu-kernels")]
mod rows;
#[cfg(feature = "cpu-kernels")]
mod turn;

use crate::attend::Hidden;
use burn::tensor::{Bool, IndexingUpdateOp, Int, Tensor, activation::softmax};
#[cfg(feature = "cpu-kernels")]
pub use exp::exp;
#[cfg(feature = "gpu-kernels")]
pub use gpu::common as gpu_common;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether products of f32 may round what they multiply.
static TF32: AtomicBool = AtomicBool::new(false);

/// Lets devices with tensor cores round what f32 products multiply to TF32, 10 bits behind the point, which is faster; as
/// `torch.backends.cuda.matmul.allow_tf32`, for the whole process, and not allowed unless this is called.
pub fn allow_tf32(allow: bool) {
    TF32.store(allow, Ordering::Relaxed);
}

/// `lhs rhs`, as `Tensor::matmul`, but products of f32 multiply f32, unless [`allow_tf32`] says otherwise.
///
/// # Shapes
/// `[.., row, inner]` times `[.., inner, column]`; axes in front are equal or 1.
pub fn product<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "gpu-kernels")]
    if (lhs.dtype() != burn::tensor::DType::F32 || !TF32.load(Ordering::Relaxed))
        && gpu::runs_on(&lhs.device())
        && let Some(product) = gpu::product(&lhs, &rhs)
    {
        return product;
    }
    lhs.matmul(rhs)
}

/// Whether burn's own products would round what they multiply, though that is not allowed.
pub(crate) fn rounds_f32(x: &Tensor<4>) -> bool {
    #[cfg(feature = "gpu-kernels")]
    return !TF32.load(Ordering::Relaxed) && gpu::rounds_f32(x);
    #[cfg(not(feature = "gpu-kernels"))]
    {
        let _ = x;
        false
    }
}

/// Causal attention of the last tokens over all cells but hidden ones, without a queries x keys matrix; `None` if there
/// is no kernel.
///
/// # Shapes
/// `query` and result `[batch, query_head, token, head_dim]`; `keys`, `values` `[batch, kv_head, cell, head_dim]`.
pub(crate) fn attend_many(
    query: &Tensor<4>,
    keys: &Tensor<4>,
    values: &Tensor<4>,
    hidden: Option<&Hidden>,
) -> Option<Tensor<4>> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&query.device()) {
        return gpu::attend_many(query, keys, values, hidden);
    }
    let _ = (query, keys, values, hidden);
    None
}

/// Attention of one query a sequence over all cells, `softmax(Q K^T / sqrt(head_dim)) V`, without a copy of the cache;
/// also the softmax's weights. `None` if there is no kernel for these tensors.
///
/// # Shapes
/// `query` and result `[batch, kv_head, group, head_dim]`; `keys`, `values` `[batch, kv_head, cell, head_dim]`; weights
/// `[batch, kv_head, group, cell]` in f32.
pub(crate) fn attend_one(query: &Tensor<4>, keys: &Tensor<4>, values: &Tensor<4>) -> Option<(Tensor<4>, Tensor<4>)> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&query.device()) {
        return gpu::attend_one(query, keys, values);
    }
    #[cfg(feature = "cpu-kernels")]
    return attend_one::attend_one(query, keys, values);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (query, keys, values);
        None
    }
}

/// The same output without the weights.
pub(crate) fn attend_one_unwatched(query: &Tensor<4>, keys: &Tensor<4>, values: &Tensor<4>) -> Option<Tensor<4>> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&query.device()) {
        return gpu::attend_one_unwatched(query, keys, values);
    }
    attend_one(query, keys, values).map(|(output, _)| output)
}

/// Output and weights where cells are hidden: those whose place, `[batch, kv_head, cell]`, is below `bound`. `None` if there
/// is no kernel for these tensors.
pub(crate) fn attend_holes(
    query: &Tensor<4>,
    keys: &Tensor<4>,
    values: &Tensor<4>,
    places: &Tensor<3, Int>,
    bound: i64,
) -> Option<(Tensor<4>, Tensor<4>)> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&query.device()) {
        return gpu::attend_holes(query, keys, values, places, i32::try_from(bound).ok()?);
    }
    let _ = (query, keys, values, places, bound);
    None
}

/// The same output over the first cells, as many as the device says in `count` `[1]`; always one query a sequence.
pub(crate) fn attend_counted(
    query: Tensor<4>,
    keys: Tensor<4>,
    values: Tensor<4>,
    count: &Tensor<1, Int>,
) -> Tensor<4> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&query.device())
        && let Some(output) = gpu::attend_counted(&query, &keys, &values, count)
    {
        return output;
    }
    let [_, _, cells, dim] = keys.dims();
    let scores = product(query * (1.0 / (dim as f64).sqrt()), keys.swap_dims(2, 3));
    let behind = Tensor::<1, Int>::arange(0..cells as i64, &scores.device()).greater_equal(count.clone());
    let behind = behind.reshape([1, 1, 1, cells]).expand(scores.shape());
    product(softmax(scores.mask_fill(behind, f32::NEG_INFINITY), 3), values)
}

/// Writes the tokens of `values` into cells of a buffer from the one that the device says in `first` `[1]`; on a device
/// with a kernel for it in place, whoever else holds the buffer.
///
/// # Shapes
/// `buffer` and result `[batch, kv_head, cell, head_dim]`, `values` `[batch, kv_head, token, head_dim]`.
pub(crate) fn put(buffer: Tensor<4>, values: Tensor<4>, first: &Tensor<1, Int>) -> Tensor<4> {
    #[cfg(feature = "gpu-kernels")]
    let buffer = match gpu::runs_on(&buffer.device()) {
        true => match gpu::put(buffer, &values, first) {
            Ok(written) => return written,
            Err(buffer) => buffer,
        },
        false => buffer,
    };
    let [batch, heads, tokens, dim] = values.dims();
    let cells = Tensor::<1, Int>::arange(0..tokens as i64, &buffer.device()) + first.clone();
    let cells = cells.reshape([1, 1, tokens, 1]).expand([batch, heads, tokens, dim]);
    buffer.scatter(2, cells, values, IndexingUpdateOp::Assign)
}

/// Turns the query and the key of one token a sequence by one angle and writes the key and its value into the cell that the
/// device says in `cell` `[1]`. The query is `None` if there is no kernel for that, and the buffers are as they were.
///
/// # Shapes
/// `table` cosines and sines, `[1, head_dim]`; `fresh` query `[batch, query_head, 1, head_dim]`, key and value
/// `[batch, kv_head, 1, head_dim]`; `buffers` keys and values `[batch, kv_head, cell, head_dim]`.
pub(crate) fn place(
    table: [&Tensor<2>; 2],
    fresh: [&Tensor<4>; 3],
    buffers: [Tensor<4>; 2],
    cell: &Tensor<1, Int>,
) -> (Option<Tensor<4>>, Tensor<4>, Tensor<4>) {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&fresh[0].device()) {
        return gpu::place(table, fresh, buffers, cell);
    }
    let _ = (table, fresh, cell);
    let [keys, values] = buffers;
    (None, keys, values)
}

/// The sequences `rows` `[row]` of a buffer, with room for `capacity` cells: the first ones, or all and zeros behind.
///
/// # Shapes
/// `buffer` `[batch, kv_head, cell, head_dim]`, result `[row, kv_head, capacity, head_dim]`.
pub(crate) fn pick_rows(buffer: &Tensor<4>, rows: &Tensor<1, Int>, capacity: usize) -> Tensor<4> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&buffer.device())
        && let Some(picked) = gpu::pick_rows(buffer, rows, capacity)
    {
        return picked;
    }
    let picked = buffer.clone().select(0, rows.clone());
    let [batch, heads, cells, dim] = picked.dims();
    if capacity <= cells {
        return if capacity == cells { picked } else { picked.slice_dim(2, 0..capacity) };
    }
    let zeros = Tensor::zeros([batch, heads, capacity, dim], (&picked.device(), picked.dtype()));
    zeros.slice_assign([0..batch, 0..heads, 0..cells, 0..dim], picked)
}

/// Of each row of logits, in one reading: the greatest, the sum of `exp(logit - greatest)` over all, the one of the
/// row's target, and the place of the first that is the greatest; `None` if there is no kernel for these tensors.
///
/// # Shapes
/// `logits` `[row, vocab]`, `targets` `[row]` below `vocab`; result `[row, 4]` in f32.
pub fn logit_stats(logits: &Tensor<2>, targets: &Tensor<1, Int>) -> Option<Tensor<2>> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&logits.device()) {
        return gpu::logit_stats(logits, targets);
    }
    let _ = (logits, targets);
    None
}

/// Writes `row` `[1, column]` into the row of `rows` `[row, column]` that the device says in `at` `[1]`; on a device with a
/// kernel for it in place, whoever else holds the rows.
pub fn put_row(rows: Tensor<2, Int>, row: Tensor<2, Int>, at: &Tensor<1, Int>) -> Tensor<2, Int> {
    #[cfg(feature = "gpu-kernels")]
    let rows = match gpu::runs_on(&rows.device()) {
        true => match gpu::put_row(rows, &row, at) {
            Ok(written) => return written,
            Err(rows) => rows,
        },
        false => rows,
    };
    let index = at.clone().reshape([1, 1]).expand(row.dims());
    rows.scatter(0, index, row, IndexingUpdateOp::Assign)
}

/// The same of many queries, each of which sees the cells that `mask` does not hide.
///
/// # Shapes
/// `query` and result `[batch, kv_head, query, head_dim]`; `keys`, `values` `[batch, kv_head, cell, head_dim]`; `mask`
/// `[batch or 1, kv_head or 1, query, cell]`; all f32.
pub(crate) fn attend_block(
    query: &Tensor<4>,
    keys: &Tensor<4>,
    values: &Tensor<4>,
    mask: Option<&Tensor<4, Bool>>,
) -> Option<Tensor<4>> {
    #[cfg(feature = "cpu-kernels")]
    return attend_block::attend_block(query, keys, values, mask);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (query, keys, values, mask);
        None
    }
}

/// Rotary encoding: channels `i` and `i + head_dim / 2` are turned by the angle with these cosines and sines. `None` if
/// there is no kernel for these tensors.
///
/// # Shapes
/// `x` and result `[batch, head, token, head_dim]`; `cos`, `sin` `[token, head_dim]` or one row for all tokens, in f32.
pub(crate) fn turn(x: &Tensor<4>, cos: &Tensor<2>, sin: &Tensor<2>) -> Option<Tensor<4>> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&x.device()) {
        return gpu::turn(x, cos, sin);
    }
    #[cfg(feature = "cpu-kernels")]
    return turn::turn(x, cos, sin);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (x, cos, sin);
        None
    }
}
