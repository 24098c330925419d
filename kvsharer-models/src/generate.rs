//! Generation: prefill, then token by token through the cache, with streaming.

mod batch;
mod row;
mod steps;
mod stop;

use crate::import::ModelTokenizer;
use crate::{Decoder, ModelError, Sampler, Sampling};
pub use batch::generate_batch;
use burn::tensor::Tensor;
use kvsharer_core::Cache;
use row::Row;
use std::time::{Duration, Instant};
pub use steps::DeviceLoop;

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

/// Continues `prompt` in an empty cache; `stream` gets the text as it becomes certain.
///
/// # Errors
/// [`ModelError`] for a prompt without tokens, options out of range, or whatever model and cache refuse.
pub fn generate(
    model: &Decoder,
    tokenizer: &ModelTokenizer,
    prompt: &[u32],
    cache: &mut Cache<'_>,
    options: &GenerateOptions,
    stream: impl FnMut(&str),
) -> Result<Generated, ModelError> {
    let mut sampler = Sampler::new(options.sampling.clone())?;
    generate_from(model, tokenizer, (prompt, 0), cache, options, &mut sampler, stream)
}

/// Continues a text, `(ids, cached)`, whose first `cached` ids are in `cache`: only the others are run. Draws go on
/// where `sampler` stands, and its repetition penalty counts the whole text.
///
/// Afterwards the cache holds the text and all new ids but the last one, which is chosen and not run.
///
/// # Errors
/// As [`generate`].
pub fn generate_from(
    model: &Decoder,
    tokenizer: &ModelTokenizer,
    (ids, cached): (&[u32], usize),
    cache: &mut Cache<'_>,
    options: &GenerateOptions,
    sampler: &mut Sampler,
    mut stream: impl FnMut(&str),
) -> Result<Generated, ModelError> {
    let new = ids.get(cached..).filter(|new| !new.is_empty()).ok_or(ModelError::EmptyPrompt)?;
    let start = Instant::now();
    let chunk = if options.prefill_chunk == 0 { new.len() } else { options.prefill_chunk };
    let mut hidden = None;
    for part in new.chunks(chunk) {
        hidden = Some(model.forward(&[part], cache)?);
    }
    let mut scores = last_scores(model, hidden.ok_or(ModelError::EmptyPrompt)?)?;
    let prefill = start.elapsed();

    let start = Instant::now();
    let mut row = Row::new(tokenizer, ids, options, sampler);
    while let Some(id) = row.next(scores.pop().unwrap_or_default(), &mut stream)? {
        scores = last_scores(model, model.forward(&[&[id]], cache)?)?;
    }
    let decode = start.elapsed();
    row.end(prefill, decode, &mut stream)
}

/// Scores after the last token of every row, `[row][token]`.
fn last_scores(model: &Decoder, hidden: Tensor<3>) -> Result<Vec<Vec<f32>>, ModelError> {
    let [rows, tokens, _] = hidden.dims();
    let logits = model.logits(hidden.slice_dim(1, tokens - 1..tokens));
    let scores = logits.try_into_vec_as::<f32>().map_err(|error| ModelError::Device(error.to_string()))?;
    let scores: Vec<Vec<f32>> = scores.chunks(scores.len().div_ceil(rows).max(1)).map(<[f32]>::to_vec).collect();
    // Sampling would go on in silence.
    let finite = |row: &Vec<f32>| row.iter().any(|score| score.is_finite());
    if scores.iter().all(finite) { Ok(scores) } else { Err(ModelError::NotFinite) }
}
