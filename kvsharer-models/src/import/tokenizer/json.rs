//! A tokenizer from a Hugging Face `tokenizer.json`.

use std::path::Path;

use kvsharer_core::read_at_most;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::super::{ImportError, TokenizerFault};
use super::{ModelTokenizer, bad, caught, check_merge};

/// The largest tokenizer.json known has 35 MB.
const MOST_BYTES: u64 = 256 << 20;

/// Reads the file; see [`ModelTokenizer::from_file`].
pub(super) fn read(path: &Path) -> Result<ModelTokenizer, ImportError> {
    let bytes = read_at_most(path, MOST_BYTES).map_err(|source| ImportError::Io { path: path.to_owned(), source })?;
    let mut tokenizer = ModelTokenizer::new(parse(&bytes).map_err(|fault| bad(path, fault))?, path);
    if let Some(bos) = tokenizer.template_bos()? {
        tokenizer = tokenizer.with_special(Some(bos), Vec::new(), true)?;
    }
    Ok(tokenizer)
}

fn parse(bytes: &[u8]) -> Result<Tokenizer, TokenizerFault> {
    let file = serde_json::from_slice(bytes).map_err(TokenizerFault::Json)?;
    check_merges(&file)?;
    check_templates(&file["post_processor"])?;
    let mut inner = caught(|| Tokenizer::from_bytes(bytes)).map_err(TokenizerFault::Library)?;
    inner.with_truncation(None).map_err(TokenizerFault::Library)?;
    inner.with_padding(None);
    Ok(inner)
}

/// Checks the merges of a BPE model. Any other mistake is left for the library to find.
fn check_merges(file: &Value) -> Result<(), TokenizerFault> {
    let model = &file["model"];
    let (Some(vocab), Some(merges)) = (model["vocab"].as_object(), model["merges"].as_array()) else {
        return Ok(());
    };
    if let Some(prefix) = model["continuing_subword_prefix"].as_str().filter(|prefix| !prefix.is_empty()) {
        let prefix = prefix.to_owned();
        return Err(TokenizerFault::SubwordPrefix { prefix });
    }
    let pairs = merges.iter().map(merge_pair).enumerate();
    for (index, pair) in pairs.filter_map(|(index, pair)| Some((index, pair?))) {
        check_merge(index, pair, |token| vocab.contains_key(token))?;
    }
    Ok(())
}

/// Checks the template that a text is put into. The library relies on it, and panics where a template names a token that
/// the file does not define, or a second text.
fn check_templates(processor: &Value) -> Result<(), TokenizerFault> {
    for inner in processor["processors"].as_array().into_iter().flatten() {
        check_templates(inner)?;
    }
    for piece in processor["single"].as_array().into_iter().flatten() {
        let (token, text) = (&piece["SpecialToken"]["id"], &piece["Sequence"]["id"]);
        let undefined = token.as_str().filter(|token| processor["special_tokens"].get(token).is_none());
        if let Some(name) = undefined.or(text.as_str().filter(|text| *text != "A")) {
            return Err(TokenizerFault::Undefined { name: name.to_owned() });
        }
    }
    Ok(())
}

/// A merge rule is spelt `"a b"` or `["a", "b"]`.
fn merge_pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) if !text.starts_with("#version") => text.split_once(' '),
        Value::Array(pair) => Some((pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    }
}

impl ModelTokenizer {
    /// The token that the file's post-processor puts before a text.
    fn template_bos(&self) -> Result<Option<u32>, ImportError> {
        let text = "a";
        let bare = self.encode_bare(text)?;
        let ids = self.ids(text, true)?;
        match &ids[..] {
            ids if ids == bare => Ok(None),
            [bos, rest @ ..] if rest == bare => Ok(Some(*bos)),
            _ => Err(self.bad(TokenizerFault::Template { ids })),
        }
    }
}
