//! ChID (Zheng et al., arXiv 1906.01265), as in FewCLUE: which of seven idioms fills a blank.
//!
//! Source: OpenCompass `FewCLUE_chid_ppl_8f2872`.

use super::read::{Reader, json_lines};
use super::row::exactly;
use super::{Entry, Fault, Item, Row, Rules};

pub(super) const ENTRY: Entry = Entry {
    name: "chid",
    summary: "which Chinese idiom fits, 7 choices",
    files: "dev_few_all.json or test_public.json (content with #idiom#, candidates, answer)",
    lm_eval: None,
    opencompass: Some(Rules::new("FewCLUE_chid_ppl_8f2872", &["acc"], opencompass)),
    reader: Reader::file(json_lines),
};

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    const BLANK: &str = "#idiom#";
    let content = row.filled("content")?;
    if !content.contains(BLANK) {
        return Err(Fault::Broken(format!("`content` has no {BLANK}")));
    }
    let idioms = row.texts("candidates")?;
    exactly(7, &idioms)?;
    let prompt = |idiom| format!("以下句子是否通顺？\n{}\n这个句子是通顺的。", content.replace(BLANK, idiom));
    Ok(Some(Item::prompts(&row.place, idioms.into_iter().map(prompt).collect(), row.index("answer", 0, 7)?)))
}
