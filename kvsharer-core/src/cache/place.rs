//! Before a forward pass: evictors make room, and cells are set aside for the new tokens.

use super::Cache;
use super::group::{KeptTokens, Place};
use crate::attend::Fresh;
use crate::{CacheError, Eviction, GroupId, Storage};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use std::ops::Range;

impl Cache<'_> {
    /// Lets the evictors of a group answer, then sets cells aside for the tokens at `pass`: freed cells first, so that
    /// a full cache moves no data.
    pub(super) fn make_room(&mut self, id: GroupId, pass: &Range<usize>) -> Result<(), CacheError> {
        let tokens = pass.len();
        let mut freed = self.slide(id, pass.start)?;
        for evictor in self.plan.group(id).evictors.clone() {
            match self.ask(id, evictor, pass, tokens) {
                Eviction::Span { start, end } if self.groups[id.0].is_uniform() => {
                    freed.extend(self.drop_span(id, start, end, evictor)?);
                }
                other => self.carry_out(id, evictor, other)?,
            }
        }
        self.turn_sinks(id)?;
        let place = match self.plan.group(id).storage {
            Storage::Full => self.place(id, pass, freed)?,
            Storage::Quantised(_) => self.place_quantised(id, pass)?,
        };
        let cells = &mut self.groups[id.0];
        cells.in_flight = matches!(place, Place::InFlight);
        cells.width = match &place {
            Place::InFlight => cells.cells + tokens,
            Place::PerHead(_) => cells.cells,
            Place::Cells(fresh) => fresh.cells().iter().fold(cells.cells, |width, &cell| width.max(cell + 1)),
        };
        cells.place = Some(place);
        Ok(())
    }

    pub(super) fn place(&mut self, id: GroupId, pass: &Range<usize>, freed: Vec<usize>) -> Result<Place, CacheError> {
        let (tokens, capacity) = (pass.len(), self.capacity(id));
        let cells = &mut self.groups[id.0];
        let in_flight = cells.in_flight;
        if !in_flight && tokens == 1 && cells.empty == 1 && cells.freed.is_some() {
            return Ok(self.refill(id, pass));
        }
        // All empty cells are taken by new tokens, or none may stay.
        let grown = tokens.saturating_sub(cells.empty);
        if !in_flight && cells.is_uniform() && cells.empty <= tokens && cells.cells + grown <= capacity {
            cells.empty = 0;
            let place = freed.into_iter().chain(cells.cells..).take(tokens).collect();
            return Ok(Place::Cells(Fresh::new(place)));
        }
        self.close(id)?;
        let len = self.groups[id.0].cells;
        match !in_flight && len + tokens <= capacity {
            true => Ok(Place::Cells(Fresh::appended(len, tokens))),
            false => Ok(Place::InFlight),
        }
    }

    /// Puts a token into the cells that evictions freed in each row and head.
    fn refill(&mut self, id: GroupId, pass: &Range<usize>) -> Place {
        let cells = &mut self.groups[id.0];
        let freed = cells.freed.take().expect("asked before");
        let [batch, heads, tokens] = freed.dims();
        if let KeptTokens::PerHead(positions) = &mut cells.kept {
            let new = Tensor::<1, Int>::arange(pass.start as i64..pass.end as i64, &self.device);
            let new = new.reshape([1, 1, tokens]).expand([batch, heads, tokens]);
            *positions = positions.clone().scatter(2, freed.clone(), new, IndexingUpdateOp::Assign);
        }
        if let Some(turn) = &mut cells.turn {
            let none = Tensor::zeros([batch, heads, tokens], &self.device);
            *turn = turn.clone().scatter(2, freed.clone(), none, IndexingUpdateOp::Assign);
        }
        cells.empty = 0;
        Place::PerHead(freed)
    }

    /// New tokens stand behind the others until whole blocks of empty cells can be filled. A chunk is attended in full
    /// precision and quantised afterwards, as KIVI does; a prompt that its evictor waits for, when it is complete.
    fn place_quantised(&mut self, id: GroupId, pass: &Range<usize>) -> Result<Place, CacheError> {
        let (tokens, capacity) = (pass.len(), self.capacity(id));
        let waiting = self.plan.group(id).waits() && pass.start < self.prompt;
        let in_full = waiting || tokens > 1 || self.groups[id.0].in_flight;
        if in_full || self.groups[id.0].cells + tokens > capacity {
            self.close(id)?;
        }
        let len = self.groups[id.0].cells;
        match in_full || len + tokens > capacity {
            true => Ok(Place::InFlight),
            false => Ok(Place::Cells(Fresh::appended(len, tokens))),
        }
    }
}
