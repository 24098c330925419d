//! From items to metrics.

use super::{Metrics, Values};
use crate::metrics::{bootstrap, mean};
use crate::tasks::Item;
use crate::{Metric, Sample};
use std::collections::{BTreeMap, BTreeSet};

/// A measure of many items at once.
struct Corpus {
    name: &'static str,
    /// What is summed over the items, and what that sum is divided by.
    of: (&'static str, Option<&'static str>),
    finish: fn(f64) -> f64,
}

/// Measures whose value is no mean over items: `exp` or a multiple of a ratio of sums, as in lm-eval.
const CORPUS: &[Corpus] = &[
    Corpus { name: "perplexity", of: ("log_likelihood", None), finish: |mean| (-mean).exp() },
    Corpus { name: "word_perplexity", of: ("log_likelihood", Some("words")), finish: |mean| (-mean).exp() },
    Corpus { name: "byte_perplexity", of: ("log_likelihood", Some("bytes")), finish: |mean| (-mean).exp() },
    Corpus {
        name: "bits_per_byte",
        of: ("log_likelihood", Some("bytes")),
        finish: |mean| -mean / std::f64::consts::LN_2,
    },
];

/// The metrics that the harness reports: means with their standard errors, or measures of the whole corpus with
/// bootstrapped ones. Over several subsets a mean is over all items (lm-eval's `weight_by_size`), and `NAME_macro` is the
/// mean over the `subsets` (OpenCompass' `naive_average`), which [`by_subset`] gives.
pub(super) fn aggregate(
    items: &[Item],
    samples: &[Sample],
    subsets: &BTreeMap<String, Metrics>,
    names: &[&str],
    seed: u64,
) -> Metrics {
    let all: Vec<&Values> = samples.iter().map(|sample| &sample.metrics).collect();
    let mut metrics = measure(&all, names, seed);
    if subsets.len() > 1 {
        for name in names {
            let values: Vec<f64> = subsets.values().filter_map(|metrics| Some(metrics.get(*name)?.value)).collect();
            if !values.is_empty() && metrics.contains_key(*name) {
                let value = values.iter().sum::<f64>() / values.len() as f64;
                // Subsets are what the benchmark is made of, no sample of them.
                metrics.insert(format!("{name}_macro"), Metric { value, stderr: None });
            }
        }
    }
    let labelled: Vec<&Values> =
        items.iter().zip(&all).filter(|(item, _)| item.gold.is_some()).map(|(_, values)| *values).collect();
    if !labelled.is_empty() && labelled.len() < all.len() {
        let of_labelled = measure(&labelled, names, seed);
        metrics.extend(of_labelled.into_iter().map(|(name, metric)| (format!("{name}_labelled"), metric)));
    }
    metrics
}

/// The same of each subset; empty without subsets.
pub(super) fn by_subset(items: &[Item], samples: &[Sample], names: &[&str], seed: u64) -> BTreeMap<String, Metrics> {
    let subsets: BTreeSet<&String> = items.iter().filter_map(|item| item.subset.as_ref()).collect();
    let of = |subset: &String| {
        let own = items.iter().zip(samples).filter(|(item, _)| item.subset.as_ref() == Some(subset));
        let own: Vec<&Values> = own.map(|(_, sample)| &sample.metrics).collect();
        (subset.clone(), measure(&own, names, seed))
    };
    subsets.into_iter().map(of).collect()
}

fn measure(values: &[&Values], names: &[&str], seed: u64) -> Metrics {
    let of = |name: &&str| {
        let metric = match CORPUS.iter().find(|corpus| corpus.name == *name) {
            Some(corpus) => corpus.of(values, seed),
            None => {
                let own: Vec<f64> = values.iter().filter_map(|values| values.get(*name).copied()).collect();
                (!own.is_empty()).then(|| mean(&own))
            }
        };
        Some(((*name).to_owned(), metric?))
    };
    names.iter().filter_map(of).collect()
}

impl Corpus {
    fn of(&self, values: &[&Values], seed: u64) -> Option<Metric> {
        let (above, below) = self.of;
        let pairs: Vec<(f64, f64)> = values
            .iter()
            .map(|values| Some((*values.get(above)?, below.map_or(Some(1.0), |below| values.get(below).copied())?)))
            .collect::<Option<_>>()?;
        let measure = |chosen: &[usize]| {
            let sums = chosen.iter().fold((0.0, 0.0), |sums, &item| (sums.0 + pairs[item].0, sums.1 + pairs[item].1));
            (self.finish)(sums.0 / sums.1)
        };
        let all: Vec<usize> = (0..pairs.len()).collect();
        (!all.is_empty()).then(|| Metric { value: measure(&all), stderr: bootstrap(pairs.len(), seed, measure) })
    }
}
