//! MMLU (Hendrycks et al., arXiv 2009.03300): exam questions of 57 subjects, four choices.
//!
//! Sources: lm-eval `mmlu`, OpenCompass `mmlu_ppl_ac766d` (5 examples of the subject, from `dev/`).

use super::prompt::{LETTERS, letter_choices, lettered};
use super::python::strip;
use super::read::{Reader, Rows, csv, files, part_of};
use super::{Entry, Fault, Item, Row, Rules, TaskError};
use std::path::{Path, PathBuf};

pub(super) const ENTRY: Entry = Entry {
    name: "mmlu",
    summary: "exams of 57 subjects, 4 choices",
    files: "the folder with test/SUBJECT_test.csv, or one such file (question, A, B, C, D, answer)",
    lm_eval: Some(Rules::new("mmlu", &["acc"], lm_eval)),
    opencompass: Some(Rules { shots: 5, ..Rules::new("mmlu_ppl_ac766d", &["acc"], opencompass) }),
    reader: Reader {
        files: |path| files(&part_of(path, "test"), ".csv"),
        rows,
        dev: |path| dev_beside(path, |name| name.replace("_test.", "_dev.")),
        ..Reader::file(rows)
    },
};

/// Where `ROOT/dev` is, given `ROOT`, `ROOT/test` or a file in it, whose name there `rename` tells.
pub(super) fn dev_beside(path: &Path, rename: impl Fn(&str) -> String) -> Option<PathBuf> {
    let dev = if !path.is_dir() {
        let root = path.parent()?.parent()?;
        root.join("dev").join(rename(&path.file_name()?.to_string_lossy()))
    } else if path.join("dev").is_dir() {
        path.join("dev")
    } else {
        path.parent()?.join("dev")
    };
    dev.exists().then_some(dev)
}

fn rows(path: &Path) -> Result<Rows, TaskError> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let subject = ["_test", "_dev", "_val"].iter().find_map(|split| stem.strip_suffix(split)).unwrap_or(&stem);
    let named = |row: Row| Row { subset: Some(subject.into()), ..row };
    Ok(csv(path, &["question", "A", "B", "C", "D", "answer"])?.into_iter().map(|row| row.map(named)).collect())
}

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let letters = &LETTERS[..4];
    let context = format!("{}\n{}\nAnswer:", strip(row.filled("question")?), options(row)?);
    let item = Item::choices(&row.place, letter_choices(&context, letters), row.label("answer", letters)?);
    Ok(Some(Item { head: format!("{} {}.\n\n", HEAD, subject(row)), ..item }))
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let letters = &LETTERS[..4];
    let asked = format!("{}\n{}\nAnswer: ", row.filled("question")?, options(row)?);
    let gold = row.label("answer", letters)?;
    let prompts = letters.iter().map(|letter| format!("{asked}{letter}")).collect();
    let item = Item::prompts(&row.place, prompts, gold);
    // The configuration has two spaces before the subject, and a line break after an example.
    let head = format!("{}  {}.\n\n", HEAD, subject(row));
    Ok(Some(Item { head, shot: format!("{asked}{}\n", LETTERS[gold]), ..item }))
}

const HEAD: &str = "The following are multiple choice questions (with answers) about";

fn subject(row: &Row) -> String {
    row.subset.as_deref().unwrap_or_default().replace('_', " ")
}

/// The four options, which may be empty.
pub(super) fn options(row: &Row) -> Result<String, Fault> {
    Ok(lettered(&[row.text("A")?, row.text("B")?, row.text("C")?, row.text("D")?]))
}
