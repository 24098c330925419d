//! A tokenizer from the `tokenizer.ggml.*` metadata of a GGUF file.

use std::collections::HashMap;

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer};

use super::super::gguf::Metadata;
use super::super::{ImportError, TokenizerFault};
use super::{ModelTokenizer, bad, check_merge};

/// What `tokenizer.ggml.pre` may be; see [`pre_tokenizer`].
const SUPPORTED_PRE: &str = "\"smollm\" and \"gpt-2\"";

/// Builds the tokenizer; see [`ModelTokenizer::from_gguf`].
pub(super) fn read(metadata: Metadata<'_>) -> Result<ModelTokenizer, ImportError> {
    let tokenizer = ModelTokenizer::new(build(metadata)?, metadata.path());
    let bos = metadata.get("tokenizer.ggml.bos_token_id")?;
    // A chat model may end its turn (EOT) by another token than a text.
    let eos_keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
    let mut eos = Vec::new();
    for id in eos_keys.map(|key| metadata.get(key)) {
        eos.extend(id?.filter(|id| !eos.contains(id)));
    }
    let add_bos = metadata.get("tokenizer.ggml.add_bos_token")?.unwrap_or(false);
    let add_eos = "tokenizer.ggml.add_eos_token";
    if metadata.get(add_eos)?.unwrap_or(false) {
        return Err(metadata.bad(add_eos, "false: EOS behind every text is not supported", "true"));
    }
    tokenizer.with_special(bos, eos, add_bos)
}

fn build(metadata: Metadata<'_>) -> Result<Tokenizer, ImportError> {
    let fault = |fault| bad(metadata.path(), fault);
    let model: &str = metadata.require("tokenizer.ggml.model")?;
    if model != "gpt2" {
        let model = model.to_owned();
        return Err(fault(TokenizerFault::UnsupportedModel { model }));
    }
    let pre_tokenizer = pre_tokenizer(metadata.require("tokenizer.ggml.pre")?).map_err(fault)?;
    let tokens: Vec<&str> = metadata.require("tokenizer.ggml.tokens")?;
    let merges: Vec<&str> = metadata.require("tokenizer.ggml.merges")?;
    let types: Option<Vec<i32>> = metadata.get("tokenizer.ggml.token_type")?;
    let bpe = byte_pairs(&tokens, &merges).map_err(fault)?;
    let added = added_tokens(&tokens, types.as_deref().unwrap_or(&[])).map_err(fault)?;

    let mut inner = Tokenizer::new(bpe);
    inner.with_pre_tokenizer(Some(pre_tokenizer));
    inner.with_decoder(Some(ByteLevel::default()));
    inner.add_tokens(added).map_err(|error| fault(TokenizerFault::Library(error)))?;
    Ok(inner)
}

/// The rule that splits a text before its parts are encoded, by the name that llama.cpp gives it.
/// Only names are known here whose rule Hugging Face spells in the same way.
fn pre_tokenizer(pre: &str) -> Result<PreTokenizerWrapper, TokenizerFault> {
    let words = ByteLevel::new(false, true, true);
    match pre {
        "smollm" => Ok(Sequence::new(vec![Digits::new(true).into(), words.into()]).into()),
        "gpt-2" => Ok(words.into()),
        _ => Err(TokenizerFault::UnsupportedPre { pre: pre.to_owned(), supported: SUPPORTED_PRE }),
    }
}

/// Byte pair encoding from tokens in the order of their ids and merges `"left right"`.
fn byte_pairs(tokens: &[&str], merges: &[&str]) -> Result<BPE, TokenizerFault> {
    let mut vocab = HashMap::with_capacity(tokens.len());
    for (id, &token) in (0..).zip(tokens) {
        if let Some(first) = vocab.insert(token.to_owned(), id) {
            return Err(TokenizerFault::DuplicateToken { token: token.to_owned(), first, second: id });
        }
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        // A rule without a space has no right side, and the empty text is refused as no token.
        let (left, right) = merge.split_once(' ').unwrap_or((merge, ""));
        check_merge(index, (left, right), |token| !token.is_empty() && vocab.contains_key(token))?;
        pairs.push((left.to_owned(), right.to_owned()));
    }
    let bpe = BPE::builder().vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), pairs);
    bpe.build().map_err(TokenizerFault::Library)
}

/// The tokens that are found in a text before it is split: control tokens (type 3), which are
/// special, and user-defined ones (type 4).
fn added_tokens(tokens: &[&str], types: &[i32]) -> Result<Vec<AddedToken>, TokenizerFault> {
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(TokenizerFault::TypesDiffer { tokens: tokens.len(), types: types.len() });
    }
    let mut added = Vec::new();
    for (id, (&token, &kind)) in tokens.iter().zip(types).enumerate() {
        match kind {
            3 | 4 => added.push(AddedToken::from(token, kind == 3).normalized(false)),
            // Normal, unknown, unused and byte tokens are only reached by merging.
            1 | 2 | 5 | 6 => {}
            _ => return Err(TokenizerFault::UnknownType { id, kind }),
        }
    }
    Ok(added)
}
