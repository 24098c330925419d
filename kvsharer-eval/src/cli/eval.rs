//! `kvsharer eval`.

mod task;

use super::Global;
use super::context::{ModelArg, StackArgs, check_fits, check_output, check_placement, load};
use super::error::CliError;
use super::output::{bar, complain, emit, emit_json, human_bytes, table, write_json, write_json_lines};
use clap::Args;
use kvsharer_eval::{BenchmarkOptions, Job, OTHER_TASKS, Results, Step, TaskResult, TaskSpec};
use std::path::PathBuf;
use std::time::Instant;
use task::{DevArg, ProtocolArg, TaskArg};

/// Options of `eval`.
#[derive(Args)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    stack: StackArgs,
    /// What to measure as NAME=PATH, or NAME where no file is needed; may be repeated (see `kvsharer tasks`). PATH may be
    /// `hf:ORG/NAME/FILE[@REVISION]`, a file of a data set of the Hugging Face hub.
    /// perplexity=TEXTFILE is by windows, stepwise=TEXTFILE by documents that run token by token, so that every eviction
    /// counts
    #[arg(long = "task", required = true, value_name = "NAME=PATH")]
    tasks: Vec<TaskArg>,
    /// Whose prompts and rules a benchmark follows; the first it has if not given
    #[arg(long, value_enum)]
    protocol: Option<ProtocolArg>,
    /// Examples before each item, the first of the benchmark's file of examples; the protocol's own number if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(..=1000))]
    shots: Option<u32>,
    /// Items for examples as NAME=PATH; where the benchmark has a place for them, that if not given
    #[arg(long = "dev", value_name = "NAME=PATH")]
    dev: Vec<DevArg>,
    /// Count and skip bad items instead of failing at the first
    #[arg(long)]
    skip_bad: bool,
    /// Tokens of the longest text of a benchmark; longer ones are cut as the harness does. The model's context if not
    /// given
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
    max_length: Option<u32>,
    /// New tokens of a text to generate
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Tokens of a window or document
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    /// Task perplexity: tokens of a forward pass; evictions between passes count. 0 runs a window at once, which sees
    /// no eviction
    #[arg(long, default_value_t = 0)]
    chunk: u32,
    /// Task perplexity: also the KL divergence of the predictions from those of the full cache, and how often both find
    /// the same token most likely
    #[arg(long)]
    kl: bool,
    /// Task stepwise: first tokens of a document that run in one pass, as a prompt does, and are not scored
    #[arg(long, default_value_t = 0)]
    prefill: u32,
    /// Task stepwise: documents that go through one cache at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Tasks passkey and needle: tokens of the prompts
    #[arg(long, value_delimiter = ',', default_values_t = [512, 1024], value_parser = clap::value_parser!(u32).range(1..))]
    lengths: Vec<u32>,
    /// Tasks passkey and needle: where the (first) number stands, 0 to 1
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.25, 0.5, 0.75, 1.0])]
    depths: Vec<f64>,
    /// Task needle: numbers in a prompt
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    needles: u32,
    /// Tasks passkey and needle: prompts of each length and depth
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Benchmarks: also time the same texts run whole without being scored; of both the median of three runs after one
    /// to warm up
    #[arg(long)]
    compare_prefill: bool,
    /// The first items, windows or documents only
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Where to write the results
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Where to write what every item got, one JSON line an item
    #[arg(long)]
    samples_out: Option<PathBuf>,
}

impl EvalArgs {
    fn has(&self, name: &str) -> bool {
        self.tasks.iter().any(|task| task.name == name)
    }

    fn specs(&self) -> Result<Vec<TaskSpec>, CliError> {
        if let Some(dev) = self.dev.iter().find(|dev| !self.has(&dev.name)) {
            return Err(CliError::usage(format!("--dev {}=…: no such --task is asked for", dev.name)));
        }
        // Options that no task would heed are mistakes.
        if !self.has("stepwise") && (self.prefill > 0 || self.batch > 1) {
            return Err(CliError::usage("--prefill and --batch are for --task stepwise=PATH, which is not asked for"));
        }
        if self.chunk > 0 && !self.has("perplexity") {
            return Err(CliError::usage("--chunk is for --task perplexity=PATH: stepwise runs token by token"));
        }
        if self.kl && !self.has("perplexity") {
            return Err(CliError::usage("--kl is for --task perplexity=PATH, which is not asked for"));
        }
        let is_benchmark = |task: &TaskArg| OTHER_TASKS.iter().all(|(other, ..)| *other != task.name);
        if self.compare_prefill && !self.tasks.iter().any(is_benchmark) {
            return Err(CliError::usage("--compare-prefill is for benchmarks, of which none is asked for"));
        }
        let size = |number: u32| number as usize;
        let spec = |task: &TaskArg| TaskSpec {
            task: task.name.clone(),
            path: task.path.clone(),
            protocol: self.protocol.map(ProtocolArg::protocol),
            dev: self.dev.iter().find(|dev| dev.name == task.name).map(|dev| dev.path.clone()),
            shots: self.shots.map(size),
            limit: self.limit.map(size),
            skip_bad: self.skip_bad,
            max_length: self.max_length.map(size),
            max_new_tokens: size(self.max_new_tokens),
            window: size(self.window),
            chunk: size(self.chunk),
            kl: self.kl,
            prefill: size(self.prefill),
            batch: size(self.batch),
            lengths: self.lengths.iter().copied().map(size).collect(),
            depths: self.depths.clone(),
            needles: size(self.needles),
            samples: size(self.samples),
        };
        Ok(self.tasks.iter().map(spec).collect())
    }
}

pub(super) fn run(args: &EvalArgs, global: &Global) -> Result<(), CliError> {
    let specs = args.specs()?;
    args.stack.parse()?;
    // Files are judged before a model is fetched or loaded for them.
    let jobs: Vec<Job> = specs.into_iter().map(TaskSpec::prepare).collect::<Result<_, _>>()?;
    for path in [&args.output, &args.samples_out].into_iter().flatten() {
        check_output(path)?;
    }
    let files = args.model.open(global)?;
    let checked = args.stack.check(&files)?;
    check_placement(&files, &checked.plan, global)?;
    let strategy_hash = args.stack.strategy_hash()?;
    for job in &jobs {
        job.skipped().iter().for_each(|bad| complain(&format!("warning: skipped {bad}")));
    }
    if checked.evicts() && jobs.iter().any(Job::runs_in_one_pass) {
        complain(
            "warning: a window runs in one pass, so this perplexity does not see what the policies evict; use --chunk 64",
        );
    }
    if let Some(pass) = jobs.iter().filter_map(Job::stray_prompt).max().filter(|_| checked.depends_on_prompt()) {
        complain(&format!(
            "warning: a policy depends on the length of the prompt, and the first pass of {pass} tokens counts as one; use --task stepwise=… with --prefill"
        ));
    }
    let options = BenchmarkOptions {
        seed: global.seed,
        score: global.device.scoring(),
        compare_prefill: args.compare_prefill,
        ..BenchmarkOptions::default()
    };
    // Benchmarks' texts vary; a batch of them has so many tokens. Threads have caches of their own.
    let (size, threads) = (global.dtype.dtype().size(), rayon::current_num_threads());
    let lengths = jobs.iter().map(|job| job.run_lengths().unwrap_or((1, options.score.tokens.into())));
    let cache = lengths.map(|(batch, lengths)| checked.plan.bytes(batch, lengths, size)).max().unwrap_or(0);
    check_fits(&files, cache * if options.score.one_at_a_time { 1 } else { threads }, global)?;
    let tokenizer = files.tokenizer()?;
    let loaded = load(&files, global)?;
    let folded = checked.folded(&loaded)?;
    let model = folded.as_ref().unwrap_or(&loaded);
    let start = Instant::now();
    let (mut results, mut samples, mut plan_bytes) = (Vec::new(), Vec::new(), 0);
    for job in &jobs {
        let bar = bar(0, &job.spec().task);
        let progress = |step| match step {
            Step::Total(total) => bar.set_length(total as u64),
            Step::Done(steps) => bar.inc(steps as u64),
        };
        let evaluated = job.run(model, &loaded, &tokenizer, &options, || checked.stack(), progress)?;
        bar.finish_and_clear();
        let (batch, lengths) = evaluated.largest;
        plan_bytes = plan_bytes.max(checked.plan.bytes(batch, lengths, model.dtype().size()));
        samples.extend(evaluated.samples);
        results.push(evaluated.result);
    }
    let results = Results {
        results,
        model: files.name().into(),
        model_hash: files.fingerprint()?.hash,
        strategy: args.stack.strategy.as_ref().map(|path| path.display().to_string()),
        strategy_hash,
        policies: checked.names,
        plan_bytes,
        device: global.device_names(),
        dtype: global.dtype_name().into(),
        seconds: start.elapsed().as_secs_f64(),
        library: concat!("kvsharer ", env!("CARGO_PKG_VERSION")).into(),
    };
    if let Some(path) = &args.samples_out {
        write_json_lines(path, &samples)?;
    }
    if let Some(path) = &args.output {
        write_json(path, &results)?;
    }
    if global.json { emit_json(&results) } else { emit(&describe(&results)) }
}

fn describe(results: &Results) -> String {
    let mut rows = Vec::new();
    let mut notes = String::new();
    for task in &results.results {
        for (name, metric) in task.metrics.iter().filter(|(name, _)| *name != "nll") {
            let stderr = metric.stderr.map_or_else(String::new, |stderr| format!(" ± {stderr:.4}"));
            rows.push(vec![
                task.task.clone(),
                task.protocol.clone(),
                name.clone(),
                format!("{:.4}{stderr}", metric.value),
                task.items.to_string(),
                task.tokens.to_string(),
            ]);
        }
        notes += &note(task);
    }
    format!(
        "{} with {}, {} KV at most, {:.1} s on {} in {}\n{}{notes}",
        results.model,
        results.policies.join(" + "),
        human_bytes(results.plan_bytes),
        results.seconds,
        results.device,
        results.dtype,
        table(&["task", "protocol", "metric", "value", "items", "tokens"], &rows, false)
    )
}

/// What a reader of the number must know.
fn note(task: &TaskResult) -> String {
    let Some(benchmark) = &task.benchmark else {
        return String::new();
    };
    let mut notes = Vec::new();
    if benchmark.shots > 0 {
        notes.push(format!("{} examples", benchmark.shots));
    }
    if task.truncated > 0 {
        notes.push(format!("{} items cut to {} tokens", task.truncated, benchmark.max_length));
    }
    if benchmark.skipped > 0 {
        notes.push(format!("{} bad items skipped", benchmark.skipped));
    }
    if benchmark.left_out > 0 {
        notes.push(format!("{} items left out, as the harness does", benchmark.left_out));
    }
    if let Some(prefill) = benchmark.compared_prefill {
        let speed =
            |tokens: usize, rate: f64| format!("{tokens} tokens in {:.2} s ({rate:.0} tokens/s)", tokens as f64 / rate);
        notes.push(format!(
            "scored {}, only run, each text whole, {}",
            speed(benchmark.tokens_run, benchmark.tokens_per_second),
            speed(prefill.tokens, prefill.tokens_per_second)
        ));
    }
    if !task.sees_evictions {
        notes.push("texts run in one pass, so what the policies evict is not seen".into());
    }
    match notes.is_empty() {
        true => String::new(),
        false => format!("{}: {}\n", task.task, notes.join("; ")),
    }
}
