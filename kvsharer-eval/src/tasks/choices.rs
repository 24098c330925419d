//! Questions of one's own: a text and what may follow it.
//!
//! lm-eval's `multiple_choice` with its usual delimiter, OpenCompass' perplexity mode with a round each.

use super::prompt::rounds;
use super::read::{Reader, json_lines};
use super::{Choice, Entry, Fault, Item, Row, Rules};

pub(super) const ENTRY: Entry = Entry {
    name: "choices",
    summary: "questions of your own, 2 or more choices",
    files: "a file of {\"query\": text, \"choices\": [texts], \"gold\": index from 0}, one a line",
    lm_eval: Some(Rules::new("choices", &["acc", "acc_norm"], lm_eval)),
    opencompass: Some(Rules::new("choices", &["acc"], opencompass)),
    reader: Reader::file(json_lines),
};

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let (query, choices) = (row.text("query")?, row.texts("choices")?);
    let gold = row.index("gold", 0, choices.len())?;
    let choices = choices.into_iter().map(|choice| Choice::new(query, choice)).collect();
    Ok(Some(Item::choices(&row.place, choices, gold)))
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let (query, choices) = (row.text("query")?, row.texts("choices")?);
    let gold = row.index("gold", 0, choices.len())?;
    Ok(Some(Item::prompts(&row.place, rounds(query, &choices), gold)))
}
