//! Benchmarks in their published files, asked as two harnesses ask them.
//!
//! A task is one file here: how its files are read, and for each [`Protocol`] the prompts that an item becomes. What is
//! made of the model's answers is in [`crate::score`](mod@crate::score) and [`crate::metrics`]. To add a task: one file
//! with an `ENTRY`, one line in [`tasks`], items and prompts in `tests/fixtures/task_reference.py`.

mod arc;
mod bigbench;
mod boolq;
mod c3;
mod chid;
mod choices;
mod clue_nli;
mod cluewsc;
mod cmmlu;
mod commonsense_qa;
mod copa;
mod detokenize;
mod entry;
mod error;
mod hellaswag;
mod item;
mod lambada;
mod mmlu;
mod openbookqa;
mod piqa;
mod prompt;
mod python;
mod race;
mod read;
mod row;
mod shape;
mod wikitext;
mod winogrande;
mod wsc;
mod xsum;

pub use entry::{Entry, Items, Protocol, Rules, TaskFiles};
pub use error::{Fault, Place, TaskError};
pub use item::{Ask, Choice, Item};
pub use row::Row;

/// All tasks, by name.
pub fn tasks() -> &'static [Entry] {
    &[
        hellaswag::ENTRY,
        piqa::ENTRY,
        commonsense_qa::ENTRY,
        boolq::ENTRY,
        mmlu::ENTRY,
        cmmlu::ENTRY,
        arc::EASY,
        arc::CHALLENGE,
        winogrande::ENTRY,
        wsc::ENTRY,
        copa::ENTRY,
        race::ENTRY,
        race::MIDDLE,
        race::HIGH,
        openbookqa::ENTRY,
        lambada::OPENAI,
        lambada::STANDARD,
        c3::ENTRY,
        chid::ENTRY,
        clue_nli::CMNLI,
        clue_nli::OCNLI,
        cluewsc::ENTRY,
        xsum::ENTRY,
        wikitext::ENTRY,
        bigbench::ENTRY,
        choices::ENTRY,
    ]
}

/// The task of this name.
pub fn find_task(name: &str) -> Option<&'static Entry> {
    tasks().iter().find(|entry| entry.name == name)
}
