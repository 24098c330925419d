//! OpenBookQA (Mihaylov et al., arXiv 1809.02789): elementary science, four choices.
//!
//! Sources: lm-eval `openbookqa`, OpenCompass `obqa_ppl_c7c154` (the first of its two, without the fact).

use super::prompt::{LETTERS, in_order, lettered, question_answer, rounds};
use super::read::{Reader, json_lines};
use super::{Choice, Entry, Fault, Item, Row, Rules};

pub(super) const ENTRY: Entry = Entry {
    name: "openbookqa",
    summary: "elementary science, 4 choices",
    files: "test.jsonl (question.stem, question.choices, answerKey)",
    lm_eval: Some(Rules::new("openbookqa", &["acc", "acc_norm"], lm_eval)),
    opencompass: Some(Rules::new("obqa_ppl_c7c154", &["acc"], opencompass)),
    reader: Reader::file(json_lines),
};

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let (texts, labels) = row.labelled("question.choices")?;
    let stem = row.filled("question.stem")?;
    let choices = texts.into_iter().map(|text| Choice::new(stem, text)).collect();
    Ok(Some(Item::choices(&row.place, choices, row.label("answerKey", &labels)?)))
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let letters = &LETTERS[..4];
    let (texts, labels) = row.labelled("question.choices")?;
    in_order("question.choices", &labels, letters)?;
    let asked = question_answer(&format!("{}\n{}", row.filled("question.stem")?, lettered(&texts)));
    Ok(Some(Item::prompts(&row.place, rounds(&asked, letters), row.label("answerKey", letters)?)))
}
