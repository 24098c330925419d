//! One text that is being generated: what was chosen, what of it may be shown, and whether it has ended.

use super::stop::StopText;
use super::{GenerateOptions, Generated, Stopped};
use crate::import::{DecodeStream, ModelTokenizer};
use crate::{ModelError, Sampler};
use std::time::Duration;

pub(super) struct Row<'a> {
    tokenizer: &'a ModelTokenizer,
    options: &'a GenerateOptions,
    sampler: &'a mut Sampler,
    /// The text so far; the first `prompt` ids were given.
    ids: Vec<u32>,
    prompt: usize,
    text: StopText<'a>,
    decoder: DecodeStream<'a>,
    stopped: Option<Stopped>,
}

impl<'a> Row<'a> {
    pub(super) fn new(
        tokenizer: &'a ModelTokenizer,
        ids: &[u32],
        options: &'a GenerateOptions,
        sampler: &'a mut Sampler,
    ) -> Self {
        Self {
            tokenizer,
            options,
            sampler,
            ids: ids.to_vec(),
            prompt: ids.len(),
            text: StopText::new(&options.stop),
            decoder: tokenizer.decode_stream(true),
            stopped: None,
        }
    }

    /// Chooses the next token by its scores; `None` if the text has ended and nothing is to be run for it.
    pub(super) fn next(&mut self, scores: Vec<f32>, stream: &mut impl FnMut(&str)) -> Result<Option<u32>, ModelError> {
        let full = |row: &Self| row.ids.len() - row.prompt >= row.options.max_tokens;
        if self.stopped.is_some() || full(self) {
            return Ok(None);
        }
        let id = self.sampler.next(scores, &self.ids);
        self.ids.push(id);
        if !self.options.ignore_eos && self.tokenizer.eos().contains(&id) {
            self.stopped = Some(Stopped::EndOfText);
        } else if let Some(piece) = self.decoder.push(id)?
            && self.text.push(&piece, stream)
        {
            self.stopped = Some(Stopped::StopString);
        }
        Ok((self.stopped.is_none() && !full(self)).then_some(id))
    }

    pub(super) fn end(
        mut self,
        prefill: Duration,
        decode: Duration,
        stream: &mut impl FnMut(&str),
    ) -> Result<Generated, ModelError> {
        let mut stopped = self.stopped.unwrap_or(Stopped::Length);
        if stopped != Stopped::StopString {
            // What the last token left incomplete.
            if let Some(rest) = self.decoder.finish()?
                && self.text.push(&rest, stream)
            {
                stopped = Stopped::StopString;
            }
            self.text.finish(stream);
        }
        Ok(Generated { ids: self.ids.split_off(self.prompt), text: self.text.text, stopped, prefill, decode })
    }
}
