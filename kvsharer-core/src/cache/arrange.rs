//! Closing the gaps that evictions leave: which cell moves where.

/// New order of the `live` cells (given in the order in which they should stand), such that of the first `before`
/// cells, which stand quantised, those that stay among the first `after` do not move: their codes keep their blocks.
/// Gaps between them are filled by the oldest of the cells in full precision.
///
/// The result lists, for each new cell, the old one it takes its content from. Without quantised cells that is `live`.
pub(super) fn arrange(live: &[usize], before: usize, after: usize) -> Vec<usize> {
    if before == 0 {
        return live.to_vec();
    }
    let mut order: Vec<Option<usize>> = vec![None; live.len()];
    let mut others = Vec::new();
    for &cell in live {
        match order.get_mut(cell) {
            Some(place) if cell < before && cell < after => *place = Some(cell),
            _ => others.push(cell),
        }
    }
    // Oldest first, so that the newest tokens end up behind the quantised ones.
    let (quantised, mut moving): (Vec<usize>, Vec<usize>) = others.into_iter().partition(|&cell| cell < before);
    moving.splice(0..0, quantised);
    let mut moving = moving.into_iter();
    order.into_iter().filter_map(|place| place.or_else(|| moving.next())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn holes_in_quantised_cells_are_filled_by_the_oldest_of_the_others() {
        // Cells 0..8 stand quantised, 8..14 in full; 1, 5 and 9 are empty.
        let live = [0, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13];
        assert_eq!(arrange(&live, 8, 8), [0, 8, 2, 3, 4, 10, 6, 7, 11, 12, 13]);
        assert_eq!(arrange(&live, 0, 0), live);
    }

    proptest! {
        #[test]
        fn an_arrangement_is_a_permutation_that_moves_no_cell_that_stays_quantised(
            keep in prop::collection::vec(any::<bool>(), 1..60), before in 0_usize..60, after in 0_usize..60,
        ) {
            let live: Vec<usize> = (0..keep.len()).filter(|&cell| keep[cell]).collect();
            let (before, after) = (before.min(keep.len()), after.min(live.len()));
            let order = arrange(&live, before, after);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &live);
            if before > 0 {
                for (place, &cell) in order.iter().enumerate() {
                    let stays = live.contains(&place) && place < before && place < after;
                    prop_assert!(!stays || cell == place);
                }
            }
        }
    }
}
