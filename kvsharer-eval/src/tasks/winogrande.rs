//! WinoGrande (Sakaguchi et al., arXiv 1907.10641): which of two names fills a blank.
//!
//! Sources: lm-eval `winogrande`, OpenCompass `winogrande_ll_c5cf57`.

use super::python::strip;
use super::read::{Reader, json_lines};
use super::{Ask, Choice, Entry, Fault, Item, Row, Rules};

pub(super) const ENTRY: Entry = Entry {
    name: "winogrande",
    summary: "who or what fills a blank, 2 choices",
    files: "dev.jsonl (sentence with _, option1, option2, answer)",
    lm_eval: Some(Rules::new("winogrande", &["acc"], lm_eval)),
    opencompass: Some(Rules::new("winogrande_ll_c5cf57", &["acc"], opencompass)),
    reader: Reader::file(json_lines),
};

/// What follows the blank is scored after each filling.
fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let (before, after) = around(row)?;
    let choices = options(row)?.map(|option| Choice::new(format!("{before}{option}"), strip(after)));
    Ok(Some(Item::choices(&row.place, choices.into(), row.index("answer", 1, 2)?)))
}

/// Every blank is filled; the continuation ends before a second one.
fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let (_, after) = around(row)?;
    let after = after.split('_').next().unwrap_or_default();
    if after.is_empty() {
        return Err(Fault::Broken("`sentence` has nothing after its first `_`".into()));
    }
    let sentence = row.text("sentence")?;
    let pairs = options(row)?.map(|option| (sentence.replace('_', option), after.to_owned()));
    Ok(Some(Item::new(&row.place, Ask::Likelihoods(pairs.into()), row.index("answer", 1, 2)?)))
}

/// What stands before and after the first blank.
fn around(row: &Row) -> Result<(&str, &str), Fault> {
    let blank = row.text("sentence")?.split_once('_');
    let (before, after) = blank.ok_or_else(|| Fault::Broken("`sentence` has no `_`".into()))?;
    if strip(after).is_empty() {
        return Err(Fault::Broken("`sentence` has nothing after its `_`".into()));
    }
    Ok((before, after))
}

fn options(row: &Row) -> Result<[&str; 2], Fault> {
    Ok([row.filled("option1")?, row.filled("option2")?])
}
