//! Choosing by score, the same on every backend that computes the same scores: of two tokens with one score the older
//! one stays.

use burn::tensor::{Int, Tensor, TensorData};
use kvsharer_core::{EMPTY, GroupState, PADDING};

/// Who stays whatever the score.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Tokens that stay in all.
    pub(crate) keep: usize,
    /// First tokens of the text among them.
    pub(crate) protect: usize,
    /// Newest tokens among them.
    pub(crate) recent: usize,
}

/// The cell of the one token of each head that leaves. Stays on the device.
///
/// # Shapes
/// `scores` `[batch, kv_head, cell]`, result `[batch, kv_head, 1]`.
pub(crate) fn worst(scores: Tensor<3>, state: &GroupState<'_>, wanted: Wanted) -> Tensor<3, Int> {
    let positions = state.positions();
    let device = positions.device();
    let recent = positions.clone().greater_equal_elem((state.seen - wanted.recent) as i64);
    let stay = if state.padding.is_empty() {
        recent.bool_or(positions.clone().lower_elem(wanted.protect as i64))
    } else {
        let ends: Vec<i64> = state.padding.iter().map(|&pad| (pad + wanted.protect) as i64).collect();
        let ends = Tensor::<1, Int>::from_data(TensorData::from(&ends[..]), &device).reshape([-1, 1, 1]);
        recent.bool_or(positions.clone().lower(ends.expand(positions.dims())))
    };
    let mut scores = scores.mask_fill(stay, f32::INFINITY);
    if !state.padding.is_empty() {
        scores = scores.mask_fill(positions.clone().equal_elem(PADDING), f32::NEG_INFINITY);
    }
    if state.visible_from > 0 {
        scores = scores.mask_fill(positions.clone().lower_elem(state.visible_from as i64), f32::NEG_INFINITY);
    }
    let better = scores.clone().greater(scores.clone().min_dim(2).expand(scores.dims()));
    positions.mask_fill(better, PADDING - 1).argmax(2)
}

/// The cells of the tokens that stay, in order of cells: protected ones, recent ones, then those of the highest score
/// after `finish` had a look at each head's `(position, score)`, oldest first. Padding, and tokens that a sliding window
/// has left behind, stay only where a row has too few others. Runs on the host; `None` if the device gives nothing back.
///
/// # Shapes
/// `scores` `[batch, kv_head, cell]`, result `[batch, kv_head, keep]`.
pub(crate) fn keep_best(
    scores: Tensor<3>,
    state: &GroupState<'_>,
    wanted: Wanted,
    finish: impl Fn(&mut [(i64, f32)]),
) -> Option<Tensor<3, Int>> {
    let [batch, heads, cells] = scores.dims();
    let device = scores.device();
    let scores = scores.try_into_vec_as::<f32>().ok()?;
    let positions = state.positions().try_into_vec_as::<i64>().ok()?;
    let mut kept = Vec::with_capacity(batch * heads * wanted.keep);
    for (index, (scores, positions)) in scores.chunks(cells).zip(positions.chunks(cells)).enumerate() {
        let start = state.padding.get(index / heads).copied().unwrap_or(0);
        kept.extend(keep_of_head(scores, positions, start, state, wanted, &finish));
    }
    Some(Tensor::from_data(TensorData::new(kept, [batch, heads, wanted.keep]), &device))
}

fn keep_of_head(
    scores: &[f32],
    positions: &[i64],
    start: usize,
    state: &GroupState<'_>,
    Wanted { keep, protect, recent }: Wanted,
    finish: impl Fn(&mut [(i64, f32)]),
) -> Vec<i64> {
    let oldest = state.visible_from as i64;
    let mut tokens: Vec<usize> = (0..positions.len()).filter(|&cell| positions[cell] >= oldest).collect();
    tokens.sort_unstable_by_key(|&cell| positions[cell]);
    let older = tokens.partition_point(|&cell| positions[cell] < (state.seen - recent) as i64);
    let (older, recent) = tokens.split_at(older);
    let mut candidates: Vec<(i64, f32)> = older.iter().map(|&cell| (positions[cell], scores[cell])).collect();
    finish(&mut candidates);
    let mut ranked: Vec<(usize, f32)> =
        older.iter().zip(&candidates).map(|(&cell, &(_, score))| (cell, score)).collect();
    // Stable: equal scores stay in order of age.
    let protected = |cell: usize| positions[cell] < (start + protect) as i64;
    ranked.sort_by(|a, b| protected(b.0).cmp(&protected(a.0)).then(b.1.total_cmp(&a.1)));
    let best = ranked.into_iter().map(|(cell, _)| cell);
    let unseen = |cell: usize| positions[cell] != EMPTY && positions[cell] < oldest;
    let padding = (0..positions.len()).filter(|&cell| unseen(cell));
    let mut kept: Vec<i64> =
        recent.iter().copied().chain(best).chain(padding).take(keep).map(|cell| cell as i64).collect();
    debug_assert!(kept.iter().all(|&cell| positions[cell as usize] != EMPTY));
    kept.sort_unstable();
    kept
}
