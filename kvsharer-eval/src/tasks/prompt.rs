//! Pieces that the prompts of several tasks share.

use super::{Choice, Fault};

/// What choices are called.
pub(super) const LETTERS: [&str; 5] = ["A", "B", "C", "D", "E"];

/// What OpenCompass puts between two examples, and after the last, where its template has rounds.
///
/// A template with rounds becomes a list of parts, and parts are joined by line breaks. The separator after each example
/// and the end after the last are parts as well, each a line break itself.
pub(super) const ROUNDS_JOINT: (&str, &str) = ("\n\n\n", "\n\n\n\n\n");

/// `A. first`, `B. second` and so on, one a line.
pub(super) fn lettered(options: &[&str]) -> String {
    let lines = LETTERS.iter().zip(options).map(|(letter, option)| format!("{letter}. {option}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The first letters as choices.
pub(super) fn letter_choices(context: &str, letters: &[&str]) -> Vec<Choice> {
    letters.iter().map(|letter| Choice::new(context, *letter)).collect()
}

/// `no` and `yes` as choices.
pub(super) fn no_or_yes(context: &str) -> Vec<Choice> {
    letter_choices(context, &["no", "yes"])
}

/// `Question: ..`, then `Answer:`.
pub(super) fn question_answer(question: &str) -> String {
    format!("Question: {question}\nAnswer:")
}

/// OpenCompass' two rounds without a chat template: what a person says and what the model replies, a line each.
pub(super) fn rounds(human: &str, replies: &[&str]) -> Vec<String> {
    replies.iter().map(|reply| format!("{human}\n{reply}")).collect()
}

/// The letters before the options must be A, B, C.. in this order, since the prompt writes its own.
pub(super) fn in_order(key: &str, labels: &[&str], letters: &[&str]) -> Result<(), Fault> {
    let fault = || Fault::Label { key: key.into(), expected: letters.join(", "), found: labels.join(", ") };
    if labels == letters { Ok(()) } else { Err(fault()) }
}
