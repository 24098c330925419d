//! Whether a model under a sharing map still does what the untouched model did.

use serde::{Deserialize, Serialize};

/// How the cosine similarity of final hidden states is taken over the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// As the official code has it: for each sample, the cosine of its flattened `[token, hidden]` states after the
    /// final norm; then the mean over the samples.
    #[default]
    Code,
    /// As the paper states it: the cosine of the hidden states averaged over the samples. Samples of unequal length
    /// are averaged position by position over those that reach it, as keys and values are.
    Paper,
}

impl Gate {
    /// Similarity over (untouched, shared) states of all samples, each `[token, hidden]` flattened; 1 is no change.
    pub(crate) fn similarity<'a>(self, samples: impl Iterator<Item = (&'a [f32], &'a [f32])>) -> f64 {
        match self {
            Gate::Code => {
                let (mut sum, mut count) = (0.0, 0);
                for (reference, shared) in samples {
                    sum += cosine(reference.iter().map(|&x| x.into()), shared.iter().map(|&x| x.into()));
                    count += 1;
                }
                sum / f64::from(count.max(1))
            }
            Gate::Paper => {
                let (mut reference_sum, mut shared_sum, mut counts) = (Vec::new(), Vec::new(), Vec::new());
                for (reference, shared) in samples {
                    add(&mut reference_sum, reference.iter().map(|&x| x.into()));
                    add(&mut shared_sum, shared.iter().map(|&x| x.into()));
                    add(&mut counts, reference.iter().map(|_| 1.0));
                }
                let mean = |sum: Vec<f64>| sum.into_iter().zip(counts.clone()).map(|(sum, count)| sum / count);
                cosine(mean(reference_sum), mean(shared_sum))
            }
        }
    }
}

/// Adds values to a running sum that grows with its longest term.
fn add(sum: &mut Vec<f64>, values: impl Iterator<Item = f64>) {
    for (index, value) in values.enumerate() {
        match sum.get_mut(index) {
            Some(total) => *total += value,
            None => sum.push(value),
        }
    }
}

/// Cosine similarity in f64; 0 if either side is all zeros, NaN if either has a NaN.
fn cosine(a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
    let (dot, aa, bb) = a.zip(b).fold((0.0, 0.0, 0.0), |(dot, aa, bb), (a, b)| (dot + a * b, aa + a * a, bb + b * b));
    let norm = f64::sqrt(aa * bb);
    if norm == 0.0 { 0.0 } else { dot / norm }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_averages_cosines_and_the_paper_averages_states() {
        let (a, b) = ([1.0_f32, 0.0], [0.0_f32, 1.0]);
        let samples = || [(&a[..], &a[..]), (&b[..], &a[..])].into_iter();
        assert_eq!(Gate::Code.similarity(samples()), 0.5);
        // Means (0.5, 0.5) and (1, 0).
        assert!((Gate::Paper.similarity(samples()) - 0.5_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn shorter_samples_count_where_they_reach() {
        let (long, short) = ([2.0_f32, 4.0], [4.0_f32]);
        let similarity = Gate::Paper.similarity([(&long[..], &long[..]), (&short[..], &short[..])].into_iter());
        assert!((similarity - 1.0).abs() < 1e-12);
    }
}
