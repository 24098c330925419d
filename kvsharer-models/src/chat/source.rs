//! Where a model keeps its chat template and the special tokens it names.

use super::render::MAX_TEMPLATE;
use super::{ChatError, ChatTemplate};
use crate::files::read_json;
use crate::import::GgufFile;
use crate::{ModelError, ModelFiles};
use kvsharer_core::read_at_most;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The special tokens that transformers gives to a template, and the names of their ids in GGUF metadata.
const SPECIAL: &[(&str, &str)] = &[
    ("bos_token", "bos"),
    ("eos_token", "eos"),
    ("unk_token", "unknown"),
    ("pad_token", "padding"),
    ("sep_token", "seperator"),
    ("cls_token", "cls"),
    ("mask_token", "mask"),
];

const JINJA: &str = "chat_template.jinja";
const CONFIG: &str = "tokenizer_config.json";
const GGUF: &str = "tokenizer.chat_template";

impl ModelFiles {
    /// The model's chat template: that of chat_template.jinja, else of tokenizer_config.json, or of GGUF metadata. Of
    /// several, the one called `name`, or else `default`.
    ///
    /// # Errors
    /// [`ChatError`], as [`ModelError::Chat`], says what is missing or wrong.
    pub fn chat_template(&self, name: Option<&str>) -> Result<ChatTemplate, ModelError> {
        let missing = || ChatError::NoTemplate { model: self.name().into() };
        let text = match (self.folder(), self.gguf()) {
            (Some(folder), _) => from_folder(folder, name)?,
            (_, Some(file)) => from_gguf(file, name)?,
            _ => None,
        };
        Ok(ChatTemplate::new(&text.ok_or_else(missing)?, self.special_tokens()?)?)
    }

    /// A template of the user's own with the model's special tokens.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Chat`].
    pub fn chat_template_from(&self, path: &Path) -> Result<ChatTemplate, ModelError> {
        Ok(ChatTemplate::new(&read_text(path)?, self.special_tokens()?)?)
    }

    /// The tokens that have a role, by the names of tokenizer_config.json.
    pub(crate) fn special_tokens(&self) -> Result<Map<String, Value>, ModelError> {
        let mut special = Map::new();
        if let Some(path) = self.folder().map(|folder| folder.join(CONFIG)).filter(|path| path.is_file()) {
            let config = read_json(&path)?;
            for (name, _) in SPECIAL {
                // A token with its own rules for white space is an object.
                let token = config.get(*name).and_then(|token| token.as_str().or(token["content"].as_str()));
                if let Some(token) = token {
                    special.insert((*name).into(), token.into());
                }
            }
        }
        if let Some(file) = self.gguf() {
            let metadata = file.metadata();
            let tokens: Vec<&str> = metadata.get("tokenizer.ggml.tokens")?.unwrap_or_default();
            for (name, key) in SPECIAL {
                let id: Option<u32> = metadata.get(&format!("tokenizer.ggml.{key}_token_id"))?;
                if let Some(token) = id.and_then(|id| tokens.get(id as usize)) {
                    special.insert((*name).into(), (*token).into());
                }
            }
        }
        Ok(special)
    }
}

impl ModelFiles {
    /// The chat template of GGUF metadata as tokenizer_config.json has it: a text, or a list of named ones.
    pub(crate) fn gguf_templates(&self) -> Result<Option<Value>, ModelError> {
        let Some(file) = self.gguf() else { return Ok(None) };
        let Some(template) = from_gguf(file, None)? else { return Ok(None) };
        let names: Vec<&str> = file.metadata().get("tokenizer.chat_templates")?.unwrap_or_default();
        let mut named = vec![json!({ "name": "default", "template": template })];
        for name in names.into_iter().filter(|name| *name != "default") {
            named.push(json!({ "name": name, "template": from_gguf(file, Some(name))? }));
        }
        Ok(Some(if named.len() == 1 { template.into() } else { named.into() }))
    }
}

fn from_folder(folder: &Path, name: Option<&str>) -> Result<Option<String>, ModelError> {
    let path = match name {
        None => folder.join(JINJA),
        Some(name) => folder.join("additional_chat_templates").join(format!("{name}.jinja")),
    };
    // A name is no path.
    let plain = name.is_none_or(|name| name.chars().all(|c| c.is_alphanumeric() || "_-".contains(c)));
    if plain && path.is_file() {
        return Ok(Some(read_text(&path)?));
    }
    let path = folder.join(CONFIG);
    if !path.is_file() {
        return Ok(None);
    }
    let bad = || ChatError::BadField { path: path.clone(), field: "chat_template" };
    match read_json(&path)?.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(template)) if name.is_none() => Ok(Some(template.clone())),
        Some(Value::String(_)) => Err(unknown(&path, name, &["default"]).into()),
        Some(Value::Array(templates)) => {
            let mut named = Vec::new();
            for template in templates {
                let pair = template["name"].as_str().zip(template["template"].as_str());
                named.push(pair.ok_or_else(bad)?);
            }
            let wanted = name.unwrap_or("default");
            let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
            let found = named.iter().find(|(name, _)| *name == wanted);
            Ok(Some(found.ok_or_else(|| unknown(&path, Some(wanted), &names))?.1.to_owned()))
        }
        Some(_) => Err(bad().into()),
    }
}

fn from_gguf(file: &GgufFile, name: Option<&str>) -> Result<Option<String>, ModelError> {
    let metadata = file.metadata();
    let Some(wanted) = name.filter(|name| *name != "default") else {
        return Ok(metadata.get::<&str>(GGUF)?.map(str::to_owned));
    };
    let template: Option<&str> = metadata.get(&format!("{GGUF}.{wanted}"))?;
    let known: Vec<&str> = metadata.get("tokenizer.chat_templates")?.unwrap_or_else(|| vec!["default"]);
    Ok(Some(template.ok_or_else(|| unknown(metadata.path(), name, &known))?.to_owned()))
}

fn unknown(path: &Path, name: Option<&str>, known: &[&str]) -> ChatError {
    ChatError::UnknownTemplate { path: path.into(), name: name.unwrap_or("default").into(), known: known.join(", ") }
}

fn read_text(path: &Path) -> Result<String, ModelError> {
    let text = read_at_most(path, MAX_TEMPLATE as u64).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| std::io::Error::new(std::io::ErrorKind::InvalidData, "is no UTF-8 text"))
    });
    text.map_err(|source| ModelError::Io { path: path.into(), source })
}
