//! The options of a search as they are typed.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use kvsharer_core::{Distance, Fit, Gate, Objective, Order, Units};
use kvsharer_eval::Share;
use kvsharer_eval::experiment::{SearchSpec, StrategyName};
use serde::de::DeserializeOwned;
use std::path::PathBuf;

/// The search itself, which `demo` runs too.
#[derive(Args, Clone)]
pub(in crate::cli) struct SearchFlags {
    /// How much to share: layers (8) or percent of the KV bytes (25%)
    #[arg(long, default_value = "25%")]
    pub(in crate::cli) share: Share,
    /// How moves are chosen; several, as greedy,refine, go one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "paper")]
    pub(in crate::cli) strategy_search: Vec<StrategyName>,
    /// What is shared: keys and values, one of them alone, or each with a donor of its own
    #[arg(long, value_parser = named::<Units>(&["both", "keys", "values", "apart"]), default_value = "both")]
    pub(in crate::cli) units: Units,
    /// What is kept small: minus the cosine of the states after the final norm (what paper and random take if not given),
    /// the KL divergence of the next token's distribution from the full cache's (the others), or the text's own NLL
    #[arg(long, value_parser = named::<Objective>(&["hidden-cosine", "logit-kl", "nll"]))]
    pub(in crate::cli) objective: Option<Objective>,
    /// Maps fitted to make up for what is borrowed, folded into the projections: none, head by head (keys turned by a
    /// factor a rotary frequency), or keys likewise and the output of all heads together
    #[arg(long, value_parser = named::<Fit>(&["none", "heads", "full"]), default_value = "none")]
    pub(in crate::cli) fit: Fit,
    /// With --fit, also choose which head of a borrowed cache each group of query heads reads
    #[arg(long)]
    permute_heads: bool,
    /// With --fit, try moves without fitted maps, too
    #[arg(long)]
    plain_too: bool,
    /// Strength of the fits' ridge, relative to the mean variance of a channel
    #[arg(long, default_value_t = 0.1, value_parser = parse_ridge)]
    ridge: f64,
    /// With --fit full: the rank of what maps of all heads together add to maps head by head; a low one needs less text
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rank: Option<u32>,
    /// The farthest a donor may be below its reader, in layers
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) reach: Option<u32>,
    /// Candidates that lazy-greedy, beam and refine judge at a step, the cheapest when last judged
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) width: u32,
    /// Drafts that a beam search keeps
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    beams: u32,
    /// The most passes of refine
    #[arg(long, default_value_t = 2)]
    passes: u32,
    /// Part of the samples, the last ones, that nothing is chosen by: refine and refit stop when these get worse
    #[arg(long, default_value = "0%", value_parser = parse_part)]
    held_back: f64,
    /// How two layers' average caches are compared: as the official code or as the paper has it
    #[arg(long, value_parser = named::<Distance>(&["code", "paper", "cosine"]), default_value = "code")]
    distance: Distance,
    /// Which pairs come first
    #[arg(long, value_parser = named::<Order>(&["dissimilar", "similar", "random"]), default_value = "dissimilar")]
    order: Order,
    /// How outputs are compared: cosines averaged over samples (code) or the cosine of averaged states (paper)
    #[arg(long, value_parser = named::<Gate>(&["code", "paper"]), default_value = "code")]
    gate: Gate,
    /// A pair is kept if the similarity of the outputs is greater
    #[arg(long, default_value_t = 0.5, allow_negative_numbers = true, value_parser = parse_threshold)]
    threshold: f64,
    /// For --strategy-search fixed: {"5": 3}, {"key_map": {…}, "value_map": {…}}, or a strategy file at --share
    #[arg(long)]
    map: Option<PathBuf>,
    /// For --strategy-search fixed: LCKV's notation, the layer whose cache each layer reads, as 0_1_1_3
    #[arg(long, conflicts_with = "map")]
    layer_types: Option<String>,
    /// Text with one calibration sample a line; the embedded one if not given
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Cut the text into windows of --sample-tokens tokens instead of lines
    #[arg(long)]
    windows: bool,
    /// Samples of the text that are left out before the first
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Draw the samples from the rest of the text, by --seed, instead of taking its first
    #[arg(long)]
    shuffle: bool,
    /// Samples used
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) samples: u32,
    /// Tokens each sample is cut to; shorter samples count with the tokens they have
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) sample_tokens: u32,
    /// Give up after this many trials
    #[arg(long)]
    pub(in crate::cli) max_trials: Option<usize>,
}

/// A parser of the names that strategy and experiment files use, too.
fn named<T: DeserializeOwned + Clone + Send + Sync + 'static>(
    names: &'static [&'static str],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names).try_map(|name| serde_json::from_value::<T>(name.into()))
}

/// A part of a whole, `25%` or `0.25`.
fn parse_part(text: &str) -> Result<f64, String> {
    let part = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse(),
    };
    let part = part.ok().filter(|part| (0.0..1.0).contains(part));
    part.ok_or_else(|| "give a part from 0% to below 100%".into())
}

/// A ridge as typed.
fn parse_ridge(text: &str) -> Result<f64, String> {
    let ridge = text.parse::<f64>().ok().filter(|ridge| ridge.is_finite() && *ridge >= 0.0);
    ridge.ok_or_else(|| "give a number from 0 on".into())
}

/// A threshold as typed, judged before a model is fetched for it.
fn parse_threshold(text: &str) -> Result<f64, Box<dyn std::error::Error + Send + Sync>> {
    let threshold: f64 = text.parse()?;
    if !(-1.0..=1.0).contains(&threshold) {
        return Err(kvsharer_core::SearchError::BadThreshold(threshold).into());
    }
    Ok(threshold)
}

impl SearchFlags {
    /// The same with pairs in another order.
    pub(in crate::cli) fn with_order(&self, order: Order) -> Self {
        Self { order, ..self.clone() }
    }

    /// The search as typed.
    pub(in crate::cli) fn spec(&self) -> SearchSpec {
        SearchSpec {
            share: self.share,
            strategy: self.strategy_search.clone(),
            units: self.units,
            objective: self.objective,
            fit: self.fit,
            permute_heads: self.permute_heads,
            plain_too: self.plain_too,
            ridge: self.ridge,
            rank: self.rank.map(|rank| rank as usize),
            reach: self.reach.map(|reach| reach as usize),
            width: self.width as usize,
            beams: self.beams as usize,
            passes: self.passes as usize,
            held_back: self.held_back,
            order: self.order,
            distance: self.distance,
            gate: self.gate,
            threshold: self.threshold,
            map: self.map.clone(),
            layer_types: self.layer_types.clone(),
            calibration: self.calibration.clone(),
            windows: self.windows,
            skip: self.skip,
            shuffle: self.shuffle,
            samples: self.samples as usize,
            sample_tokens: self.sample_tokens as usize,
            max_trials: self.max_trials,
        }
    }
}
