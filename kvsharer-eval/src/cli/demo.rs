//! `kvsharer demo`: the main job, end to end.

mod print;

use super::Global;
use super::context::{ModelArg, StackPlan, check_output, load};
use super::error::CliError;
use super::output::{bar, complain, emit, emit_json};
use super::search::{SearchFlags, Searched, draw_sharing};
use clap::Args;
use kvsharer_core::{Cache, Order, SearchModel, Sharing, Strategy};
use kvsharer_eval::{DecodeSpeed, Perplexity, PerplexityOptions, Share, decode_speed, perplexity, shipped_for, texts};
use kvsharer_models::{Decoder, GenerateOptions, ModelFiles, ModelTokenizer, generate};
use serde::Serialize;
use std::path::PathBuf;

/// Tokens in the cache before decoding is timed, if the text has so many.
const DECODE_PROMPT: usize = 512;

const PROMPT: &str = "The first lighthouse on the reef was built of wood. It";

/// Options of `demo`; the defaults are the main job.
#[derive(Args)]
pub(super) struct DemoArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    search: SearchFlags,
    /// Tokens of a sequence: perplexity windows, and the length bytes are told for
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(32..))]
    tokens: u32,
    /// Tokens of the embedded text that are scored
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(32..))]
    eval_tokens: u32,
    /// Tokens of a forward pass while scoring, at most an eighth of --tokens; evictions happen between passes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// Timed decoding steps
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    decode_tokens: u32,
    /// New tokens of the sample texts
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..))]
    sample_text_tokens: u32,
    /// Also write the strategy that the search found to a file
    #[arg(long, short)]
    output: Option<PathBuf>,
}

impl DemoArgs {
    /// Tokens of a scoring pass: several passes a window, or no eviction would be seen.
    fn pass(&self) -> usize {
        self.chunk.min(self.tokens / 8) as usize
    }
}

/// One line of the table.
#[derive(Serialize)]
struct Row {
    cache: String,
    policies: Vec<String>,
    kv_bytes: usize,
    perplexity: f64,
    perplexity_ratio: f64,
    predicted_tokens: usize,
    decode: DecodeSpeed,
    continuation: String,
}

#[derive(Serialize)]
struct Report<'a> {
    rows: &'a [Row],
    /// What the search found.
    strategy: &'a Strategy,
    search_seconds: f64,
    tokens: u32,
    chunk: usize,
    prompt: &'static str,
    device: String,
    dtype: &'static str,
}

/// A way to share, and the model as it wants it.
struct Way {
    name: String,
    sharing: Sharing,
    /// With fitted maps folded in; `None` if there are none.
    model: Option<Decoder>,
}

pub(super) fn run(args: &DemoArgs, global: &Global) -> Result<(), CliError> {
    let files = args.model.open(global)?;
    args.search.check(&files, global)?;
    if let Some(path) = &args.output {
        check_output(path)?;
    }
    let tokenizer = files.tokenizer()?;
    let set = args.search.calibration(&files, &tokenizer, global)?;
    let model = load(&files, global)?;
    let searched = args.search.search(&files, &model, &set, None, global)?;
    if let Some(path) = &args.output {
        searched.strategy.save_with(path, &searched.found.adapters)?;
    }
    let similar = args.search.with_order(Order::Similar).search(&files, &model, &set, None, global)?;
    let mut ways = vec![
        Way::found("dissimilar first (paper)", &searched, &model)?,
        Way::found("similar first", &similar, &model)?,
    ];
    ways.extend(Way::shipped(args.search.share, &files, &model)?);

    let mut text = tokenizer.encode(texts::DEMO).map_err(CliError::failure)?;
    text.truncate(args.eval_tokens as usize);
    let bar = bar(((ways.len() + 3) * text.len()) as u64, "measuring");
    let demo = Demo { args, global, files: &files, tokenizer: &tokenizer, text: &text, progress: &bar };
    let full = demo.row("full", &model, None, None, None)?;
    let shared = |way: &Way| demo.row(&way.name, way.model.as_ref().unwrap_or(&model), Some(way), None, Some(&full));
    let mut rows = ways.iter().map(shared).collect::<Result<Vec<_>, _>>()?;
    let best = (0..rows.len()).min_by(|&a, &b| rows[a].perplexity.total_cmp(&rows[b].perplexity)).unwrap_or(0);
    let way = &ways[best];
    // A quarter of the tokens stays, the first four among them.
    let spec = format!("streaming-llm:sinks=4,window={}", (args.tokens / 4).max(8) - 4);
    let streaming = demo.row("streaming", &model, None, Some(&spec), Some(&full))?;
    let name = format!("{} + streaming", way.name);
    let both = demo.row(&name, way.model.as_ref().unwrap_or(&model), Some(way), Some(&spec), Some(&full))?;
    bar.finish_and_clear();
    // The best way first, the paper's order behind it.
    rows.sort_by(|a, b| a.perplexity.total_cmp(&b.perplexity));
    let rows: Vec<Row> = [full].into_iter().chain(rows).chain([streaming, both]).collect();
    let Searched { strategy, found, seconds } = searched;
    if strategy.reached < strategy.requested {
        complain(&format!("warning: only {} of the {} layers asked for share", strategy.reached, strategy.requested));
    }
    if global.json {
        let (tokens, chunk) = (args.tokens, args.pass());
        let (device, dtype) = (global.device.to_string(), global.dtype_name());
        return emit_json(&Report {
            rows: &rows,
            strategy: &strategy,
            search_seconds: seconds,
            tokens,
            chunk,
            prompt: PROMPT,
            device,
            dtype,
        });
    }
    let layers = files.config().layers;
    emit(&format!(
        "{}: the paper's search shared {} of {layers} layers in {seconds:.1} s ({} trials)\n\n{}\n{}\n{}: {}\n{}",
        files.name(),
        strategy.reached,
        found.trials.len(),
        print::draw_table(args, &rows),
        print::verdict(&rows),
        way.name,
        draw_sharing(&way.sharing, layers),
        print::draw_texts(&rows),
    ))
}

impl Way {
    fn found(name: &str, searched: &Searched, model: &Decoder) -> Result<Self, CliError> {
        let adapters = searched.found.draft.adapters();
        let model = (!adapters.is_empty()).then(|| model.folded(&adapters)).transpose()?;
        Ok(Self { name: name.into(), sharing: searched.strategy.sharing()?, model })
    }

    /// What travels with the program for this model.
    fn shipped(share: Share, files: &ModelFiles, model: &Decoder) -> Result<Option<Self>, CliError> {
        let Some(shipped) = shipped_for(&files.fingerprint()?) else { return Ok(None) };
        let path = shipped.place()?;
        let whole = Strategy::load(&path)?;
        // A share that its search did not reach is left to the others.
        let Ok(strategy) = whole.at(share.fraction(files.config().layers)) else { return Ok(None) };
        let adapters = strategy.load_adapters(&path, &model.device())?;
        let model = Some(model.folded(&adapters)?);
        Ok(Some(Self { name: "by effect (built-in)".into(), sharing: strategy.sharing()?, model }))
    }
}

/// What all rows are measured with.
struct Demo<'a> {
    args: &'a DemoArgs,
    global: &'a Global,
    files: &'a ModelFiles,
    tokenizer: &'a ModelTokenizer,
    text: &'a [u32],
    progress: &'a indicatif::ProgressBar,
}

impl Demo<'_> {
    fn row(
        &self,
        name: &str,
        model: &Decoder,
        way: Option<&Way>,
        spec: Option<&String>,
        full: Option<&Row>,
    ) -> Result<Row, CliError> {
        let Self { args, text, .. } = *self;
        let plan = StackPlan::new(way.map(|way| way.sharing.clone()), spec.cloned().into_iter().collect(), self.files)?;
        self.progress.set_message(name.to_owned());
        let scored = self.score(model, &plan)?;
        let prompt = &text[..text.len().min(DECODE_PROMPT)];
        let decode = decode_speed(model, prompt, args.decode_tokens as usize, plan.stack()?)?;
        Ok(Row {
            cache: name.into(),
            kv_bytes: plan.plan.bytes(1, args.tokens as usize, self.global.dtype.dtype().size()),
            perplexity: scored.value,
            perplexity_ratio: scored.value / full.map_or(scored.value, |full| full.perplexity),
            predicted_tokens: scored.tokens,
            decode,
            continuation: self.continue_prompt(model, &plan)?,
            policies: plan.names,
        })
    }

    fn score(&self, model: &Decoder, plan: &StackPlan) -> Result<Perplexity, CliError> {
        let (window, chunk) = (self.args.tokens as usize, self.args.pass());
        let options = PerplexityOptions { window, chunk, ..PerplexityOptions::default() };
        let done = |tokens| self.progress.inc(tokens as u64);
        Ok(perplexity(model, None, self.text, &options, || plan.stack(), done)?)
    }

    fn continue_prompt(&self, model: &Decoder, plan: &StackPlan) -> Result<String, CliError> {
        let prompt = self.tokenizer.encode(PROMPT).map_err(CliError::failure)?;
        let max_tokens = self.args.sample_text_tokens as usize;
        let options = GenerateOptions { max_tokens, ..GenerateOptions::default() };
        let cache_options = model.cache_options(1, prompt.len() + options.max_tokens);
        let mut cache = Cache::new(model.shape(), plan.stack()?, cache_options, &model.device())?;
        Ok(generate(model, self.tokenizer, &prompt, &mut cache, &options, |_| {})?.text)
    }
}
