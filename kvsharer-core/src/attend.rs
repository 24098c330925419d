//! The only attention call.
//!
//! Grouped-query attention without repeating keys or values: the query heads of one key-value head are folded into
//! the query axis. Queries run in blocks, so that no queries x keys matrix of a whole prompt is ever held, and a
//! block of a causal prefill reads only the keys up to its last query, from the first one a sliding window shows.

use crate::kernels::{attend_block, attend_holes, attend_many, attend_one, attend_one_unwatched, product, rounds_f32};
use crate::{Evidence, EvidenceKind, axis};
use burn::tensor::{
    Bool, DType, Device, Int, Tensor, TensorData, activation::softmax, module, ops::AttentionModuleOptions,
};
use std::collections::HashMap;
use std::ops::Range;

/// Queries of one block.
const BLOCK: usize = 256;

/// Masks kept for the next layer; a long prefill makes them anew instead of holding them all.
const MASK_BYTES: usize = 32 << 20;

/// Which cells the tokens of the running forward pass stand in; all other cells are older than every query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fresh {
    /// Cell of each new token, in order of the tokens.
    cells: Vec<usize>,
}

impl Fresh {
    /// Tokens in the given cells.
    pub fn new(cells: Vec<usize>) -> Self {
        Self { cells }
    }

    /// Tokens appended behind `old` cells.
    pub fn appended(old: usize, tokens: usize) -> Self {
        Self::new((old..old + tokens).collect())
    }

    /// Number of new tokens.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there is no new token.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Cell of each new token.
    pub fn cells(&self) -> &[usize] {
        &self.cells
    }

    /// Cells that the first `queries` tokens may look at: a prefix of `cells` cells that hides no visible one.
    fn prefix(&self, queries: usize, cells: usize) -> usize {
        let tail = self.cells.iter().enumerate().all(|(i, &cell)| cell + self.len() == cells + i);
        if tail { cells - self.len() + queries } else { cells }
    }
}

/// A sliding window over cells that stand for the same tokens in every row and head: a query sees itself and the
/// `size - 1` tokens before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    size: usize,
    /// By how many positions the token of each old cell stands before the first new one. What it says of the new
    /// tokens' cells, or of cells behind its end, is not read.
    behind: Vec<usize>,
}

impl Window {
    /// A window of `size` tokens over old cells that stand `behind` positions before the first new token.
    pub fn new(size: usize, behind: Vec<usize>) -> Self {
        Self { size, behind }
    }

    /// Marks the cells that have left the window of the new token `row`; `line` starts at cell `start`.
    fn hide(&self, fresh: &Fresh, row: usize, start: usize, line: &mut [bool]) {
        for (hidden, &behind) in line.iter_mut().zip(self.behind.iter().skip(start)) {
            *hidden |= row + behind >= self.size;
        }
        for (i, &cell) in fresh.cells.iter().enumerate() {
            if let Some(hidden) = cell.checked_sub(start).and_then(|at| line.get_mut(at)) {
                *hidden = i > row || row - i >= self.size;
            }
        }
    }

    /// Cells before this one are hidden from the new token `row` and all later ones.
    fn first(&self, fresh: &Fresh, row: usize) -> usize {
        let old = self.behind.len();
        let by_age = self.behind.is_sorted_by(|a, b| a > b) && fresh.cells.iter().copied().eq(old..old + fresh.len());
        if !by_age {
            return 0;
        }
        match self.behind.partition_point(|behind| row + behind >= self.size) {
            gone if gone < old => gone,
            gone => gone + (row + 1).saturating_sub(self.size),
        }
    }
}

/// Cells by the text position of their tokens, where rows and heads hold different ones.
///
/// Cells that hold no token (evicted, or padding) are not looked at, nor those a sliding window has left behind. A
/// padding query still looks at its own cell, so that no row of weights is empty.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// `[batch, kv_head, cell]`, negative where there is no token.
    pub positions: Tensor<3, Int>,
    /// Position of the first new token.
    pub start: usize,
    /// Tokens a query sees, itself included; `None` sees all.
    pub window: Option<usize>,
    /// Whether all layers of the running forward pass with as many key-value heads hide the same cells, so that their
    /// masks are made once.
    pub everywhere: bool,
}

impl Hidden {
    /// Positions of the first `seen` cells, and the least that a single new token looks at.
    fn bounds(&self, seen: usize) -> (Tensor<3, Int>, i64) {
        let bound = self.window.map_or(0, |window| (self.start + 1).saturating_sub(window) as i64);
        (self.positions.clone().slice_dim(2, 0..seen), bound)
    }

    /// The mask of a block of queries, `[batch, kv_head, group * query, cell]`, over the first `seen` cells.
    fn mask(
        &self,
        causal: Option<Tensor<4, Bool>>,
        fresh: &Fresh,
        rows: Range<usize>,
        seen: usize,
        group: usize,
    ) -> Tensor<4, Bool> {
        let positions = self.positions.clone().slice_dim(2, 0..seen).unsqueeze_dim::<4>(2);
        let [batch, heads, _, _] = positions.dims();
        let shape = [batch, heads, group * rows.len(), seen];
        let hidden = match self.window {
            None => positions.lower_elem(0).expand(shape),
            Some(window) => {
                let first = |row: usize| (self.start + row + 1).saturating_sub(window) as i64;
                let first: Vec<i64> = rows.clone().map(first).collect();
                let first = TensorData::new(first.repeat(group), [1, 1, shape[2], 1]);
                let first = Tensor::<4, Int>::from_data(first, &self.positions.device());
                positions.expand(shape).lower(first.expand(shape))
            }
        };
        let Some(causal) = causal else {
            return hidden;
        };
        let mut own = vec![false; rows.len() * seen];
        for (line, row) in own.chunks_mut(seen).zip(rows.clone()) {
            line[fresh.cells[row]] = true;
        }
        let own = TensorData::new(own.repeat(group), [1, 1, group * rows.len(), seen]);
        let own = Tensor::<4, Bool>::from_data(own, &self.positions.device()).expand(shape);
        hidden.bool_and(own.bool_not()).bool_or(causal.expand(shape))
    }
}

/// Masks of one forward pass, made once for all layers that need the same one.
#[derive(Clone, Debug, Default)]
pub struct MaskCache {
    causal: HashMap<MaskKey, Tensor<4, Bool>>,
    /// The same with cells hidden everywhere, by number of key-value heads.
    padded: HashMap<(MaskKey, usize), Tensor<4, Bool>>,
}

/// New tokens, window, queries of the block, cells and group size.
type MaskKey = (Fresh, Option<Window>, Range<usize>, Range<usize>, usize);

impl MaskCache {
    /// The mask of a block of queries that takes hidden cells into account; `None` if it may look everywhere.
    fn of_block(
        &mut self,
        pass: &Pass<'_>,
        rows: Range<usize>,
        cells: Range<usize>,
        group: usize,
        device: &Device,
    ) -> Option<Tensor<4, Bool>> {
        let Some(hidden) = pass.hidden else {
            return self.get(pass.fresh, pass.window, rows, cells, group, device);
        };
        let key = (pass.fresh.clone(), pass.window.cloned(), rows.clone(), cells.clone(), group);
        let key = (key, hidden.positions.dims()[1]);
        if let Some(mask) = self.padded.get(&key).filter(|_| hidden.everywhere) {
            return Some(mask.clone());
        }
        let causal = self.get(pass.fresh, pass.window, rows.clone(), cells.clone(), group, device);
        let mask = hidden.mask(causal, pass.fresh, rows, cells.end, group);
        if hidden.everywhere && self.bytes() <= MASK_BYTES {
            self.padded.insert(key, mask.clone());
        }
        Some(mask)
    }

    /// `[1, 1, group * query, cell]`, true where a query of `rows` must not look; `None` if it may look everywhere.
    fn get(
        &mut self,
        fresh: &Fresh,
        window: Option<&Window>,
        rows: Range<usize>,
        cells: Range<usize>,
        group: usize,
        device: &Device,
    ) -> Option<Tensor<4, Bool>> {
        if fresh.len() == 1 && window.is_none() {
            return None;
        }
        let key = (fresh.clone(), window.cloned(), rows.clone(), cells.clone(), group);
        if self.bytes() > MASK_BYTES {
            self.clear();
        }
        let mask = self.causal.entry(key).or_insert_with(|| {
            let mut hidden = vec![false; rows.len() * cells.len()];
            for (line, row) in hidden.chunks_mut(cells.len()).zip(rows.clone()) {
                let later = fresh.cells[row + 1..].iter();
                later.filter(|&cell| cells.contains(cell)).for_each(|&cell| line[cell - cells.start] = true);
                if let Some(window) = window {
                    window.hide(fresh, row, cells.start, line);
                }
            }
            let hidden = hidden.repeat(group);
            let shape = [1, 1, group * rows.len(), cells.len()];
            Tensor::from_data(TensorData::new(hidden, shape), device)
        });
        Some(mask.clone())
    }

    fn bytes(&self) -> usize {
        let masks = self.causal.values().chain(self.padded.values());
        masks.map(|mask| mask.dims().iter().product::<usize>()).sum()
    }

    /// Drops all masks.
    pub fn clear(&mut self) {
        self.causal.clear();
        self.padded.clear();
    }
}

/// What an attention call is about, beside queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Where the new tokens stand.
    pub fresh: &'a Fresh,
    /// Where rows and heads hold different tokens, or cells hold none.
    pub hidden: Option<&'a Hidden>,
    /// Where they hold the same ones: a sliding window, if one hides any.
    pub window: Option<&'a Window>,
    /// What must be seen.
    pub evidence: EvidenceKind,
    /// Weight of each new query in the key mass; all alike if `None`.
    pub weights: Option<&'a [f32]>,
}

impl<'a> Pass<'a> {
    /// New tokens, everything else visible, nothing to be seen.
    pub fn new(fresh: &'a Fresh) -> Self {
        Self { fresh, hidden: None, window: None, evidence: EvidenceKind::None, weights: None }
    }

    /// Whether several new tokens stand behind all others, and nothing but their order and holes hides any.
    fn is_appended(&self, cells: usize) -> bool {
        let before = cells - self.fresh.len();
        let behind = self.fresh.cells().iter().enumerate().all(|(at, &cell)| cell == before + at);
        let open = self.window.is_none() && !self.counts(0..self.fresh.len());
        self.fresh.len() > 1 && behind && open
    }

    /// Whether the mass given by these queries counts.
    fn counts(&self, rows: Range<usize>) -> bool {
        let any = self.weights.is_none_or(|weights| weights[rows].iter().any(|&weight| weight != 0.0));
        self.evidence == EvidenceKind::KeyMass && any
    }
}

/// Causal softmax attention of new tokens over a cache that already holds them, `softmax(Q K^T / sqrt(head_dim)) V`.
///
/// # Shapes
/// `query` and result `[batch, query_head, query, head_dim]`; `keys`, `values` `[batch, kv_head, cell, head_dim]`;
/// `query_head` is a multiple of `kv_head`, and query head `h` reads key-value head `h / (query_head / kv_head)`.
///
/// # Memory
/// Scratch beside the result is at most one block of weights, `batch * query_head * 256 * cell` elements of the dtype
/// (twice that, once in f32, while key mass is summed), whatever the number of queries, and the masks: a byte for each
/// query of a block's groups and each cell, of which up to 32 MiB are kept for the next layer.
///
/// # Panics
/// If the shapes do not fit together.
pub fn attend(
    query: Tensor<4>,
    keys: Tensor<4>,
    values: Tensor<4>,
    pass: &Pass<'_>,
    masks: &mut MaskCache,
) -> (Tensor<4>, Option<Evidence>) {
    let [batch, heads, queries, dim] = query.dims();
    let [_, kv_heads, cells, _] = keys.dims();
    let (fresh, group) = (pass.fresh, heads / kv_heads);
    assert_eq!(heads, group * kv_heads, "query heads must be a multiple of key-value heads");
    assert_eq!(queries, fresh.len(), "one query a new token");
    assert!(pass.weights.is_none_or(|weights| weights.len() == queries), "one weight a query");
    if pass.is_appended(cells)
        && let Some(output) = attend_many(&query, &keys, &values, pass.hidden)
    {
        let evidence = (pass.evidence == EvidenceKind::Keys).then_some(Evidence::Keys(keys));
        return (output, evidence);
    }
    let grouped = query.reshape([batch, kv_heads, group, queries, dim]);

    let mut outputs = Vec::with_capacity(queries.div_ceil(BLOCK));
    let mut mass: Option<Tensor<4>> = None;
    for start in (0..queries).step_by(BLOCK) {
        let rows = start..(start + BLOCK).min(queries);
        let first = pass.window.map_or(0, |window| window.first(fresh, rows.start));
        let seen = first..fresh.prefix(rows.end, cells);
        // Of one query; the mask is only made where there is no kernel.
        let around = pass.hidden.filter(|_| queries == 1).map(|hidden| hidden.bounds(seen.end));
        let query = grouped.clone().slice_dim(3, rows.clone()).reshape([batch, kv_heads, group * rows.len(), dim]);
        let keys_seen = keys.clone().slice_dim(axis::CELL, seen.clone());
        let values_seen = values.clone().slice_dim(axis::CELL, seen.clone());
        let around = around.and_then(|(places, bound)| attend_holes(&query, &keys_seen, &values_seen, &places, bound));
        let block = Block {
            group,
            query,
            keys: keys_seen,
            values: values_seen,
            mask: match around {
                Some(_) => None,
                None => masks.of_block(pass, rows.clone(), seen.clone(), group, &keys.device()),
            },
            around,
        };
        let output = if pass.counts(rows.clone()) {
            let (output, weights) = block.looked_at();
            let by_query = weights.clone().cast(DType::F32).reshape([batch, kv_heads, group, rows.len(), seen.len()]);
            let by_query = match pass.weights {
                Some(of) => {
                    let of = TensorData::new(of[rows.clone()].to_vec(), [1, 1, 1, rows.len(), 1]);
                    by_query * Tensor::from_data(of, &keys.device())
                }
                None => by_query,
            };
            let received = by_query.sum_dim(3).reshape([batch, kv_heads, group, seen.len()]);
            let received = pad_cells(received, first, cells);
            mass = Some(match mass {
                Some(mass) => mass + received,
                None => received,
            });
            output
        } else if rows.len() == 1 {
            // A fused kernel would copy the cache to make it contiguous on some backends.
            block.unwatched()
        } else {
            block.fused()
        };
        outputs.push(output.reshape([batch, kv_heads, group, rows.len(), dim]));
    }
    let output = Tensor::cat(outputs, 3).reshape([batch, heads, queries, dim]);
    let evidence = match pass.evidence {
        EvidenceKind::Keys => Some(Evidence::Keys(keys)),
        _ => mass.map(Evidence::KeyMass),
    };
    (output, evidence)
}

/// One block of queries, the group folded in: `[batch, kv_head, group * query, head_dim]`.
struct Block {
    group: usize,
    query: Tensor<4>,
    keys: Tensor<4>,
    values: Tensor<4>,
    mask: Option<Tensor<4, Bool>>,
    /// Output and weights, if a kernel went around hidden cells.
    around: Option<(Tensor<4>, Tensor<4>)>,
}

impl Block {
    /// Softmax weights `[batch, kv_head, group * query, cell]`.
    fn weights(&self) -> Tensor<4> {
        let scale = 1.0 / (self.query.dims()[axis::DIM] as f64).sqrt();
        let scores = product(self.query.clone() * scale, self.keys.clone().swap_dims(axis::CELL, axis::DIM));
        let scores = match self.mask.clone() {
            Some(mask) => {
                let shape = scores.shape();
                scores.mask_fill(mask.expand(shape), f32::NEG_INFINITY)
            }
            None => scores,
        };
        softmax(scores, 3)
    }

    /// Output and weights.
    fn looked_at(&self) -> (Tensor<4>, Tensor<4>) {
        if let Some(around) = &self.around {
            return around.clone();
        }
        let own = self.is_plain().then(|| attend_one(&self.query, &self.keys, &self.values)).flatten();
        own.unwrap_or_else(|| {
            let weights = self.weights();
            (product(weights.clone(), self.values.clone()), weights)
        })
    }

    /// The same output alone.
    fn unwatched(&self) -> Tensor<4> {
        if let Some((output, _)) = &self.around {
            return output.clone();
        }
        let own = self.is_plain().then(|| attend_one_unwatched(&self.query, &self.keys, &self.values)).flatten();
        own.unwrap_or_else(|| product(self.weights(), self.values.clone()))
    }

    /// Whether there is one query a sequence that looks at everything.
    fn is_plain(&self) -> bool {
        self.mask.is_none() && self.query.dims()[2] == self.group
    }

    fn fused(self) -> Tensor<4> {
        if let Some(output) = attend_block(&self.query, &self.keys, &self.values, self.mask.as_ref()) {
            return output;
        }
        if rounds_f32(&self.query) {
            return product(self.weights(), self.values);
        }
        module::attention(self.query, self.keys, self.values, self.mask, None, AttentionModuleOptions::default())
    }
}

/// Puts `before` zeros in front of the last axis, and others behind it up to `cells`.
fn pad_cells(mass: Tensor<4>, before: usize, cells: usize) -> Tensor<4> {
    let [batch, heads, group, seen] = mass.dims();
    let zeros = |count| Tensor::zeros([batch, heads, group, count], (&mass.device(), mass.dtype()));
    let behind = cells - before - seen;
    let mut parts = vec![mass.clone()];
    if before > 0 {
        parts.insert(0, zeros(before));
    }
    if behind > 0 {
        parts.push(zeros(behind));
    }
    if parts.len() == 1 { mass } else { Tensor::cat(parts, 3) }
}
