//! What a cache notes about the tokens of a group.

use crate::attend::Fresh;
use crate::policy::Tokens;
use crate::{GroupId, Kv, SlotId};
use burn::tensor::{Device, Int, Tensor};

/// Positions of the tokens a group keeps.
#[derive(Clone, Debug)]
pub enum KeptTokens {
    /// The same in every row and head, oldest first.
    Uniform(Vec<usize>),
    /// `[batch, kv_head, cell]`, in no order, with [`EMPTY`](crate::EMPTY) and [`PADDING`](crate::PADDING) where a
    /// cell holds no token.
    PerHead(Tensor<3, Int>),
}

impl Default for KeptTokens {
    fn default() -> Self {
        Self::Uniform(Vec::new())
    }
}

/// Where the tokens of the running forward pass go.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Into these cells, the same in every row and head.
    Cells(Fresh),
    /// Into cells that evictions freed, `[batch, kv_head, token]`; a single token.
    PerHead(Tensor<3, Int>),
    /// Behind everything else, in flight.
    InFlight,
}

/// Cells of a group and the tokens in them.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupCells {
    /// Cells in use, empty ones included, without those of the running forward pass.
    pub(super) cells: usize,
    /// The same with those of the running forward pass.
    pub(super) width: usize,
    pub(super) kept: KeptTokens,
    /// Cells in order of age, the oldest first, as long as all rows and heads keep the same tokens.
    pub(super) by_age: Vec<usize>,
    /// Empty cells of each row and head.
    pub(super) empty: usize,
    /// The empty cells, if they are to be filled: `[batch, kv_head, empty]`.
    pub(super) freed: Option<Tensor<3, Int>>,
    pub(super) place: Option<Place>,
    pub(super) in_flight: bool,
    /// Tokens that spans evicted behind the sinks: the positions by which the sinks have to be turned.
    pub(super) gap: usize,
    /// By how many the stored sinks are turned.
    pub(super) turned: usize,
    /// By how many positions each cell's key is turned when it is read, `[batch, kv_head, cell]`.
    pub(super) turn: Option<Tensor<3, Int>>,
}

impl GroupCells {
    /// Tokens of each row and head, padding included.
    pub(super) fn len(&self) -> usize {
        self.cells - self.empty
    }

    /// As policies see them, in `shape` rows and heads.
    pub(super) fn tokens<'a>(&'a self, shape: [usize; 2], device: &'a Device) -> Tokens<'a> {
        Tokens { kept: &self.kept, by_age: &self.by_age, shape, device }
    }

    pub(super) fn is_uniform(&self) -> bool {
        matches!(self.kept, KeptTokens::Uniform(_))
    }
}

impl super::Cache<'_> {
    /// The tokens of a group as policies see them.
    pub(super) fn tokens(&self, id: GroupId) -> Tokens<'_> {
        let shape = [self.options.batch, self.plan.group(id).kv_heads];
        self.groups[id.0].tokens(shape, &self.device)
    }

    pub(super) fn key_slots(&self, id: GroupId) -> Vec<SlotId> {
        let slots = self.plan.group(id).slots.iter().copied();
        slots.filter(|&slot| self.plan.slot(slot).kind == Kv::Key).collect()
    }
}
