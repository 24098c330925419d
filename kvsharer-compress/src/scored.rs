//! What all methods have in common that give tokens a score and keep the best.

use crate::select::{Wanted, keep_best, worst};
use burn::tensor::{Int, Tensor};
use kvsharer_core::{
    Budget, Eviction, Evidence, EvidenceKind, Group, GroupId, GroupState, LayerId, LayerKvPolicy, ModelShape, Positions,
};
use std::collections::HashMap;
use std::ops::Range;

/// When tokens leave while decoding. A prompt is reduced once it is complete, whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decode {
    /// One for each new token: the next one takes its cell, and nothing moves.
    #[default]
    Each,
    /// Every `n` tokens, down to the budget again.
    Every(usize),
    /// Never: all tokens after the prompt stay.
    Grow,
}

/// Who scores a cache that several layers read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readers {
    /// Its owner alone.
    Donor,
    /// The sum over all readers.
    Sum,
    /// The mean over all readers.
    #[default]
    Mean,
    /// The highest score that any reader gives.
    Max,
}

/// How scores of the query heads that share a key-value head become one. (The references of most methods know
/// multi-head attention only, where there is nothing to reduce.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Mean.
    #[default]
    Mean,
    /// Maximum.
    Max,
    /// Sum.
    Sum,
}

impl Reduction {
    /// # Shapes
    /// `[batch, kv_head, group, cell]` to `[batch, kv_head, cell]`.
    pub fn over_group(self, scores: Tensor<4>) -> Tensor<3> {
        let reduced = match self {
            Reduction::Mean => scores.mean_dim(2),
            Reduction::Max => scores.max_dim(2),
            Reduction::Sum => scores.sum_dim(2),
        };
        reduced.squeeze_dim(2)
    }
}

/// Options of every scored method.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// First tokens of the text that never leave; they count as kept.
    pub protect: usize,
    /// Who scores a shared cache.
    pub readers: Readers,
    /// Reduction over a query group.
    pub group: Reduction,
    /// Keys stand at their place in the cache instead of in the text.
    pub cache_positions: bool,
    /// When tokens leave while decoding.
    pub decode: Decode,
}

/// A method: how tokens are scored, and how many stay. [`Scored`] makes a policy of it.
pub trait Method: Clone + Send + Sync + 'static {
    /// Name and options as a SPEC.
    fn spec(&self) -> String;

    /// Common options.
    fn options(&self) -> Options;

    /// Tokens that `layer` of `layers` keeps in all of a prompt, and afterwards.
    fn kept(&self, layer: usize, layers: usize, prompt: usize) -> usize;

    /// How many of them are simply the newest.
    fn recent(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        let _ = (layer, layers, prompt);
        0
    }

    /// What must be seen.
    fn evidence(&self) -> EvidenceKind {
        EvidenceKind::KeyMass
    }

    /// Weights of queries in the key mass, see [`LayerKvPolicy::weights`].
    fn weights(&self, queries: Range<usize>, prompt: usize) -> Option<Vec<f32>> {
        let _ = (queries, prompt);
        None
    }

    /// Scores of the cells after one reader's pass, `[batch, kv_head, cell]` in f32; the highest stay. By default the
    /// key mass, reduced over the query group.
    fn score(&self, evidence: &Evidence) -> Option<Tensor<3>> {
        match evidence {
            Evidence::KeyMass(mass) => Some(self.options().group.over_group(mass.clone())),
            _ => None,
        }
    }

    /// Scores that need no evidence.
    fn assign(&self, group: &Group, state: &GroupState<'_>) -> Option<Tensor<3>> {
        let _ = (group, state);
        None
    }

    /// Whether the scores of a pass add to earlier ones, instead of replacing them.
    fn accumulates(&self) -> bool {
        true
    }

    /// Whether scores start from 0 after an eviction.
    fn forgets(&self) -> bool {
        false
    }

    /// Last touches to the scores of one head before a choice among many tokens: `(position, score)` of all tokens
    /// but the recent ones, oldest first.
    fn finish(&self, candidates: &mut [(i64, f32)], seen: usize) {
        let _ = (candidates, seen);
    }

    /// # Errors
    /// What does not fit a model of `layers` layers.
    fn check(&self, layers: usize) -> Result<(), String> {
        let _ = layers;
        Ok(())
    }
}

/// The policy of a [`Method`]: scores follow their tokens through the cache, the prompt is reduced when it is complete,
/// and while decoding the token with the lowest score makes place for the next one.
///
/// The prompt is attended in full and reduced afterwards. A query therefore sees one token more than the budget: the
/// newest, before it is decided who leaves, as in the references. Of two tokens with one score the older one stays, so
/// that backends with the same scores keep the same tokens. A cache shared by layers is reduced after its last reader;
/// budgets that differ by layer are those of its owner.
///
/// If the cache knows the length of the prompt, nothing leaves before it is complete and the chunks it came in make no
/// difference (but for a maximum over query groups or readers, as a sum of maxima is not the maximum of sums). Rows of a
/// padded batch keep what they keep alone, as long as budgets are not shares of the prompt, which count the longest row;
/// with [`Decode::Every`] the longest row also sets the time when a row that is still below its budget is reduced.
#[derive(Clone, Debug)]
pub struct Scored<M> {
    method: M,
    groups: HashMap<GroupId, Scores>,
}

#[derive(Clone, Debug, Default)]
struct Scores {
    /// `[batch, kv_head, cell]`, before the running pass.
    by_cell: Option<Tensor<3>>,
    /// Of the running pass.
    pass: Option<Tensor<3>>,
    readers: usize,
    /// No token will ever leave again.
    done: bool,
}

impl<M: Method> Scored<M> {
    /// A policy.
    pub fn new(method: M) -> Self {
        Self { method, groups: HashMap::new() }
    }

    /// The method.
    pub fn method(&self) -> &M {
        &self.method
    }

    /// Scores of all cells after the running pass.
    fn update(&mut self, group: &Group, state: &GroupState<'_>) -> Option<Tensor<3>> {
        if let Some(scores) = self.method.assign(group, state) {
            return Some(scores);
        }
        let Scores { by_cell, pass, readers, .. } = self.groups.remove(&group.id).unwrap_or_default();
        let pass = pass.map(|pass| match self.method.options().readers {
            Readers::Mean if readers > 1 => pass / readers as f64,
            _ => pass,
        });
        let scores = match by_cell {
            Some(before) if self.method.accumulates() || pass.is_none() => {
                let before = widen(before, state.cells);
                // A cell that was filled anew starts from nothing.
                let new = state.positions().greater_equal_elem((state.seen - state.pass) as i64);
                let before = before.mask_fill(new, 0.0);
                Some(match pass {
                    Some(pass) => before + widen(pass, state.cells),
                    None => before,
                })
            }
            _ => pass.map(|pass| widen(pass, state.cells)),
        };
        self.groups.insert(group.id, Scores { by_cell: scores.clone(), ..Scores::default() });
        scores
    }
}

impl<M: Method> LayerKvPolicy for Scored<M> {
    fn name(&self) -> String {
        self.method.spec()
    }

    fn check(&self, model: &ModelShape) -> Result<(), String> {
        self.method.check(model.len())
    }

    fn budget(&self, group: &Group) -> Option<Budget> {
        let (method, layer, layers) = (self.method.clone(), group.first().0, group.model_layers);
        let budget = Budget::of_prompt(move |prompt| method.kept(layer, layers, prompt).max(1)).after_prompt();
        Some(match self.method.options().decode {
            Decode::Each => budget.with_slack(1),
            Decode::Every(tokens) => budget.with_slack(tokens),
            Decode::Grow => budget.growing(),
        })
    }

    fn bookkeeping(&self, _group: &Group) -> usize {
        let scores = if self.method.evidence() == EvidenceKind::None { 0 } else { size_of::<f32>() };
        let turns = if self.method.options().cache_positions { size_of::<i64>() } else { 0 };
        scores + turns + size_of::<i64>()
    }

    fn evidence(&self, _group: &Group) -> EvidenceKind {
        self.method.evidence()
    }

    fn weights(&self, _group: &Group, queries: Range<usize>, prompt: usize) -> Option<Vec<f32>> {
        self.method.weights(queries, prompt)
    }

    fn positions(&self, _group: &Group) -> Positions {
        match self.method.options().cache_positions {
            true => Positions::CacheSlot { sinks: 0 },
            false => Positions::Original,
        }
    }

    fn observe(&mut self, group: &Group, reader: LayerId, evidence: &Evidence) {
        let readers = self.method.options().readers;
        let done = self.groups.get(&group.id).is_some_and(|scores| scores.done);
        if done || (readers == Readers::Donor && reader != group.first()) {
            return;
        }
        let Some(scores) = self.method.score(evidence) else {
            return;
        };
        let state = self.groups.entry(group.id).or_default();
        state.readers += 1;
        state.pass = Some(match state.pass.take() {
            None => scores,
            Some(before) if readers == Readers::Max => before.max_pair(scores),
            Some(before) => before + scores,
        });
    }

    fn evict(&mut self, group: &Group, state: &GroupState<'_>) -> Eviction {
        if state.incoming > 0 || self.groups.get(&group.id).is_some_and(|scores| scores.done) {
            return Eviction::Nothing;
        }
        let scores = self.update(group, state);
        if !state.prompt_done() {
            return Eviction::Nothing;
        }
        let (layer, layers, options) = (group.first().0, group.model_layers, self.method.options());
        let keep = self.method.kept(layer, layers, state.prompt).max(1);
        if options.decode == Decode::Grow {
            self.groups.insert(group.id, Scores { done: true, ..Scores::default() });
        }
        let first_time = state.seen - state.pass < state.prompt;
        let due = match options.decode {
            _ if first_time => state.len > keep,
            Decode::Each => state.len > keep,
            Decode::Every(tokens) => state.len >= keep + tokens,
            Decode::Grow => false,
        };
        let Some(scores) = scores.filter(|_| due) else {
            return Eviction::Nothing;
        };
        let protect = options.protect.min(keep);
        let recent = self.method.recent(layer, layers, state.prompt).min(keep - protect);
        let wanted = Wanted { keep, protect, recent };
        if self.method.forgets() && options.decode != Decode::Grow {
            self.groups.remove(&group.id);
        }
        if !first_time && options.decode == Decode::Each && state.len == keep + 1 {
            return Eviction::Drop(worst(scores, state, wanted));
        }
        let finish = |candidates: &mut [(i64, f32)]| self.method.finish(candidates, state.seen);
        keep_best(scores, state, wanted, finish).map_or(Eviction::Nothing, Eviction::Keep)
    }

    fn rearrange(&mut self, group: &Group, from: &Tensor<3, Int>, cells: usize) {
        if let Some(Scores { by_cell, pass, .. }) = self.groups.get_mut(&group.id) {
            for scores in [by_cell, pass] {
                let before = scores.take().filter(|_| from.dims()[2] > 0);
                *scores = before.map(|scores| widen(scores, cells).gather(2, from.clone()));
            }
        }
    }

    fn reset(&mut self) {
        self.groups.clear();
    }

    fn branch(&self, rows: &Tensor<1, Int>) -> Option<Box<dyn LayerKvPolicy>> {
        // The groups of a model on several devices are not all where `rows` is.
        let pick = |scores: &Option<Tensor<3>>| {
            scores.as_ref().map(|scores| scores.clone().select(0, rows.clone().to_device(&scores.device())))
        };
        let branch = |(&id, scores): (&GroupId, &Scores)| {
            (id, Scores { by_cell: pick(&scores.by_cell), pass: pick(&scores.pass), ..*scores })
        };
        Some(Box::new(Self { method: self.method.clone(), groups: self.groups.iter().map(branch).collect() }))
    }
}

/// Appends zeros up to `cells` cells.
fn widen(scores: Tensor<3>, cells: usize) -> Tensor<3> {
    let [batch, heads, before] = scores.dims();
    if before >= cells {
        return scores;
    }
    let zeros = Tensor::zeros([batch, heads, cells - before], (&scores.device(), scores.dtype()));
    Tensor::cat(vec![scores, zeros], 2)
}
