//! CommonsenseQA (Talmor et al., arXiv 1811.00937): questions around a concept, five choices.
//!
//! Sources: lm-eval `commonsense_qa`, OpenCompass `commonsenseqa_ppl_c49e77`, which shows the first 8 items of the
//! training file.

use super::prompt::{LETTERS, ROUNDS_JOINT, in_order, letter_choices, lettered, rounds};
use super::python::strip;
use super::read::{Reader, json_lines};
use super::{Entry, Fault, Item, Row, Rules};

pub(super) const ENTRY: Entry = Entry {
    name: "commonsense_qa",
    summary: "questions of common sense, 5 choices",
    files: "dev_rand_split.jsonl (question.stem, question.choices, answerKey)",
    lm_eval: Some(Rules::new("commonsense_qa", &["acc"], lm_eval)),
    opencompass: Some(Rules { shots: 8, ..Rules::new("commonsenseqa_ppl_c49e77", &["acc"], opencompass) }),
    reader: Reader {
        // The published name of the training file.
        dev: |items| Some(items.with_file_name("train_rand_split.jsonl")).filter(|path| path.is_file()),
        ..Reader::file(json_lines)
    },
};

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let context = format!("Question: {}\n{}\nAnswer:", strip(row.filled("question.stem")?), options(row)?);
    Ok(Some(Item::choices(&row.place, letter_choices(&context, &LETTERS), row.label("answerKey", &LETTERS)?)))
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let asked = format!("Question: {}\n{}\nAnswer: ", row.filled("question.stem")?, options(row)?);
    let item = Item::prompts(&row.place, rounds(&asked, &LETTERS), row.label("answerKey", &LETTERS)?);
    Ok(Some(item.shown_with(ROUNDS_JOINT)))
}

fn options(row: &Row) -> Result<String, Fault> {
    let (texts, labels) = row.labelled("question.choices")?;
    in_order("question.choices", &labels, &LETTERS)?;
    Ok(lettered(&texts))
}
