//! A table before it is HTML, Markdown or a terminal's.

use super::row::Setup;
use serde::Serialize;

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its lines, each with one field a column.
    pub lines: Vec<Line>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Whether it holds numbers.
    pub number: bool,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// What filters go by.
    pub tags: Option<Tags>,
    /// Its fields.
    pub fields: Vec<Field>,
}

/// A field.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Field {
    /// What people read.
    pub text: String,
    /// The number that it is sorted by.
    pub sort: Option<f64>,
    /// `better` or `worse` than the full cache, beyond one standard error if there is one.
    pub tone: Option<&'static str>,
}

/// What lines and marks can be filtered by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Tags {
    /// The model's name.
    pub model: String,
    /// The strategy's name.
    pub strategy: String,
    /// The policies.
    pub policy: String,
}

impl Tags {
    pub(super) fn new(model: &str, setup: &Setup) -> Self {
        Self { model: model.into(), strategy: setup.strategy_name().into(), policy: setup.policy_name() }
    }
}

impl Table {
    /// A table without lines; names that end in `#` are those of columns of numbers.
    pub(super) fn new(names: &[&str]) -> Self {
        let column = |name: &&str| match name.strip_suffix('#') {
            Some(name) => Column { name: name.into(), number: true },
            None => Column { name: (*name).into(), number: false },
        };
        Self { columns: names.iter().map(column).collect(), lines: Vec::new() }
    }

    pub(super) fn push(&mut self, tags: Option<Tags>, fields: Vec<Field>) {
        debug_assert_eq!(fields.len(), self.columns.len());
        self.lines.push(Line { tags, fields });
    }

    /// The same without columns that are empty all through.
    pub(super) fn without_empty_columns(mut self) -> Self {
        let used: Vec<bool> = (0..self.columns.len())
            .map(|column| self.lines.iter().any(|line| !line.fields[column].text.is_empty()))
            .collect();
        let mut keep = used.iter();
        self.columns.retain(|_| *keep.next().unwrap_or(&true));
        for line in &mut self.lines {
            let mut keep = used.iter();
            line.fields.retain(|_| *keep.next().unwrap_or(&true));
        }
        self
    }
}

impl Field {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    pub(super) fn number(text: impl Into<String>, sort: f64) -> Self {
        Self { text: text.into(), sort: Some(sort), tone: None }
    }

    pub(super) fn count(count: usize) -> Self {
        Self::number(count.to_string(), count as f64)
    }
}
