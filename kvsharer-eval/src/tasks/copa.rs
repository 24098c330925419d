//! COPA (Roemmele et al. 2011), as in SuperGLUE (Wang et al., arXiv 1905.00537): which of two is the cause or effect.
//!
//! Sources: lm-eval `copa`, OpenCompass `SuperGLUE_COPA_ppl_9f3618`.

use super::prompt::rounds;
use super::python::{first_char, strip};
use super::read::{Reader, json_lines};
use super::{Choice, Entry, Fault, Item, Row, Rules};

pub(super) const ENTRY: Entry = Entry {
    name: "copa",
    summary: "cause or effect, 2 choices",
    files: "val.jsonl (premise, question, choice1, choice2, label)",
    lm_eval: Some(Rules::new("copa", &["acc"], lm_eval)),
    opencompass: Some(Rules::new("SuperGLUE_COPA_ppl_9f3618", &["acc"], opencompass)),
    reader: Reader::file(json_lines),
};

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let mut premise = strip(row.filled("premise")?).chars();
    premise.next_back();
    let connector = ["because", "therefore"][row.label("question", &QUESTIONS)?];
    let context = format!("{} {connector}", premise.as_str());
    // A space of the choice's own comes after that of the delimiter.
    let choices =
        choices(row)?.map(|choice| Choice::new(&context, format!(" {}", first_char(choice, char::to_lowercase))));
    Ok(Some(Item::choices(&row.place, choices.into(), row.index("label", 0, 2)?)))
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let question = QUESTIONS[row.label("question", &QUESTIONS)?];
    let asked = format!("{}\nQuestion: What may be the {question}?\nAnswer:", row.filled("premise")?);
    Ok(Some(Item::prompts(&row.place, rounds(&asked, &choices(row)?), row.index("label", 0, 2)?)))
}

const QUESTIONS: [&str; 2] = ["cause", "effect"];

fn choices(row: &Row) -> Result<[&str; 2], Fault> {
    Ok([row.filled("choice1")?, row.filled("choice2")?])
}
