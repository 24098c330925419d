//! SentencePiece BPE, the tokenizer of Llama 1 and 2, Mistral, InternLM2 and Gemma, from its pieces and their scores.
//!
//! SentencePiece (`bpe_model.cc`) joins, of all neighbours that make a piece, those with the highest score, the first
//! ones of equals. The `tokenizers` library wants a list of merges instead; it is made here as transformers makes it
//! (`generate_merges`), so that ids are those of Hugging Face.

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer};

use super::super::TokenizerFault;
use super::vocab::{Kind, ids_of};

/// What stands for a space.
const SPACE: &str = "\u{2581}";

/// A token, and what is known about it.
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// Builds the tokenizer. `space_first`: whether a space is put before a text, and behind every special token.
pub(super) fn build(pieces: &[Piece<'_>], space_first: bool) -> Result<Tokenizer, TokenizerFault> {
    let ids = ids_of(pieces.iter().map(|piece| piece.text))?;
    let merges = merges(pieces, &ids);
    let unknown = pieces.iter().find(|piece| piece.kind == Kind::Unknown);
    let vocab = ids.iter().map(|(&text, &id)| (text.to_owned(), id));
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.collect::<tokenizers::models::bpe::Vocab>(), merges)
        .byte_fallback(true)
        .fuse_unk(true);
    let bpe = match unknown {
        Some(unknown) => bpe.unk_token(unknown.text.to_owned()),
        None => bpe,
    };
    let mut inner = Tokenizer::new(bpe.build().map_err(TokenizerFault::Library)?);

    let spaces = Replace::new(" ", SPACE).map_err(TokenizerFault::Library)?;
    let mut steps: Vec<NormalizerWrapper> = vec![spaces.into()];
    let back = Replace::new(SPACE, " ").map_err(TokenizerFault::Library)?;
    let mut decoders: Vec<DecoderWrapper> = vec![back.into(), ByteFallback::new().into(), Fuse::new().into()];
    if space_first {
        steps.insert(0, Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    inner.with_normalizer(Some(Normalizers::new(steps))).map_err(TokenizerFault::Library)?;
    inner.with_decoder(Some(Decoders::new(decoders)));
    let added = pieces.iter().filter(|piece| piece.kind.is_added() || piece.kind == Kind::Unknown);
    let added = added.map(|piece| AddedToken::from(piece.text, piece.kind != Kind::UserDefined).normalized(false));
    inner.add_tokens(added.collect::<Vec<_>>()).map_err(TokenizerFault::Library)?;
    Ok(inner)
}

/// All pairs of pieces that make a third, those of the highest score first.
fn merges(pieces: &[Piece<'_>], ids: &HashMap<&str, u32>) -> Vec<(String, String)> {
    let mut merges = Vec::new();
    for piece in pieces {
        let cuts = piece.text.char_indices().skip(1).map(|(at, _)| piece.text.split_at(at));
        let mut pairs: Vec<_> = cuts.filter_map(|(l, r)| Some((ids.get(l)?, ids.get(r)?, l, r))).collect();
        pairs.sort_unstable_by_key(|&(left, right, ..)| (left, right));
        merges.extend(pairs.into_iter().map(|(_, _, left, right)| (piece.score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    // Stable: equal ones stay in the order of the pieces.
    merges.sort_by(|a, b| {
        let lengths = |m: &(f32, &str, &str)| (length(m.1), length(m.2));
        b.0.total_cmp(&a.0).then_with(|| lengths(b).cmp(&lengths(a)))
    });
    merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}
