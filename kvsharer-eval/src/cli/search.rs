//! `kvsharer search`.

use super::Global;
use super::context::{ModelArg, check_output, load};
use super::error::CliError;
use super::output::{bar, complain, emit, emit_json};
use clap::{Args, ValueEnum};
use kvsharer_core::{
    CalibrationSet, Distance, Fit, Found, Gate, LayerMap, Objective, Order, Progress, SearchModel, Sharing, Strategy,
    Trial, Units, hex, search,
};
use kvsharer_eval::experiment::{SearchSpec, StrategyName};
use kvsharer_eval::{Journal, Journaled, Share};
use kvsharer_models::{Decoder, ModelFiles, ModelTokenizer};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::time::Instant;

/// Options of `search`.
#[derive(Args)]
pub(super) struct SearchArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    pub(super) options: SearchFlags,
    /// Where to write the strategy
    #[arg(long, short, default_value = "strategy.json")]
    output: PathBuf,
    /// Fail if less is shared than asked for
    #[arg(long)]
    strict: bool,
    /// Name the first trial in which another search, made elsewhere with the same options, judged otherwise
    #[arg(long, value_name = "STRATEGY")]
    compare: Option<PathBuf>,
}

/// The search itself, which `demo` runs too.
#[derive(Args, Clone)]
pub(super) struct SearchFlags {
    /// How much to share: layers (8) or percent of the KV bytes (25%)
    #[arg(long, default_value = "25%")]
    pub(super) share: Share,
    /// How moves are chosen; several, as greedy,refine, go one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "paper")]
    pub(super) strategy_search: Vec<StrategySearch>,
    /// What is shared: keys and values, one of them alone, or each with a donor of its own
    #[arg(long, value_enum, default_value_t = UnitsArg::Both)]
    pub(super) units: UnitsArg,
    /// What is kept small: paper and random take hidden-cosine if not given, the others logit-kl
    #[arg(long, value_enum)]
    pub(super) objective: Option<ObjectiveArg>,
    /// Maps fitted to make up for what is borrowed, folded into the projections
    #[arg(long, value_enum, default_value_t = FitArg::None)]
    pub(super) fit: FitArg,
    /// With --fit, also choose which head of a borrowed cache each group of query heads reads
    #[arg(long)]
    permute_heads: bool,
    /// With --fit, try moves without fitted maps, too
    #[arg(long)]
    plain_too: bool,
    /// Strength of the fits' ridge, relative to the mean variance of a channel
    #[arg(long, default_value_t = 0.01, value_parser = parse_ridge)]
    ridge: f64,
    /// The farthest a donor may be below its reader, in layers
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) reach: Option<u32>,
    /// Candidates that lazy-greedy, beam and refine judge at a step, the cheapest when last judged
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) width: u32,
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
    pub(super) order: OrderArg,
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
    pub(super) samples: u32,
    /// Tokens each sample is cut to; shorter samples count with the tokens they have
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) sample_tokens: u32,
    /// Give up after this many trials
    #[arg(long)]
    max_trials: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum StrategySearch {
    /// arXiv 2410.18517: in the order of distance, gated by the output's cosine
    Paper,
    /// The same in random order; with --threshold -1 ungated
    Random,
    /// Layers spread evenly over the model read the one below
    Adjacent,
    /// The best of all moves at every step
    Greedy,
    /// Greedy that only looks at moves that were cheap when last judged
    LazyGreedy,
    /// Greedy with several drafts at a time
    Beam,
    /// Gives a unit back and takes the best other one, while that helps
    Refine,
    /// Fits all maps anew
    Refit,
    /// A baseline: layers lose their attention altogether
    Drop,
    /// A given map, see --map and --layer-types
    Fixed,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum UnitsArg {
    Both,
    Keys,
    Values,
    Apart,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum ObjectiveArg {
    /// Minus the cosine of the states after the final norm
    HiddenCosine,
    /// KL divergence of the next token's distribution from the full cache's
    LogitKl,
    /// Negative log-likelihood of the calibration text
    Nll,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum FitArg {
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
pub(super) enum OrderArg {
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

/// The strategy file's content plus what only this run knows.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    strategy: &'a Strategy,
    seconds: f64,
    evaluations: usize,
    /// Evaluations that judging every candidate at every step would have taken.
    evaluations_exhaustive: usize,
    /// Trials that an interrupted run had judged before.
    evaluations_resumed: usize,
    /// Layer forward passes; a trial that re-ran everything would count all layers.
    layers_run: usize,
    /// The first trial that another search judged otherwise, with --compare.
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<serde_json::Value>,
}

/// A finished search.
pub(super) struct Searched {
    pub(super) strategy: Strategy,
    pub(super) found: Found,
    pub(super) seconds: f64,
}

pub(super) fn run(args: &SearchArgs, global: &Global) -> Result<(), CliError> {
    let files = args.model.open(global)?;
    args.options.check(&files, global)?;
    check_output(&args.output)?;
    let other = args.compare.as_deref().map(Strategy::load).transpose()?;
    let tokenizer = files.tokenizer()?;
    let set = args.options.calibration(&files, &tokenizer)?;
    let model = load(&files, global)?;
    let key = json!([files.fingerprint()?, set.hash(), args.options.spec(), global.seed, global.dtype.name()]);
    let key = hex(&Sha256::digest(key.to_string()));
    let mut journal = Journal::open(&args.output.with_extension("journal"), &key)?;
    let resumed = journal.as_ref().map_or(0, Journal::len);
    if resumed > 0 {
        complain(&format!("going on with an interrupted search: {resumed} trials are known"));
    }
    let searched = args.options.search(&files, &model, &set, journal.as_mut(), global);
    if searched.is_err()
        && let Some(journal) = journal.take_if(|journal| journal.is_empty())
    {
        journal.remove()?;
    }
    let Searched { strategy, found, seconds } = searched?;
    let strategy = strategy.save_with(&args.output, &found.adapters)?;
    if let Some(journal) = journal {
        journal.remove()?;
    }
    let parts = other.as_ref().map(|other| strategy.parts_from(other));
    if global.json {
        let parts = parts.map(|parts| match parts {
            None => json!({ "same": true }),
            Some((index, ours, theirs)) => json!({ "same": false, "trial": index, "this": ours, "other": theirs }),
        });
        emit_json(&Report {
            strategy: &strategy,
            seconds,
            evaluations: found.trials.len(),
            evaluations_exhaustive: found.exhaustive,
            evaluations_resumed: resumed,
            layers_run: found.layers_run,
            parts,
        })?;
    } else {
        emit(&describe(args, &files, &set, &strategy, &found, seconds))?;
        if let Some(parts) = parts {
            emit(&match parts {
                None => "the other search judged every trial alike\n".into(),
                Some((index, ours, theirs)) => {
                    format!("the other search parts at trial {index}: here {}, there {}\n", json!(ours), json!(theirs))
                }
            })?;
        }
    }
    if strategy.reached < strategy.requested {
        let why = match args.options.max_trials.filter(|&most| found.trials.len() >= most) {
            Some(most) => format!("the search gave up after --max-trials {most}"),
            None => match strategy.search.threshold {
                Some(threshold) => format!("no further pair keeps the similarity above {threshold}"),
                None => "no further move is possible".into(),
            },
        };
        let what = if strategy.search.units == Units::Both { "layers" } else { "keys and values" };
        let short = format!("only {} of the {} {what} asked for share: {why}", strategy.reached, strategy.requested);
        if args.strict {
            return Err(CliError::Failure(short.into()));
        }
        complain(&format!("warning: {short}"));
    }
    Ok(())
}

/// What was found, in words.
fn describe(
    args: &SearchArgs,
    files: &ModelFiles,
    set: &CalibrationSet,
    strategy: &Strategy,
    found: &Found,
    seconds: f64,
) -> String {
    let layers = files.config().layers;
    let what = match strategy.search.units {
        Units::Both => format!("{} of {layers} layers share", strategy.reached),
        units => format!("{} of {} {} are shared", strategy.reached, 2 * layers, units.letters()),
    };
    let spared = match found.exhaustive.saturating_sub(found.trials.len()) {
        0 => String::new(),
        spared => format!(" ({spared} fewer than judging everything)"),
    };
    let objective = strategy.steps.last().map_or(String::new(), |step| {
        let held = step.held_back.map_or(String::new(), |held| format!(", {held:.4} on the samples held back"));
        format!("{} {:.4}{held}\n", strategy.search.objective, step.objective)
    });
    format!(
        "{}{what}, {:.1} % of the KV bytes saved, after {} trials{spared} in {seconds:.1} s ({} samples, {} tokens)\n{objective}written to {}\n",
        draw_sharing(found.draft.sharing(), layers),
        100.0 * strategy.saved,
        found.trials.len(),
        set.samples().len(),
        set.tokens(),
        args.output.display(),
    )
}

impl SearchFlags {
    /// Judges what was typed before anything long starts.
    pub(super) fn check(&self, files: &ModelFiles, global: &Global) -> Result<(), CliError> {
        let spec = self.spec();
        spec.strategy(files.config().layers, global.seed).map_err(CliError::usage)?;
        spec.options(1, 1).check(&files.shape()).map_err(CliError::usage)
    }

    /// The search as typed.
    pub(super) fn spec(&self) -> SearchSpec {
        let strategy = self.strategy_search.iter().map(|name| match name {
            StrategySearch::Paper => StrategyName::Paper,
            StrategySearch::Random => StrategyName::Random,
            StrategySearch::Adjacent => StrategyName::Adjacent,
            StrategySearch::Greedy => StrategyName::Greedy,
            StrategySearch::LazyGreedy => StrategyName::LazyGreedy,
            StrategySearch::Beam => StrategyName::Beam,
            StrategySearch::Refine => StrategyName::Refine,
            StrategySearch::Refit => StrategyName::Refit,
            StrategySearch::Drop => StrategyName::Drop,
            StrategySearch::Fixed => StrategyName::Fixed,
        });
        SearchSpec {
            share: self.share,
            strategy: strategy.collect(),
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

    /// The samples, tokenised.
    pub(super) fn calibration(
        &self,
        files: &ModelFiles,
        tokenizer: &ModelTokenizer,
    ) -> Result<CalibrationSet, CliError> {
        Ok(self.spec().calibration(tokenizer, files.config().vocab)?)
    }

    pub(super) fn search(
        &self,
        files: &ModelFiles,
        model: &Decoder,
        set: &CalibrationSet,
        journal: Option<&mut Journal>,
        global: &Global,
    ) -> Result<Searched, CliError> {
        let (batch, parallel) = global.device.batch_of()(&model.device(), set.samples().len());
        let (spec, layers) = (self.spec(), files.config().layers);
        let (options, strategy) = (spec.options(batch, parallel), spec.strategy(layers, global.seed)?);
        let start = Instant::now();
        let bar = bar(1000, "searching");
        let watch = |progress: Progress<'_>| {
            let Trial { borrower, donor, units, accepted, similarity, objective, .. } = *progress.trial;
            bar.set_position((progress.done * 1000.0) as u64);
            let sign = if accepted { "=" } else { "≠" };
            let value = similarity.or(objective).unwrap_or(f64::NAN);
            bar.set_message(format!(
                "trial {}: {borrower} {sign} {donor} ({}) at {value:.4}, {:.0} % there",
                progress.trials,
                units.letters(),
                100.0 * progress.reached
            ));
        };
        let mut observer = Journaled { journal, watch };
        let found = search(model, set, strategy.as_ref(), &options, &mut observer)?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        let strategy = Strategy::new(files.fingerprint()?, set, strategy.as_ref(), &options, &found);
        Ok(Searched { strategy, found, seconds })
    }
}

/// Keys and values, one line each if they differ.
pub(super) fn draw_sharing(sharing: &Sharing, layers: usize) -> String {
    match sharing.keys() == sharing.values() {
        true => draw_map(sharing.keys(), layers),
        false => {
            format!("keys, {}values, {}", draw_map(sharing.keys(), layers), draw_map(sharing.values(), layers))
        }
    }
}

/// One line a donor: who reads it.
fn draw_map(map: &LayerMap, layers: usize) -> String {
    let line: String = (0..layers).map(|layer| if map.donor(layer.into()).is_some() { '·' } else { '█' }).collect();
    let mut text = format!("layers 0 to {}, █ owns its cache, · borrows\n{line}\n", layers.saturating_sub(1));
    let mut donors: Vec<_> = map.iter().map(|(_, donor)| donor).collect();
    donors.sort();
    donors.dedup();
    for donor in donors {
        let readers: Vec<String> =
            map.iter().filter(|(_, d)| *d == donor).map(|(reader, _)| reader.to_string()).collect();
        text += &format!("  {donor} is read by {}\n", readers.join(", "));
    }
    text
}
