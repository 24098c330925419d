//! XSum (Narayan et al., arXiv 1808.08745): a news article in one sentence.
//!
//! Source: OpenCompass `Xsum_gen_31397e`, over the first 1000 lines. What the model writes is stripped, and its first
//! line, stripped again, is compared with the reference by ROUGE.

use super::read::{Reader, json_lines};
use super::{Ask, Entry, Fault, Item, Row, Rules};

pub(super) const ENTRY: Entry = Entry {
    name: "xsum",
    summary: "summaries of one sentence, generated, the first 1000",
    files: "xsum.jsonl (dialogue or document, summary)",
    lm_eval: None,
    opencompass: Some(Rules::new("Xsum_gen_31397e", &["rouge1", "rouge2", "rougeL"], opencompass)),
    reader: Reader::file(|path| {
        let mut rows = json_lines(path)?;
        rows.truncate(1000);
        Ok(rows)
    }),
};

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    // `dialogue` is OpenCompass' name for it, `document` that of the published data set.
    let document = if row.value.get("document").is_some() { row.filled("document")? } else { row.filled("dialogue")? };
    let prompt = format!("Document：{document}\nBased on the previous text, provide a brief single summary:");
    let ask = Ask::Summary { prompt, reference: row.filled("summary")?.into() };
    Ok(Some(Item::new(&row.place, ask, None)))
}
