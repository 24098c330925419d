//! Means over items.

use crate::Metric;

/// The mean and its standard error: the sample's standard deviation (n − 1) by √n, as lm-evaluation-harness'
/// `mean_stderr`. For values of 0 and 1 this is the binomial √(p(1 − p) / (n − 1)).
///
/// There is no error for fewer than two values, and the mean of none is NaN.
pub fn mean(values: &[f64]) -> Metric {
    let stderr = sample_std(values).map(|std| std / (values.len() as f64).sqrt());
    Metric { value: plain_mean(values), stderr }
}

fn plain_mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Standard deviation with n − 1; `None` for fewer than two values.
pub(super) fn sample_std(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let mean = plain_mean(values);
    // Two passes: the difference of the sums of squares would lose all digits of values far from 0.
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_values_have_the_binomial_error() {
        let metric = mean(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]);
        assert_eq!(metric.value, 0.625);
        let expected = (0.625f64 * 0.375 / 7.0).sqrt();
        assert!((metric.stderr.unwrap() - expected).abs() < 1e-15);
    }

    #[test]
    fn a_known_sample() {
        // Squares about the mean 5 sum to 32; √(32 / 7) / √8 = √(4 / 7).
        let metric = mean(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!(metric.value, 5.0);
        assert!((metric.stderr.unwrap() - (4.0f64 / 7.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn an_offset_changes_no_error() {
        let far = mean(&[1e9 + 1.0, 1e9 + 2.0, 1e9 + 4.0]).stderr.unwrap();
        let near = mean(&[1.0, 2.0, 4.0]).stderr.unwrap();
        assert!((far - near).abs() < 1e-6);
    }

    #[test]
    fn too_few_values_have_no_error() {
        assert_eq!(mean(&[0.25]), Metric { value: 0.25, stderr: None });
        let none = mean(&[]);
        assert!(none.value.is_nan() && none.stderr.is_none());
    }

    #[test]
    fn equal_values_have_no_spread() {
        assert_eq!(mean(&[1.0; 10]), Metric { value: 1.0, stderr: Some(0.0) });
    }
}
