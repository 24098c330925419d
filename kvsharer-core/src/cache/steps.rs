//! Decoding steps planned ahead: what the host would decide before each of them lies on the device, a row a step, so
//! that all steps are the same operations. Recorded once (`burn::tensor::capture`), they run without the host.

use super::group::{GroupCells, Place};
use super::{Attend, Cache};
use crate::kernels::attend_counted;
use crate::{CacheError, Eviction, EvidenceKind, GroupId, Kv, LayerId, Positions, RopeTable, Storage};
use burn::tensor::{Int, Tensor, TensorData};
use std::ops::Range;

/// The next tokens of a cache, one a step.
///
/// Each step begins with [`begin`](Self::begin), which says on the device which step it is, and goes once through all
/// layers. When all have run, in order, the cache goes on behind them; if some have not, it must be
/// [reset](Cache::reset).
pub struct Steps<'c, 'p> {
    cache: &'c mut Cache<'p>,
    positions: Range<usize>,
    schedules: Vec<Schedule>,
    /// The schedule of each group.
    of_group: Vec<usize>,
    /// Of each schedule in the running step: the new token's cell, and the cells that count, both `[1]`.
    now: Vec<(Tensor<1, Int>, Tensor<1, Int>)>,
    next: usize,
}

/// Where the tokens of some groups go, `[step]` each.
struct Schedule {
    cells: Tensor<1, Int>,
    counts: Tensor<1, Int>,
    sinks: Option<Sinks>,
}

/// Sinks that stand at other positions in each step.
struct Sinks {
    /// Their first cell, `[1]`.
    first: Tensor<1, Int>,
    /// By how much they are turned, a row a step.
    turns: RopeTable,
}

/// What the host knows of a schedule while it plans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Draft {
    cells: Vec<i32>,
    counts: Vec<i32>,
    gaps: Vec<usize>,
    /// Cells of the sinks that are turned.
    sinks: Vec<usize>,
}

impl<'p> Cache<'p> {
    /// Plans up to `steps` passes of one token each ahead; fewer where the cache is full before, none where what is
    /// cached after the prompt does not follow from counts alone: under policies that are not
    /// [regular](crate::LayerKvPolicy::regular), with padded rows, quantised storage, or on several devices.
    ///
    /// # Errors
    /// [`CacheError::OutOfTurn`] in the middle of a forward pass, or what policies answer wrongly.
    pub fn plan_steps(&mut self, steps: usize) -> Result<Option<Steps<'_, 'p>>, CacheError> {
        if self.next != self.model.len() && !self.positions.is_empty() {
            return Err(CacheError::OutOfTurn { layer: LayerId(self.next) });
        }
        let steps = if self.bounded { steps } else { steps.min(self.options.tokens.saturating_sub(self.seen())) };
        if !self.is_regular() || self.seen() < self.prompt.max(1) {
            return Ok(None);
        }
        let mut drafts = vec![Draft::default(); self.groups.len()];
        let start = self.seen();
        for position in start..start + steps {
            let before: Vec<GroupCells> = self.groups.clone();
            let pass = position..position + 1;
            let mut planned = true;
            for (index, draft) in drafts.iter_mut().enumerate() {
                planned = planned && self.plan_step(GroupId(index), &pass, draft)?;
            }
            if !planned {
                self.groups = before;
                break;
            }
            self.positions = pass;
        }
        let planned = self.seen() - start;
        if planned == 0 {
            return Ok(None);
        }
        drafts.iter_mut().for_each(|draft| draft.cut(planned));
        let mut distinct: Vec<Draft> = Vec::new();
        let of_group = drafts.into_iter().map(|draft| {
            let known = distinct.iter().position(|other| *other == draft);
            known.unwrap_or_else(|| {
                distinct.push(draft);
                distinct.len() - 1
            })
        });
        let of_group = of_group.collect();
        let schedules = distinct.iter().map(|draft| self.schedule(draft)).collect::<Result<_, _>>()?;
        for cells in &mut self.groups {
            cells.turned = cells.gap;
        }
        self.next = self.model.len();
        Ok(Some(Steps {
            cache: self,
            positions: start..start + planned,
            schedules,
            of_group,
            now: Vec::new(),
            next: 0,
        }))
    }

    fn is_regular(&self) -> bool {
        let regular = |id: usize| {
            let (group, cells) = (self.plan.group(GroupId(id)), &self.groups[id]);
            let mut evictors = group.evictors.iter().filter_map(|&evictor| self.stack.members().nth(evictor));
            group.storage == Storage::Full
                && group.evidence == EvidenceKind::None
                && evictors.all(|policy| policy.regular())
                && cells.is_uniform()
                && cells.turn.is_none()
                && !cells.in_flight
                && match group.positions {
                    Positions::Original => true,
                    // Their keys are saved while planning.
                    Positions::CacheSlot { sinks } => self.options.rope.is_some() && self.seen() >= sinks,
                }
        };
        let one_device = self.homes.windows(2).all(|pair| pair[0] == pair[1]);
        one_device && self.padding.is_empty() && (0..self.groups.len()).all(regular)
    }

    /// What [`make_room`](Self::make_room) and [`settle`](Self::settle) would decide of one token; whether that is a
    /// cell of its own and nothing moves.
    fn plan_step(&mut self, id: GroupId, pass: &Range<usize>, draft: &mut Draft) -> Result<bool, CacheError> {
        let mut freed = self.slide(id, pass.start)?;
        for evictor in self.plan.group(id).evictors.clone() {
            match self.ask(id, evictor, pass, 1) {
                Eviction::Nothing => {}
                Eviction::Span { start, end } => freed.extend(self.drop_span(id, start, end, evictor)?),
                _ => return Ok(false),
            }
        }
        let cells = &self.groups[id.0];
        let grown = 1_usize.saturating_sub(cells.empty);
        if cells.empty > 1 || cells.cells + grown > self.capacity(id) {
            return Ok(false);
        }
        let Place::Cells(fresh) = self.place(id, pass, freed)? else { return Ok(false) };
        let cell = fresh.cells()[0];
        let cells = &mut self.groups[id.0];
        cells.width = cells.cells.max(cell + 1);
        let sinks = match self.plan.group(id).positions {
            Positions::CacheSlot { sinks } if cells.gap > 0 => &cells.by_age[..sinks.min(cells.by_age.len())],
            _ => &[],
        };
        if !draft.sinks.is_empty() && draft.sinks != sinks || sinks.windows(2).any(|pair| pair[0] + 1 != pair[1]) {
            return Ok(false);
        }
        draft.sinks = sinks.to_vec();
        draft.cells.push(cell as i32);
        draft.counts.push(cells.width as i32);
        draft.gaps.push(cells.gap);
        let positions = std::mem::replace(&mut self.positions, pass.clone());
        self.note(id, &Place::Cells(fresh));
        let mut settled = true;
        for evictor in self.plan.group(id).evictors.clone() {
            settled &= matches!(self.ask(id, evictor, pass, 0), Eviction::Nothing);
        }
        self.positions = positions;
        Ok(settled)
    }

    fn schedule(&self, draft: &Draft) -> Result<Schedule, CacheError> {
        let on_device = |numbers: &[i32]| Tensor::<1, Int>::from_data(TensorData::from(numbers), &self.device);
        let sinks = match (draft.sinks.first(), &self.options.rope) {
            (Some(&first), Some(rope)) => Some(Sinks {
                first: on_device(&[first as i32]),
                turns: rope.table_of(draft.gaps.iter().copied(), &self.device),
            }),
            (Some(_), None) => {
                return Err(CacheError::Unsupported("cache-slot positions without the model's rotary encoding"));
            }
            (None, _) => None,
        };
        Ok(Schedule { cells: on_device(&draft.cells), counts: on_device(&draft.counts), sinks })
    }
}

impl Draft {
    /// Only the first steps.
    fn cut(&mut self, steps: usize) {
        self.cells.truncate(steps);
        self.counts.truncate(steps);
        self.gaps.truncate(steps);
    }
}

impl Steps<'_, '_> {
    /// Text positions of the tokens, one a step.
    pub fn positions(&self) -> Range<usize> {
        self.positions.clone()
    }

    /// Bytes held by the cache.
    pub fn bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Begins the step with the number in `step`, `[1]`, counted from 0.
    pub fn begin(&mut self, step: &Tensor<1, Int>) {
        let row = |of: &Tensor<1, Int>| of.clone().select(0, step.clone());
        self.now = self.schedules.iter().map(|schedule| (row(&schedule.cells), row(&schedule.counts))).collect();
        self.next = 0;
        for (index, &schedule) in self.of_group.iter().enumerate() {
            let Some(Sinks { first, turns }) = &self.schedules[schedule].sinks else { continue };
            let turn = turns.row(step);
            for slot in self.cache.key_slots(GroupId(index)) {
                if let Some(originals) = self.cache.store.sinks(slot).cloned() {
                    self.cache.store.put(slot, first, turn.apply(originals));
                }
            }
        }
    }

    /// Whether a layer is on turn and its query has the right shape.
    fn check(&self, layer: LayerId, query: &Tensor<4>) -> Result<(), CacheError> {
        if layer.0 != self.next || layer.0 >= self.cache.model.len() || self.now.is_empty() {
            return Err(CacheError::OutOfTurn { layer });
        }
        self.cache.check_query(layer, query, 1)
    }

    fn store(&mut self, layer: LayerId, kind: Kv, values: Tensor<4>, cell: &Tensor<1, Int>) -> Result<(), CacheError> {
        let slot = self.cache.check_values(layer, kind, &values, 1)?;
        self.cache.store.put(slot, cell, values.cast(self.cache.options.dtype));
        Ok(())
    }

    /// What a query finds, after keys and values are written.
    fn read(&mut self, layer: LayerId, query: Tensor<4>) -> Tensor<4> {
        let id = self.cache.group_of(layer);
        let (_, count) = &self.now[self.of_group[id.0]];
        let slots = self.cache.plan.layers()[layer.0];
        let (keys, values) = (self.cache.store.whole(slots.key), self.cache.store.whole(slots.value));
        let [batch, heads, _, dim] = query.dims();
        let (dtype, kv_heads) = (query.dtype(), self.cache.plan.group(id).kv_heads);
        let query = query.cast(self.cache.options.dtype).reshape([batch, kv_heads, heads / kv_heads, dim]);
        let output = attend_counted(query, keys, values, count);
        self.next += 1;
        output.reshape([batch, heads, 1, dim]).cast(dtype)
    }
}

impl Attend for Steps<'_, '_> {
    /// Those of all steps.
    fn positions(&self) -> Range<usize> {
        self.positions.clone()
    }

    fn owns(&self, layer: LayerId) -> (bool, bool) {
        self.cache.owns(layer)
    }

    fn attend(
        &mut self,
        layer: LayerId,
        query: Tensor<4>,
        key: impl FnOnce() -> Tensor<4>,
        value: impl FnOnce() -> Tensor<4>,
    ) -> Result<Tensor<4>, CacheError> {
        self.check(layer, &query)?;
        let (cell, _) = self.now[self.of_group[self.cache.group_of(layer).0]].clone();
        let (owns_key, owns_value) = self.owns(layer);
        if owns_key {
            self.store(layer, Kv::Key, key(), &cell)?;
        }
        if owns_value {
            self.store(layer, Kv::Value, value(), &cell)?;
        }
        Ok(self.read(layer, query))
    }

    fn attend_unturned(
        &mut self,
        layer: LayerId,
        rope: &RopeTable,
        query: Tensor<4>,
        key: impl FnOnce() -> Tensor<4>,
        value: impl FnOnce() -> Tensor<4>,
    ) -> Result<Tensor<4>, CacheError> {
        if self.owns(layer) != (true, true) {
            return self.attend(layer, rope.apply(query), || rope.apply(key()), value);
        }
        self.check(layer, &query)?;
        let (key, value) = (key(), value());
        let slots =
            (self.cache.check_values(layer, Kv::Key, &key, 1)?, self.cache.check_values(layer, Kv::Value, &value, 1)?);
        let (cell, _) = self.now[self.of_group[self.cache.group_of(layer).0]].clone();
        match self.cache.store.place_turned(rope, [&query, &key, &value], slots, &cell) {
            Some(query) => Ok(self.read(layer, query)),
            None => self.attend(layer, rope.apply(query), || rope.apply(key), || value),
        }
    }
}
