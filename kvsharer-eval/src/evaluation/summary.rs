//! Texts that a task lets the model write.

use super::BenchmarkOptions;
use crate::EvalError;
use crate::tasks::{Ask, Item};
use kvsharer_core::Stack;
use kvsharer_models::{Decoder, GenerateOptions, ModelError, ModelTokenizer, generate};
use rayon::prelude::*;

/// A text the model wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// Its first line, as OpenCompass' postprocessing has it.
    pub(super) text: String,
    /// Tokens that went through the model.
    pub(super) tokens: usize,
    /// Prompt and new tokens together.
    pub(super) longest: usize,
    pub(super) truncated: bool,
}

/// Writes the texts that items ask for, greedily, one item a cache; `None` for items that ask for none.
pub(super) fn summaries<'p>(
    model: &Decoder,
    tokenizer: &ModelTokenizer,
    items: &[Item],
    max_length: usize,
    options: &BenchmarkOptions,
    stack: &(impl Fn() -> Result<Stack<'p>, EvalError> + Sync),
    done: &(impl Fn(usize) + Sync),
) -> Result<Vec<Option<Summary>>, EvalError> {
    let write = |item: &Item| -> Result<Option<Summary>, EvalError> {
        let Ask::Summary { prompt, .. } = &item.ask else {
            return Ok(None);
        };
        let mut ids = tokenizer.encode(prompt).map_err(ModelError::from)?;
        let room = max_length.saturating_sub(options.max_new_tokens).max(1);
        let truncated = ids.len() > room;
        // As OpenCompass cuts: the end stays, with the instruction in it.
        ids.drain(..ids.len().saturating_sub(room));
        let longest = ids.len() + options.max_new_tokens;
        let cache_options = model.cache_options(1, longest).for_prompt(ids.len());
        let mut cache = model.cache(stack()?, cache_options)?;
        let greedy = GenerateOptions { max_tokens: options.max_new_tokens, ..GenerateOptions::default() };
        let written = generate(model, tokenizer, &ids, &mut cache, &greedy, |_| {})?;
        done(1);
        let text = written.text.trim().lines().next().unwrap_or_default().trim().to_owned();
        Ok(Some(Summary { text, tokens: ids.len() + written.ids.len(), longest, truncated }))
    };
    items.par_iter().map(write).collect()
}
