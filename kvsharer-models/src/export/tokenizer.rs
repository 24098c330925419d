//! The files of the tokenizer: copied from a folder, made from GGUF metadata.

use super::{ExportError, write_json};
use crate::ModelFiles;
use crate::files::read_json;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a Hugging Face folder keeps of its tokenizer, its chat template and its texts' ends.
const FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// The folder of further chat templates.
const TEMPLATES: &str = "additional_chat_templates";

/// Fields of config.json that name tokens.
const TOKENS: &[&str] = &["bos_token_id", "eos_token_id", "pad_token_id"];

/// Writes the files; gives the fields of config.json that name tokens.
pub(super) fn write(files: &ModelFiles, folder: &Path) -> Result<Map<String, Value>, ExportError> {
    match (files.folder(), files.gguf()) {
        (Some(from), _) => copy(from, folder),
        (_, Some(_)) => make(files, folder),
        _ => Ok(Map::new()),
    }
}

fn copy(from: &Path, to: &Path) -> Result<Map<String, Value>, ExportError> {
    for name in FILES.iter().filter(|name| from.join(name).is_file()) {
        copy_file(&from.join(name), &to.join(name))?;
    }
    let templates = from.join(TEMPLATES);
    if templates.is_dir() {
        let io = |source| ExportError::Io { path: templates.clone(), source };
        std::fs::create_dir_all(to.join(TEMPLATES)).map_err(io)?;
        for entry in std::fs::read_dir(&templates).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|end| end == "jinja")) {
                copy_file(&path, &to.join(TEMPLATES).join(name))?;
            }
        }
    }
    let config = read_json(&from.join("config.json"))?;
    Ok(config.into_iter().filter(|(name, _)| TOKENS.contains(&name.as_str())).collect())
}

fn copy_file(from: &Path, to: &Path) -> Result<(), ExportError> {
    std::fs::copy(from, to).map(drop).map_err(|source| ExportError::Io { path: from.into(), source })
}

fn make(files: &ModelFiles, folder: &Path) -> Result<Map<String, Value>, ExportError> {
    let tokenizer = files.tokenizer()?;
    let text = tokenizer.to_json().map_err(|error| ExportError::Tokenizer(error.to_string()))?;
    super::write(&folder.join("tokenizer.json"), text.as_bytes())?;
    let mut config = files.special_tokens()?;
    config.extend([
        ("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast")),
        ("add_bos_token".to_owned(), json!(tokenizer.adds_bos())),
        ("clean_up_tokenization_spaces".to_owned(), json!(false)),
        ("model_max_length".to_owned(), json!(files.config().max_positions)),
    ]);
    if let Some(templates) = files.gguf_templates()? {
        config.insert("chat_template".into(), templates);
    }
    write_json(&folder.join("tokenizer_config.json"), &Value::Object(config))?;
    // One end of a text is a number, several are a list.
    let eos = match tokenizer.eos() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let tokens = json!({ "bos_token_id": tokenizer.bos(), "eos_token_id": eos });
    write_json(&folder.join("generation_config.json"), &tokens)?;
    Ok(tokens.as_object().cloned().unwrap_or_default())
}
