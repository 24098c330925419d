//! What `generate` and `chat` share: how tokens are chosen and when a text ends.

use super::Global;
use super::error::CliError;
use clap::Args;
use kvsharer_models::{GenerateOptions, Sampler, Sampling, Stopped};

/// Options of generated text.
#[derive(Args, Clone)]
pub(super) struct SamplingArgs {
    /// New tokens at most
    #[arg(long, short = 'n', default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_tokens: u32,
    /// 0 always takes the best token, 1 samples from the model's own distribution
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Sample from the K best tokens only; 0 is all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Sample from the smallest set of best tokens that reaches this probability
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f64,
    /// Weaken tokens seen before; 1 is off
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// A text that ends the generation; may be repeated
    #[arg(long)]
    stop: Vec<String>,
    /// Go on past the model's end-of-text token
    #[arg(long)]
    ignore_eos: bool,
    /// Prompt tokens of a forward pass; 0 is all
    #[arg(long, default_value_t = 0)]
    chunk: usize,
}

impl SamplingArgs {
    /// The options, judged.
    pub(super) fn options(&self, global: &Global) -> Result<GenerateOptions, CliError> {
        let options = GenerateOptions {
            max_tokens: self.max_tokens as usize,
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                repetition_penalty: self.repetition_penalty,
                seed: global.seed,
            },
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            prefill_chunk: self.chunk,
        };
        Sampler::new(options.sampling.clone())?;
        Ok(options)
    }
}

/// Why a text ended, in results.
pub(super) fn reason(stopped: Stopped) -> &'static str {
    match stopped {
        Stopped::Length => "length",
        Stopped::EndOfText => "end-of-text",
        Stopped::StopString => "stop-string",
    }
}
