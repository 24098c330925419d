//! Errors of chat templates.

use std::path::PathBuf;
use thiserror::Error;

/// Why a conversation cannot be turned into a model's text.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChatError {
    /// A model that was not made for chat, or whose template was left out.
    #[error(
        "model `{model}` has no chat template: continue a text with `generate`, or give a template (a .jinja file)"
    )]
    NoTemplate {
        /// The model.
        model: String,
    },
    /// None of the model's templates has this name.
    #[error("{}: no chat template `{name}`: there are {known}", path.display())]
    UnknownTemplate {
        /// Where the templates are.
        path: PathBuf,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A setting of another type than a template's.
    #[error("{}: `{field}` is no chat template: expected a text, or a list of objects with `name` and `template`", path.display())]
    BadField {
        /// The file.
        path: PathBuf,
        /// The setting.
        field: &'static str,
    },
    /// A template larger than any is.
    #[error("the chat template has {bytes} bytes, at most {most} are read: it is no chat template")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// A template that cannot be parsed, or that fails while it runs.
    #[error(
        "line {line} of the chat template: {what}: the template is broken, or uses what this version does not know"
    )]
    Broken {
        /// The line, from 1; 0 if it is not known.
        line: usize,
        /// What the template engine said.
        what: String,
    },
    /// A conversation that the template refuses (`raise_exception`).
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// A template that runs without end, or makes a text larger than memory.
    #[error("the chat template takes too many steps or too much memory and was stopped: it is broken")]
    Endless,
}
