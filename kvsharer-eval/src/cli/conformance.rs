//! `kvsharer conformance`.

use super::Global;
use super::context::open_model;
use super::device::DeviceArg;
use super::error::CliError;
use super::output::{complain, emit, emit_json, table};
use super::panics::recording;
use clap::Args;
use kvsharer_core::testing::{Case, Outcome, Subject, Verdict};
use kvsharer_eval::conformance::{ModelText, model_cases, suite};
use serde::Serialize;
use std::time::Instant;

/// Options of `conformance`.
#[derive(Args)]
pub(super) struct ConformanceArgs {
    /// A device that decides the same things in f32, for comparison
    #[arg(long, default_value = "cpu")]
    against: DeviceArg,
    /// A real model to compare as well: logits, greedy tokens, kept tokens, the search's trials
    #[arg(long, short)]
    model: Option<String>,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// What came of a case, with what it ran on.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    outcome: &'a Outcome,
    device: &'a str,
    dtype: &'a str,
}

pub(super) fn run(args: &ConformanceArgs, global: &Global) -> Result<(), CliError> {
    if !global.devices.is_empty() {
        return Err(CliError::usage("this command runs on one device: give --device, and --against"));
    }
    let mut cases = suite();
    if let Some(model) = &args.model {
        cases.extend(model_cases(ModelText::new(open_model(model, global)?)));
    }
    cases.retain(|case| args.only.as_ref().is_none_or(|only| case.name().contains(only)));
    if cases.is_empty() {
        return Err(CliError::usage("no case has that in its name: leave --only out to see them all"));
    }
    let subject = Subject::new(global.device.open()?, global.dtype.dtype()).against(args.against.open()?);
    let start = Instant::now();
    let total = cases.len();
    // A line before each case and one after it, so that one that hangs is known.
    let outcomes: Vec<Outcome> = cases
        .iter()
        .enumerate()
        .map(|(index, case)| {
            complain(&format!("[{}/{total}] {}", index + 1, case.name()));
            let outcome = outcome(case, &subject);
            let error = outcome.worst_error.map_or(String::new(), |error| format!(" {error:.1e}"));
            complain(&format!("    {}{error} in {:.1} s", outcome.verdict, outcome.seconds));
            outcome
        })
        .collect();
    report(&outcomes, start.elapsed().as_secs_f64(), args, global)?;
    let failed = count(&outcomes, Verdict::Failed);
    match failed {
        0 => Ok(()),
        _ => Err(CliError::Failure(format!("{failed} of {total} cases failed on {}", global.device).into())),
    }
}

/// Runs a case; what the device's own threads said before it panicked goes into the note.
fn outcome(case: &Case, subject: &Subject) -> Outcome {
    let (mut outcome, messages) = recording(|| case.run(subject));
    let more = messages.iter().find(|message| !outcome.note.contains(message.as_str()));
    if let Some(more) = more.filter(|_| outcome.verdict == Verdict::Failed) {
        outcome.note = format!("{}; {more}", outcome.note);
    }
    outcome
}

fn count(outcomes: &[Outcome], verdict: Verdict) -> usize {
    outcomes.iter().filter(|outcome| outcome.verdict == verdict).count()
}

fn report(outcomes: &[Outcome], seconds: f64, args: &ConformanceArgs, global: &Global) -> Result<(), CliError> {
    let (device, dtype) = (global.device.to_string(), global.dtype_name());
    let [passed, skipped, failed] = [Verdict::Passed, Verdict::Skipped, Verdict::Failed].map(|v| count(outcomes, v));
    if global.json {
        let rows: Vec<Row<'_>> = outcomes.iter().map(|outcome| Row { outcome, device: &device, dtype }).collect();
        return emit_json(&serde_json::json!({
            "conformance": rows,
            "device": device,
            "dtype": dtype,
            "against": args.against.to_string(),
            "model": args.model,
            "passed": passed,
            "skipped": skipped,
            "failed": failed,
            "seconds": seconds,
            "library": env!("CARGO_PKG_VERSION"),
        }));
    }
    let cells = |outcome: &Outcome| {
        let error = outcome.worst_error.map_or(String::new(), |error| format!("{error:.1e}"));
        let note = outcome.note.lines().next().unwrap_or_default().into();
        vec![outcome.case.clone(), error, format!("{:.0e}", outcome.tolerance), outcome.verdict.to_string(), note]
    };
    let rows: Vec<Vec<String>> = outcomes.iter().map(cells).collect();
    let table = table(&["case", "worst error", "tolerance", "verdict", "note"], &rows, true);
    emit(&format!(
        "{table}{device} in {dtype}, against {} in f32: {passed} passed, {skipped} skipped, {failed} failed, in {seconds:.1} s\n",
        args.against
    ))
}
