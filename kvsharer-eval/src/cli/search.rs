//! `kvsharer search`.

use super::Global;
use super::context::{ModelArg, check_output, load};
use super::error::CliError;
use super::output::{bar, complain, emit, emit_json};
use clap::{Args, ValueEnum};
use kvsharer_core::{CalibrationSet, Distance, Found, Gate, LayerMap, Order, Strategy, Units, search};
use kvsharer_eval::Share;
use kvsharer_eval::experiment::SearchSpec;
use kvsharer_models::{Decoder, ModelFiles, ModelTokenizer};
use serde::Serialize;
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
    /// Fail if fewer layers share than asked for
    #[arg(long)]
    strict: bool,
}

/// The search itself, which `demo` runs too.
#[derive(Args, Clone)]
pub(super) struct SearchFlags {
    /// Layers to share: a number (8) or a percentage (25%)
    #[arg(long, default_value = "25%")]
    pub(super) share: Share,
    /// How pairs are chosen
    #[arg(long, value_enum, default_value_t = StrategySearch::Paper)]
    strategy_search: StrategySearch,
    /// What is shared: keys and values, or one of them alone
    #[arg(long, value_enum, default_value_t = UnitsArg::Both)]
    units: UnitsArg,
    /// How two layers' average caches are compared: as the official code or as the paper has it
    #[arg(long, value_enum, default_value_t = Variant::Code)]
    distance: Variant,
    /// Which pairs come first
    #[arg(long, value_enum, default_value_t = OrderArg::Dissimilar)]
    order: OrderArg,
    /// How outputs are compared: cosines averaged over samples (code) or the cosine of averaged states (paper)
    #[arg(long, value_enum, default_value_t = Variant::Code)]
    gate: Variant,
    /// A pair is kept if the similarity of the outputs is greater
    #[arg(long, default_value_t = 0.5, allow_negative_numbers = true, value_parser = parse_threshold)]
    threshold: f64,
    /// Text with one calibration sample a line; the embedded one if not given
    #[arg(long)]
    calibration: Option<PathBuf>,
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

#[derive(Clone, Copy, ValueEnum)]
enum StrategySearch {
    /// arXiv 2410.18517: in the order of distance, gated by the output's cosine
    Paper,
}

#[derive(Clone, Copy, ValueEnum)]
enum UnitsArg {
    Both,
    Keys,
    Values,
}

#[derive(Clone, Copy, ValueEnum)]
enum Variant {
    Code,
    Paper,
}

#[derive(Clone, Copy, ValueEnum)]
enum OrderArg {
    Dissimilar,
    Similar,
    Random,
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
    /// Layer forward passes; a trial that re-ran everything would count all layers.
    layers_run: usize,
}

/// A finished search.
pub(super) struct Searched {
    pub(super) strategy: Strategy,
    pub(super) found: Found,
    pub(super) seconds: f64,
}

pub(super) fn run(args: &SearchArgs, global: &Global) -> Result<(), CliError> {
    let files = args.model.open(global)?;
    args.options.check(&files)?;
    check_output(&args.output)?;
    let tokenizer = files.tokenizer()?;
    let set = args.options.calibration(&files, &tokenizer)?;
    let model = load(&files, global)?;
    let Searched { strategy, found, seconds } = args.options.search(&files, &model, &set, global)?;
    strategy.save(&args.output)?;
    if global.json {
        let evaluations = found.trials.len();
        emit_json(&Report { strategy: &strategy, seconds, evaluations, layers_run: found.layers_run })?;
    } else {
        let samples = format!("{} samples, {} tokens", set.samples().len(), set.tokens());
        emit(&format!(
            "{}{} of {} layers share after {} trials in {seconds:.1} s ({samples}); written to {}\n",
            draw_map(&found.map, files.config().layers),
            strategy.reached,
            files.config().layers,
            found.trials.len(),
            args.output.display(),
        ))?;
    }
    if strategy.reached < strategy.requested {
        let why = match args.options.max_trials.filter(|&most| found.trials.len() >= most) {
            Some(most) => format!("the search gave up after --max-trials {most}"),
            None => format!("no further pair keeps the similarity above {}", strategy.search.threshold),
        };
        let short = format!("only {} of the {} layers asked for share: {why}", strategy.reached, strategy.requested);
        if args.strict {
            return Err(CliError::Failure(short.into()));
        }
        complain(&format!("warning: {short}"));
    }
    Ok(())
}

impl SearchFlags {
    /// Judges what was typed before anything long starts.
    pub(super) fn check(&self, files: &ModelFiles) -> Result<(), CliError> {
        let StrategySearch::Paper = self.strategy_search;
        let (share, layers) = (self.share.of(files.config().layers), files.config().layers);
        if share >= layers {
            return Err(CliError::usage(kvsharer_core::SearchError::BadShare { requested: share, layers }));
        }
        Ok(())
    }

    /// The search as typed.
    fn spec(&self) -> SearchSpec {
        SearchSpec {
            share: self.share,
            units: match self.units {
                UnitsArg::Both => Units::Both,
                UnitsArg::Keys => Units::Keys,
                UnitsArg::Values => Units::Values,
            },
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
            calibration: self.calibration.clone(),
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
        global: &Global,
    ) -> Result<Searched, CliError> {
        let batch = global.device.batch(set.samples().len());
        let options = self.spec().options(files.config().layers, global.seed, batch);
        let start = Instant::now();
        let bar = bar(options.share as u64, "searching");
        let found = search(model, set, &options, |progress| {
            let trial = progress.trial;
            bar.set_position(progress.map.len() as u64);
            let sign = if trial.accepted { "=" } else { "≠" };
            bar.set_message(format!(
                "pair {}/{}: {} {sign} {} at {:.3}",
                progress.looked_at, progress.pairs, trial.borrower, trial.donor, trial.similarity
            ));
        })?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        let strategy = Strategy::new(files.fingerprint()?, set, &options, &found);
        Ok(Searched { strategy, found, seconds })
    }
}

/// One line a donor: who reads it.
pub(super) fn draw_map(map: &LayerMap, layers: usize) -> String {
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
