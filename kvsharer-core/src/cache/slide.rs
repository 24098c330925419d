//! Sliding windows of a model: tokens that no later query sees leave, before any policy is asked.

use super::Cache;
use super::group::KeptTokens;
use crate::{CacheError, EMPTY, Eviction, GroupId};

/// In place of an evictor's index in the stack: the window itself.
const WINDOW: usize = usize::MAX;

impl Cache<'_> {
    /// Drops what a query at `position` and all later ones cannot see; returns the cells that are empty now, as far as
    /// they are the same in every row and head.
    ///
    /// Where a policy keeps other tokens in each row and head, only as many leave as the group has cells too few; the
    /// others are hidden when they are read ([`Cache::hidden`]), until they leave or the policy drops them.
    pub(super) fn slide(&mut self, id: GroupId, position: usize) -> Result<Vec<usize>, CacheError> {
        let Some(window) = self.plan.group(id).window else {
            return Ok(Vec::new());
        };
        let cells = &self.groups[id.0];
        if let KeptTokens::Uniform(kept) = &cells.kept {
            let gone = kept.partition_point(|&kept| kept + window <= position);
            return self.drop_span(id, 0, gone, WINDOW);
        }
        match cells.len().saturating_sub(window - 1) {
            0 => {}
            1 => {
                // On the device: it happens at every step of a padded batch.
                let positions = self.tokens(id).positions(cells.cells);
                let empty = positions.clone().equal_elem(EMPTY);
                let oldest = positions.mask_fill(empty, i32::MAX).argmin(2);
                self.carry_out(id, WINDOW, Eviction::Drop(oldest))?;
            }
            excess => self.carry_out(id, WINDOW, Eviction::Span { start: 0, end: excess })?,
        }
        Ok(Vec::new())
    }
}
