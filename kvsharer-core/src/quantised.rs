//! KIVI (arXiv 2402.02750): a slot whose older tokens are held in 4 or 8 bits, keys by channel and values by token.

use crate::{Kv, Quantisation, axis};
use burn::tensor::kind::Basic;
use burn::tensor::{DType, Device, Float, FloatDType, Int, IntDType, Tensor};
use std::ops::Range;

/// The keys or the values of one slot: a quantised prefix of whole blocks, and the newest tokens in full.
///
/// All buffers are allocated once. A code `c` stands for `low + c * step`; both are rounded to the dtype of the cache
/// before the codes are computed, in f32.
#[derive(Debug)]
pub struct QuantisedBuffer {
    kind: Kv,
    codec: Quantisation,
    dtype: DType,
    capacity: usize,
    /// `[batch, kv_head, cell, word]`.
    codes: Fixed<Int>,
    /// `[batch, kv_head, block, head_dim]` of keys, `[batch, kv_head, cell, head_dim / group]` of values.
    low: Fixed<Float>,
    /// Like `low`.
    step: Fixed<Float>,
    /// `[batch, kv_head, cell, head_dim]`: the cells behind the quantised ones.
    residual: Fixed<Float>,
    len: usize,
}

impl QuantisedBuffer {
    /// Allocates an empty buffer of `shape` `[batch, kv_head, capacity, head_dim]`.
    ///
    /// # Panics
    /// If `codec` does not [fit](Quantisation::fits) `head_dim`.
    pub fn allocate(kind: Kv, codec: Quantisation, shape: [usize; 4], dtype: DType, device: &Device) -> Self {
        let [batch, heads, capacity, dim] = shape;
        assert!(codec.fits(dim), "{codec:?} cannot store heads of {dim} channels");
        let cells = codec.quantised_cells(capacity);
        let [rows, columns] = codec.ranges(kind, cells, dim);
        Self {
            kind,
            codec,
            dtype,
            capacity,
            codes: Fixed::allocate([batch, heads, cells, codec.words(dim)], DType::I32, device),
            low: Fixed::allocate([batch, heads, rows, columns], dtype, device),
            step: Fixed::allocate([batch, heads, rows, columns], dtype, device),
            residual: Fixed::allocate([batch, heads, codec.residual_cells(capacity), dim], dtype, device),
            len: 0,
        }
    }

    /// Bytes of all buffers, counted from the tensors themselves.
    pub fn bytes(&self) -> usize {
        self.codes.bytes() + self.low.bytes() + self.step.bytes() + self.residual.bytes()
    }

    /// Cells in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no cell is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// A buffer whose row `i` is a copy of row `rows[i]`.
    pub(crate) fn branch(&self, rows: &Tensor<1, Int>) -> Self {
        Self {
            codes: self.codes.branch(rows),
            low: self.low.branch(rows),
            step: self.step.branch(rows),
            residual: self.residual.branch(rows),
            ..*self
        }
    }

    /// Cells that stand quantised, the first ones.
    pub fn quantised(&self) -> usize {
        self.codec.quantised_cells(self.len)
    }

    /// All cells in use, dequantised: a copy that lives as long as its reader.
    ///
    /// # Shapes
    /// Result: `[batch, kv_head, len, head_dim]`.
    pub fn view(&self) -> Tensor<4> {
        let cells = 0..self.quantised();
        let residual = self.residual.view(0..self.len - cells.end);
        if cells.is_empty() {
            return residual;
        }
        let codes = self.codec.unpack(self.codes.view(cells.clone())).cast(FloatDType::F32);
        let shape = codes.dims();
        let (low, step) = self.ranges(cells);
        let quantised = (self.grouped(codes) * step + low).reshape(shape).cast(self.dtype);
        Tensor::cat(vec![quantised, residual], axis::CELL)
    }

    /// Writes the tokens of `values` behind the last cell; the oldest in full are quantised once they make a block.
    ///
    /// # Shapes
    /// `values`: `[batch, kv_head, token, head_dim]`.
    ///
    /// # Panics
    /// If the tokens do not fit.
    pub fn append(&mut self, values: Tensor<4>) {
        let (quantised, len) = (self.quantised(), self.len + values.dims()[axis::CELL]);
        let in_full = self.len - quantised;
        if self.codec.quantised_cells(len) == quantised {
            self.check(len);
            self.residual.assign(in_full, values);
            self.len = len;
        } else {
            let behind = Tensor::cat(vec![self.residual.view(0..in_full), values], axis::CELL);
            self.fill(quantised, behind);
        }
    }

    /// Makes `values` the whole content, as if they were appended to an empty buffer.
    ///
    /// With `keep_ranges`, a block of keys that stands already keeps its range, or a wider one if the new contents need
    /// it: as long as it need not widen, keys that stay in their block keep their codes, however often others are
    /// replaced. Values need no such help: the ranges of decoded tokens are those they were encoded with. (In half
    /// precision the last place of a range's end may move once, then no more.)
    ///
    /// # Shapes
    /// `values`: `[batch, kv_head, token, head_dim]`.
    ///
    /// # Panics
    /// If the tokens do not fit.
    pub fn replace(&mut self, values: Tensor<4>, keep_ranges: bool) {
        let len = values.dims()[axis::CELL];
        self.check(len);
        let standing = match self.kind {
            Kv::Key if keep_ranges => self.quantised().min(self.codec.quantised_cells(len)),
            _ => 0,
        };
        if standing > 0 {
            self.quantise(0..standing, values.clone().slice_dim(axis::CELL, 0..standing), true);
        }
        self.fill(standing, values.slice_dim(axis::CELL, standing..len));
    }

    fn check(&self, len: usize) {
        assert!(len <= self.capacity, "{len} tokens do not fit {} cells", self.capacity);
    }

    /// Makes `behind` all that stands behind the first `quantised` cells.
    fn fill(&mut self, quantised: usize, behind: Tensor<4>) {
        let tokens = behind.dims()[axis::CELL];
        self.len = quantised + tokens;
        self.check(self.len);
        let fresh = self.quantised() - quantised;
        if fresh > 0 {
            let blocks = behind.clone().slice_dim(axis::CELL, 0..fresh);
            self.quantise(quantised..quantised + fresh, blocks, false);
        }
        self.residual.assign(0, behind.slice_dim(axis::CELL, fresh..tokens));
    }

    /// Writes `values` to `cells`, whole blocks.
    fn quantise(&mut self, cells: Range<usize>, values: Tensor<4>, keep_ranges: bool) {
        let (shape, axis, top) = (values.dims(), self.range_axis(), f64::from(self.codec.top()));
        let groups = self.grouped(values.cast(DType::F32));
        let (mut low, mut high) = (groups.clone().min_dim(axis), groups.clone().max_dim(axis));
        let mut kept = None;
        if keep_ranges {
            let (first, step) = self.ranges(cells.clone());
            let last = step.clone() * top + first.clone();
            // Half a step outside, the first or last code is still the nearest: a range does not widen for the
            // rounding of its own decoded ends.
            let slack = step.clone() * 0.5;
            let inside = (first.clone() - slack.clone()).lower_equal(low.clone())
                & (last.clone() + slack).greater_equal(high.clone());
            (low, high) = (low.min_pair(first.clone()), high.max_pair(last));
            kept = Some((inside, first, step));
        }
        let step = (high - low.clone()) / top;
        // Veltkamp's splitting leaves 16 bits of the step, so that code * step is exact in f32: its rounding would move
        // the range found again in decoded tokens, a little every time.
        let split = step.clone() * 257.0;
        let step = split.clone() - (split - step);
        let mut step = step.cast(self.dtype).cast(DType::F32);
        if let Some((inside, old_low, old_step)) = kept {
            low = low.mask_where(inside.clone(), old_low);
            step = step.mask_where(inside, old_step);
        }
        // In a constant group every code is 0, whatever it is divided by.
        let divisor = step.clone().mask_fill(step.clone().equal_scalar(0.0), 1.0);
        let codes = ((groups - low.clone()) / divisor).round().clamp(0.0, top).reshape(shape);
        self.codes.assign(cells.start, self.codec.pack(codes.cast(IntDType::I32)));
        let start = self.range_cells(&cells).start;
        self.low.assign(start, low.squeeze_dim(axis).cast(self.dtype));
        self.step.assign(start, step.squeeze_dim(axis).cast(self.dtype));
    }

    /// Lowest value and step of `cells`, whole blocks, in f32 and shaped for [grouped](Self::grouped) values.
    fn ranges(&self, cells: Range<usize>) -> (Tensor<5>, Tensor<5>) {
        let cells = self.range_cells(&cells);
        let read = |range: &Fixed<Float>| range.view(cells.clone()).cast(DType::F32).unsqueeze_dim(self.range_axis());
        (read(&self.low), read(&self.step))
    }

    /// Splits an axis, so that what lies along [`range_axis`](Self::range_axis) shares one range.
    fn grouped(&self, values: Tensor<4>) -> Tensor<5> {
        let ([batch, heads, cells, dim], group) = (values.dims(), self.codec.group());
        let channels = self.codec.channels(dim);
        values.reshape(match self.kind {
            Kv::Key => [batch, heads, cells / group, group, dim],
            Kv::Value => [batch, heads, cells, dim / channels, channels],
        })
    }

    fn range_axis(&self) -> usize {
        match self.kind {
            Kv::Key => 3,
            Kv::Value => 4,
        }
    }

    /// Where the ranges of `cells` stand.
    fn range_cells(&self, cells: &Range<usize>) -> Range<usize> {
        match self.kind {
            Kv::Key => cells.start / self.codec.group()..cells.end / self.codec.group(),
            Kv::Value => cells.clone(),
        }
    }
}

/// A buffer of a fixed number of cells, taken out while it is written, so that the write finds the only handle and
/// happens in place.
#[derive(Debug)]
struct Fixed<K: Basic>(Option<Tensor<4, K>>);

impl<K: Basic> Fixed<K> {
    /// Cells are written before they are read.
    fn allocate(shape: [usize; 4], dtype: DType, device: &Device) -> Self {
        Self(Some(Tensor::empty(shape, (device, dtype))))
    }

    fn get(&self) -> &Tensor<4, K> {
        self.0.as_ref().expect("a buffer is away only inside `assign`")
    }

    fn bytes(&self) -> usize {
        self.get().dims().iter().product::<usize>() * self.get().dtype().size()
    }

    fn view(&self, cells: Range<usize>) -> Tensor<4, K> {
        self.get().clone().slice_dim(axis::CELL, cells)
    }

    fn branch(&self, rows: &Tensor<1, Int>) -> Self {
        Self(Some(self.get().clone().select(axis::BATCH, rows.clone().to_device(&self.get().device()))))
    }

    fn assign(&mut self, start: usize, values: Tensor<4, K>) {
        let buffer = self.0.take().expect("a buffer is away only inside `assign`");
        let [batch, heads, cells, dim] = values.dims();
        self.0 = Some(buffer.slice_assign([0..batch, 0..heads, start..start + cells, 0..dim], values));
    }
}
