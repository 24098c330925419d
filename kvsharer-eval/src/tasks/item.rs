//! An item as a protocol asks it.

use super::{Place, Protocol};

/// One continuation of one context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What stands before; not scored.
    pub context: String,
    /// What is scored, with the delimiter before it.
    pub continuation: String,
    /// The choice alone, whose length `acc_norm` and `acc_bytes` divide by.
    pub text: String,
}

impl Choice {
    /// A choice that follows its context after one space, as lm-eval's `target_delimiter` has it.
    pub fn new(context: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { context: context.into(), continuation: format!(" {text}"), text }
    }
}

/// What is asked of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// lm-eval `multiple_choice`: the log-likelihood of every continuation.
    Choices(Vec<Choice>),
    /// OpenCompass `PPLInferencer`: the mean loss of every whole prompt, one a label; the lowest wins.
    Prompts(Vec<String>),
    /// OpenCompass `LLInferencer`: the conditional likelihood of `(prompt, continuation)`; the highest wins.
    Likelihoods(Vec<(String, String)>),
    /// lm-eval `loglikelihood`: one continuation, and whether greedy decoding gives it.
    Continuation(Choice),
    /// lm-eval `loglikelihood_rolling`: a whole text; words and bytes are those of the original.
    Document {
        /// The text that is scored.
        text: String,
        /// Words of the original, split at white space.
        words: usize,
        /// UTF-8 bytes of the original.
        bytes: usize,
    },
    /// A text to generate, compared with a reference.
    Summary {
        /// The prompt.
        prompt: String,
        /// What a person wrote.
        reference: String,
    },
}

impl Ask {
    /// Texts that are scored or written for it; of a document, at least one.
    pub fn texts(&self) -> usize {
        match self {
            Ask::Choices(choices) => choices.len(),
            Ask::Prompts(prompts) => prompts.len(),
            Ask::Likelihoods(pairs) => pairs.len(),
            Ask::Continuation(_) | Ask::Document { .. } | Ask::Summary { .. } => 1,
        }
    }
}

/// One item of a task.
///
/// Its examples are kept apart from what is asked, so that a caller can leave some out of a prompt that would be too
/// long: a prompt is [`before`](Self::before) followed by a context or prompt of [`ask`](Self::ask).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where it stands.
    pub place: Place,
    /// Its part of the benchmark (subject, level), within which examples are chosen and which is reported apart.
    pub subset: Option<String>,
    /// What stands before the examples.
    pub head: String,
    /// The examples before it, each without its end.
    pub shots: Vec<String>,
    /// What stands between two examples and after the last, where that is not the protocol's usual.
    pub joint: Option<(&'static str, &'static str)>,
    /// How the item reads as an example for another; empty if the protocol knows none.
    pub shot: String,
    /// The right choice; `None` where nothing is chosen, or where a kept item has no right choice.
    pub gold: Option<usize>,
    /// What is asked.
    pub ask: Ask,
}

impl Item {
    /// An item of lm-eval's `multiple_choice`. As an example it reads as its right choice does.
    pub fn choices(place: &Place, choices: Vec<Choice>, gold: impl Into<Option<usize>>) -> Self {
        let gold = gold.into();
        let right = gold.and_then(|gold| choices.get(gold));
        let shot = right.map_or_else(String::new, |choice| choice.context.clone() + &choice.continuation);
        Self { shot, ..Self::new(place, Ask::Choices(choices), gold) }
    }

    /// An item of OpenCompass' `PPLInferencer`.
    pub fn prompts(place: &Place, prompts: Vec<String>, gold: impl Into<Option<usize>>) -> Self {
        Self::new(place, Ask::Prompts(prompts), gold)
    }

    /// Any other item.
    pub fn new(place: &Place, ask: Ask, gold: impl Into<Option<usize>>) -> Self {
        Self {
            place: place.clone(),
            subset: None,
            head: String::new(),
            shots: Vec::new(),
            joint: None,
            shot: String::new(),
            gold: gold.into(),
            ask,
        }
    }

    /// An item of OpenCompass' `PPLInferencer` that reads as its right prompt does when it is an example, with what stands
    /// between two examples and after the last.
    pub(super) fn shown_with(self, joint: (&'static str, &'static str)) -> Self {
        let Ask::Prompts(prompts) = &self.ask else {
            return self;
        };
        let shot = self.gold.and_then(|gold| prompts.get(gold)).cloned().unwrap_or_default();
        Self { joint: Some(joint), shot, ..self }
    }

    /// What stands before every context and prompt of the item: its head and the first `shots` of its examples.
    ///
    /// lm-eval ends each example with an empty line, OpenCompass with a line break, unless [`joint`](Self::joint) says
    /// otherwise.
    pub fn before(&self, shots: usize, protocol: Protocol) -> String {
        let usual = match protocol {
            Protocol::LmEval => ("\n\n", "\n\n"),
            Protocol::OpenCompass => ("\n", "\n"),
        };
        let (between, after) = self.joint.unwrap_or(usual);
        let shown: Vec<&str> = self.shots.iter().take(shots).map(String::as_str).collect();
        let end = if shown.is_empty() { "" } else { after };
        format!("{}{}{end}", self.head, shown.join(between))
    }
}
