//! Lists of tokens as GGUF and SentencePiece have them.

use std::collections::HashMap;

use super::super::TokenizerFault;

/// What a token is; the numbers are those of GGUF and of SentencePiece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reached by merging.
    Normal,
    /// Stands for what nothing else stands for.
    Unknown,
    /// Found in a text before it is split, and left out of decoded text on request.
    Control,
    /// Found in a text before it is split.
    UserDefined,
    /// Not used.
    Unused,
    /// A byte.
    Byte,
}

impl Kind {
    /// The kind of a number; `id` is for the error.
    pub(super) fn of(id: usize, number: i32) -> Result<Self, TokenizerFault> {
        Ok(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            kind => return Err(TokenizerFault::UnknownType { id, kind }),
        })
    }

    /// Whether it is found in a text before it is split.
    pub(super) fn is_added(self) -> bool {
        matches!(self, Self::Control | Self::UserDefined)
    }
}

/// The id of every token, which is its place in the list.
pub(super) fn ids_of<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Result<HashMap<&'a str, u32>, TokenizerFault> {
    let mut ids = HashMap::new();
    for (id, token) in (0..).zip(tokens) {
        if let Some(first) = ids.insert(token, id) {
            return Err(TokenizerFault::DuplicateToken { token: token.to_owned(), first, second: id });
        }
    }
    Ok(ids)
}
