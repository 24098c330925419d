//! `kvsharer search`.

mod draw;
mod flags;

use super::Global;
use super::context::{ModelArg, check_fits, check_output, load};
use super::error::CliError;
use super::output::{complain, emit, emit_json};
use clap::Args;
use draw::MapBar;
pub(super) use draw::draw_sharing;
pub(super) use flags::SearchFlags;
use kvsharer_core::{CalibrationSet, Found, Plan, Progress, Stack, Strategy, Trial, Units, hex, search};
use kvsharer_eval::experiment::Work;
use kvsharer_eval::{Journal, Journaled};
use kvsharer_models::{Decoder, ModelFiles, ModelTokenizer};
use serde::Serialize;
use serde_json::{Value, json};
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
    parts: Option<Value>,
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
    let set = args.options.calibration(&files, &tokenizer, global)?;
    check_fits(&files, args.options.bytes(&files, &set, global)?, global)?;
    let model = load(&files, global)?;
    let key = json!([files.fingerprint()?, set.hash(), args.options.spec(), global.seed, global.dtype_name()]);
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
        let parts = parts.map(parted_json);
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
            emit(&parted(parts))?;
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

/// The first trial that two searches judged otherwise: its index, and both trials.
type Parted<'a> = Option<(usize, Option<&'a Trial>, Option<&'a Trial>)>;

/// Where two searches part, for people.
pub(super) fn parted(parts: Parted<'_>) -> String {
    match parts {
        None => "the other search judged every trial alike\n".into(),
        Some((index, ours, theirs)) => {
            format!("the other search parts at trial {index}: here {}, there {}\n", json!(ours), json!(theirs))
        }
    }
}

/// Where two searches part, for programs.
pub(super) fn parted_json(parts: Parted<'_>) -> Value {
    match parts {
        None => json!({ "same": true }),
        Some((index, ours, theirs)) => json!({ "same": false, "trial": index, "this": ours, "other": theirs }),
    }
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
        spec.options(Work::Threads, self.samples as usize).check(&files.shape()).map_err(CliError::usage)
    }

    /// The samples, tokenised.
    pub(super) fn calibration(
        &self,
        files: &ModelFiles,
        tokenizer: &ModelTokenizer,
        global: &Global,
    ) -> Result<CalibrationSet, CliError> {
        Ok(self.spec().calibration(tokenizer, files.config().vocab, global.seed)?)
    }

    /// Bytes of the caches and hidden states of all samples, which a search keeps.
    fn bytes(&self, files: &ModelFiles, set: &CalibrationSet, global: &Global) -> Result<usize, CliError> {
        let (size, config) = (global.dtype.dtype().size(), files.config());
        let longest = set.samples().iter().map(Vec::len).max().unwrap_or(0);
        let caches = Plan::new(&files.shape(), &Stack::new())?.bytes(set.samples().len(), longest, size);
        Ok(caches + config.layers * set.tokens() * config.hidden * size)
    }

    pub(super) fn search(
        &self,
        files: &ModelFiles,
        model: &Decoder,
        set: &CalibrationSet,
        journal: Option<&mut Journal>,
        global: &Global,
    ) -> Result<Searched, CliError> {
        let (spec, layers) = (self.spec(), files.config().layers);
        let options = spec.options(global.device.work(), set.samples().len());
        let strategy = spec.strategy(layers, global.seed)?;
        let start = Instant::now();
        let map = MapBar::new(layers);
        let bar = &map.bar;
        let watch = |progress: Progress<'_>| {
            let Trial { borrower, donor, units, accepted, similarity, objective, .. } = *progress.trial;
            map.show(progress.draft);
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
