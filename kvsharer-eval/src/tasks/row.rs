//! One record of a benchmark's file, with getters that say what is wrong with it.

use super::{Fault, Place};
use serde_json::Value;

/// A record as it stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where it stands.
    pub place: Place,
    /// Its fields.
    pub value: Value,
    /// Its part of the benchmark, if its file or folder says so.
    pub subset: Option<String>,
}

impl Row {
    /// A field; `question.stem` is the field `stem` of the field `question`, `3` the fourth column.
    ///
    /// # Errors
    /// [`Fault::Missing`].
    pub fn get(&self, key: &str) -> Result<&Value, Fault> {
        let found = key.split('.').try_fold(&self.value, |value, part| match part.parse::<usize>() {
            Ok(index) if value.is_array() => value.get(index),
            _ => value.get(part),
        });
        found.filter(|value| !value.is_null()).ok_or_else(|| Fault::Missing(key.into()))
    }

    /// A text.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Type`].
    pub fn text(&self, key: &str) -> Result<&str, Fault> {
        let value = self.get(key)?;
        value.as_str().ok_or_else(|| wrong_type(key, "a text", value))
    }

    /// A text that is not blank.
    ///
    /// # Errors
    /// As [`text`](Self::text), and [`Fault::Broken`].
    pub fn filled(&self, key: &str) -> Result<&str, Fault> {
        let text = self.text(key)?;
        if text.trim().is_empty() { Err(Fault::Broken(format!("`{key}` is empty"))) } else { Ok(text) }
    }

    /// A list.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Type`].
    pub fn list(&self, key: &str) -> Result<&[Value], Fault> {
        let value = self.get(key)?;
        value.as_array().map(Vec::as_slice).ok_or_else(|| wrong_type(key, "a list", value))
    }

    /// A list of texts, none of them empty, at least two.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Type`], [`Fault::TooFewChoices`], [`Fault::EmptyChoice`].
    pub fn texts(&self, key: &str) -> Result<Vec<&str>, Fault> {
        let texts = 0..self.list(key)?.len();
        let texts: Vec<&str> = texts.map(|index| self.text(&format!("{key}.{index}"))).collect::<Result<_, _>>()?;
        at_least_two(&texts)?;
        Ok(texts)
    }

    /// The texts and the labels of a list of options, `{"label": .., "text": ..}` each; at least two.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Type`], [`Fault::TooFewChoices`], [`Fault::EmptyChoice`].
    pub fn labelled(&self, key: &str) -> Result<(Vec<&str>, Vec<&str>), Fault> {
        let count = self.list(key)?.len();
        let all = |field: &str| -> Result<Vec<&str>, Fault> {
            (0..count).map(|index| self.text(&format!("{key}.{index}.{field}"))).collect()
        };
        let (texts, labels) = (all("text")?, all("label")?);
        at_least_two(&texts)?;
        Ok((texts, labels))
    }

    /// A truth value, also one written as a text.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Type`].
    pub fn flag(&self, key: &str) -> Result<bool, Fault> {
        let value = self.get(key)?;
        match value {
            Value::Bool(flag) => Ok(*flag),
            Value::String(text) if text == "true" => Ok(true),
            Value::String(text) if text == "false" => Ok(false),
            _ => Err(wrong_type(key, "true or false", value)),
        }
    }

    /// A number that counts something, also one written as a text.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Type`].
    pub fn count(&self, key: &str) -> Result<usize, Fault> {
        let value = self.get(key)?;
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            _ => value.as_u64().and_then(|number| usize::try_from(number).ok()),
        };
        number.ok_or_else(|| wrong_type(key, "a whole number", value))
    }

    /// The index of a choice, `first` standing for choice 0 of `choices`.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Type`], [`Fault::Label`].
    pub fn index(&self, key: &str, first: usize, choices: usize) -> Result<usize, Fault> {
        let number = self.count(key)?;
        let index = number.checked_sub(first).filter(|&index| index < choices);
        let expected = || format!("{first} to {}", (first + choices).saturating_sub(1));
        index.ok_or_else(|| Fault::Label { key: key.into(), expected: expected(), found: number.to_string() })
    }

    /// The place of a text among `labels`, white space around it aside.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Type`], [`Fault::Label`].
    pub fn label<S: AsRef<str>>(&self, key: &str, labels: &[S]) -> Result<usize, Fault> {
        let text = self.text(key)?;
        let same = |text: &str| labels.iter().position(|label| label.as_ref() == text);
        let found = same(text).or_else(|| same(text.trim()));
        let expected = || labels.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| Fault::Label { key: key.into(), expected: expected(), found: shorten(text) })
    }
}

/// Refuses choices that nothing could be compared among.
///
/// # Errors
/// [`Fault::TooFewChoices`], [`Fault::EmptyChoice`].
pub(super) fn at_least_two<S: AsRef<str>>(choices: &[S]) -> Result<(), Fault> {
    match choices.iter().position(|choice| choice.as_ref().trim().is_empty()) {
        Some(index) => Err(Fault::EmptyChoice(index)),
        None if choices.len() < 2 => Err(Fault::TooFewChoices(choices.len())),
        None => Ok(()),
    }
}

/// Refuses other than so many choices.
///
/// # Errors
/// [`Fault::Choices`].
pub(super) fn exactly<T>(expected: usize, choices: &[T]) -> Result<(), Fault> {
    let found = choices.len();
    if found == expected { Ok(()) } else { Err(Fault::Choices { found, expected }) }
}

pub(super) fn wrong_type(key: &str, expected: &'static str, found: &Value) -> Fault {
    Fault::Type { key: key.into(), expected, found: shorten(&found.to_string()) }
}

fn shorten(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;
    use std::sync::Arc;

    fn row(value: Value) -> Row {
        Row { place: Place::new(&Arc::from(Path::new("file")), 1), value, subset: None }
    }

    fn fault<T: std::fmt::Debug>(result: Result<T, Fault>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn keys_lead_into_objects_and_lists() {
        let row = row(json!({"question": {"choices": [{"text": "a"}, {"text": "b, and longer"}]}, "7": "seven"}));
        assert_eq!(row.text("question.choices.1.text").unwrap(), "b, and longer");
        assert_eq!(row.text("7").unwrap(), "seven");
        assert_eq!(fault(row.text("question.choices.2.text")), "has no `question.choices.2.text`");
        assert_eq!(
            fault(row.list("question")),
            "`question` is {\"choices\":[{\"text\":\"a\"},{\"text\":\"b, and…, expected a list"
        );
    }

    #[test]
    fn null_is_missing_and_blank_is_empty() {
        let row = row(json!({"a": null, "b": " \n"}));
        assert_eq!(fault(row.get("a")), "has no `a`");
        assert_eq!(row.text("b").unwrap(), " \n");
        assert_eq!(fault(row.filled("b")), "`b` is empty");
    }

    #[test]
    fn labels_are_checked_against_what_they_name() {
        let row = row(json!({"n": 2, "s": "1", "minus": -1, "half": 1.5, "yes": "true", "t": true, "c": "B "}));
        assert_eq!(row.index("n", 1, 2).unwrap(), 1);
        assert_eq!(row.index("s", 0, 2).unwrap(), 1);
        assert_eq!(fault(row.index("n", 0, 2)), "`n` is 2, expected 0 to 1");
        assert_eq!(fault(row.index("minus", 0, 2)), "`minus` is -1, expected a whole number");
        assert_eq!(fault(row.index("half", 0, 2)), "`half` is 1.5, expected a whole number");
        assert!(row.flag("yes").unwrap() && row.flag("t").unwrap());
        assert_eq!(fault(row.flag("n")), "`n` is 2, expected true or false");
        assert_eq!(row.label("c", &["A", "B"]).unwrap(), 1);
        assert_eq!(fault(row.label("yes", &["A", "B"])), "`yes` is true, expected A, B");
    }

    #[test]
    fn choices_need_two_texts() {
        let row = row(json!({"one": ["a"], "gap": ["a", " "], "mixed": ["a", 1]}));
        assert_eq!(fault(row.texts("one")), "has 1 choices, at least 2 are needed");
        assert_eq!(fault(row.texts("gap")), "choice 1 is empty");
        assert_eq!(fault(row.texts("mixed")), "`mixed.1` is 1, expected a text");
        assert_eq!(fault(exactly(4, &[1, 2])), "has 2 choices, expected 4");
    }
}
