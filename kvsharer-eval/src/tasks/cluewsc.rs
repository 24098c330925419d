//! CLUEWSC, as in FewCLUE (Xu et al., arXiv 2107.07498): does a Chinese pronoun mean a noun?
//!
//! Source: OpenCompass `FewCLUE_cluewsc_ppl_868415`. Its prompt says nothing of where the pronoun stands.

use super::prompt::rounds;
use super::read::{Reader, json_lines};
use super::{Entry, Fault, Item, Row, Rules};

pub(super) const ENTRY: Entry = Entry {
    name: "cluewsc",
    summary: "does a Chinese pronoun mean a noun, yes or no",
    files: "dev_few_all.json or test_public.json (text, target.span1_text, target.span2_text, label)",
    lm_eval: None,
    opencompass: Some(Rules::new("FewCLUE_cluewsc_ppl_868415", &["acc"], opencompass)),
    reader: Reader::file(json_lines),
};

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let (noun, pronoun) = (row.filled("target.span1_text")?, row.filled("target.span2_text")?);
    // The closing quotation marks are opening ones in the configuration, too.
    let asked = format!("{}\n此处，代词“{pronoun}“被用于指代“{noun}“吗?", row.filled("text")?);
    Ok(Some(Item::prompts(&row.place, rounds(&asked, &["否", "是"]), usize::from(row.flag("label")?))))
}
