//! Tokenizers: text to token ids and back.
//!
//! [`ModelTokenizer`] wraps the `tokenizers` library and is read from a Hugging Face
//! `tokenizer.json` or from GGUF metadata; [`DecodeStream`] turns ids into text one by one.

mod gguf;
mod json;
mod pre;
mod sentencepiece;
mod spm;
mod stream;
mod vocab;

use std::fmt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::json;
use tokenizers::Tokenizer;

use super::{GgufFile, ImportError, TokenizerFault};
pub use sentencepiece::AddedPiece;
pub use stream::DecodeStream;

/// A model's tokenizer and its special tokens.
#[derive(Clone)]
pub struct ModelTokenizer {
    inner: Tokenizer,
    path: PathBuf,
    bos: Option<u32>,
    eos: Vec<u32>,
    add_bos: bool,
}

impl ModelTokenizer {
    /// Reads a Hugging Face `tokenizer.json`.
    ///
    /// BOS is what the file's post-processor puts before a text, if anything. The file does not
    /// say which tokens end a text: see [`with_special`](Self::with_special). Truncation and
    /// padding that the file asks for are turned off, as `transformers` does.
    ///
    /// # Errors
    ///
    /// [`ImportError::Io`], or [`ImportError::BadTokenizer`] for a broken file and for a
    /// post-processor that does anything other than put one token before a text.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ImportError> {
        json::read(path.as_ref())
    }

    /// Builds the tokenizer that a GGUF file's metadata describes.
    ///
    /// Byte-level BPE (`tokenizer.ggml.model` = `gpt2`) with the pre-tokenizers `llama-bpe`, `qwen2`,
    /// `smollm`, `gpt-2`, `tekken`, `default` and those of the same rules; SentencePiece BPE (`llama`).
    /// Control tokens become special tokens, user-defined ones become added tokens.
    ///
    /// # Errors
    ///
    /// [`ImportError::BadMetadata`] for absent or wrong metadata, [`ImportError::BadTokenizer`]
    /// for another kind of tokenizer and for a vocabulary that contradicts itself.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ImportError> {
        gguf::read(file.metadata())
    }

    /// Reads a SentencePiece `tokenizer.model` of kind BPE, with byte fallback.
    ///
    /// BOS and EOS are its control tokens `<s>` and `</s>`; BOS goes before every text, as in
    /// transformers' `LlamaTokenizer`. `added` are the tokens that Hugging Face keeps beside the file.
    ///
    /// # Errors
    ///
    /// [`ImportError::Io`], [`ImportError::Broken`] for a file too large to be one, or
    /// [`ImportError::BadTokenizer`] for a broken file, another kind of model, and one that normalises
    /// texts.
    pub fn from_sentencepiece(path: impl AsRef<Path>, added: &[AddedPiece]) -> Result<Self, ImportError> {
        sentencepiece::read(path.as_ref(), added)
    }

    /// Sets the special tokens, which Hugging Face keeps in `config.json`,
    /// `generation_config.json` and `tokenizer_config.json`.
    ///
    /// `add_bos`: whether [`encode`](Self::encode) puts `bos` before every text. Where no file
    /// says so (`add_bos_token`), keep [`adds_bos`](Self::adds_bos) and [`bos`](Self::bos).
    ///
    /// # Errors
    ///
    /// [`ImportError::BadTokenizer`] for an id that no token has, and for `add_bos` without `bos`.
    pub fn with_special(mut self, bos: Option<u32>, eos: Vec<u32>, add_bos: bool) -> Result<Self, ImportError> {
        if add_bos && bos.is_none() {
            return Err(self.bad(TokenizerFault::NoBos));
        }
        let roles = bos.iter().map(|id| ("BOS", id)).chain(eos.iter().map(|id| ("EOS", id)));
        for (role, &id) in roles {
            if self.token(id).is_none() {
                let vocab = self.vocab_size();
                return Err(self.bad(TokenizerFault::IdOutOfRange { role, id, vocab }));
            }
        }
        (self.bos, self.eos, self.add_bos) = (bos, eos, add_bos);
        Ok(self)
    }

    /// A text's ids, with BOS before them if the model's files say so. The text of a special
    /// token becomes that token, as in Hugging Face.
    ///
    /// # Errors
    ///
    /// [`ImportError::Tokenize`] if the library fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ImportError> {
        let ids = self.encode_bare(text)?;
        let bos = self.bos.filter(|_| self.add_bos);
        Ok(bos.into_iter().chain(ids).collect())
    }

    /// A text's ids without BOS: for text that goes on from other text, and for the text of a
    /// chat template, which spells out its BOS.
    ///
    /// # Errors
    ///
    /// [`ImportError::Tokenize`] if the library fails.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>, ImportError> {
        self.ids(text, false)
    }

    /// [`encode`](Self::encode) for many texts, on all threads, in their order.
    ///
    /// # Errors
    ///
    /// [`ImportError::Tokenize`] if the library fails on one of them.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vec<Vec<u32>>, ImportError> {
        texts.par_iter().map(|text| self.encode(text.as_ref())).collect()
    }

    /// The text of ids. As in Hugging Face, an id that no token has gives no text (a model's
    /// vocabulary may be padded), and bytes that are no UTF-8 give U+FFFD.
    ///
    /// # Errors
    ///
    /// [`ImportError::Tokenize`] if the library fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ImportError> {
        caught(|| self.inner.decode(ids, skip_special)).map_err(ImportError::Tokenize)
    }

    /// Starts to decode a text whose ids come one by one.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// The content of a Hugging Face `tokenizer.json` that makes the same tokenizer, with the token that
    /// [`encode`](Self::encode) puts before a text in its post-processor.
    ///
    /// # Errors
    ///
    /// [`ImportError::Tokenize`] if the library fails.
    pub fn to_json(&self) -> Result<String, ImportError> {
        let mut json = serde_json::to_value(&self.inner).map_err(|error| ImportError::Tokenize(error.into()))?;
        if let Some((id, token)) = self.bos.filter(|_| self.add_bos).and_then(|id| Some((id, self.token(id)?))) {
            let bos = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
            let text = |name: &str, kind: u32| json!({ "Sequence": { "id": name, "type_id": kind } });
            json["post_processor"] = json!({
                "type": "TemplateProcessing",
                "single": [bos, text("A", 0)],
                "pair": [bos, text("A", 0), bos, text("B", 1)],
                "special_tokens": { (token.clone()): { "id": token, "ids": [id], "tokens": [token] } },
            });
        }
        Ok(json.to_string())
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token before every text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether [`encode`](Self::encode) puts BOS before a text.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// The tokens that end a text.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The token with this id, as it is spelt in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of the token that is spelt so in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether decoding can leave this token out.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        self.token(id).is_some_and(|token| added.is_special_token(&token))
    }

    /// Checks that a model of `vocab` embeddings has one for every token.
    ///
    /// # Errors
    ///
    /// [`ImportError::BadTokenizer`] names the token of the highest id, if it is beyond them.
    pub fn check_fits(&self, vocab: usize) -> Result<(), ImportError> {
        let highest = self.inner.get_vocab(true).into_iter().max_by_key(|(_, id)| *id);
        match highest {
            Some((token, id)) if id as usize >= vocab => {
                Err(self.bad(TokenizerFault::BeyondVocabulary { token, id, vocab }))
            }
            _ => Ok(()),
        }
    }

    /// A text's ids, with what the post-processor puts around them if `added`.
    fn ids(&self, text: &str, added: bool) -> Result<Vec<u32>, ImportError> {
        let encoding = caught(|| self.inner.encode_fast(text, added)).map_err(ImportError::Tokenize)?;
        Ok(encoding.get_ids().to_vec())
    }

    fn new(inner: Tokenizer, path: &Path) -> Self {
        Self { inner, path: path.to_owned(), bos: None, eos: Vec::new(), add_bos: false }
    }

    fn bad(&self, fault: TokenizerFault) -> ImportError {
        bad(&self.path, fault)
    }
}

/// Leaves the vocabulary out.
impl fmt::Debug for ModelTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelTokenizer")
            .field("path", &self.path)
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("add_bos", &self.add_bos)
            .finish_non_exhaustive()
    }
}

fn bad(path: &Path, fault: TokenizerFault) -> ImportError {
    ImportError::BadTokenizer { path: path.to_owned(), fault }
}

/// The library relies on files that make sense, and panics at some that do not: such as a decoder that strips more than
/// there is. That is an error like its others.
fn caught<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    caught.unwrap_or_else(|_| Err("the tokenizers library gave up: the tokenizer contradicts itself".into()))
}

/// Checks that a merge rule joins two tokens into a third. The library relies on it: where the
/// joined token is longer than any other it panics.
fn check_merge(index: usize, pair: (&str, &str), is_token: impl Fn(&str) -> bool) -> Result<(), TokenizerFault> {
    let (left, right) = pair;
    if is_token(left) && is_token(right) && is_token(&[left, right].concat()) {
        return Ok(());
    }
    let merge = format!("{left} {right}");
    Err(TokenizerFault::BadMerge { index, merge })
}
