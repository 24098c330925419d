//! Generation: prefill, then token by token through the cache, with streaming.

use crate::import::ModelTokenizer;
use crate::{Decoder, ModelError, Sampler, Sampling};
use burn::tensor::Tensor;
use kvsharer_core::Cache;
use std::time::{Duration, Instant};

/// When generation stops, and how tokens are chosen.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// New tokens at most.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the generation; they are not part of the result.
    pub stop: Vec<String>,
    /// Go on past the model's end-of-text tokens.
    pub ignore_eos: bool,
    /// Prompt tokens run at once; 0 is all.
    pub prefill_chunk: usize,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// At the token limit.
    Length,
    /// At an end-of-text token.
    EndOfText,
    /// At a stop string.
    StopString,
}

/// A continuation.
#[derive(Clone, Debug)]
pub struct Generated {
    /// New token ids, an end-of-text token included.
    pub ids: Vec<u32>,
    /// Their text, without end-of-text tokens and stop strings.
    pub text: String,
    /// Why it ended.
    pub stopped: Stopped,
    /// Time from the prompt to its last token's scores.
    pub prefill: Duration,
    /// Time of all later forward passes.
    pub decode: Duration,
}

/// Continues `prompt` in `cache`, which may hold earlier turns; `stream` gets the text as it becomes certain.
///
/// # Errors
/// [`ModelError`] for a prompt without tokens, options out of range, or whatever model and cache refuse.
pub fn generate(
    model: &Decoder,
    tokenizer: &ModelTokenizer,
    prompt: &[u32],
    cache: &mut Cache<'_>,
    options: &GenerateOptions,
    mut stream: impl FnMut(&str),
) -> Result<Generated, ModelError> {
    let mut sampler = Sampler::new(options.sampling.clone())?;
    if prompt.is_empty() {
        return Err(ModelError::EmptyPrompt);
    }
    let start = Instant::now();
    let chunk = if options.prefill_chunk == 0 { prompt.len() } else { options.prefill_chunk };
    let mut scores = Vec::new();
    let last = prompt.len().div_ceil(chunk) - 1;
    for (index, part) in prompt.chunks(chunk).enumerate() {
        let hidden = model.forward(&[part], cache)?;
        if index == last {
            scores = last_scores(model, hidden)?;
        }
    }
    let prefill = start.elapsed();

    let mut history = prompt.to_vec();
    let mut text = StopText::new(&options.stop);
    let mut decoder = tokenizer.decode_stream(true);
    let mut stopped = Stopped::Length;
    let start = Instant::now();
    for step in 0..options.max_tokens {
        let id = sampler.next(scores, &history);
        history.push(id);
        if !options.ignore_eos && tokenizer.eos().contains(&id) {
            stopped = Stopped::EndOfText;
            break;
        }
        if let Some(piece) = decoder.push(id)?
            && text.push(&piece, &mut stream)
        {
            stopped = Stopped::StopString;
            break;
        }
        if step + 1 == options.max_tokens {
            break;
        }
        scores = last_scores(model, model.forward(&[&[id]], cache)?)?;
    }
    let decode = start.elapsed();
    if stopped != Stopped::StopString {
        // What the last token left incomplete.
        if let Some(rest) = decoder.finish()?
            && text.push(&rest, &mut stream)
        {
            stopped = Stopped::StopString;
        }
        text.finish(&mut stream);
    }
    Ok(Generated { ids: history.split_off(prompt.len()), text: text.text, stopped, prefill, decode })
}

/// Scores after the last token of the only row.
fn last_scores(model: &Decoder, hidden: Tensor<3>) -> Result<Vec<f32>, ModelError> {
    let tokens = hidden.dims()[1];
    let logits = model.logits(hidden.slice_dim(1, tokens - 1..tokens));
    let scores = logits.try_into_vec_as::<f32>().map_err(|error| ModelError::Device(error.to_string()))?;
    // Sampling would go on in silence.
    if scores.iter().any(|score| score.is_finite()) { Ok(scores) } else { Err(ModelError::NotFinite) }
}

/// Text so far, of which a tail that may become a stop string is held back.
struct StopText<'a> {
    stops: &'a [String],
    text: String,
    sent: usize,
}

impl<'a> StopText<'a> {
    fn new(stops: &'a [String]) -> Self {
        Self { stops, text: String::new(), sent: 0 }
    }

    /// Adds a piece; true if a stop string was completed, which is cut off with everything behind it.
    fn push(&mut self, piece: &str, stream: &mut impl FnMut(&str)) -> bool {
        self.text.push_str(piece);
        let stops = self.stops.iter().filter(|stop| !stop.is_empty());
        let found = stops.clone().filter_map(|stop| self.text[self.sent..].find(stop.as_str())).min();
        if let Some(at) = found {
            self.text.truncate(self.sent + at);
            self.finish(stream);
            return true;
        }
        let fresh = &self.text[self.sent..];
        let held =
            |stop: &String| (1..stop.len()).rev().find(|&n| stop.is_char_boundary(n) && fresh.ends_with(&stop[..n]));
        let hold = stops.filter_map(held).max().unwrap_or(0);
        let end = self.text.len() - hold;
        if end > self.sent {
            stream(&self.text[self.sent..end]);
            self.sent = end;
        }
        false
    }

    fn finish(&mut self, stream: &mut impl FnMut(&str)) {
        if self.sent < self.text.len() {
            stream(&self.text[self.sent..]);
            self.sent = self.text.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_are_cut_and_never_streamed_even_across_pieces() {
        let stops = vec!["\nUser:".to_string(), "END".to_string()];
        for (pieces, expected, stopped) in [
            (&["Hello", "\nUs", "er: more"][..], "Hello", true),
            (&["a\nUs", "ual E", "ND"], "a\nUsual ", true),
            (&["no stop", "\nUse"], "no stop\nUse", false),
        ] {
            let mut streamed = String::new();
            let mut text = StopText::new(&stops);
            let hit = pieces.iter().any(|piece| text.push(piece, &mut |part| streamed.push_str(part)));
            text.finish(&mut |part| streamed.push_str(part));
            assert_eq!((text.text.as_str(), streamed.as_str(), hit), (expected, expected, stopped));
        }
    }
}
