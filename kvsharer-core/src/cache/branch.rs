//! Going on from one prefix in several ways: a cache whose rows are copies of rows of another.

use super::group::{GroupCells, KeptTokens};
use super::{Cache, CacheOptions};
use crate::attend::MaskCache;
use crate::{CacheError, Group, LayerId, Storage};
use burn::tensor::{Int, Tensor, TensorData};
use std::collections::HashMap;

impl Cache<'_> {
    /// A cache whose row `i` goes on from row `rows[i]` of this one, with buffers, policies and scores of its own; this
    /// one stays as it is. A prefix that several texts have in common is run once this way.
    ///
    /// # Memory
    /// [`Plan::bytes`](crate::Plan::bytes) of `rows.len()` sequences: nothing is shared between the two.
    ///
    /// # Errors
    /// [`CacheError::OutOfTurn`] in the middle of a forward pass, [`CacheError::NoRow`] for a row that is not there,
    /// [`CacheError::CannotBranch`] if a policy cannot be copied
    /// ([`LayerKvPolicy::branch`](crate::LayerKvPolicy::branch)).
    pub fn branch(&self, rows: &[usize]) -> Result<Cache<'static>, CacheError> {
        self.branch_for(rows, self.options.tokens)
    }

    /// [`branch`](Self::branch) for sequences of at most `tokens` tokens, so that a trunk needs no room for what follows
    /// it. Buffers whose size has nothing to do with the length of the text, and quantised ones, keep theirs.
    ///
    /// # Errors
    /// As `branch`.
    pub fn branch_for(&self, rows: &[usize], tokens: usize) -> Result<Cache<'static>, CacheError> {
        if self.next != self.model.len() && !self.positions.is_empty() {
            return Err(CacheError::OutOfTurn { layer: LayerId(self.next) });
        }
        let batch = self.options.batch;
        if rows.is_empty() || rows.iter().any(|&row| row >= batch) {
            return Err(CacheError::NoRow { rows: rows.to_vec(), batch });
        }
        let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let index = Tensor::from_data(TensorData::new(index, [rows.len()]), &self.device);
        let padding = rows.iter().filter_map(|&row| self.padding.get(row).copied()).collect();
        let options = CacheOptions { batch: rows.len(), tokens, ..self.options.clone() };
        let sized = |(id, group): (usize, &Group)| match group.storage {
            Storage::Full => group.capacity(options.lengths()).max(self.groups[id].cells),
            Storage::Quantised(_) => self.capacities[id],
        };
        let capacities: Vec<usize> = self.plan.groups().iter().enumerate().map(sized).collect();
        let by_slot = self.plan.slots().iter().map(|slot| capacities[slot.group.0]);
        Ok(Cache {
            model: self.model.clone(),
            plan: self.plan.clone(),
            stack: self.stack.branch(&index)?,
            store: self.store.branch(&index, by_slot),
            options,
            device: self.device.clone(),
            homes: self.homes.clone(),
            groups: self.groups.iter().map(|group| group.branch(&index)).collect(),
            capacities,
            bounded: self.bounded,
            masks: MaskCache::default(),
            padded: HashMap::new(),
            turns: self.turns.clone(),
            padding,
            prompt: self.prompt,
            positions: self.positions.clone(),
            next: self.next,
        })
    }
}

impl GroupCells {
    fn branch(&self, rows: &Tensor<1, Int>) -> Self {
        let pick = |cells: &Tensor<3, Int>| cells.clone().select(0, rows.clone().to_device(&cells.device()));
        Self {
            kept: match &self.kept {
                KeptTokens::Uniform(kept) => KeptTokens::Uniform(kept.clone()),
                KeptTokens::PerHead(positions) => KeptTokens::PerHead(pick(positions)),
            },
            by_age: self.by_age.clone(),
            freed: self.freed.as_ref().map(pick),
            turn: self.turn.as_ref().map(pick),
            place: None,
            ..*self
        }
    }
}
