//! Texts written for this project.

/// Calibration samples, one paragraph a line.
pub const CALIBRATION: &str = include_str!("../data/calibration.txt");

/// Ten short essays for measuring perplexity; none of their sentences is in [`CALIBRATION`].
pub const DEMO: &str = include_str!("../data/demo.txt");

/// The non-empty lines of a calibration text: one sample a line.
pub fn samples(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_texts_are_long_enough_and_share_no_sentence() {
        assert_eq!(samples(CALIBRATION).count(), 40);
        assert!(samples(CALIBRATION).all(|line| line.split_whitespace().count() > 64));
        assert!(DEMO.split_whitespace().count() > 4000);
        let sentences = |text: &'static str| -> HashSet<&str> {
            text.split(['.', '\n']).map(str::trim).filter(|s| s.len() > 20).collect()
        };
        assert!(sentences(CALIBRATION).is_disjoint(&sentences(DEMO)));
    }
}
