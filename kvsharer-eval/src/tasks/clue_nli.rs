//! CMNLI and OCNLI (Hu et al., arXiv 2010.05444), as in CLUE (Xu et al., arXiv 2004.05986): does one Chinese sentence
//! follow from another?
//!
//! Sources: OpenCompass `CLUE_cmnli_ppl_fdc6de` and `CLUE_ocnli_ppl_fdc6de`. Where annotators did not agree the label is
//! `-`. OpenCompass leaves such items out of CMNLI and keeps them in OCNLI, where no answer to them is right.

use super::prompt::rounds;
use super::read::{Reader, json_lines};
use super::{Entry, Fault, Item, Row, Rules};

pub(super) const CMNLI: Entry = Entry {
    name: "cmnli",
    summary: "Chinese inference, 3 labels, translated",
    files: "dev.json (sentence1, sentence2, label), an object a line",
    lm_eval: None,
    opencompass: Some(Rules::new("CLUE_cmnli_ppl_fdc6de", &["acc"], labelled)),
    reader: Reader::file(json_lines),
};

pub(super) const OCNLI: Entry = Entry {
    name: "ocnli",
    summary: "Chinese inference, 3 labels",
    opencompass: Some(Rules::new("CLUE_ocnli_ppl_fdc6de", &["acc"], all)),
    ..CMNLI
};

fn labelled(row: &Row) -> Result<Option<Item>, Fault> {
    Ok(all(row)?.filter(|item| item.gold.is_some()))
}

fn all(row: &Row) -> Result<Option<Item>, Fault> {
    let (first, second) = (row.filled("sentence1")?, row.filled("sentence2")?);
    let asked = format!("语句一：“{first}”\n语句二：“{second}”\n请问这两句话是什么关系？");
    let gold = match row.text("label")? {
        "-" => None,
        _ => Some(row.label("label", &["contradiction", "entailment", "neutral"])?),
    };
    Ok(Some(Item::prompts(&row.place, rounds(&asked, &["矛盾", "蕴含", "无关"]), gold)))
}
