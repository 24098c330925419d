//! Prompts from a file.

use super::CliError;
use kvsharer_models::{ModelError, ModelTokenizer};
use serde::Deserialize;
use std::io::{Error, ErrorKind};
use std::path::Path;

/// A prompt and where it stands.
pub(super) struct Prompt {
    pub(super) text: String,
    pub(super) ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Line {
    prompt: String,
}

/// Prompts of a file: of a .jsonl file the `prompt` of every line, of any other every line that is not empty.
pub(super) fn read(path: &Path) -> Result<Vec<String>, CliError> {
    let text = std::fs::read_to_string(path).map_err(|error| CliError::file(path, error))?;
    let json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"));
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts = lines.map(|(at, line)| match json {
        false => Ok(line.to_owned()),
        true => serde_json::from_str(line).map(|line: Line| line.prompt).map_err(|error| {
            let what = format!("line {}: expected {{\"prompt\": TEXT}} ({error})", at + 1);
            CliError::file(path, Error::new(ErrorKind::InvalidData, what))
        }),
    });
    let prompts: Vec<String> = prompts.collect::<Result<_, _>>()?;
    match prompts.is_empty() {
        true => Err(CliError::file(path, Error::new(ErrorKind::InvalidData, "has no prompts: write one a line"))),
        false => Ok(prompts),
    }
}

/// Turns prompts into tokens.
pub(super) fn encode(texts: Vec<String>, tokenizer: &ModelTokenizer) -> Result<Vec<Prompt>, CliError> {
    let prompt = |text: String| {
        let ids = tokenizer.encode(&text).map_err(ModelError::from)?;
        if ids.is_empty() { Err(ModelError::EmptyPrompt) } else { Ok(Prompt { text, ids }) }
    };
    Ok(texts.into_iter().map(prompt).collect::<Result<_, ModelError>>()?)
}
