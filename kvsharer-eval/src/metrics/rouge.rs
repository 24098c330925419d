//! ROUGE, the overlap of a summary with its reference.
//!
//! Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), <https://aclanthology.org/W04-1013>, as
//! computed by google-research's `rouge_score` 0.1.2 without its stemmer
//! (<https://github.com/google-research/google-research/tree/master/rouge>): `rouge1`, `rouge2` and `rougeL`, the last
//! over the whole text, not by sentences as `rougeLsum`.

use std::collections::HashMap;

/// F-measures from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rouge {
    /// ROUGE-1: words in common.
    pub one: f64,
    /// ROUGE-2: pairs of adjacent words in common.
    pub two: f64,
    /// ROUGE-L: the longest common subsequence of words.
    pub l: f64,
}

/// ROUGE of a prediction against one reference.
///
/// Only words of `a-z0-9` count, after lower-casing; everything else separates. So texts in other scripts have no
/// words and score 0, in `rouge_score` as here.
pub fn rouge(prediction: &str, reference: &str) -> Rouge {
    let (prediction, reference) = (prediction.to_lowercase(), reference.to_lowercase());
    let (prediction, reference) = (words(&prediction), words(&reference));
    let ngram = |n: usize| {
        let size = |words: &[&str]| (words.len() + 1).saturating_sub(n);
        f_measure(common_ngrams(&prediction, &reference, n), size(&prediction), size(&reference))
    };
    Rouge {
        one: ngram(1),
        two: ngram(2),
        l: f_measure(longest_common(&prediction, &reference), prediction.len(), reference.len()),
    }
}

fn words(lower_case: &str) -> Vec<&str> {
    lower_case.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit()).filter(|word| !word.is_empty()).collect()
}

/// N-grams of both texts; one that repeats counts as often as in the text that has it less often.
fn common_ngrams(prediction: &[&str], reference: &[&str], n: usize) -> usize {
    let mut left: HashMap<&[&str], usize> = HashMap::new();
    for ngram in reference.windows(n) {
        *left.entry(ngram).or_default() += 1;
    }
    let mut taken = 0;
    for ngram in prediction.windows(n) {
        if let Some(count) = left.get_mut(ngram).filter(|count| **count > 0) {
            *count -= 1;
            taken += 1;
        }
    }
    taken
}

/// Length of the longest common subsequence; keeps one row of the table.
fn longest_common(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        // The cell above and left, which the row overwrites.
        let mut corner = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { corner + 1 } else { above.max(row[j]) };
            corner = above;
        }
    }
    row[b.len()]
}

fn f_measure(common: usize, predicted: usize, expected: usize) -> f64 {
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) = (common as f64 / predicted as f64, common as f64 / expected as f64);
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} instead of {expected}");
    }

    #[test]
    fn the_papers_example() {
        // Lin 2004, section 3.1: "police killed the gunman"; S2 and S3 share the words, not their order.
        let reference = "police killed the gunman";
        close(rouge("police kill the gunman", reference).l, 0.75);
        close(rouge("the gunman kill police", reference).l, 0.5);
        close(rouge("the gunman police killed", reference).l, 0.5);
        close(rouge("the gunman police killed", reference).one, 1.0);
    }

    #[test]
    fn repeats_are_clipped() {
        // Two of five words and two of two: F = 2 · 0.4 · 1 / 1.4.
        let found = rouge("the the the the cat", "The cat.");
        close(found.one, 0.8 / 1.4);
        close(found.two, 2.0 * 0.25 / 1.25);
    }

    #[test]
    fn what_is_no_word_separates() {
        assert_eq!(words("it's 3.5-fold, naïve\u{3000}x"), ["it", "s", "3", "5", "fold", "na", "ve", "x"]);
        close(rouge("STATE-of-the-Art!", "state of the art").two, 1.0);
    }

    #[test]
    fn nothing_scores_nothing() {
        for (prediction, reference) in [("", ""), ("", "a b"), ("a b", ""), ("...", "a"), ("天气", "天气")] {
            assert_eq!(rouge(prediction, reference), Rouge::default());
        }
        // One word has no pair.
        let word = rouge("word", "word");
        assert_eq!((word.one, word.two, word.l), (1.0, 0.0, 1.0));
    }
}
