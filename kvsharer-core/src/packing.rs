//! How the older tokens of a slot are packed: options, exact bytes, and the words themselves.

use crate::{Kv, axis};
use burn::tensor::{DType, Int, Tensor};

/// How many bits the older tokens of a slot are held in, and which tokens are the older ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantisation {
    bits: usize,
    group: usize,
    residual: usize,
}

impl Quantisation {
    /// Codes of `bits` (4 or 8), one range for every `group` tokens of a key channel or `group` channels of a value,
    /// and at least `residual` newest tokens in full. `None` for other widths and for empty groups.
    pub fn new(bits: usize, group: usize, residual: usize) -> Option<Self> {
        (matches!(bits, 4 | 8) && group > 0).then_some(Self { bits, group, residual })
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// Tokens of a block, which are quantised together; channels of a value that share one range.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Newest tokens that always stay in full.
    pub fn residual(&self) -> usize {
        self.residual
    }

    /// Whether heads of `head_dim` channels can be stored: they must fill whole 32-bit words and whole groups.
    pub fn fits(&self, head_dim: usize) -> bool {
        head_dim > 0 && (head_dim * self.bits).is_multiple_of(32) && head_dim.is_multiple_of(self.channels(head_dim))
    }

    /// How many of `cells` cells, the first ones, stand quantised: whole blocks, outside the residual.
    pub fn quantised_cells(&self, cells: usize) -> usize {
        cells.saturating_sub(self.residual) / self.group * self.group
    }

    /// Bytes of one row and head of a buffer with `capacity` cells. Exact.
    pub fn bytes(&self, kind: Kv, capacity: usize, head_dim: usize, element_bytes: usize) -> usize {
        let cells = self.quantised_cells(capacity);
        let [rows, columns] = self.ranges(kind, cells, head_dim);
        let in_full = self.residual_cells(capacity) * head_dim;
        cells * self.words(head_dim) * DType::I32.size() + (2 * rows * columns + in_full) * element_bytes
    }

    /// Cells for the residual and the block that fills up behind it.
    pub(crate) fn residual_cells(&self, capacity: usize) -> usize {
        capacity.min(self.residual.saturating_add(self.group))
    }

    /// Shape of the ranges of one row and head: `[block, head_dim]` of keys, `[cell, head_dim / group]` of values.
    pub(crate) fn ranges(&self, kind: Kv, cells: usize, head_dim: usize) -> [usize; 2] {
        match kind {
            Kv::Key => [cells / self.group, head_dim],
            Kv::Value => [cells, head_dim / self.channels(head_dim)],
        }
    }

    /// Channels of a value that share one range.
    pub(crate) fn channels(&self, head_dim: usize) -> usize {
        self.group.min(head_dim)
    }

    /// Words a head of one cell is packed into.
    pub(crate) fn words(&self, head_dim: usize) -> usize {
        head_dim * self.bits / 32
    }

    /// The greatest code.
    pub(crate) fn top(&self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// Packs codes `[batch, kv_head, cell, head_dim]` into words: code `k` of word `w` is channel `k * words + w`, so
    /// that packing takes whole slices and unpacking gives the channels in order.
    pub(crate) fn pack(&self, codes: Tensor<4, Int>) -> Tensor<4, Int> {
        let words = self.words(codes.dims()[axis::DIM]);
        let shifted = |k: usize| {
            let part = codes.clone().slice_dim(axis::DIM, k * words..(k + 1) * words);
            part.bitwise_left_shift_scalar((k * self.bits) as i32)
        };
        (1..32 / self.bits).fold(shifted(0), |word, k| word.bitwise_or(shifted(k)))
    }

    /// The codes of [packed](Self::pack) words.
    pub(crate) fn unpack(&self, words: Tensor<4, Int>) -> Tensor<4, Int> {
        let ([batch, heads, cells, count], codes) = (words.dims(), 32 / self.bits);
        let shifts = Tensor::arange_step(0..32, self.bits, (&words.device(), DType::I32));
        let shifted = words.unsqueeze_dim::<5>(3).bitwise_right_shift(shifts.reshape([1, 1, 1, codes, 1]));
        // The mask also drops the copies of the sign that the shift of a negative word brings in.
        shifted.bitwise_and_scalar(self.top()).reshape([batch, heads, cells, codes * count])
    }
}
