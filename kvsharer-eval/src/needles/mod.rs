//! Long prompts that hide numbers in filler text and ask for them: retrieval that a shared or evicted cache may lose.
//!
//! Prompts are generated from a seed; no file is needed. [`NeedleKind::Passkey`] follows Mohtashami & Jaggi
//! ([arXiv 2305.16300](https://arxiv.org/abs/2305.16300)), [`NeedleKind::Needle`] and [`NeedleKind::NeedleEach`] the
//! multi-key needles of RULER ([arXiv 2404.06654](https://arxiv.org/abs/2404.06654)). Results compare among runs of
//! this program, not with the papers' tables, since we deviate:
//!
//! - The filler and the words around it are our own; RULER has essays, repeated noise or further needles.
//! - Depths are chosen, and measured in filler sentences; both papers' programs draw them, that of the pass keys by
//!   characters. Its keys are 1 to 50,000; ours always have five digits.
//! - RULER's keys are words drawn from a list and its length includes room for the answer; ours are cities, and the
//!   length is that of the prompt.
//! - A number counts only if it stands alone ([`found`]); RULER also takes it as a part of longer digits.

mod draw;
mod fit;
mod found;
mod text;

pub use found::found;

use draw::Draw;
use fit::Fit;
use text::{CITIES, Haystack};
use thiserror::Error;

/// What is hidden, and what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeedleKind {
    /// One five-digit pass key. [`NeedleOptions::needles`] is not used.
    Passkey,
    /// Seven-digit numbers of several cities; the question asks for all of them at once.
    Needle,
    /// The same, asked one by one: as many prompts as needles, each with all the needles and one question.
    NeedleEach,
}

/// Which prompts to make: `samples` of each length and depth.
#[derive(Clone, Debug, PartialEq)]
pub struct NeedleOptions {
    /// Most tokens of a prompt, with whatever the encoder puts before it.
    pub lengths: Vec<usize>,
    /// Where the first needle stands in the filler: 0 before all of it, 1 after all of it.
    ///
    /// Needle k of n (from 0) stands at `depth + k / n`, less 1 where that is beyond 1: evenly around the text.
    pub depths: Vec<f64>,
    /// Needles in a prompt.
    pub needles: usize,
    /// Prompts of a length and depth, each with numbers of its own.
    pub samples: usize,
    /// Seed of the numbers and cities. A prompt depends on it, on `needles` and on its own length, depth and index, not
    /// on which other prompts are made.
    pub seed: u64,
}

/// A prompt, and what its continuation should say.
#[derive(Clone, Debug, PartialEq)]
pub struct NeedlePrompt {
    /// The length asked for; `ids` has as many tokens as whole filler sentences allow, and never more.
    pub length: usize,
    /// The depth asked for.
    pub depth: f64,
    /// The prompt; it ends amid a sentence that the answers complete.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The numbers asked for, in the question's order.
    pub answers: Vec<String>,
}

/// Why prompts cannot be made.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum NeedleError<E: std::error::Error + 'static> {
    /// The tokenizer.
    #[error(transparent)]
    Encode(E),
    /// A length that leaves no room for filler.
    #[error("a prompt of {length} tokens is too short: the question and the needles alone take {least}")]
    TooShort {
        /// The length.
        length: usize,
        /// Tokens without any filler.
        least: usize,
    },
    /// A depth outside of the text.
    #[error("a depth of {0} is outside of the text: use 0 to 1")]
    Depth(f64),
    /// Needles that cannot be told apart.
    #[error("{needles} needles, expected 1 to {most}")]
    Needles {
        /// Needles asked for.
        needles: usize,
        /// The most there are.
        most: usize,
    },
    /// More numbers than there are.
    #[error("{samples} samples of a length and depth, expected at most {most}: their numbers would repeat")]
    Samples {
        /// Samples asked for.
        samples: usize,
        /// The most there are.
        most: usize,
    },
}

/// Makes the prompts, by length, depth, sample and (for [`NeedleKind::NeedleEach`]) needle.
///
/// `encode` gives a whole prompt's tokens, with a start token if the model has one.
///
/// # Errors
/// [`NeedleError`] for options that make no prompt, or whatever `encode` refuses.
pub fn prompts<E: std::error::Error + 'static>(
    kind: NeedleKind,
    options: &NeedleOptions,
    encode: impl Fn(&str) -> Result<Vec<u32>, E>,
) -> Result<Vec<NeedlePrompt>, NeedleError<E>> {
    let needles = if kind == NeedleKind::Passkey { 1 } else { options.needles };
    if !(1..=CITIES.len()).contains(&needles) {
        return Err(NeedleError::Needles { needles, most: CITIES.len() });
    }
    let most = Draw::most(kind) / needles;
    if options.samples > most {
        return Err(NeedleError::Samples { samples: options.samples, most });
    }
    if let Some(&depth) = options.depths.iter().find(|depth| !(0.0..=1.0).contains(*depth)) {
        return Err(NeedleError::Depth(depth));
    }
    let fit = Fit::new(&encode)?;
    let mut prompts = Vec::new();
    for &length in &options.lengths {
        for &depth in &options.depths {
            let mut draw = Draw::new(kind, options.seed, length, depth);
            for _ in 0..options.samples {
                let facts = draw.facts(needles);
                for asked in questions(kind, needles) {
                    let haystack = Haystack::new(kind, &facts, &asked, depth);
                    let answers = asked.iter().map(|&needle| facts[needle].number.clone()).collect();
                    let (text, ids) = fit.longest(length, |sentences| haystack.text(sentences))?;
                    prompts.push(NeedlePrompt { length, depth, text, ids, answers });
                }
            }
        }
    }
    Ok(prompts)
}

/// The needles that each prompt of a sample asks for.
fn questions(kind: NeedleKind, needles: usize) -> Vec<Vec<usize>> {
    match kind {
        NeedleKind::Passkey | NeedleKind::Needle => vec![(0..needles).collect()],
        NeedleKind::NeedleEach => (0..needles).map(|needle| vec![needle]).collect(),
    }
}

#[cfg(test)]
mod tests;
