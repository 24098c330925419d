//! ARC (Clark et al., arXiv 1803.05457): school science, mostly four choices.
//!
//! Sources: lm-eval `arc_easy` and `arc_challenge`, OpenCompass `ARC_e_ppl_a450bd` and `ARC_c_ppl_a450bd`. OpenCompass
//! leaves out questions with more or fewer than four choices.

use super::prompt::{question_answer, rounds};
use super::read::{Reader, json_lines};
use super::{Choice, Entry, Fault, Item, Row, Rules};

pub(super) const EASY: Entry = entry("arc_easy", "school science, the easy set", "ARC_e_ppl_a450bd");
pub(super) const CHALLENGE: Entry = entry("arc_challenge", "school science, the hard set", "ARC_c_ppl_a450bd");

const fn entry(name: &'static str, summary: &'static str, config: &'static str) -> Entry {
    Entry {
        name,
        summary,
        files: "ARC-*-Test.jsonl or -Dev.jsonl (question.stem, question.choices, answerKey)",
        lm_eval: Some(Rules::new(name, &["acc", "acc_norm"], lm_eval)),
        opencompass: Some(Rules::new(config, &["acc"], opencompass)),
        reader: Reader::file(json_lines),
    }
}

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let (texts, labels) = row.labelled("question.choices")?;
    let context = question_answer(row.filled("question.stem")?);
    let choices = texts.into_iter().map(|text| Choice::new(&context, text)).collect();
    Ok(Some(Item::choices(&row.place, choices, row.label("answerKey", &labels)?)))
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let (texts, labels) = row.labelled("question.choices")?;
    if texts.len() != 4 {
        return Ok(None);
    }
    let asked = question_answer(row.filled("question.stem")?) + " ";
    Ok(Some(Item::prompts(&row.place, rounds(&asked, &texts), row.label("answerKey", &labels)?)))
}
