//! A tokenizer from a SentencePiece `tokenizer.model`, for folders that come without a tokenizer.json, as InternLM2's do.
//!
//! The file is a protocol buffer, `ModelProto` of `sentencepiece_model.proto`; the few fields that matter are read here.

use std::path::Path;

use super::super::{Fault, ImportError, TokenizerFault};
use super::spm::{self, Piece};
use super::vocab::Kind;
use super::{ModelTokenizer, bad};

/// The largest tokenizer.model known is 5 MB.
const MOST_BYTES: u64 = 64 << 20;

/// `TrainerSpec.model_type` of BPE.
const BPE: u64 = 2;

/// A token that stands beside the file, as `added_tokens_decoder` of tokenizer_config.json has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedPiece {
    /// Its id: that of a piece it takes the place of, or the next one behind the pieces.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Whether decoding can leave it out.
    pub special: bool,
}

/// Reads the file; see [`ModelTokenizer::from_sentencepiece`].
pub(super) fn read(path: &Path, added: &[AddedPiece]) -> Result<ModelTokenizer, ImportError> {
    let io = |source| ImportError::Io { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MOST_BYTES {
        let fault = Fault::WrongSize { expected: MOST_BYTES, found: size };
        return Err(ImportError::Broken { path: path.to_owned(), place: "the file".to_owned(), fault });
    }
    let bytes = std::fs::read(path).map_err(io)?;
    let (mut pieces, settings) = parse(&bytes).map_err(|fault| bad(path, fault))?;
    if settings.kind != BPE {
        return Err(bad(path, TokenizerFault::SentencePiece { what: "another model than BPE" }));
    }
    if settings.normalises {
        return Err(bad(path, TokenizerFault::SentencePiece { what: "a text normalisation" }));
    }
    let mut added: Vec<&AddedPiece> = added.iter().collect();
    added.sort_by_key(|piece| piece.id);
    for AddedPiece { id, text, special } in added {
        let kind = if *special { Kind::Control } else { Kind::UserDefined };
        let vocab = pieces.len();
        match pieces.get_mut(*id as usize) {
            // What means the unknown goes on doing so.
            Some(piece) if piece.kind == Kind::Unknown && piece.text == text => {}
            Some(piece) => *piece = Piece { text, score: piece.score, kind },
            None if *id as usize == vocab => pieces.push(Piece { text, score: 0.0, kind }),
            None => return Err(bad(path, TokenizerFault::IdOutOfRange { role: "added token", id: *id, vocab })),
        }
    }
    let place = |kind: Kind, text: &str| {
        let found = pieces.iter().position(|piece| piece.kind == kind && piece.text == text);
        found.map(|id| id as u32)
    };
    let (bos, eos) = (place(Kind::Control, "<s>"), place(Kind::Control, "</s>"));
    let inner = spm::build(&pieces, settings.space_first).map_err(|fault| bad(path, fault))?;
    ModelTokenizer::new(inner, path).with_special(bos, eos.into_iter().collect(), bos.is_some())
}

struct Settings {
    kind: u64,
    space_first: bool,
    normalises: bool,
}

fn parse(bytes: &[u8]) -> Result<(Vec<Piece<'_>>, Settings), TokenizerFault> {
    let mut pieces = Vec::new();
    // The format's defaults: unigram, a space first.
    let mut settings = Settings { kind: 1, space_first: true, normalises: false };
    for field in Fields(bytes) {
        match field? {
            (1, Content::Bytes(piece)) => pieces.push(read_piece(piece, pieces.len())?),
            (2, Content::Bytes(trainer)) => {
                for field in Fields(trainer) {
                    if let (3, Content::Number(kind)) = field? {
                        settings.kind = kind;
                    }
                }
            }
            (3, Content::Bytes(normalizer)) => {
                for field in Fields(normalizer) {
                    match field? {
                        (2, Content::Bytes(map)) => settings.normalises |= !map.is_empty(),
                        (3, Content::Number(flag)) => settings.space_first = flag != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok((pieces, settings))
}

fn read_piece(bytes: &[u8], id: usize) -> Result<Piece<'_>, TokenizerFault> {
    let mut piece = Piece { text: "", score: 0.0, kind: Kind::Normal };
    for field in Fields(bytes) {
        match field? {
            (1, Content::Bytes(text)) => piece.text = std::str::from_utf8(text).map_err(|_| broken())?,
            (2, Content::Word(bits)) => piece.score = f32::from_bits(bits),
            (3, Content::Number(kind)) => {
                piece.kind = Kind::of(id, i32::try_from(kind).map_err(|_| broken())?)?;
            }
            _ => {}
        }
    }
    Ok(piece)
}

fn broken() -> TokenizerFault {
    TokenizerFault::SentencePiece { what: "a broken or unknown layout" }
}

enum Content<'a> {
    Number(u64),
    Word(u32),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a message: numbers and contents.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Content<'a>)> {
        let key = self.number()?;
        let content = match key & 7 {
            0 => Content::Number(self.number()?),
            1 => self.take(8).map(|_| Content::Other)?,
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Content::Bytes(self.take(length)?)
            }
            5 => Content::Word(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, content))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Content<'a>), TokenizerFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(broken))
    }
}
