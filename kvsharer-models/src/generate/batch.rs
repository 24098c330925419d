//! Several prompts at once.

use super::row::Row;
use super::{GenerateOptions, Generated, last_scores};
use crate::import::ModelTokenizer;
use crate::{Decoder, ModelError, Sampler, Sampling};
use kvsharer_core::Cache;
use std::time::Instant;

/// Continues several prompts in an empty cache of as many rows. Shorter prompts are padded in front; a text that has
/// ended is run on, unheeded, until all have.
///
/// Row `i` draws with the seed `options.sampling.seed + i`, so that it is what [`generate`](fn@super::generate) gives
/// for its prompt and that seed, up to the rounding of a batch. Prompts of one length run in passes of
/// `options.prefill_chunk` tokens, others in one pass. The times are those of the whole batch.
///
/// # Errors
/// As [`generate`](fn@super::generate).
pub fn generate_batch(
    model: &Decoder,
    tokenizer: &ModelTokenizer,
    prompts: &[Vec<u32>],
    cache: &mut Cache<'_>,
    options: &GenerateOptions,
) -> Result<Vec<Generated>, ModelError> {
    let sampler = |row| {
        let sampling = options.sampling.clone();
        Sampler::new(Sampling { seed: sampling.seed.wrapping_add(row as u64), ..sampling })
    };
    let mut samplers = (0..prompts.len()).map(sampler).collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    let hidden = match options.prefill_chunk {
        chunk if chunk > 0 && prompts.iter().all(|prompt| prompt.len() == prompts[0].len()) => {
            let mut hidden = None;
            for at in (0..prompts.first().map_or(0, Vec::len)).step_by(chunk) {
                let part = |prompt: &'_ Vec<u32>| at..prompt.len().min(at + chunk);
                let rows: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt[part(prompt)]).collect();
                hidden = Some(model.forward(&rows, cache)?);
            }
            hidden.ok_or(ModelError::EmptyPrompt)?
        }
        _ => {
            let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
            model.forward_padded(&rows, cache)?
        }
    };
    let mut scores = last_scores(model, hidden)?;
    let prefill = start.elapsed();

    let start = Instant::now();
    let rows = prompts.iter().zip(&mut samplers);
    let mut rows: Vec<Row<'_>> = rows.map(|(ids, sampler)| Row::new(tokenizer, ids, options, sampler)).collect();
    loop {
        let mut next = Vec::with_capacity(rows.len());
        for (row, scores) in rows.iter_mut().zip(scores) {
            next.push(row.next(scores, &mut |_| {})?);
        }
        if next.iter().all(Option::is_none) {
            break;
        }
        let ids: Vec<[u32; 1]> = next.iter().map(|id| [id.unwrap_or(0)]).collect();
        let ids: Vec<&[u32]> = ids.iter().map(|id| id.as_slice()).collect();
        scores = last_scores(model, model.forward(&ids, cache)?)?;
    }
    let decode = start.elapsed();
    rows.into_iter().map(|row| row.end(prefill, decode, &mut |_| {})).collect()
}
