//! Winograd schemas (Levesque et al. 2012), as in SuperGLUE (Wang et al., arXiv 1905.00537): does a pronoun mean a noun?
//!
//! Sources: lm-eval `wsc`, OpenCompass `SuperGLUE_WSC_ppl_003529`. lm-eval's data set is `wsc.fixed`, in which spans
//! that stand nowhere in their text are mended; SuperGLUE's file is mended likewise here. Both take a pronoun's index
//! as it is, so one that points elsewhere gives the prompt that the harness would give. Labels are as in
//! [BoolQ](super::boolq).

use super::detokenize::general;
use super::prompt::no_or_yes;
use super::python::{first_char, from_char, words};
use super::read::{Reader, json_lines};
use super::{Entry, Fault, Item, Row, Rules};

pub(super) const ENTRY: Entry = Entry {
    name: "wsc",
    summary: "does a pronoun mean a noun, yes or no",
    files: "val.jsonl (text, target.span1_text, target.span2_index, .., label)",
    lm_eval: Some(Rules::new("wsc", &["acc"], lm_eval)),
    opencompass: Some(Rules::new("SuperGLUE_WSC_ppl_003529", &["acc"], opencompass)),
    reader: Reader::file(json_lines),
};

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let (noun, pronoun) = (mended(row, "span1")?, mended(row, "span2")?);
    let text = row.filled("text")?;
    let before = words(text).take(row.count("target.span2_index")?).collect::<Vec<_>>().join(" ");
    // One space is counted even where the pronoun begins the text, and only one where several stand before it.
    let after = from_char(text, before.chars().count() + pronoun.chars().count() + 1);
    let passage = general(&format!("{before} *{pronoun}*{after}"));
    let context = format!(
        "Passage: {passage}\n\
         Question: In the passage above, does the pronoun \"*{pronoun}*\" refer to \"*{noun}*\"?\n\
         Answer:"
    );
    Ok(Some(Item::choices(&row.place, no_or_yes(&context), usize::from(row.flag("label")?))))
}

/// The text itself against the text with the noun for the pronoun.
fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let text = row.filled("text")?;
    let (noun, pronoun) = (row.filled("target.span1_text")?, row.filled("target.span2_text")?);
    if pronoun.contains(' ') {
        return Err(Fault::Broken(format!("`target.span2_text` is {pronoun:?}, expected one word")));
    }
    let mut words: Vec<&str> = text.split(' ').collect();
    let index = row.index("target.span2_index", 0, words.len())?;
    if let Some(word) = words.get_mut(index) {
        *word = noun;
    }
    let prompts = vec![text.into(), words.join(" ")];
    Ok(Some(Item::prompts(&row.place, prompts, usize::from(row.flag("label")?))))
}

/// A span's text, mended as in `wsc.fixed` if it stands nowhere in the text: its first letter becomes as great as that
/// of the word at its index, full stops at its end go, line breaks become spaces.
fn mended(row: &Row, name: &str) -> Result<String, Fault> {
    // Nouns with other words between them, which cannot be mended.
    const APART: [&str; 2] = ["Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin"];
    let text = row.filled("text")?;
    let key = format!("target.{name}_text");
    let span = row.filled(&key)?;
    let index_key = format!("target.{name}_index");
    let index = row.index(&index_key, 0, words(text).count())?;
    if text.contains(span) || APART.contains(&span) {
        return Ok(span.into());
    }
    let lower = words(text).nth(index).is_some_and(|word| word.starts_with(char::is_lowercase));
    let span = if lower { first_char(span, char::to_lowercase) } else { first_char(span, char::to_uppercase) };
    let span = span.trim_end_matches('.').replace('\n', " ");
    if text.contains(&span) { Ok(span) } else { Err(Fault::Broken(format!("`{key}` stands nowhere in `text`"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Place;
    use serde_json::json;
    use std::path::Path;
    use std::sync::Arc;

    fn mend(text: &str, span: &str, index: usize) -> Result<String, Fault> {
        let value = json!({"text": text, "target": {"span1_text": span, "span1_index": index}});
        mended(&Row { place: Place::new(&Arc::from(Path::new("f")), 1), value, subset: None }, "span1")
    }

    #[test]
    fn spans_are_mended_to_what_stands_in_the_text() {
        assert_eq!(mend("so the  man ran", "The  man.", 1).unwrap(), "the  man");
        assert_eq!(mend("Tom ran", "tom", 0).unwrap(), "Tom");
        assert_eq!(mend("Tom ran", "om", 9).unwrap_err().to_string(), "`target.span1_index` is 9, expected 0 to 1");
        assert_eq!(mend("Tom ran", "Ann", 0).unwrap_err().to_string(), "`target.span1_text` stands nowhere in `text`");
    }
}
