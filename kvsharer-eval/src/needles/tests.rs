//! Prompts under a tokenizer that has a token for each word.

use super::*;
use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt::{self, Display};

const KINDS: [NeedleKind; 3] = [NeedleKind::Passkey, NeedleKind::Needle, NeedleKind::NeedleEach];

fn words(text: &str) -> Result<Vec<u32>, Infallible> {
    Ok(text.split_whitespace().map(|word| word.len() as u32).collect())
}

fn options() -> NeedleOptions {
    NeedleOptions {
        lengths: vec![150, 151, 158, 1000, 4000],
        depths: vec![0.0, 0.25, 0.5, 1.0],
        needles: 3,
        samples: 4,
        seed: 11,
    }
}

fn made(kind: NeedleKind, options: &NeedleOptions) -> Vec<NeedlePrompt> {
    prompts(kind, options, words).unwrap()
}

/// How often the text says the number.
fn mentions(prompt: &NeedlePrompt, number: &str) -> usize {
    prompt.text.split(|c: char| !c.is_ascii_digit()).filter(|found| *found == number).count()
}

#[test]
fn lengths_are_used_up_and_never_exceeded() {
    for kind in KINDS {
        for prompt in made(kind, &options()) {
            assert_eq!(prompt.ids, words(&prompt.text).unwrap());
            // The longest sentence of the filler has 11 words.
            assert!((prompt.length - 11..=prompt.length).contains(&prompt.ids.len()), "{prompt:?}");
        }
    }
}

#[test]
fn every_combination_is_there_in_order() {
    let options = options();
    let found: Vec<(usize, f64)> = made(NeedleKind::NeedleEach, &options).iter().map(|p| (p.length, p.depth)).collect();
    let expected = options
        .lengths
        .iter()
        .flat_map(|&length| options.depths.iter().flat_map(move |&depth| std::iter::repeat_n((length, depth), 4 * 3)));
    assert_eq!(found, expected.collect::<Vec<_>>());
}

#[test]
fn the_key_stands_at_its_depth() {
    for prompt in made(NeedleKind::Passkey, &options()) {
        let body = prompt.text.split("\n\n").nth(1).unwrap();
        let (before, after) = body.split_once("The pass key is").unwrap();
        let after = after.split_once("is the pass key.").unwrap().1;
        let sentences = |text: &str| text.matches('.').count() as f64;
        let (before, all) = (sentences(before), sentences(before) + sentences(after));
        assert!((before - prompt.depth * all).abs() <= 0.5, "{before} of {all} at {}", prompt.depth);
    }
}

#[test]
fn answers_stand_in_their_needles_only() {
    for (kind, times) in [(NeedleKind::Passkey, 2), (NeedleKind::Needle, 1), (NeedleKind::NeedleEach, 1)] {
        for prompt in made(kind, &options()) {
            assert_eq!(prompt.answers.len(), if kind == NeedleKind::Needle { 3 } else { 1 });
            assert!(prompt.answers.iter().all(|answer| mentions(&prompt, answer) == times));
            assert_eq!(found(&prompt.answers, &prompt.text), 1.0);
        }
    }
}

#[test]
fn one_by_one_asks_for_each_of_the_same_needles() {
    let (all, each) = (made(NeedleKind::Needle, &options()), made(NeedleKind::NeedleEach, &options()));
    let answers = |prompts: &[NeedlePrompt]| prompts.iter().flat_map(|p| p.answers.clone()).collect::<Vec<_>>();
    assert_eq!(answers(&all), answers(&each));
    for (all, each) in all.iter().zip(each.chunks(3)) {
        for prompt in each {
            assert!(all.answers.iter().all(|answer| mentions(prompt, answer) == 1));
            let (_, question) = prompt.text.rsplit_once("magic number for ").unwrap();
            let city = question.strip_suffix(" is").unwrap();
            assert!(prompt.text.contains(&format!("The special magic number for {city} is {}.", prompt.answers[0])));
        }
    }
}

#[test]
fn the_seed_decides_and_nothing_else() {
    for kind in KINDS {
        let whole = made(kind, &options());
        assert_eq!(whole, made(kind, &options()));
        assert_ne!(whole, made(kind, &NeedleOptions { seed: 12, ..options() }));
        // A part of the grid gives the same prompts as the whole.
        let part = NeedleOptions { lengths: vec![1000], depths: vec![0.5], samples: 2, ..options() };
        let part = made(kind, &part);
        let same: Vec<_> = whole.iter().filter(|p| p.length == 1000 && p.depth == 0.5).take(part.len()).collect();
        assert!(part.iter().eq(same));
    }
}

#[test]
fn samples_have_numbers_of_their_own() {
    for kind in KINDS {
        let one = NeedleOptions { lengths: vec![150], depths: vec![0.5], samples: 50, ..options() };
        let answers: Vec<String> = made(kind, &one).into_iter().flat_map(|prompt| prompt.answers).collect();
        assert_eq!(answers.iter().collect::<HashSet<_>>().len(), answers.len());
    }
}

#[test]
fn refuses_what_makes_no_prompt() {
    let error = |options: NeedleOptions| prompts(NeedleKind::Needle, &options, words).unwrap_err();
    let short = error(NeedleOptions { lengths: vec![40], ..options() });
    assert!(matches!(short, NeedleError::TooShort { length: 40, least } if least > 40));
    assert_eq!(error(NeedleOptions { depths: vec![0.5, 1.5], ..options() }), NeedleError::Depth(1.5));
    assert!(matches!(error(NeedleOptions { depths: vec![f64::NAN], ..options() }), NeedleError::Depth(_)));
    assert_eq!(error(NeedleOptions { needles: 0, ..options() }), NeedleError::Needles { needles: 0, most: 32 });
    assert_eq!(error(NeedleOptions { needles: 33, ..options() }), NeedleError::Needles { needles: 33, most: 32 });
    assert!(matches!(error(NeedleOptions { samples: usize::MAX, ..options() }), NeedleError::Samples { .. }));
    assert!(prompts(NeedleKind::Passkey, &NeedleOptions { needles: 0, ..options() }, words).is_ok());
}

#[test]
fn a_tokenizer_that_fails_is_heard() {
    #[derive(Debug)]
    struct Broken;
    impl Display for Broken {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("broken")
        }
    }
    impl std::error::Error for Broken {}
    let error = prompts(NeedleKind::Passkey, &options(), |_| Err(Broken)).unwrap_err();
    assert_eq!(error.to_string(), "broken");
}
