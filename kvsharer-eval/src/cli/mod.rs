//! The command line: one file a command; what they have in common is in `context` and `output`.

mod bench;
mod chat;
mod conformance;
mod context;
mod demo;
mod device;
mod devices;
mod error;
mod eval;
mod export;
mod fetch;
mod generate;
mod hub;
mod inspect;
mod list;
mod merge;
mod output;
mod panics;
mod plan;
mod report;
mod run;
mod sampling;
mod search;

use clap::{Args, Parser, Subcommand};
use context::{DtypeArg, WeightsArg};
use device::DeviceArg;
use error::CliError;
use kvsharer_models::Dtypes;
use std::process::ExitCode;

/// Share KV caches between transformer layers: find which layers can share, run them, and measure what it saves and
/// what it costs.
#[derive(Parser)]
#[command(name = "kvsharer", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// Options of every command.
#[derive(Args, Clone)]
struct Global {
    /// Where to compute
    #[arg(long, global = true, default_value = "cpu", help = "Where to compute: cpu, cuda[:INDEX] or wgpu[:INDEX]")]
    device: DeviceArg,
    /// Several devices for one model, such as cuda:0,cuda:1: layers go to them in order, by bytes
    #[arg(long, global = true, value_delimiter = ',', value_name = "DEVICE,…", conflicts_with = "device")]
    devices: Vec<DeviceArg>,
    /// Let a layer read the cache of a layer on another device
    #[arg(long, global = true)]
    allow_cross_device: bool,
    /// Type of weights, activations and cache; on the cpu f32 is the fastest
    #[arg(long, global = true, value_enum, default_value_t = DtypeArg::F32)]
    dtype: DtypeArg,
    /// With --dtype f32: keep matrices in 16 bits and compute in f32; decoding on a CPU reads half as much
    #[arg(long, global = true, value_enum)]
    weights: Option<WeightsArg>,
    /// With --dtype f32 on a GPU with tensor cores: round what matrix products multiply to TF32, which is faster; as
    /// torch.backends.cuda.matmul.allow_tf32
    #[arg(long, global = true)]
    tf32: bool,
    /// Seed of everything random
    #[arg(long, global = true, default_value_t = 0)]
    seed: u64,
    /// Print a machine-readable result on stdout; progress and logs go to stderr
    #[arg(long, global = true)]
    json: bool,
    /// Threads of the CPU; all cores if not given
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Run although weights and caches take more memory than is free
    #[arg(long, global = true)]
    no_memory_check: bool,
}

impl Global {
    /// In what models compute and keep their matrices.
    fn dtypes(&self) -> Dtypes {
        let compute = self.dtype.dtype();
        Dtypes { compute, weights: self.weights.map_or(compute, WeightsArg::dtype) }
    }

    /// The same for results.
    fn dtype_name(&self) -> &'static str {
        match self.weights {
            None if self.tf32 && self.dtype.dtype() == burn::tensor::DType::F32 => "f32, products in tf32",
            None => self.dtype.name(),
            Some(WeightsArg::F16) => "f32, matrices in f16",
            Some(WeightsArg::Bf16) => "f32, matrices in bf16",
        }
    }

    /// The device or devices, for results.
    fn device_names(&self) -> String {
        match self.devices.is_empty() {
            true => self.device.to_string(),
            false => self.devices.iter().map(DeviceArg::to_string).collect::<Vec<_>>().join(","),
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// The main job on the default model: search, then compare quality, bytes and speed
    Demo(demo::DemoArgs),
    /// Download a model and verify it
    Fetch(fetch::FetchArgs),
    /// List the models that can be given to --model
    Models,
    /// List the policies that can be given to --policy
    Policies,
    /// List the tasks that can be given to --task
    Tasks,
    /// List the devices that can be given to --device, and what the missing ones need
    Devices,
    /// Run the conformance suite on a device: everything against f64 on the host, decisions against another device
    Conformance(conformance::ConformanceArgs),
    /// Find a sharing strategy by the paper's search
    Search(search::SearchArgs),
    /// Measure quality under a strategy and policies
    Eval(eval::EvalArgs),
    /// Time prefill and decoding, and tell their memory
    Bench(bench::BenchArgs),
    /// Run an experiment file: models x strategies x policies x tasks; resumes where it stopped
    Run(run::RunArgs),
    /// Join the results of shards
    Merge(merge::MergeArgs),
    /// Show results as tables and plots: in the terminal, as a page for a browser, as Markdown, as CSV
    Report(report::ReportArgs),
    /// Continue a prompt, or all prompts of a file
    Generate(generate::GenerateArgs),
    /// Talk to a model, with its own chat template
    Chat(chat::ChatArgs),
    /// The exact bytes of a cache before anything runs
    Plan(plan::PlanArgs),
    /// What a strategy is, and what it saves; or what differs between two
    Inspect(inspect::InspectArgs),
    /// Write a strategy, or a model, as files for another program
    Export(export::ExportArgs),
}

/// Bytes of a thread's stack, as much as a main thread has.
const STACK: usize = 8 << 20;

/// Runs the program: exit code 0 for success, 2 for wrong usage, 1 for everything else that fails.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("KVSHARER_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("error: {error}"));
            ExitCode::from(match error {
                CliError::Usage(_) => 2,
                CliError::Failure(_) => 1,
            })
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), CliError> {
    let mut global = cli.global;
    if global.weights.is_some() && global.dtype != DtypeArg::F32 {
        return Err(CliError::usage("--weights is for --dtype f32; with f16 and bf16 matrices have 16 bits already"));
    }
    if global.tf32 && global.dtype != DtypeArg::F32 {
        return Err(CliError::usage("--tf32 is for --dtype f32; f16 and bf16 use tensor cores anyway"));
    }
    kvsharer_core::allow_tf32(global.tf32);
    if let Some(first) = global.devices.first() {
        if matches!(cli.command, Command::Run(_) | Command::Demo(_)) {
            return Err(CliError::usage("this command runs on one device: give --device"));
        }
        // Where there is no more to say than one device, such as how much is scored at once.
        global.device = first.clone();
    }
    let threads = global.threads.map_or(0, usize::from);
    // Fails only if a pool exists already, and nothing has run yet.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK);
    pool.build_global().map_err(CliError::failure)?;
    // On one of its threads: another one would be woken up and waited for at each matrix of a decoding step.
    rayon::scope(|_| execute(cli.command, &global))
}

fn execute(command: Command, global: &Global) -> Result<(), CliError> {
    match command {
        Command::Demo(args) => demo::run(&args, global),
        Command::Fetch(args) => fetch::run(&args, global),
        Command::Models => list::models(global),
        Command::Policies => list::policies(global),
        Command::Tasks => list::tasks(global),
        Command::Devices => devices::run(global),
        Command::Conformance(args) => conformance::run(&args, global),
        Command::Search(args) => search::run(&args, global),
        Command::Eval(args) => eval::run(&args, global),
        Command::Bench(args) => bench::run(&args, global),
        Command::Run(args) => run::run(&args, global),
        Command::Merge(args) => merge::run(&args, global),
        Command::Report(args) => report::run(&args, global),
        Command::Generate(args) => generate::run(&args, global),
        Command::Chat(args) => chat::run(&args, global),
        Command::Plan(args) => plan::run(&args, global),
        Command::Inspect(args) => inspect::run(&args, global),
        Command::Export(args) => export::run(&args, global),
    }
}

#[cfg(test)]
mod readme;
#[cfg(test)]
#[path = "../../tests/readme_lines/mod.rs"]
mod readme_lines;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
