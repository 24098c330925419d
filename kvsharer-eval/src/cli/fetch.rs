//! `kvsharer fetch`.

use super::Global;
use super::context::fetch;
use super::error::CliError;
use super::hub;
use super::output::{emit, emit_json};
use clap::Args;
use kvsharer_models::hub::HubReference;
use kvsharer_models::{catalogue, fetched, verify_model};
use serde_json::json;

/// Options of `fetch`.
#[derive(Args)]
pub(super) struct FetchArgs {
    /// A name from `kvsharer models`, or `hf:ORG/NAME[@REVISION]`
    model: String,
    /// Download again even if it is there
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &FetchArgs, global: &Global) -> Result<(), CliError> {
    if HubReference::is_one(&args.model) {
        if args.force {
            return Err(CliError::usage(
                "--force is for models by name: files of the hub are checked when they are fetched",
            ));
        }
        let path = hub::fetch(&args.model)?;
        return match global.json {
            true => emit_json(&json!({ "model": args.model, "path": path })),
            false => emit(&format!("{}\n", path.display())),
        };
    }
    let Some(entry) = catalogue().iter().find(|entry| entry.name == args.model) else {
        let known: Vec<&str> = catalogue().iter().map(|entry| entry.name).collect();
        return Err(CliError::usage(format!("no model `{}` to fetch: known are {}", args.model, known.join(", "))));
    };
    // A damaged file is fetched again.
    let path = match fetched(entry)?.filter(|_| !args.force && verify_model(entry).is_ok()) {
        Some(path) => path,
        None => fetch(entry)?,
    };
    if global.json {
        return emit_json(&json!({ "model": entry.name, "path": path, "license": entry.license }));
    }
    emit(&format!("{}\n", path.display()))
}
