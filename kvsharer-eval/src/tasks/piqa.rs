//! PIQA (Bisk et al., arXiv 1911.11641): which of two solutions reaches a goal.
//!
//! Sources: lm-eval `piqa`, OpenCompass `piqa_ppl_1cf9f0`.

use super::prompt::question_answer;
use super::read::{Reader, Rows, json_lines, text_lines};
use super::{Choice, Entry, Fault, Item, Row, Rules, TaskError};
use std::path::{Path, PathBuf};

pub(super) const ENTRY: Entry = Entry {
    name: "piqa",
    summary: "physical common sense, 2 choices",
    files: "valid.jsonl (goal, sol1, sol2) with valid-labels.lst beside it",
    lm_eval: Some(Rules::new("piqa", &["acc", "acc_norm"], lm_eval)),
    opencompass: Some(Rules::new("piqa_ppl_1cf9f0", &["acc"], opencompass)),
    reader: Reader {
        beside: |items| Some(labels_of(items)).filter(|path| path.is_file()),
        ..Reader::file(labelled_rows)
    },
};

/// The items with their labels, which stand one a line in a file of their own, unless they have a `label` themselves.
fn labelled_rows(path: &Path) -> Result<Rows, TaskError> {
    let rows = json_lines(path)?;
    if rows.iter().flatten().all(|row| row.value.get("label").is_some()) {
        return Ok(rows);
    }
    let path = labels_of(path);
    let labels = text_lines(&path, "label")?;
    if labels.len() != rows.len() {
        return Err(TaskError::Labels { path, labels: labels.len(), items: rows.len() });
    }
    Ok(rows.into_iter().zip(labels).map(|(row, label)| with_label(row?, &label?)).collect())
}

fn with_label(mut row: Row, label: &Row) -> Result<Row, TaskError> {
    // A bad label is told by its own place, not by that of the item.
    let gold = label.index("label", 0, 2).map_err(|fault| TaskError::BadItem { place: label.place.clone(), fault })?;
    if let Some(fields) = row.value.as_object_mut() {
        fields.insert("label".into(), gold.into());
    }
    Ok(row)
}

/// `NAME-labels.lst` beside `NAME.jsonl`.
fn labels_of(items: &Path) -> PathBuf {
    let stem = items.file_stem().unwrap_or_default().to_string_lossy();
    items.with_file_name(format!("{stem}-labels.lst"))
}

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let context = question_answer(row.filled("goal")?);
    let choices = [row.filled("sol1")?, row.filled("sol2")?].map(|solution| Choice::new(&context, solution));
    Ok(Some(Item::choices(&row.place, choices.into(), row.index("label", 0, 2)?)))
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let goal = row.filled("goal")?;
    let prompt = |solution| format!("The following makes sense: \nQ: {goal}\nA: {solution}\n");
    let prompts = vec![prompt(row.filled("sol1")?), prompt(row.filled("sol2")?)];
    Ok(Some(Item::prompts(&row.place, prompts, row.index("label", 0, 2)?)))
}
