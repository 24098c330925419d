//! C3 (Sun et al., arXiv 1904.09679), as in CLUE: Chinese reading, two to four choices.
//!
//! Source: OpenCompass `CLUE_C3_ppl_e24a31`, which repeats the first choice until there are four.

use super::prompt::rounds;
use super::read::{Reader, Rows, bad, json_list};
use super::row::wrong_type;
use super::{Entry, Fault, Item, Row, Rules, TaskError};
use serde_json::json;
use std::path::Path;

pub(super) const ENTRY: Entry = Entry {
    name: "c3",
    summary: "Chinese reading, 2 to 4 choices",
    files: "dev_0.json, a list of [[lines], [{question, choice, answer}], id]",
    lm_eval: None,
    opencompass: Some(Rules::new("CLUE_C3_ppl_e24a31", &["acc"], opencompass)),
    reader: Reader::file(questions),
};

/// The questions of all texts, one a row.
fn questions(path: &Path) -> Result<Rows, TaskError> {
    let mut rows = Rows::new();
    for row in json_list(path, None)? {
        match row.and_then(|row| of_text(&row).map_err(|fault| bad(&row.place, fault))) {
            Ok(found) => rows.extend(found.into_iter().map(Ok)),
            Err(error) => rows.push(Err(error)),
        }
    }
    Ok(rows)
}

fn of_text(row: &Row) -> Result<Vec<Row>, Fault> {
    if !row.value.is_array() {
        return Err(wrong_type("the item", "a list", &row.value));
    }
    let lines = (0..row.list("0")?.len()).map(|index| row.text(&format!("0.{index}")));
    let content = lines.collect::<Result<Vec<_>, _>>()?.join(" ");
    let question = |question| Row { value: json!({"content": content, "asked": question}), ..row.clone() };
    Ok(row.list("1")?.iter().map(question).collect())
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let mut choices = row.texts("asked.choice")?;
    if choices.len() > 4 {
        return Err(Fault::Choices { found: choices.len(), expected: 4 });
    }
    let gold = row.label("asked.answer", &choices)?;
    let first = choices[0];
    choices.resize(4, first);
    let asked = format!("文章：{}\n问题：{}", row.filled("content")?, row.filled("asked.question")?);
    let replies: Vec<String> = choices.iter().map(|choice| format!("答案：{choice}")).collect();
    let replies: Vec<&str> = replies.iter().map(String::as_str).collect();
    Ok(Some(Item::prompts(&row.place, rounds(&asked, &replies), gold)))
}
