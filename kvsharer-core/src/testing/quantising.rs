//! Quantised storage against its own bound: half a step of a group's range, and the rounding of the dtype.

use super::attention::values;
use super::{Case, Measured, Subject, Tolerance, Unmeasured, host, largest, worst};
use crate::{Kv, Quantisation, QuantisedBuffer};
use burn::tensor::{DType, Tensor, TensorData};
use std::collections::HashMap;

const BATCH: usize = 2;
const HEADS: usize = 3;
/// Of the largest error that half a step and rounding explain.
const BOUND: Tolerance = Tolerance::always(1.0);

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, bits) in [(Kv::Key, 8), (Kv::Key, 4), (Kv::Value, 8), (Kv::Value, 4)] {
        let name = format!("storage, {bits} bits, {kind}s: half a step off at most, the newest tokens not at all");
        cases.push(Case::new(name, BOUND, move |subject| {
            let all = [(64, 32, 0, 130), (64, 32, 8, 37), (96, 32, 8, 200), (80, 16, 128, 257)]
                .map(|(dim, group, residual, cells)| bounded(subject, kind, (bits, group, residual), cells, dim));
            Ok(Measured::worst_of(all.into_iter().collect::<Result<Vec<_>, _>>()?))
        }));
        let name = format!("storage, {bits} bits, {kind}s: chunks give what single tokens give");
        cases.push(Case::new(name, Tolerance::always(0.0), move |subject| chunked(subject, kind, bits)));
    }
    for bits in [8, 4] {
        let name = format!("storage, {bits} bits, keys: written anew from what they decode to, they do not change");
        cases.push(Case::new(name, Tolerance::always(0.0), move |subject| rewritten(subject, bits)));
    }
    cases
}

/// Half the gap between two numbers of a dtype, relative to them.
pub fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2_f64.powi(-11),
        DType::BF16 => 2_f64.powi(-8),
        _ => 2_f64.powi(-24),
    }
}

/// How much of the bound the largest error of `decoded` takes up: half a stored step of its group, and the rounding of
/// range, step and result to the dtype. Infinite if a token that stands in full is off at all, NaN if anything is.
///
/// # Shapes
/// `original` and `decoded` `[batch, kv_head, cell, head_dim]`.
///
/// # Errors
/// If the device fails.
pub fn bound_used(kind: Kv, codec: Quantisation, original: &Tensor<4>, decoded: &Tensor<4>) -> Result<f64, Unmeasured> {
    let [_, _, cells, dim] = original.dims();
    let (unit, quantised) = (rounding(original.dtype()), codec.quantised_cells(cells));
    let (original, decoded) = (host(original.clone())?, host(decoded.clone())?);
    let place = |i: usize| (i / dim / cells, i / dim % cells, i % dim);
    let group = |i: usize| match (kind, place(i)) {
        (Kv::Key, (head, cell, channel)) => (head, cell / codec.group(), channel),
        (Kv::Value, (head, cell, channel)) => (head, cell, channel / codec.group()),
    };
    let mut ranges = HashMap::new();
    for (i, &x) in original.iter().enumerate() {
        let range = ranges.entry(group(i)).or_insert((f64::INFINITY, f64::NEG_INFINITY));
        *range = (f64::min(range.0, x), f64::max(range.1, x));
    }
    let used = original.iter().zip(&decoded).enumerate().map(|(i, (&x, &y))| {
        let error = (x - y).abs();
        if error == 0.0 {
            return 0.0;
        }
        if place(i).1 >= quantised {
            return f64::INFINITY;
        }
        let (low, high) = ranges[&group(i)];
        // The step that is stored has 16 bits of its own, or fewer in half precision, and may be that much wider.
        let step_rounding = unit.max(2_f64.powi(-16));
        let half_step = (high - low) / ((1 << codec.bits()) - 1) as f64 / 2.0 * (1.0 + step_rounding);
        // Rounded are the distance from the lowest value, its quotient by the step (which may pick the other of two codes
        // half a step away), and the decoded value.
        let slack = 1.1 * unit * (2.0 * (high - low) + 2.0 * low.abs().max(high.abs()));
        error / (half_step + slack)
    });
    let used: Vec<f64> = used.collect();
    Ok(if used.contains(&f64::INFINITY) { f64::INFINITY } else { largest(used) })
}

/// Tokens of which, like those of keys, some channels are far from 0 and some spread widely.
fn tokens(subject: &Subject, cells: usize, dim: usize) -> Tensor<4> {
    let values = values(BATCH * HEADS * cells * dim, cells).into_iter().enumerate().map(|(i, x)| {
        let (centre, spread) = [(0.0, 1.0), (20.0, 0.5), (-3.0, 8.0), (0.1, 0.02)][i % dim % 4];
        centre + spread * x
    });
    let data = TensorData::new(values.collect::<Vec<f32>>(), [BATCH, HEADS, cells, dim]);
    Tensor::<4>::from_data(data, (&subject.device, DType::F32)).cast(subject.dtype)
}

fn codec((bits, group, residual): (usize, usize, usize)) -> Result<Quantisation, Unmeasured> {
    Quantisation::new(bits, group, residual).ok_or_else(|| Unmeasured::Failed("no such codec".into()))
}

fn buffer(subject: &Subject, kind: Kv, codec: Quantisation, cells: usize, dim: usize) -> QuantisedBuffer {
    QuantisedBuffer::allocate(kind, codec, [BATCH, HEADS, cells, dim], subject.dtype, &subject.device)
}

fn bounded(
    subject: &Subject,
    kind: Kv,
    shape: (usize, usize, usize),
    cells: usize,
    dim: usize,
) -> Result<Measured, Unmeasured> {
    let (codec, values) = (codec(shape)?, tokens(subject, cells, dim));
    let mut buffer = buffer(subject, kind, codec, cells, dim);
    buffer.replace(values.clone(), false);
    let planned = BATCH * HEADS * codec.bytes(kind, cells, dim, subject.dtype.size());
    if buffer.bytes() != planned {
        return Err(Unmeasured::Failed(format!("{} bytes are held, {planned} were planned", buffer.bytes())));
    }
    let worst = bound_used(kind, codec, &values, &buffer.view())?;
    Ok(Measured { worst, note: format!("of the bound, at groups of {} in {cells} x {dim}", codec.group()) })
}

fn chunked(subject: &Subject, kind: Kv, bits: usize) -> Result<Measured, Unmeasured> {
    let (cells, dim) = (61, 16);
    let (codec, values) = (codec((bits, 8, 5))?, tokens(subject, cells, dim));
    let mut chunks = buffer(subject, kind, codec, cells, dim);
    let mut singles = buffer(subject, kind, codec, cells, dim);
    let mut at = 0;
    for chunk in [3, 1, 20, 8, 29] {
        let part = values.clone().slice_dim(crate::axis::CELL, at..at + chunk);
        for token in 0..chunk {
            singles.append(part.clone().slice_dim(crate::axis::CELL, token..token + 1));
        }
        chunks.append(part);
        at += chunk;
    }
    Ok(Measured::new(worst(&host(chunks.view())?, &host(singles.view())?)))
}

fn rewritten(subject: &Subject, bits: usize) -> Result<Measured, Unmeasured> {
    let (cells, dim) = (100, 64);
    let mut buffer = buffer(subject, Kv::Key, codec((bits, 32, 8))?, cells, dim);
    buffer.replace(tokens(subject, cells, dim), false);
    let before = host(buffer.view())?;
    for _round in 0..3 {
        buffer.replace(buffer.view(), true);
    }
    Ok(Measured::new(worst(&host(buffer.view())?, &before)))
}
