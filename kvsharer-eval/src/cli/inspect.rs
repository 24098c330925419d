//! `kvsharer inspect`.

mod diff;
mod fitted;

use super::Global;
use super::context::ModelArg;
use super::error::CliError;
use super::output::{emit, emit_json, human_bytes, table};
use super::search::draw_sharing;
use clap::Args;
use fitted::Fitted;
use kvsharer_core::{KvShape, ModelShape, Plan, Stack, Step, Strategy};
use kvsharer_eval::{Share, strategy_path};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Options of `inspect`.
#[derive(Args)]
pub(super) struct InspectArgs {
    /// A strategy file made by `kvsharer search`
    #[arg(required_unless_present = "diff", conflicts_with = "diff")]
    strategy: Option<PathBuf>,
    /// What differs between two strategies, down to the first trial that they judged otherwise
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    diff: Option<Vec<PathBuf>>,
    /// The step of the search that saved so much, instead of the last: layers (8) or percent of bytes (25%)
    #[arg(long)]
    at: Option<Share>,
    /// The model the strategy is checked against; without it the savings are those of a model without sliding windows
    #[arg(long, short)]
    model: Option<String>,
    /// Sequences
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    batch: u32,
    /// Longest sequence, prompt and generated tokens together
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    tokens: u32,
}

pub(super) fn run(args: &InspectArgs, global: &Global) -> Result<(), CliError> {
    if let Some([a, b]) = args.diff.as_deref() {
        return diff::run([a, b], args.at, global);
    }
    // clap asks for a strategy where there is no --diff.
    let path = &strategy_path(args.strategy.as_deref().unwrap_or(Path::new("strategy.json")))?;
    let strategy = load(path, args.at)?;
    let savings = Savings::of(&strategy, args, global)?;
    let fitted = Fitted::of(&strategy, path);
    if global.json {
        let accepted = strategy.trials.iter().filter(|trial| trial.accepted).count();
        let abandoned = strategy.trials.iter().filter(|trial| trial.abandoned).count();
        return emit_json(&json!({
            "strategy": path, "at": args.at, "model": strategy.model, "key_map": strategy.key_map,
            "value_map": strategy.value_map, "dropped": strategy.dropped, "search": strategy.search,
            "calibration": strategy.calibration, "reached": strategy.reached, "requested": strategy.requested,
            "saved": strategy.saved, "library": strategy.library, "fitted": fitted, "savings": savings,
            "trials": { "tried": strategy.trials.len(), "accepted": accepted, "abandoned": abandoned },
            "steps": strategy.steps.iter().map(step_json).collect::<Vec<_>>(),
        }));
    }
    emit(&format!(
        "{}\n{}\n{}{}",
        draw_sharing(&strategy.sharing().map_err(CliError::failure)?, strategy.model.layers),
        facts(&strategy, &fitted),
        steps(&strategy.steps),
        savings.describe(),
    ))
}

/// The strategy, at the step that is wanted.
fn load(path: &Path, at: Option<Share>) -> Result<Strategy, CliError> {
    let strategy = Strategy::load(path)?;
    Ok(match at {
        Some(at) => strategy.at(at.fraction(strategy.model.layers))?,
        None => strategy,
    })
}

/// A step without its maps.
fn step_json(step: &Step) -> serde_json::Value {
    let Step { saved, objective, held_back, residual, trials, .. } = step;
    json!({
        "saved": saved, "objective": objective, "held_back": held_back, "residual": residual, "trials": trials,
    })
}

/// What it is and where it came from, a line each.
fn facts(strategy: &Strategy, fitted: &Fitted) -> String {
    let Strategy { model, search, calibration, trials, .. } = strategy;
    // The settings as the file has them, so that none is left out here.
    let settings = serde_json::to_value(search).unwrap_or_default();
    let settings = settings.as_object().into_iter().flatten().filter(|(name, _)| *name != "name");
    let settings: Vec<String> = settings.map(|(name, value)| format!("{name} {}", plain(value))).collect();
    let accepted = trials.iter().filter(|trial| trial.accepted).count();
    let dropped: Vec<String> = strategy.dropped.iter().map(ToString::to_string).collect();
    let rows = [
        ("saves", format!("{:.1} % of the KV bytes of a token", 100.0 * strategy.saved)),
        ("reached", format!("{} of {} replacements asked for", strategy.reached, strategy.requested)),
        ("without attention", dropped.join(", ")),
        (
            "model",
            format!(
                "{}, {} layers, {} query and {} key-value heads of {}, {:.12}…",
                model.architecture, model.layers, model.heads, model.kv_heads, model.head_dim, model.hash
            ),
        ),
        ("search", format!("{}: {}", search.name, settings.join(", "))),
        ("trials", format!("{} tried, {accepted} accepted", trials.len())),
        (
            "calibration",
            format!("{} samples, {} tokens, {:.12}…", calibration.samples, calibration.tokens, calibration.hash),
        ),
        ("fitted maps", fitted.describe()),
        ("written by", strategy.library.clone()),
    ];
    let lines = rows.iter().filter(|(_, value)| !value.is_empty());
    lines.map(|(name, value)| format!("{name:<18}{value}\n")).collect()
}

/// A JSON value without quotes.
fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// How the search went.
fn steps(steps: &[Step]) -> String {
    if steps.is_empty() {
        return String::new();
    }
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
    let row = |(index, step): (usize, &Step)| {
        vec![
            (index + 1).to_string(),
            format!("{:.1} %", 100.0 * step.saved),
            format!("{:.4}", step.objective),
            number(step.held_back),
            number(step.residual),
            step.trials.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = steps.iter().enumerate().map(row).collect();
    let header = ["step", "saved", "objective", "held back", "residual of the fit", "trials"];
    format!("{}\n", table(&header, &rows, false))
}

/// The bytes of a cache with and without the strategy.
#[derive(Serialize)]
struct Savings {
    /// The model that was named, or none.
    model: Option<String>,
    batch: usize,
    tokens: usize,
    dtype: &'static str,
    full_bytes: usize,
    plan_bytes: usize,
    full_slots: usize,
    slots: usize,
}

impl Savings {
    fn of(strategy: &Strategy, args: &InspectArgs, global: &Global) -> Result<Self, CliError> {
        let (name, shape) = match &args.model {
            None => {
                let theirs = &strategy.model;
                (None, ModelShape::uniform(theirs.layers, KvShape::new(theirs.kv_heads, theirs.head_dim)))
            }
            Some(model) => {
                let files = ModelArg { model: model.clone() }.open(global)?;
                strategy.check(&files.fingerprint()?)?;
                (Some(files.name().to_owned()), files.shape())
            }
        };
        let (batch, tokens, element) = (args.batch as usize, args.tokens as usize, global.dtype.dtype().size());
        let widths = shape.layers().iter().map(|layer| layer.kv_heads.checked_mul(layer.head_dim));
        let widest = widths.map(|width| width.unwrap_or(usize::MAX)).max().unwrap_or(0);
        let most = [shape.len(), widest, batch, tokens, 4 * element];
        // The sums of the plan must not overflow: the file's numbers may be anything.
        if most.iter().try_fold(1usize, |product, &factor| product.checked_mul(factor)).is_none() {
            return Err(CliError::usage(format!(
                "{batch} sequences of {tokens} tokens are more than any memory holds"
            )));
        }
        let full = Plan::new(&shape, &Stack::new())?;
        let sharing = strategy.sharing().map_err(CliError::failure)?;
        let plan = Plan::new(&strategy.shape(&shape), &Stack::new().with(sharing))?;
        Ok(Self {
            model: name,
            batch,
            tokens,
            dtype: global.dtype_name(),
            full_bytes: full.bytes(batch, tokens, element),
            plan_bytes: plan.bytes(batch, tokens, element),
            full_slots: full.slots().len(),
            slots: plan.slots().len(),
        })
    }

    fn describe(&self) -> String {
        let saved = self.full_bytes - self.plan_bytes.min(self.full_bytes);
        let model = match &self.model {
            Some(model) => format!("on {model}"),
            None => "by the strategy's own numbers (--model counts sliding windows, too)".into(),
        };
        format!(
            "batch {}, {} tokens, {}: {} instead of {}, {} saved ({:.1} %), {model}\n",
            self.batch,
            self.tokens,
            self.dtype,
            human_bytes(self.plan_bytes),
            human_bytes(self.full_bytes),
            human_bytes(saved),
            100.0 * saved as f64 / self.full_bytes.max(1) as f64,
        )
    }
}
