//! What of a fitted map is worth keeping if it is to be of low rank.

use nalgebra::DMatrix;

/// Rounds of the subspace iteration: the ends of what is kept need not be exact.
const ROUNDS: usize = 12;

/// `left right` of rank `rank`, `[in, rank]` and `[rank, out]`, that differs least from `map` `[in, out]` on rows whose
/// sums of products are `xx` `[in, in]`: `map` projected on the leading eigenvectors of `map^T xx map` (reduced-rank
/// regression, Izenman 1975), which are found by subspace iteration.
pub(super) fn low_rank(map: &DMatrix<f64>, xx: &DMatrix<f64>, rank: usize) -> (DMatrix<f64>, DMatrix<f64>) {
    let outputs = map.transpose() * (xx * map);
    let mut columns: Vec<usize> = (0..outputs.ncols()).collect();
    columns.sort_by(|&a, &b| outputs[(b, b)].total_cmp(&outputs[(a, a)]));
    columns.truncate(rank.min(map.nrows()));
    let mut basis = outputs.select_columns(&columns).qr().q();
    for _ in 0..ROUNDS {
        basis = (&outputs * basis).qr().q();
    }
    (map * &basis, basis.transpose())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn what_is_kept_explains_as_much_as_any_part_of_that_rank_can() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut random = |rows, columns| DMatrix::from_fn(rows, columns, |_, _| rng.random_range(-1.0..1.0));
        let (x, map) = (random(200, 24), random(24, 16));
        let outputs = &x * &map;
        let mut singular: Vec<f64> = outputs.clone().svd(false, false).singular_values.iter().copied().collect();
        singular.sort_by(|a, b| b.total_cmp(a));
        for rank in [1, 5, 16, 40] {
            let (left, right) = low_rank(&map, &(x.transpose() * &x), rank);
            assert_eq!((left.ncols(), right.shape()), (rank.min(16), (rank.min(16), 16)));
            let lost = (&outputs - &x * left * right).norm_squared();
            let least: f64 = singular.iter().skip(rank).map(|s| s * s).sum();
            assert!(lost <= 1.05 * least + 1e-9, "rank {rank}: {lost}, at least {least}");
        }
    }
}
