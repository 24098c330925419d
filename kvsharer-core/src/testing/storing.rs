//! The store: what is written is read, wherever cells lie. Copies are exact in any dtype.

use super::attention::{stored, values};
use super::{Case, Measured, Subject, Tolerance, Unmeasured, host, worst};
use crate::store::Kept;
use crate::{KvShape, ModelShape, Plan, SlotId, Stack, Store};
use burn::tensor::{Int, Tensor, TensorData};

const EXACT: Tolerance = Tolerance::always(0.0);
const BATCH: usize = 2;
const HEADS: usize = 3;
const DIM: usize = 24;
const CELLS: usize = 13;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("store: tokens appended in chunks and written to freed cells are read back", EXACT, appended),
        Case::new("store: tokens written to cells of their own in every head are read back", EXACT, scattered),
        Case::new("store: the kept cells move to the front, the same or others in every head", EXACT, compacted),
    ]
}

/// A slot on the device, and the same `[place][cell]` of rows on the host.
struct Slot {
    store: Store,
    host: Vec<Vec<Vec<f64>>>,
}

const SLOT: SlotId = SlotId(0);

impl Slot {
    fn new(subject: &Subject) -> Result<Self, Unmeasured> {
        let model = ModelShape::uniform(1, KvShape::new(HEADS, DIM));
        let plan = Plan::new(&model, &Stack::new())?;
        let store = Store::allocate(&plan, BATCH, CELLS, subject.dtype, &subject.device);
        Ok(Self { store, host: vec![vec![vec![0.0; DIM]; CELLS]; BATCH * HEADS] })
    }

    /// Writes tokens into `cells`.
    fn write(&mut self, subject: &Subject, cells: &[usize], seed: usize) -> Result<(), Unmeasured> {
        let (tensor, host) = tokens(subject, cells.len(), seed)?;
        self.store.write(SLOT, cells, tensor);
        for (place, tokens) in self.host.iter_mut().zip(host.chunks(cells.len() * DIM)) {
            cells.iter().zip(tokens.chunks(DIM)).for_each(|(&cell, token)| place[cell] = token.to_vec());
        }
        Ok(())
    }

    fn error(&self, len: usize) -> Result<f64, Unmeasured> {
        let expected: Vec<f64> = self.host.iter().flat_map(|place| place[..len].concat()).collect();
        Ok(worst(&host(self.store.view(SLOT, len))?, &expected))
    }
}

fn tokens(subject: &Subject, count: usize, seed: usize) -> Result<(Tensor<4>, Vec<f64>), Unmeasured> {
    stored(subject, values(BATCH * HEADS * count * DIM, seed), [BATCH, HEADS, count, DIM])
}

fn appended(subject: &Subject) -> Result<Measured, Unmeasured> {
    let mut slot = Slot::new(subject)?;
    let mut all = Vec::new();
    for (seed, cells) in
        [&[0, 1, 2, 3, 4][..], &[5], &[6, 7, 8], &[9, 10, 11, 12], &[3, 4, 9, 1]].into_iter().enumerate()
    {
        slot.write(subject, cells, seed)?;
        let len = slot.host[0].len().min(if seed < 3 { cells[cells.len() - 1] + 1 } else { CELLS });
        all.push(Measured { worst: slot.error(len)?, note: format!("worst after writing to {cells:?}") });
    }
    Ok(Measured::worst_of(all))
}

/// Cells `[place][token]`, other ones in every row and head.
fn own_cells(subject: &Subject, count: usize) -> (Tensor<3, Int>, Vec<Vec<usize>>) {
    let cells: Vec<Vec<usize>> =
        (0..BATCH * HEADS).map(|place| (0..count).map(|token| (place * 2 + token * 5) % CELLS).collect()).collect();
    let ids: Vec<i64> = cells.iter().flatten().map(|&cell| cell as i64).collect();
    (Tensor::from_data(TensorData::new(ids, [BATCH, HEADS, count]), &subject.device), cells)
}

fn scattered(subject: &Subject) -> Result<Measured, Unmeasured> {
    let mut slot = Slot::new(subject)?;
    slot.write(subject, &(0..CELLS).collect::<Vec<_>>(), 1)?;
    let (index, cells) = own_cells(subject, 1);
    let (tensor, host) = tokens(subject, 1, 2)?;
    slot.store.scatter(SLOT, index, tensor);
    for ((place, cells), token) in slot.host.iter_mut().zip(&cells).zip(host.chunks(DIM)) {
        place[cells[0]] = token.to_vec();
    }
    Ok(Measured::new(slot.error(CELLS)?))
}

fn compacted(subject: &Subject) -> Result<Measured, Unmeasured> {
    let mut slot = Slot::new(subject)?;
    slot.write(subject, &(0..CELLS).collect::<Vec<_>>(), 1)?;
    let kept = [0, 1, 5, 6, 7, 12];
    slot.store.keep(SLOT, CELLS, &Kept::Cells(kept.to_vec()));
    slot.host.iter_mut().for_each(|place| *place = kept.iter().map(|&cell| place[cell].clone()).collect());
    let same = Measured { worst: slot.error(kept.len())?, note: "the same cells".into() };
    let mut slot = Slot::new(subject)?;
    slot.write(subject, &(0..CELLS).collect::<Vec<_>>(), 3)?;
    let (index, cells) = own_cells(subject, 4);
    slot.store.keep(SLOT, CELLS, &Kept::PerHead(index));
    for (place, cells) in slot.host.iter_mut().zip(&cells) {
        *place = cells.iter().map(|&cell| place[cell].clone()).collect();
    }
    let own = Measured { worst: slot.error(4)?, note: "other cells in every head".into() };
    Ok(Measured::worst_of([same, own]))
}
