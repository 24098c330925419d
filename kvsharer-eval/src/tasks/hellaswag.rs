//! HellaSwag (Zellers et al., arXiv 1905.07830): which of four endings goes on with a scene.
//!
//! Sources: lm-eval `hellaswag`, OpenCompass `hellaswag_ppl_47bff9`. OpenCompass' copy of the file has lm-eval's cleaned
//! texts as `query`, `choices` and `gold`; both forms are read.

use super::prompt::rounds;
use super::python::{capitalize, strip};
use super::read::{Reader, json_lines};
use super::row::{at_least_two, exactly};
use super::{Choice, Entry, Fault, Item, Row, Rules};

pub(super) const ENTRY: Entry = Entry {
    name: "hellaswag",
    summary: "how a scene goes on, 4 choices",
    files: "hellaswag_val.jsonl (activity_label, ctx_a, ctx_b, endings, label)",
    lm_eval: Some(Rules::new("hellaswag", &["acc", "acc_norm"], lm_eval)),
    opencompass: Some(Rules::new("hellaswag_ppl_47bff9", &["acc"], opencompass)),
    reader: Reader::file(json_lines),
};

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let scene = Scene::new(row)?;
    let choices = scene.endings.iter().map(|ending| Choice::new(&scene.query, ending)).collect();
    Ok(Some(Item::choices(&row.place, choices, scene.gold)))
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let scene = Scene::new(row)?;
    // The activity goes, and what stands before a second colon with it.
    let context = scene.query.splitn(3, ": ").last().unwrap_or_default();
    let endings: Vec<&str> = scene.endings.iter().map(String::as_str).collect();
    Ok(Some(Item::prompts(&row.place, rounds(context, &endings), scene.gold)))
}

struct Scene {
    query: String,
    endings: Vec<String>,
    gold: usize,
}

impl Scene {
    fn new(row: &Row) -> Result<Self, Fault> {
        let (query, endings, gold) = if row.value.get("query").is_some() {
            let choices = row.texts("choices")?.into_iter().map(String::from).collect();
            (row.filled("query")?.into(), choices, row.index("gold", 0, 4)?)
        } else {
            let (activity, before) = (row.text("activity_label")?, row.text("ctx_a")?);
            let query = format!("{activity}: {before} {}", capitalize(row.text("ctx_b")?));
            let endings: Vec<String> = row.texts("endings")?.into_iter().map(clean).collect();
            (clean(&query), endings, row.index("label", 0, 4)?)
        };
        at_least_two(&endings)?;
        exactly(4, &endings)?;
        Ok(Self { query, endings, gold })
    }
}

/// Takes out what WikiHow's markup left behind. Double spaces are halved once, and ends are not stripped again.
fn clean(text: &str) -> String {
    without_brackets(&strip(text).replace(" [title]", ". ")).replace("  ", " ")
}

/// `re.sub(r"\[.*?\]", "", text)`: a bracket that is closed on its line goes with what is in it.
fn without_brackets(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from)) = rest.split_once('[') {
        kept.push_str(before);
        let line = from.split('\n').next().unwrap_or_default();
        rest = match line.find(']') {
            Some(end) => &from[end + 1..],
            None => {
                kept.push('[');
                from
            }
        };
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_goes() {
        assert_eq!(clean(" [header] How [title] Dig. [step]   Wait "), " How. Dig.  Wait");
        assert_eq!(without_brackets("a [b [c] d] [e\nf] [g"), "a  d] [e\nf] [g");
    }
}
