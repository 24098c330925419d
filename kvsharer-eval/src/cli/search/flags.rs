//! The options of a search as they are typed.

use clap::{Args, ValueEnum};
use kvsharer_core::{Distance, Fit, Gate, Objective, Order, Units};
use kvsharer_eval::Share;
use kvsharer_eval::experiment::{SearchSpec, StrategyName};
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
    #[arg(long, value_enum, default_value_t = UnitsArg::Both)]
    pub(in crate::cli) units: UnitsArg,
    /// What is kept small: paper and random take hidden-cosine if not given, the others logit-kl
    #[arg(long, value_enum)]
    pub(in crate::cli) objective: Option<ObjectiveArg>,
    /// Maps fitted to make up for what is borrowed, folded into the projections
    #[arg(long, value_enum, default_value_t = FitArg::None)]
    pub(in crate::cli) fit: FitArg,
    /// With --fit, also choose which head of a borrowed cache each group of query heads reads
    #[arg(long)]
    permute_heads: bool,
    /// With --fit, try moves without fitted maps, too
    #[arg(long)]
    plain_too: bool,
    /// Strength of the fits' ridge, relative to the mean variance of a channel
    #[arg(long, default_value_t = 0.1, value_parser = parse_ridge)]
    ridge: f64,
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
    #[arg(long, value_enum, default_value_t = Variant::Code)]
    distance: Variant,
    /// Which pairs come first
    #[arg(long, value_enum, default_value_t = OrderArg::Dissimilar)]
    pub(in crate::cli) order: OrderArg,
    /// How outputs are compared: cosines averaged over samples (code) or the cosine of averaged states (paper)
    #[arg(long, value_enum, default_value_t = Variant::Code)]
    gate: Variant,
    /// A pair is kept if the similarity of the outputs is greater
    #[arg(long, default_value_t = 0.5, allow_negative_numbers = true, value_parser = parse_threshold)]
    threshold: f64,
    /// For --strategy-search fixed: {"5": 3} or {"key_map": {…}, "value_map": {…}}
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
    /// Samples used, the first of the text
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) samples: u32,
    /// Tokens each sample is cut to; shorter samples count with the tokens they have
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) sample_tokens: u32,
    /// Give up after this many trials
    #[arg(long)]
    pub(in crate::cli) max_trials: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(in crate::cli) enum UnitsArg {
    Both,
    Keys,
    Values,
    Apart,
}

#[derive(Clone, Copy, ValueEnum)]
pub(in crate::cli) enum ObjectiveArg {
    /// Minus the cosine of the states after the final norm
    HiddenCosine,
    /// KL divergence of the next token's distribution from the full cache's
    LogitKl,
    /// Negative log-likelihood of the calibration text
    Nll,
}

#[derive(Clone, Copy, ValueEnum)]
pub(in crate::cli) enum FitArg {
    /// Borrowed caches are read as they are
    None,
    /// Keys turned by a factor a rotary frequency, values mapped head by head
    Heads,
    /// Keys likewise, the output of all heads mapped together
    Full,
}

#[derive(Clone, Copy, ValueEnum)]
enum Variant {
    Code,
    Paper,
}

#[derive(Clone, Copy, ValueEnum)]
pub(in crate::cli) enum OrderArg {
    Dissimilar,
    Similar,
    Random,
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
    /// The search as typed.
    pub(in crate::cli) fn spec(&self) -> SearchSpec {
        SearchSpec {
            share: self.share,
            strategy: self.strategy_search.clone(),
            units: match self.units {
                UnitsArg::Both => Units::Both,
                UnitsArg::Keys => Units::Keys,
                UnitsArg::Values => Units::Values,
                UnitsArg::Apart => Units::Apart,
            },
            objective: self.objective.map(|objective| match objective {
                ObjectiveArg::HiddenCosine => Objective::HiddenCosine,
                ObjectiveArg::LogitKl => Objective::LogitKl,
                ObjectiveArg::Nll => Objective::Nll,
            }),
            fit: match self.fit {
                FitArg::None => Fit::None,
                FitArg::Heads => Fit::Heads,
                FitArg::Full => Fit::Full,
            },
            permute_heads: self.permute_heads,
            plain_too: self.plain_too,
            ridge: self.ridge,
            reach: self.reach.map(|reach| reach as usize),
            width: self.width as usize,
            beams: self.beams as usize,
            passes: self.passes as usize,
            held_back: self.held_back,
            order: match self.order {
                OrderArg::Dissimilar => Order::Dissimilar,
                OrderArg::Similar => Order::Similar,
                OrderArg::Random => Order::Random,
            },
            distance: match self.distance {
                Variant::Code => Distance::Code,
                Variant::Paper => Distance::Paper,
            },
            gate: match self.gate {
                Variant::Code => Gate::Code,
                Variant::Paper => Gate::Paper,
            },
            threshold: self.threshold,
            map: self.map.clone(),
            layer_types: self.layer_types.clone(),
            calibration: self.calibration.clone(),
            windows: self.windows,
            skip: self.skip,
            samples: self.samples as usize,
            sample_tokens: self.sample_tokens as usize,
            max_trials: self.max_trials,
        }
    }
}
