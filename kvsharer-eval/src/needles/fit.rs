//! As much filler as a length holds.

use super::NeedleError;
use super::text::FILLER;

/// Fits prompts of a tokenizer.
pub(super) struct Fit<F> {
    encode: F,
    /// Tokens of the filler once through.
    cycle: usize,
}

impl<E: std::error::Error + 'static, F: Fn(&str) -> Result<Vec<u32>, E>> Fit<F> {
    pub(super) fn new(encode: F) -> Result<Self, NeedleError<E>> {
        let cycle = encode(&FILLER.join(" ")).map_err(NeedleError::Encode)?.len();
        Ok(Self { encode, cycle: cycle.max(1) })
    }

    /// The prompt with the most sentences that has at most `length` tokens.
    ///
    /// A binary search, but from a guess outwards: long prompts take a while to encode, and the guess is hardly off.
    pub(super) fn longest(
        &self,
        length: usize,
        text: impl Fn(usize) -> String,
    ) -> Result<(String, Vec<u32>), NeedleError<E>> {
        let mut best = self.encoded(text(0))?;
        let bare = best.1.len();
        if bare > length {
            return Err(NeedleError::TooShort { length, least: bare });
        }
        // `low` sentences fit; `high` do not, at first because a sentence takes at least a token.
        let (mut low, mut high) = (0, length + 1);
        let guess = (length - bare) as f64 * FILLER.len() as f64 / self.cycle as f64;
        let mut sentences = (guess as usize).clamp(1, length.max(1));
        let mut step = 1;
        while high - low > 1 {
            let tried = self.encoded(text(sentences))?;
            if tried.1.len() <= length {
                (best, low) = (tried, sentences);
            } else {
                high = sentences;
            }
            sentences = if low == 0 {
                high.saturating_sub(step).max(1)
            } else if high > length {
                (low + step).min(length)
            } else {
                low + (high - low) / 2
            };
            step *= 2;
        }
        Ok(best)
    }

    fn encoded(&self, text: String) -> Result<(String, Vec<u32>), NeedleError<E>> {
        let ids = (self.encode)(&text).map_err(NeedleError::Encode)?;
        Ok((text, ids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::convert::Infallible;

    /// `each` tokens a character of the text and 5 before it.
    fn fitted(each: usize, length: usize) -> Result<usize, NeedleError<Infallible>> {
        let calls = Cell::new(0);
        let fit = Fit::new(|text: &str| {
            calls.set(calls.get() + 1);
            Ok(vec![0; 5 + each * text.len()])
        })?;
        let found = fit.longest(length, |sentences| "x".repeat(sentences))?;
        assert!(calls.get() < 50);
        Ok(found.0.len())
    }

    #[test]
    fn takes_all_that_fits_however_wrong_the_guess() {
        for each in [1, 3, 60] {
            for length in [5, 6, 7, 8, 64, 65, 1000, 5000] {
                assert_eq!(fitted(each, length), Ok((length - 5) / each), "{each} {length}");
            }
        }
    }

    #[test]
    fn nothing_fits_into_too_little() {
        assert_eq!(fitted(1, 4), Err(NeedleError::TooShort { length: 4, least: 5 }));
        assert_eq!(fitted(1, 0), Err(NeedleError::TooShort { length: 0, least: 5 }));
    }

    #[test]
    fn a_tokenizer_without_tokens_ends() {
        let fit = Fit::new(|_: &str| Ok::<_, Infallible>(Vec::new())).unwrap();
        assert_eq!(fit.longest(10, |sentences| "x".repeat(sentences)).unwrap().0.len(), 10);
        assert_eq!(fit.longest(0, |sentences| "x".repeat(sentences)).unwrap().0.len(), 0);
    }
}
