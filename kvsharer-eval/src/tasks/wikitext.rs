//! WikiText (Merity et al., arXiv 1609.07843): perplexity of whole articles.
//!
//! Source: lm-eval `wikitext`. The text is detokenised; its words and bytes are those of the article as published.

use super::detokenize;
use super::python::{count_split, strip};
use super::read::{Reader, Rows, field, shared, whole_text};
use super::{Ask, Entry, Fault, Item, Place, Row, Rules, TaskError};
use std::path::Path;

pub(super) const ENTRY: Entry = Entry {
    name: "wikitext",
    summary: "perplexity of whole articles",
    files: "wiki.test.raw, articles that begin with ` = Title = `",
    lm_eval: Some(Rules::new("wikitext", &["word_perplexity", "byte_perplexity", "bits_per_byte"], lm_eval)),
    opencompass: None,
    reader: Reader::file(articles),
};

/// The text from one title to the next; blank text before the first is dropped.
fn articles(path: &Path) -> Result<Rows, TaskError> {
    let text = match whole_text(path) {
        Ok(text) => text,
        Err(error) => return Ok(vec![Err(error)]),
    };
    let path = shared(path);
    let mut rows = Rows::new();
    let mut page: Vec<&str> = Vec::new();
    let mut first = 1;
    let mut end = |page: &[&str], first: usize| {
        let page = page.join("\n");
        if !strip(&page).is_empty() {
            rows.push(Ok(Row { place: Place::new(&path, first), value: field("page", &page), subset: None }));
        }
    };
    for (line, number) in text.split('\n').zip(1..) {
        if is_title(line) {
            end(&page, first);
            page.clear();
            first = number;
        }
        page.push(line);
    }
    end(&page, first);
    Ok(rows)
}

/// ` = Title = `, but not the ` = = Section = = ` of a deeper level.
fn is_title(line: &str) -> bool {
    let line = line.replace("= = =", "===").replace("= =", "==");
    let line = strip(&line);
    line.starts_with("= ") && line.ends_with(" =")
}

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let page = row.filled("page")?;
    let ask = Ask::Document { text: detokenize::wikitext(page), words: count_split(page), bytes: page.len() };
    Ok(Some(Item::new(&row.place, ask, None)))
}
