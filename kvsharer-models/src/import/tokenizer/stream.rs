//! Decoding while ids arrive.

use super::super::ImportError;
use super::ModelTokenizer;

/// What a decoder writes for bytes that are no UTF-8, or not yet.
const REPLACEMENT: char = '\u{fffd}';

/// Turns ids into text one by one, and holds back what is not a whole character yet.
///
/// All pieces together, [`finish`](Self::finish) included, are the text that
/// [`ModelTokenizer::decode`] gives for all ids. (A byte-fallback tokenizer may write U+FFFD for
/// bytes that were whole characters once bytes that are none follow them; what was given out
/// stays.) The library has a decoder like it; that one cannot give out what is held back at the
/// end of a text.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a ModelTokenizer,
    skip_special: bool,
    /// The ids of the last piece, as a decoder may write a token differently at the start of a
    /// text, and the ids that are held back.
    ids: Vec<u32>,
    /// How many of `ids` were given out.
    given: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a ModelTokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), given: 0 }
    }

    /// Takes the next id; gives the text that it completes, never an empty one.
    ///
    /// # Errors
    ///
    /// [`ImportError::Tokenize`] if the library fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, ImportError> {
        // Left out by decoding anyway; held ids would pile up in a run of such tokens.
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(None);
        }
        self.ids.push(id);
        let piece = self.held_text()?;
        if piece.is_empty() || piece.ends_with(REPLACEMENT) {
            return Ok(None);
        }
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Ok(Some(piece))
    }

    /// Ends the text: gives what was held back, with U+FFFD for a character cut in its middle.
    ///
    /// # Errors
    ///
    /// [`ImportError::Tokenize`] if the library fails.
    pub fn finish(self) -> Result<Option<String>, ImportError> {
        Ok(Some(self.held_text()?).filter(|text| !text.is_empty()))
    }

    fn held_text(&self) -> Result<String, ImportError> {
        let mut text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        let given = self.tokenizer.decode(&self.ids[..self.given], self.skip_special)?;
        // What was given out ends in a whole character, so that later ids do not change it.
        Ok(if text.starts_with(&given) { text.split_off(given.len()) } else { text })
    }
}
