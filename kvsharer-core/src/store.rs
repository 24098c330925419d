//! The buffers of a plan: allocated once, written in place, read without a copy.

use crate::kernels::{pick_rows, place, put};
use crate::{Kv, Lengths, Plan, QuantisedBuffer, RopeTable, SlotId, Storage, axis};
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor};
use std::ops::Range;

/// Keys and values of a plan, one buffer `[batch, kv_head, capacity, head_dim]` a slot.
#[derive(Debug)]
pub struct Store {
    slots: Vec<SlotBuffer>,
}

#[derive(Debug)]
struct SlotBuffer {
    cells: Cells,
    /// Old cells and the new tokens, while they do not fit the buffer or the prompt is not complete.
    in_flight: Option<Tensor<4>>,
    /// Unturned keys of the sinks, `[batch, kv_head, sink, head_dim]`, under cache-slot positions.
    originals: Option<Tensor<4>>,
}

#[derive(Debug)]
enum Cells {
    /// Taken out while it is written, so that the write finds the only handle and happens in place.
    Full(Option<Tensor<4>>),
    Quantised(QuantisedBuffer),
}

/// Which cells stay when a slot is compacted.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    /// The same cells in every row and head, in this order.
    Cells(Vec<usize>),
    /// `[batch, kv_head, kept]`.
    PerHead(Tensor<3, Int>),
}

impl Store {
    /// Allocates everything `plan` needs for `batch` sequences of these lengths: [`Plan::bytes`] bytes.
    pub fn allocate(plan: &Plan, batch: usize, lengths: impl Into<Lengths>, dtype: DType, device: &Device) -> Self {
        Self::place(plan, batch, lengths.into(), dtype, &vec![device.clone(); plan.groups().len()])
    }

    /// [`allocate`](Self::allocate) on several devices, given one a group.
    pub(crate) fn place(plan: &Plan, batch: usize, lengths: Lengths, dtype: DType, devices: &[Device]) -> Self {
        let slots = plan.slots().iter().map(|slot| {
            let device = &devices[slot.group.0];
            let group = plan.group(slot.group);
            let shape = |cells| [batch, slot.shape.kv_heads, cells, slot.shape.head_dim];
            let zeros = |cells| Tensor::zeros(shape(cells), (device, dtype));
            let (capacity, sinks) = (group.capacity(lengths), group.original_sinks(lengths));
            SlotBuffer {
                cells: match group.storage {
                    Storage::Full => Cells::Full(Some(zeros(capacity))),
                    Storage::Quantised(codec) => {
                        Cells::Quantised(QuantisedBuffer::allocate(slot.kind, codec, shape(capacity), dtype, device))
                    }
                },
                in_flight: None,
                originals: (slot.kind == Kv::Key && sinks > 0).then(|| zeros(sinks)),
            }
        });
        Self { slots: slots.collect() }
    }

    /// Bytes of all buffers, counted from the tensors themselves; tokens in flight are counted while they fly.
    pub fn bytes(&self) -> usize {
        let tensors = |slot: &SlotBuffer| {
            let cells = match &slot.cells {
                Cells::Full(buffer) => buffer.as_ref().map_or(0, tensor_bytes),
                Cells::Quantised(buffer) => buffer.bytes(),
            };
            cells + [&slot.in_flight, &slot.originals].into_iter().flatten().map(tensor_bytes).sum::<usize>()
        };
        self.slots.iter().map(tensors).sum()
    }

    /// The first `len` cells of a slot, or all cells in flight; of a quantised slot, a copy.
    ///
    /// # Shapes
    /// Result: `[batch, kv_head, len, head_dim]`.
    pub fn view(&self, slot: SlotId, len: usize) -> Tensor<4> {
        let slot = &self.slots[slot.0];
        match (&slot.in_flight, &slot.cells) {
            (Some(in_flight), _) => in_flight.clone(),
            (None, Cells::Full(_)) => slot.stored().clone().slice_dim(axis::CELL, 0..len),
            (None, Cells::Quantised(buffer)) => buffer.view(),
        }
    }

    /// All cells of a slot that is not quantised, in use or not.
    ///
    /// # Shapes
    /// Result: `[batch, kv_head, capacity, head_dim]`.
    pub(crate) fn whole(&self, slot: SlotId) -> Tensor<4> {
        self.slots[slot.0].stored().clone()
    }

    /// Writes the tokens of `values` into the cells from the one that the device knows, `first` `[1]`, of a slot that is
    /// not quantised.
    pub(crate) fn put(&mut self, slot: SlotId, first: &Tensor<1, Int>, values: Tensor<4>) {
        if let Cells::Full(buffer) = &mut self.slots[slot.0].cells {
            *buffer = buffer.take().map(|buffer| put(buffer, values, first));
        }
    }

    /// Turns a query and a key by the one row of `rope`, and writes the key and a value into the cell that the device
    /// knows, of two slots that are not quantised, in one piece of work; the turned query, or `None` where there is no such
    /// kernel and nothing has changed.
    pub(crate) fn place_turned(
        &mut self,
        rope: &RopeTable,
        fresh: [&Tensor<4>; 3],
        (key, value): (SlotId, SlotId),
        cell: &Tensor<1, Int>,
    ) -> Option<Tensor<4>> {
        let mut take = |slot: SlotId| match &mut self.slots[slot.0].cells {
            Cells::Full(buffer) => buffer.take(),
            Cells::Quantised(_) => None,
        };
        let (keys, values) = (take(key)?, take(value)?);
        let (query, keys, values) = place(rope.rows(), fresh, [keys, values], cell);
        for (slot, buffer) in [(key, keys), (value, values)] {
            self.slots[slot.0].cells = Cells::Full(Some(buffer));
        }
        query
    }

    /// A store whose row `i` is a copy of row `rows[i]`, with room for so many cells in each slot that is not quantised.
    pub(crate) fn branch(&self, rows: &Tensor<1, Int>, capacities: impl Iterator<Item = usize>) -> Self {
        let pick = |tensor: &Tensor<4>, cells| pick_rows(tensor, &rows.clone().to_device(&tensor.device()), cells);
        let all = |tensor: &Tensor<4>| pick(tensor, tensor.dims()[axis::CELL]);
        let slots = self.slots.iter().zip(capacities).map(|(slot, capacity)| SlotBuffer {
            cells: match &slot.cells {
                Cells::Full(buffer) => Cells::Full(buffer.as_ref().map(|buffer| pick(buffer, capacity))),
                Cells::Quantised(buffer) => Cells::Quantised(buffer.branch(rows)),
            },
            in_flight: slot.in_flight.as_ref().map(all),
            originals: slot.originals.as_ref().map(all),
        });
        Self { slots: slots.collect() }
    }

    /// Cells of a slot that stand quantised: the first ones.
    pub(crate) fn quantised(&self, slot: SlotId) -> usize {
        match &self.slots[slot.0].cells {
            Cells::Full(_) => 0,
            Cells::Quantised(buffer) => buffer.quantised(),
        }
    }

    /// Writes the tokens of `values` into `cells`, one cell a token, in place; into a quantised slot, behind the last.
    pub(crate) fn write(&mut self, slot: SlotId, cells: &[usize], values: Tensor<4>) {
        let slot = &mut self.slots[slot.0];
        if let Cells::Quantised(buffer) = &mut slot.cells {
            return buffer.append(values);
        }
        let mut written = 0;
        for run in runs(cells) {
            let tokens = written..written + run.len();
            written = tokens.end;
            let part =
                if tokens.len() == cells.len() { values.clone() } else { values.clone().slice_dim(axis::CELL, tokens) };
            slot.assign(run, part);
        }
    }

    /// Writes the tokens of `values` into cells of their own in each row and head, in place.
    ///
    /// # Shapes
    /// `cells` `[batch, kv_head, token]`, `values` `[batch, kv_head, token, head_dim]`.
    pub(crate) fn scatter(&mut self, slot: SlotId, cells: Tensor<3, Int>, values: Tensor<4>) {
        if let Cells::Full(buffer) = &mut self.slots[slot.0].cells {
            let index = cells.unsqueeze_dim::<4>(3).expand(values.dims());
            *buffer = buffer.take().map(|b| b.scatter(axis::CELL, index, values, IndexingUpdateOp::Assign));
        }
    }

    /// Holds the first `len` stored cells (or what is in flight already) and `values` behind them in full, until they
    /// [land](Self::land).
    pub(crate) fn fly(&mut self, slot: SlotId, len: usize, values: Tensor<4>) {
        let all = match len {
            0 => values,
            _ => Tensor::cat(vec![self.view(slot, len), values], axis::CELL),
        };
        self.slots[slot.0].in_flight = Some(all);
    }

    /// Compacts a slot of `len` cells (or what is in flight) to the kept ones, in their order, at the front of the
    /// buffer; what is in flight goes on flying until it [lands](Self::land).
    pub(crate) fn keep(&mut self, slot: SlotId, len: usize, kept: &Kept) {
        let all = self.view(slot, len);
        let flying = self.slots[slot.0].in_flight.take().is_some();
        let [batch, heads, _, dim] = all.dims();
        let front = match kept {
            Kept::Cells(cells) if cells.is_empty() => return self.slots[slot.0].forget(),
            Kept::Cells(cells) => {
                let parts = runs(cells).map(|run| all.clone().slice_dim(axis::CELL, run)).collect();
                Tensor::cat(parts, axis::CELL)
            }
            Kept::PerHead(cells) => {
                let count = cells.dims()[2];
                let index = cells.clone().unsqueeze_dim::<4>(3).expand([batch, heads, count, dim]);
                all.clone().gather(axis::CELL, index)
            }
        };
        // The last handle but the buffer's own: with it gone, the write below happens in place.
        drop(all);
        let slot = &mut self.slots[slot.0];
        if flying {
            slot.in_flight = Some(front);
        } else {
            slot.replace(front);
        }
    }

    /// Writes what is in flight into the buffer, which must have room for it.
    pub(crate) fn land(&mut self, slot: SlotId) {
        let slot = &mut self.slots[slot.0];
        if let Some(tokens) = slot.in_flight.take() {
            slot.replace(tokens);
        }
    }

    /// Saves the keys in `cells` as the sinks' originals, before they are turned for the first time.
    pub(crate) fn save_sinks(&mut self, slot: SlotId, cells: &[usize]) {
        let all = self.view(slot, cells.iter().max().map_or(0, |last| last + 1));
        let parts = runs(cells).map(|run| all.clone().slice_dim(axis::CELL, run)).collect();
        self.slots[slot.0].originals = Some(Tensor::cat(parts, axis::CELL));
    }

    /// Forgets all tokens.
    pub(crate) fn clear(&mut self) {
        for slot in &mut self.slots {
            slot.in_flight = None;
            slot.forget();
        }
    }

    /// The sinks' original keys of a slot.
    pub(crate) fn sinks(&self, slot: SlotId) -> Option<&Tensor<4>> {
        self.slots[slot.0].originals.as_ref()
    }
}

impl SlotBuffer {
    fn stored(&self) -> &Tensor<4> {
        match &self.cells {
            Cells::Full(buffer) => buffer.as_ref().expect("a buffer is away only while it is written"),
            Cells::Quantised(_) => unreachable!("quantised cells are read through `QuantisedBuffer::view`"),
        }
    }

    fn forget(&mut self) {
        if let Cells::Quantised(buffer) = &mut self.cells {
            buffer.clear();
        }
    }

    /// Makes `values` the first cells.
    fn replace(&mut self, values: Tensor<4>) {
        match &mut self.cells {
            Cells::Full(_) => self.assign(0..values.dims()[axis::CELL], values),
            // What stood there keeps its codes where it stays in place.
            Cells::Quantised(buffer) => buffer.replace(values, true),
        }
    }

    fn assign(&mut self, cells: Range<usize>, values: Tensor<4>) {
        if let Cells::Full(buffer) = &mut self.cells {
            *buffer = buffer.take().map(|buffer| {
                let [batch, heads, _, dim] = buffer.dims();
                buffer.slice_assign([0..batch, 0..heads, cells, 0..dim], values)
            });
        }
    }
}

fn tensor_bytes(tensor: &Tensor<4>) -> usize {
    tensor.dims().iter().product::<usize>() * tensor.dtype().size()
}

/// Splits a list of cells into its contiguous runs.
fn runs(cells: &[usize]) -> impl Iterator<Item = Range<usize>> + '_ {
    cells.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..run[0] + run.len())
}
