//! `kvsharer merge`.

use super::Global;
use super::context::check_output;
use super::error::CliError;
use super::output::{emit, emit_json, write_json_lines};
use super::run::summary;
use clap::Args;
use kvsharer_eval::experiment::{Record, merge};
use serde_json::json;
use std::path::PathBuf;

/// Options of `merge`.
#[derive(Args)]
pub(super) struct MergeArgs {
    /// Results files of `kvsharer run`
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// Where to write all results, in the order of their cells
    #[arg(long, short)]
    output: PathBuf,
    /// Merge although cells are missing
    #[arg(long)]
    partial: bool,
}

pub(super) fn run(args: &MergeArgs, global: &Global) -> Result<(), CliError> {
    check_output(&args.output)?;
    let merged = merge(&args.results, args.partial).map_err(CliError::failure)?;
    write_json_lines(&args.output, &merged.records)?;
    let records: Vec<&Record> = merged.records.iter().collect();
    match global.json {
        true => emit_json(&json!({ "output": args.output, "cells": merged.cells, "finished": records.len() })),
        false => emit(&format!("{}{} of {} cells\n", summary(&records), records.len(), merged.cells)),
    }
}
