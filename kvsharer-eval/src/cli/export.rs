//! `kvsharer export`.

use super::Global;
use super::context::ModelArg;
use super::error::CliError;
use super::output::{emit, emit_json, spinner};
use clap::{Args, ValueEnum};
use kvsharer_core::Strategy;
use kvsharer_eval::export::{Export, ExportTarget};
use kvsharer_eval::{Share, strategy_path};
use serde_json::json;
use std::path::PathBuf;

/// Options of `export`.
#[derive(Args)]
pub(super) struct ExportArgs {
    /// A strategy file made by `kvsharer search`, or builtin:NAME; may be left out with --to hf, which then writes the model as it is
    strategy: Option<PathBuf>,
    /// What the files are for
    #[arg(long, value_enum)]
    to: TargetArg,
    /// The model the strategy was found on, as for other commands; needed where weights are written
    #[arg(long, short)]
    model: Option<String>,
    /// The step of the strategy's search that saved so much, instead of the last: layers (8) or percent of bytes (25%)
    #[arg(long, requires = "strategy")]
    at: Option<Share>,
    /// The folder to write, new or empty
    #[arg(long, short)]
    output: PathBuf,
    /// Write into a folder that has files, replacing those of the same names
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum TargetArg {
    /// A Hugging Face folder with fitted maps in its weights, which any engine with sharing can load
    Hf,
    /// A Python module for transformers
    Transformers,
    /// A vLLM plugin
    Vllm,
    /// Says why there is none
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

impl TargetArg {
    fn target(self) -> ExportTarget {
        match self {
            TargetArg::Hf => ExportTarget::HuggingFace,
            TargetArg::Transformers => ExportTarget::Transformers,
            TargetArg::Vllm => ExportTarget::Vllm,
            TargetArg::LlamaCpp => ExportTarget::LlamaCpp,
        }
    }

    /// What to do with the files.
    fn usage(self, shared: bool) -> &'static str {
        match self {
            TargetArg::Hf if shared => "kvsharer runs it by --model DIR --strategy DIR/strategy.json",
            TargetArg::Hf => "a plain Hugging Face model",
            TargetArg::Transformers => "import kvsharer_sharing; kvsharer_sharing.apply(model)",
            TargetArg::Vllm => "pip install it beside vLLM; its README.md says how to serve",
            TargetArg::LlamaCpp => "",
        }
    }
}

pub(super) fn run(args: &ExportArgs, global: &Global) -> Result<(), CliError> {
    let path = args.strategy.as_deref().map(strategy_path).transpose()?;
    let loaded = path.as_deref().map(Strategy::load).transpose()?;
    let strategy = match (loaded, args.at) {
        (Some(strategy), Some(at)) => Some(strategy.at(at.fraction(strategy.model.layers))?),
        (strategy, _) => strategy,
    };
    let files = match &args.model {
        Some(model) => Some(ModelArg { model: model.clone() }.open(global)?),
        None => None,
    };
    let export = Export {
        target: args.to.target(),
        strategy: strategy.as_ref().zip(path.as_deref()),
        model: files.as_ref(),
        dtype: global.dtype.dtype(),
    };
    let spinner = files.as_ref().map(|files| spinner(&format!("loading {} …", files.name())));
    let exported = export.write(&args.output, args.force, &global.device.open()?);
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let exported = exported?;
    if global.json {
        return emit_json(&json!({
            "output": args.output, "files": exported.files, "folded": exported.folded,
            "saved": strategy.as_ref().map(|strategy| strategy.saved),
        }));
    }
    let files: Vec<String> = exported.files.iter().map(|file| format!("  {}\n", file.display())).collect();
    let folded = if exported.folded { "fitted maps are in the weights\n" } else { "" };
    emit(&format!("{}\n{}{folded}{}\n", args.output.display(), files.concat(), args.to.usage(strategy.is_some())))
}
