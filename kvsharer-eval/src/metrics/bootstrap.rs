//! Standard errors of measures that are no mean over items, such as perplexity or F1.

use super::mean::sample_std;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Resamples drawn.
const RESAMPLES: u64 = 1_000;

/// The standard error of a corpus measure by the bootstrap (Efron 1979): `measure` gets 1,000 times as many indices of
/// items as there are, drawn with replacement, and the error is the standard deviation (n − 1) of what it returns.
/// lm-evaluation-harness' `bootstrap_stderr` does the same with other random numbers.
///
/// Results that are not finite (an F1 without a positive, say) are left out. `None` for fewer than two items or fewer
/// than two finite results. The result depends on `seed` alone, not on the number of threads.
pub fn bootstrap(items: usize, seed: u64, measure: impl Fn(&[usize]) -> f64 + Sync) -> Option<f64> {
    if items < 2 {
        return None;
    }
    let results: Vec<f64> = (0..RESAMPLES)
        .into_par_iter()
        .map_with(vec![0; items], |indices, resample| {
            // A stream for each resample: whichever thread draws it, it is the same.
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(resample);
            indices.fill_with(|| rng.random_range(0..items));
            measure(indices)
        })
        .collect();
    let finite: Vec<f64> = results.into_iter().filter(|result| result.is_finite()).collect();
    sample_std(&finite)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::mean;

    fn values() -> Vec<f64> {
        (0..200).map(|i| f64::from(i * 37 % 101) / 101.0).collect()
    }

    fn mean_error(values: &[f64], seed: u64) -> Option<f64> {
        bootstrap(values.len(), seed, |indices| indices.iter().map(|&i| values[i]).sum::<f64>() / indices.len() as f64)
    }

    #[test]
    fn of_a_mean_it_is_near_the_formula() {
        let values = values();
        let (found, expected) = (mean_error(&values, 1).unwrap(), mean(&values).stderr.unwrap());
        // The error of 1,000 resamples is 1 / √2000, about 2 %.
        assert!((found / expected - 1.0).abs() < 0.1, "{found} instead of {expected}");
    }

    #[test]
    fn threads_change_nothing_and_the_seed_does() {
        let values = values();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| mean_error(&values, 7))
        };
        assert_eq!(with(1), with(5));
        assert_ne!(with(1), mean_error(&values, 8));
    }

    #[test]
    fn what_is_not_finite_is_left_out() {
        // Only resamples of one item alone are finite, and those are all equal to it: 1 or 2.
        let pure = |indices: &[usize]| if indices[0] == indices[1] { indices[0] as f64 + 1.0 } else { f64::NAN };
        let found = bootstrap(2, 3, pure).unwrap();
        assert!((found - 0.5).abs() < 0.01, "{found}");
        assert_eq!(bootstrap(5, 3, |_| f64::INFINITY), None);
    }

    #[test]
    fn too_few_items_have_no_error() {
        assert_eq!(bootstrap(0, 0, |_| 1.0), None);
        assert_eq!(bootstrap(1, 0, |_| 1.0), None);
        assert_eq!(bootstrap(2, 0, |_| 1.0), Some(0.0));
    }
}
