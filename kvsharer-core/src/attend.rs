//! The only attention call.
//!
//! Grouped-query attention without repeating keys or values: the query heads of one key-value head are folded into
//! the query axis. Queries run in blocks, so that no queries x keys matrix of a whole prompt is ever held, and a
//! block of a causal prefill reads only the keys up to its last query.

use crate::{Evidence, EvidenceKind, axis};
use burn::tensor::{Bool, DType, Device, Tensor, TensorData, activation::softmax, module, ops::AttentionModuleOptions};
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

/// Cells that hold no token to look at (evicted, or padding), `[batch, kv_head, cell]`, true where there is none. A
/// padding query still looks at its own cell, so that no row of weights is empty.
#[derive(Clone, Debug)]
pub struct Hidden {
    cells: Tensor<3, Bool>,
    everywhere: bool,
}

impl Hidden {
    /// Cells of one group of layers.
    pub fn new(cells: Tensor<3, Bool>) -> Self {
        Self { cells, everywhere: false }
    }

    /// Cells that are hidden in all layers of the running forward pass alike (padding), so that their masks are made
    /// once.
    pub fn everywhere(cells: Tensor<3, Bool>) -> Self {
        Self { cells, everywhere: true }
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
        let hidden = self.cells.clone().slice_dim(2, 0..seen).unsqueeze_dim::<4>(2);
        let [batch, heads, _, _] = hidden.dims();
        let shape = [batch, heads, group * rows.len(), seen];
        let hidden = hidden.expand(shape);
        let Some(causal) = causal else {
            return hidden;
        };
        let mut own = vec![false; rows.len() * seen];
        for (line, row) in own.chunks_mut(seen).zip(rows.clone()) {
            line[fresh.cells[row]] = true;
        }
        let own = TensorData::new(own.repeat(group), [1, 1, group * rows.len(), seen]);
        let own = Tensor::<4, Bool>::from_data(own, &self.cells.device()).expand(shape);
        hidden.bool_and(own.bool_not()).bool_or(causal.expand(shape))
    }
}

/// A block's new tokens, their queries, the cells they see and the query heads of a key-value head.
type Key = (Fresh, Range<usize>, usize, usize);

/// Masks of one forward pass, made once for all layers that need the same one.
#[derive(Clone, Debug, Default)]
pub struct MaskCache {
    causal: HashMap<Key, Tensor<4, Bool>>,
    /// The same with cells hidden everywhere, by number of key-value heads.
    padded: HashMap<(Key, usize), Tensor<4, Bool>>,
}

impl MaskCache {
    /// The mask of a block of queries that takes hidden cells into account; `None` if it may look everywhere.
    fn of_block(
        &mut self,
        pass: &Pass<'_>,
        rows: Range<usize>,
        cells: usize,
        group: usize,
        device: &Device,
    ) -> Option<Tensor<4, Bool>> {
        let Some(hidden) = pass.hidden else {
            return self.get(pass.fresh, rows, cells, group, device);
        };
        let key = ((pass.fresh.clone(), rows.clone(), cells, group), hidden.cells.dims()[1]);
        if let Some(mask) = self.padded.get(&key).filter(|_| hidden.everywhere) {
            return Some(mask.clone());
        }
        let causal = self.get(pass.fresh, rows.clone(), cells, group, device);
        let mask = hidden.mask(causal, pass.fresh, rows, cells, group);
        if hidden.everywhere && self.bytes() <= MASK_BYTES {
            self.padded.insert(key, mask.clone());
        }
        Some(mask)
    }

    /// `[1, 1, group * query, cell]`, true where a query of `rows` must not look; `None` if it may look everywhere.
    fn get(
        &mut self,
        fresh: &Fresh,
        rows: Range<usize>,
        cells: usize,
        group: usize,
        device: &Device,
    ) -> Option<Tensor<4, Bool>> {
        if fresh.len() == 1 {
            return None;
        }
        let key = (fresh.clone(), rows.clone(), cells, group);
        if self.bytes() > MASK_BYTES {
            self.clear();
        }
        let mask = self.causal.entry(key).or_insert_with(|| {
            let mut hidden = vec![false; rows.len() * cells];
            for (line, row) in hidden.chunks_mut(cells).zip(rows.clone()) {
                let later = fresh.cells[row + 1..].iter();
                later.filter(|&&cell| cell < cells).for_each(|&cell| line[cell] = true);
            }
            let hidden = hidden.repeat(group);
            let shape = [1, 1, group * rows.len(), cells];
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
    /// Cells that hold no token.
    pub hidden: Option<&'a Hidden>,
    /// What must be seen.
    pub evidence: EvidenceKind,
    /// Weight of each new query in the key mass; all alike if `None`.
    pub weights: Option<&'a [f32]>,
}

impl<'a> Pass<'a> {
    /// New tokens, everything else visible, nothing to be seen.
    pub fn new(fresh: &'a Fresh) -> Self {
        Self { fresh, hidden: None, evidence: EvidenceKind::None, weights: None }
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
    let grouped = query.reshape([batch, kv_heads, group, queries, dim]);

    let mut outputs = Vec::with_capacity(queries.div_ceil(BLOCK));
    let mut mass: Option<Tensor<4>> = None;
    for start in (0..queries).step_by(BLOCK) {
        let rows = start..(start + BLOCK).min(queries);
        let seen = fresh.prefix(rows.end, cells);
        let block = Block {
            query: grouped.clone().slice_dim(3, rows.clone()).reshape([batch, kv_heads, group * rows.len(), dim]),
            keys: keys.clone().slice_dim(axis::CELL, 0..seen),
            values: values.clone().slice_dim(axis::CELL, 0..seen),
            mask: masks.of_block(pass, rows.clone(), seen, group, &keys.device()),
        };
        let output = if pass.counts(rows.clone()) {
            let weights = block.weights();
            let by_query = weights.clone().cast(DType::F32).reshape([batch, kv_heads, group, rows.len(), seen]);
            let by_query = match pass.weights {
                Some(of) => {
                    let of = TensorData::new(of[rows.clone()].to_vec(), [1, 1, 1, rows.len(), 1]);
                    by_query * Tensor::from_data(of, &keys.device())
                }
                None => by_query,
            };
            let received = pad_cells(by_query.sum_dim(3).reshape([batch, kv_heads, group, seen]), cells);
            mass = Some(match mass {
                Some(mass) => mass + received,
                None => received,
            });
            weights.matmul(block.values)
        } else if rows.len() == 1 {
            // One query: a fused kernel would copy the cache to make it contiguous on some backends.
            block.weights().matmul(block.values)
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
    query: Tensor<4>,
    keys: Tensor<4>,
    values: Tensor<4>,
    mask: Option<Tensor<4, Bool>>,
}

impl Block {
    /// Softmax weights `[batch, kv_head, group * query, cell]`.
    fn weights(&self) -> Tensor<4> {
        let scale = 1.0 / (self.query.dims()[axis::DIM] as f64).sqrt();
        let scores = (self.query.clone() * scale).matmul(self.keys.clone().swap_dims(axis::CELL, axis::DIM));
        let scores = match self.mask.clone() {
            Some(mask) => {
                let shape = scores.shape();
                scores.mask_fill(mask.expand(shape), f32::NEG_INFINITY)
            }
            None => scores,
        };
        softmax(scores, 3)
    }

    fn fused(self) -> Tensor<4> {
        module::attention(self.query, self.keys, self.values, self.mask, None, AttentionModuleOptions::default())
    }
}

/// Appends zeros to the last axis up to `cells`.
fn pad_cells(mass: Tensor<4>, cells: usize) -> Tensor<4> {
    let [batch, heads, group, seen] = mass.dims();
    if seen == cells {
        return mass;
    }
    let zeros = Tensor::zeros([batch, heads, group, cells - seen], (&mass.device(), mass.dtype()));
    Tensor::cat(vec![mass, zeros], 3)
}
