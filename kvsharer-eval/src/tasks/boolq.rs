//! BoolQ (Clark et al., arXiv 1905.10044), as in SuperGLUE: questions about a passage that yes or no answers.
//!
//! Sources: lm-eval `boolq`, OpenCompass `SuperGLUE_BoolQ_ppl_314b96`. OpenCompass takes only the text `true` for yes,
//! as in its own copy of the file; SuperGLUE's booleans would all be no to it. Here both mean what they say.

use super::prompt::{no_or_yes, rounds};
use super::read::{Reader, json_lines};
use super::{Entry, Fault, Item, Row, Rules};

pub(super) const ENTRY: Entry = Entry {
    name: "boolq",
    summary: "yes or no about a passage",
    files: "val.jsonl (passage, question, label)",
    lm_eval: Some(Rules::new("boolq", &["acc"], lm_eval)),
    opencompass: Some(Rules::new("SuperGLUE_BoolQ_ppl_314b96", &["acc"], opencompass)),
    reader: Reader::file(json_lines),
};

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let context = format!("{}\nAnswer:", asked(row)?);
    Ok(Some(Item::choices(&row.place, no_or_yes(&context), usize::from(row.flag("label")?))))
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    Ok(Some(Item::prompts(&row.place, rounds(&asked(row)?, &["No", "Yes"]), usize::from(row.flag("label")?))))
}

fn asked(row: &Row) -> Result<String, Fault> {
    Ok(format!("{}\nQuestion: {}?", row.filled("passage")?, row.filled("question")?))
}
