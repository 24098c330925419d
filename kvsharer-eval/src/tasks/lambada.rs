//! LAMBADA (Paperno et al., arXiv 1606.06031): the last word of a passage.
//!
//! Sources: lm-eval `lambada_openai` (the text as OpenAI restored it) and `lambada_standard` (as published: lower case,
//! tokenised).

use super::read::{Reader, json_lines, text_lines};
use super::{Ask, Choice, Entry, Fault, Item, Row, Rules};

pub(super) const OPENAI: Entry = Entry {
    name: "lambada_openai",
    summary: "the last word of a passage, restored text",
    files: "lambada_test.jsonl (text)",
    lm_eval: Some(Rules::new("lambada_openai", METRICS, last_word)),
    opencompass: None,
    reader: Reader::file(json_lines),
};

pub(super) const STANDARD: Entry = Entry {
    name: "lambada_standard",
    summary: "the last word of a passage, tokenised text",
    files: "lambada_test_plain_text.txt, a passage a line",
    lm_eval: Some(Rules::new("lambada_standard", METRICS, last_word)),
    opencompass: None,
    reader: Reader::file(|path| text_lines(path, "text")),
};

const METRICS: &[&str] = &["perplexity", "acc"];

/// Words are what stands between single spaces, so a passage that ends in one has no last word.
fn last_word(row: &Row) -> Result<Option<Item>, Fault> {
    let text = row.filled("text")?;
    let (context, word) = text.rsplit_once(' ').unwrap_or(("", text));
    if word.is_empty() {
        return Err(Fault::Broken("`text` ends with a space, so it has no last word".into()));
    }
    let choice = Choice::new(context, word);
    // The word has a space of its own, to which an example's delimiter adds one.
    let shot = format!("{context}  {word}");
    Ok(Some(Item { shot, ..Item::new(&row.place, Ask::Continuation(choice), None) }))
}
