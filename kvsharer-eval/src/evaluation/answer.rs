//! What an item's scores say: the choices they pick, and whether those are right.

use super::Values;
use super::summary::Summary;
use crate::metrics::rouge;
use crate::requests::Request;
use crate::score::Likelihood;
use crate::tasks::{Ask, Item};
use std::collections::BTreeMap;

/// The verdict on one item.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) scores: Vec<f64>,
    pub(super) picks: BTreeMap<String, usize>,
    pub(super) metrics: Values,
}

/// Judges an item by its protocol's rules.
pub(super) fn answer(item: &Item, request: &Request, found: &[Likelihood], text: Option<&Summary>) -> Answer {
    let sums: Vec<f64> = found.iter().map(|likelihood| likelihood.log_likelihood).collect();
    match &item.ask {
        Ask::Choices(choices) => {
            let divided = |length: fn(&str) -> usize| {
                // A choice that stands in its context altogether (WinoGrande) has the length of what is scored.
                let lengths = choices.iter().map(|choice| length(&choice.text).max(1) as f64);
                sums.iter().zip(lengths).map(|(sum, length)| sum / length).collect::<Vec<f64>>()
            };
            let picks = [
                ("acc", best(&sums)),
                ("acc_norm", best(&divided(|text| text.chars().count()))),
                ("acc_bytes", best(&divided(str::len))),
            ];
            judged(item, sums, &picks)
        }
        Ask::Prompts(_) => {
            // The harness divides by all tokens of the prompt, the first included, which is not predicted.
            let tokens = request.sequences.iter().map(|sequence| sequence.ids.len() as f64);
            let losses: Vec<f64> = sums.iter().zip(tokens).map(|(sum, tokens)| -sum / tokens).collect();
            let lowest: Vec<f64> = losses.iter().map(|loss| -loss).collect();
            judged(item, losses, &[("acc", best(&lowest))])
        }
        Ask::Likelihoods(_) => {
            let unmasked = request.sequences.iter().map(|sequence| sequence.scored.len() as f64);
            let means: Vec<f64> = sums.iter().zip(unmasked).map(|(sum, tokens)| sum / tokens).collect();
            let pick = best(&means);
            judged(item, means, &[("acc", pick)])
        }
        Ask::Continuation(_) => {
            let greedy = found.iter().all(|likelihood| likelihood.greedy);
            let total: f64 = sums.iter().sum();
            let metrics = [("acc", f64::from(greedy)), ("log_likelihood", total)];
            Answer { scores: sums, picks: BTreeMap::new(), metrics: named(&metrics) }
        }
        Ask::Document { words, bytes, .. } => {
            let total: f64 = sums.iter().sum();
            let metrics = [("log_likelihood", total), ("words", *words as f64), ("bytes", *bytes as f64)];
            Answer { scores: sums, picks: BTreeMap::new(), metrics: named(&metrics) }
        }
        Ask::Summary { reference, .. } => {
            let rouge = rouge(text.map_or("", |text| &text.text), reference);
            let metrics = [("rouge1", rouge.one), ("rouge2", rouge.two), ("rougeL", rouge.l)];
            Answer { scores: Vec::new(), picks: BTreeMap::new(), metrics: named(&metrics) }
        }
    }
}

fn judged(item: &Item, scores: Vec<f64>, picks: &[(&str, usize)]) -> Answer {
    let right = |&(name, pick): &(&str, usize)| (name.to_owned(), f64::from(item.gold == Some(pick)));
    let metrics = picks.iter().map(right).collect();
    let picks = picks.iter().map(|&(name, pick)| (name.to_owned(), pick)).collect();
    Answer { scores, picks, metrics }
}

fn named(values: &[(&str, f64)]) -> Values {
    values.iter().map(|&(name, value)| (name.to_owned(), value)).collect()
}

/// The highest score, the first of several.
fn best(scores: &[f64]) -> usize {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_scores_the_first_is_picked() {
        assert_eq!(best(&[-2.0, -1.0, -1.0, -3.0]), 1);
        assert_eq!(best(&[0.5, 0.5]), 0);
    }
}
