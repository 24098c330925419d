//! RACE (Lai et al., arXiv 1704.04683): English exams, questions about an article, four choices.
//!
//! Sources: lm-eval `race` (the high level; one item an article, its last question), OpenCompass `race_ppl_a138cd`
//! (`race-middle` and `race-high`, one item a question; its own copy, a question a line, is read too).

use super::prompt::{LETTERS, lettered};
use super::read::{Reader, Rows, bad, files, json_lines, part_of, whole_json};
use super::row::exactly;
use super::{Choice, Entry, Fault, Item, Row, Rules, TaskError};
use serde_json::json;
use std::path::{Path, PathBuf};

pub(super) const ENTRY: Entry = Entry {
    name: "race",
    summary: "English exams of the high level, the last question of an article",
    files: "the folder test/high of *.txt, one article each (article, questions, options, answers)",
    lm_eval: Some(Rules::new("race", &["acc"], lm_eval)),
    opencompass: None,
    reader: Reader { files: |path| level_files(path, "high"), ..Reader::file(|path| articles(path, "high")) },
};

pub(super) const MIDDLE: Entry = Entry {
    name: "race-middle",
    summary: "English exams of the middle level, every question",
    files: "the folder test/middle of *.txt, one article each (article, questions, options, answers)",
    lm_eval: None,
    opencompass: Some(Rules::new("race_ppl_a138cd", &["acc"], opencompass)),
    reader: Reader { files: |path| level_files(path, "middle"), ..Reader::file(|path| questions(path, "middle")) },
};

pub(super) const HIGH: Entry = Entry {
    name: "race-high",
    summary: "English exams of the high level, every question",
    files: "the folder test/high of *.txt, one article each (article, questions, options, answers)",
    reader: Reader { files: |path| level_files(path, "high"), ..Reader::file(|path| questions(path, "high")) },
    ..MIDDLE
};

fn level_files(path: &Path, level: &str) -> Result<Vec<PathBuf>, TaskError> {
    files(&part_of(path, level), ".txt")
}

/// One article, whose id begins with its level.
fn articles(path: &Path, level: &str) -> Result<Rows, TaskError> {
    let of_level = |row: Row| match row.value.get("id").and_then(|id| id.as_str()) {
        Some(id) if ["middle", "high"].iter().any(|&other| other != level && id.starts_with(other)) => {
            Err(bad(&row.place, Fault::Broken(format!("`id` is {id}, expected one of the level {level}"))))
        }
        _ => Ok(row),
    };
    let rows = if path.extension().is_some_and(|ending| ending == "jsonl") {
        json_lines(path)?
    } else {
        vec![whole_json(path)]
    };
    Ok(rows.into_iter().map(|row| row.and_then(of_level)).collect())
}

/// The questions of an article, one a row.
fn questions(path: &Path, level: &str) -> Result<Rows, TaskError> {
    let mut rows = Rows::new();
    for row in articles(path, level)? {
        match row {
            Ok(row) if row.value.get("question").is_none() => match problems(&row) {
                Ok(problems) => rows.extend(problems.iter().map(|problem| Ok(problem.row(&row)))),
                Err(fault) => rows.push(Err(bad(&row.place, fault))),
            },
            row => rows.push(row),
        }
    }
    Ok(rows)
}

/// A question about an article.
struct Problem<'a> {
    question: &'a str,
    options: Vec<&'a str>,
    answer: usize,
}

fn problems(row: &Row) -> Result<Vec<Problem<'_>>, Fault> {
    row.filled("article")?;
    let count = row.list("questions")?.len();
    for key in ["options", "answers"] {
        let found = row.list(key)?.len();
        if found != count {
            return Err(Fault::Broken(format!("{count} questions, but {found} {key}")));
        }
    }
    let problem = |index: usize| {
        let question = row.text(&format!("questions.{index}"))?;
        let options = row.texts(&format!("options.{index}"))?;
        exactly(4, &options)?;
        Ok(Problem { question, options, answer: row.label(&format!("answers.{index}"), &LETTERS[..4])? })
    };
    (0..count).map(problem).collect()
}

impl Problem<'_> {
    /// As OpenCompass' copy of the file has it.
    fn row(&self, of: &Row) -> Row {
        let (question, options, answer) = (self.question, &self.options, LETTERS[self.answer]);
        let value = json!({"article": of.value["article"], "question": question, "options": options, "answer": answer});
        Row { place: of.place.clone(), value, subset: of.subset.clone() }
    }

    /// How an earlier question stands in lm-eval's context, with its answer. A cloze loses its full stop.
    fn answered(&self) -> String {
        let answer = self.options.get(self.answer).copied().unwrap_or_default();
        match self.question.strip_suffix("  _  .") {
            Some(cloze) => format!("{cloze} {answer}\n"),
            None => format!("Question: {}\nAnswer: {answer}\n", self.question),
        }
    }
}

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let problems = problems(row)?;
    let Some((last, earlier)) = problems.split_last() else {
        return Err(Fault::Broken("has no question".into()));
    };
    let earlier: String = earlier.iter().map(Problem::answered).collect();
    let context = format!("Article: {}\n\n{earlier}{}", row.text("article")?, last.question);
    let choices = last.options.iter().map(|option| Choice::new(&context, *option)).collect();
    Ok(Some(Item::choices(&row.place, choices, last.answer)))
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let (article, question) = (row.filled("article")?, row.text("question")?);
    let options = row.texts("options")?;
    exactly(4, &options)?;
    let options = lettered(&options);
    let prompt = |letter: &&str| {
        format!(
            "Read the article, and answer the question by replying A, B, C or D.\n\n\
             Article:\n{article}\n\nQ: {question}\n\n{options}\nA: {letter}"
        )
    };
    let letters = &LETTERS[..4];
    Ok(Some(Item::prompts(&row.place, letters.iter().map(prompt).collect(), row.label("answer", letters)?)))
}
