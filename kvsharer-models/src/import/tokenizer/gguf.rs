//! A tokenizer from the `tokenizer.ggml.*` metadata of a GGUF file.

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::super::gguf::Metadata;
use super::super::{ImportError, TokenizerFault};
use super::spm::{self, Piece};
use super::vocab::{Kind, ids_of};
use super::{ModelTokenizer, bad, check_merge, pre};

/// Builds the tokenizer; see [`ModelTokenizer::from_gguf`].
pub(super) fn read(metadata: Metadata<'_>) -> Result<ModelTokenizer, ImportError> {
    let model: &str = metadata.require("tokenizer.ggml.model")?;
    let (inner, add_bos) = match model {
        "gpt2" => byte_level(metadata)?,
        "llama" => (sentencepiece(metadata)?, true),
        other => {
            let model = other.to_owned();
            return Err(bad(metadata.path(), TokenizerFault::UnsupportedModel { model }));
        }
    };
    let tokenizer = ModelTokenizer::new(inner, metadata.path());
    let bos = metadata.get("tokenizer.ggml.bos_token_id")?;
    // A chat model may end its turn (EOT), or a message to a tool (EOM), by another token than a text.
    let eos_keys = ["eos", "eot", "eom"].map(|role| format!("tokenizer.ggml.{role}_token_id"));
    let mut eos = Vec::new();
    for id in eos_keys.map(|key| metadata.get(&key)) {
        eos.extend(id?.filter(|id| !eos.contains(id)));
    }
    let add_bos = metadata.get("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos && bos.is_some());
    let add_eos = "tokenizer.ggml.add_eos_token";
    if metadata.get(add_eos)?.unwrap_or(false) {
        return Err(metadata.bad(add_eos, "false: EOS behind every text is not supported", "true"));
    }
    tokenizer.with_special(bos, eos, add_bos)
}

/// Byte-level BPE; also whether BOS goes before a text unless the file says otherwise.
fn byte_level(metadata: Metadata<'_>) -> Result<(Tokenizer, bool), ImportError> {
    let fault = |fault| bad(metadata.path(), fault);
    let rule = pre::rule(metadata.get("tokenizer.ggml.pre")?.unwrap_or("default")).map_err(fault)?;
    let tokens: Vec<&str> = metadata.require("tokenizer.ggml.tokens")?;
    let merges: Vec<&str> = metadata.require("tokenizer.ggml.merges")?;
    let kinds = kinds(metadata, tokens.len())?;
    let bpe = byte_pairs(&tokens, &merges, rule.whole_words).map_err(fault)?;
    // Normal, unknown, unused and byte tokens are only reached by merging.
    let added = tokens.iter().zip(kinds).filter(|(_, kind)| kind.is_added());
    let added = added.map(|(&token, kind)| AddedToken::from(token, kind == Kind::Control).normalized(false));

    let mut inner = Tokenizer::new(bpe);
    inner.with_normalizer(rule.normalizer).map_err(|error| fault(TokenizerFault::Library(error)))?;
    inner.with_pre_tokenizer(Some(rule.pre_tokenizer));
    inner.with_decoder(Some(ByteLevel::default()));
    inner.add_tokens(added.collect::<Vec<_>>()).map_err(|error| fault(TokenizerFault::Library(error)))?;
    Ok((inner, rule.adds_bos))
}

/// SentencePiece BPE with byte fallback.
fn sentencepiece(metadata: Metadata<'_>) -> Result<Tokenizer, ImportError> {
    let fault = |fault| bad(metadata.path(), fault);
    if metadata.get("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false) {
        return Err(fault(TokenizerFault::SentencePiece { what: "remove_extra_whitespaces" }));
    }
    let tokens: Vec<&str> = metadata.require("tokenizer.ggml.tokens")?;
    let scores: Vec<f32> = metadata.require("tokenizer.ggml.scores")?;
    if tokens.len() != scores.len() {
        return Err(fault(TokenizerFault::ScoresDiffer { tokens: tokens.len(), scores: scores.len() }));
    }
    let kinds = kinds(metadata, tokens.len())?;
    let pieces = tokens.into_iter().zip(scores).zip(kinds);
    let pieces: Vec<Piece<'_>> = pieces.map(|((text, score), kind)| Piece { text, score, kind }).collect();
    spm::build(&pieces, metadata.get("tokenizer.ggml.add_space_prefix")?.unwrap_or(true)).map_err(fault)
}

/// The kind of every token; a file without kinds has normal tokens only.
fn kinds(metadata: Metadata<'_>, tokens: usize) -> Result<Vec<Kind>, ImportError> {
    let fault = |fault| bad(metadata.path(), fault);
    let Some(types) = metadata.get::<Vec<i32>>("tokenizer.ggml.token_type")? else {
        return Ok(vec![Kind::Normal; tokens]);
    };
    if types.len() != tokens {
        return Err(fault(TokenizerFault::TypesDiffer { tokens, types: types.len() }));
    }
    types.into_iter().enumerate().map(|(id, number)| Kind::of(id, number).map_err(fault)).collect()
}

/// Byte pair encoding from tokens in the order of their ids and merges `"left right"`.
fn byte_pairs(tokens: &[&str], merges: &[&str], whole_words: bool) -> Result<BPE, TokenizerFault> {
    let vocab = ids_of(tokens.iter().copied())?;
    let mut pairs = Vec::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        // A rule without a space has no right side, and the empty text is refused as no token.
        let (left, right) = merge.split_once(' ').unwrap_or((merge, ""));
        check_merge(index, (left, right), |token| !token.is_empty() && vocab.contains_key(token))?;
        pairs.push((left.to_owned(), right.to_owned()));
    }
    let vocab = vocab.into_iter().map(|(token, id)| (token.to_owned(), id));
    let bpe = BPE::builder().vocab_and_merges(vocab.collect::<tokenizers::models::bpe::Vocab>(), pairs);
    bpe.ignore_merges(whole_words).build().map_err(TokenizerFault::Library)
}
