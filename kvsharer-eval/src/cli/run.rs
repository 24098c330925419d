//! `kvsharer run`.

use super::Global;
use super::error::CliError;
use super::output::{bar, complain, emit, emit_json, table};
use clap::Args;
use indicatif::ProgressBar;
use kvsharer_eval::experiment::{CellKind, Experiment, Record, Records, Runner, Shard, Watch};
use kvsharer_eval::{BenchmarkOptions, Step};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Options of `run`.
#[derive(Args)]
pub(super) struct RunArgs {
    /// The experiment file
    experiment: PathBuf,
    /// Where results are appended, one JSON line a cell; a run that was killed goes on where it stopped. The name of the
    /// experiment file with the ending .jsonl, in the current folder, if not given
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Run only every N-th cell, beginning with the I-th: for N machines
    #[arg(long, value_name = "I/N", default_value_t = Shard::default())]
    shard: Shard,
    /// Folder that relative paths of the experiment start from; the experiment file's own if not given
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// List the cells and run nothing
    #[arg(long)]
    dry_run: bool,
}

impl RunArgs {
    fn output(&self) -> PathBuf {
        let stem = self.experiment.file_stem().unwrap_or_default().to_string_lossy();
        let shard =
            if self.shard.of > 1 { format!("-{}-of-{}", self.shard.index, self.shard.of) } else { String::new() };
        self.output.clone().unwrap_or_else(|| format!("{stem}{shard}.jsonl").into())
    }
}

pub(super) fn run(args: &RunArgs, global: &Global) -> Result<(), CliError> {
    let experiment = Experiment::load(&args.experiment).map_err(CliError::failure)?;
    let output = args.output();
    if args.dry_run {
        return list(&experiment, args.shard, global);
    }
    let folder = args.experiment.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let runner = Runner {
        device: global.device.open()?,
        device_name: global.device.to_string(),
        dtypes: global.dtypes(),
        dtype_name: global.dtype_name().into(),
        free_memory: global.free_memory(),
        options: BenchmarkOptions { score: global.device.scoring(), ..BenchmarkOptions::default() },
        work: global.device.work(),
        shard: args.shard,
        data: args.data.clone().unwrap_or_else(|| folder.into()),
        output: output.clone(),
    };
    let running: Mutex<Option<ProgressBar>> = Mutex::new(None);
    let with_bar = |change: &dyn Fn(&ProgressBar)| {
        if let Ok(bar) = running.lock() {
            bar.iter().for_each(change);
        }
    };
    let count = experiment.cells().iter().filter(|cell| args.shard.has(cell)).count();
    let failed = runner.run(&experiment, |told| match told {
        Watch::Resumed { done, of, cut } => {
            if cut > 0 {
                complain(&format!("warning: {}: cut off an incomplete last line of {cut} bytes", output.display()));
            }
            complain(&format!("{}: {done} of {of} cells have results in {}", experiment.name, output.display()));
        }
        Watch::Begins(cell) => {
            let what = match cell.kind {
                CellKind::Task(task) => experiment.tasks[task].task.clone(),
                CellKind::Bench(_) => "bench".into(),
            };
            let bar = bar(0, &what);
            bar.set_message(name(&experiment, cell.strategy, cell.stack));
            if let Ok(mut running) = running.lock() {
                *running = Some(bar);
            }
        }
        Watch::Searches(strategy) => with_bar(&|bar| bar.set_message(format!("searching {strategy}"))),
        Watch::Step(Step::Total(total)) => with_bar(&|bar| bar.set_length(total as u64)),
        Watch::Step(Step::Done(steps)) => with_bar(&|bar| bar.inc(steps as u64)),
        Watch::Finished(record) => {
            with_bar(&ProgressBar::finish_and_clear);
            let line = format!(
                "cell {}: {} with {}, {:.1} s",
                record.cell,
                record.model,
                record.policies.join(" + "),
                record.seconds
            );
            complain(&line);
        }
        Watch::Failed(cell, error) => {
            with_bar(&ProgressBar::finish_and_clear);
            let name = name(&experiment, cell.strategy, cell.stack);
            complain(&format!("failed: cell {} ({name}): {error}", cell.index));
        }
    })?;
    let records = Records::open(&output).map_err(CliError::failure)?;
    let shard: Vec<&Record> = records.records().iter().collect();
    match global.json {
        true => emit_json(&json!({ "output": output, "cells": count, "finished": shard.len(), "failed": failed }))?,
        false => emit(&summary(&shard))?,
    }
    match failed {
        0 => Ok(()),
        _ => Err(CliError::Failure(format!("{failed} of {count} cells failed; run again to retry them").into())),
    }
}

fn name(experiment: &Experiment, strategy: usize, stack: usize) -> String {
    format!("{} + {}", experiment.strategies[strategy].name, experiment.stacks[stack].name)
}

fn list(experiment: &Experiment, shard: Shard, global: &Global) -> Result<(), CliError> {
    let cells: Vec<_> = experiment.cells().into_iter().filter(|cell| shard.has(cell)).collect();
    let row = |cell: &kvsharer_eval::experiment::Cell| {
        let what = match cell.kind {
            CellKind::Task(task) => experiment.tasks[task].task.clone(),
            CellKind::Bench(_) => "bench".into(),
        };
        let (model, seed) = (&experiment.models[cell.model], experiment.seeds[cell.seed]);
        let (strategy, stack) = (&experiment.strategies[cell.strategy].name, &experiment.stacks[cell.stack].name);
        [cell.index.to_string(), model.clone(), seed.to_string(), strategy.clone(), stack.clone(), what]
    };
    const HEADER: [&str; 6] = ["cell", "model", "seed", "strategy", "stack", "measures"];
    if global.json {
        let object = |cell| HEADER.into_iter().zip(row(cell)).collect::<std::collections::BTreeMap<_, _>>();
        return emit_json(&cells.iter().map(object).collect::<Vec<_>>());
    }
    let rows: Vec<Vec<String>> = cells.iter().map(|cell| row(cell).into()).collect();
    emit(&table(&HEADER, &rows, true))
}

/// One line a metric.
pub(super) fn summary(records: &[&Record]) -> String {
    let mut rows = Vec::new();
    for record in records {
        let share = 100.0 * record.plan_bytes as f64 / (record.full_bytes as f64).max(1.0);
        let mut push = |what: String, value: String| {
            rows.push(vec![
                record.strategy.clone(),
                record.stack.clone(),
                record.seed.to_string(),
                format!("{share:.1} %"),
                what,
                value,
            ]);
        };
        let result = &record.result;
        for (name, metric) in result["metrics"].as_object().into_iter().flatten().filter(|(name, _)| *name != "nll") {
            let task = result["task"].as_str().unwrap_or_default();
            let stderr = metric["stderr"].as_f64().map_or_else(String::new, |stderr| format!(" ± {stderr:.4}"));
            push(format!("{task} {name}"), format!("{:.4}{stderr}", metric["value"].as_f64().unwrap_or(f64::NAN)));
        }
        for row in result.as_array().into_iter().flatten() {
            let of = |key: &str| row[key]["median"].as_f64().unwrap_or(f64::NAN);
            let what = format!("batch {}, {} + {} tokens", row["batch"], row["prompt"], row["generated"]);
            push(what, format!("prefill {:.0} ms, {:.1} tokens/s", of("prefill_ms"), of("tokens_per_second")));
        }
    }
    table(&["strategy", "stack", "seed", "KV bytes", "measure", "value"], &rows, true)
}
