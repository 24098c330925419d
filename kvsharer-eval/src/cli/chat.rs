//! `kvsharer chat`.

use super::Global;
use super::context::{ModelArg, StackArgs, StackPlan, check_fits, check_placement};
use super::error::CliError;
use super::output::{complain, emit, human_bytes};
use super::sampling::{SamplingArgs, reason};
use clap::Args;
use kvsharer_core::{Cache, Lengths};
use kvsharer_models::chat::{Conversation, Turn};
use kvsharer_models::{Decoder, GenerateOptions, Generated, ModelTokenizer, Sampler, generate_from};
use serde_json::{Map, Value, json};
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

const HELP: &str = "/reset forgets the conversation, /exit or Ctrl-D ends it";

/// Options of `chat`.
#[derive(Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    stack: StackArgs,
    /// The system prompt; the template's own if not given
    #[arg(long)]
    system: Option<String>,
    /// Tokens of the longest conversation; the model's context, at most 4096, if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,
    /// A chat template of your own (Jinja) instead of the model's
    #[arg(long, value_name = "FILE", conflicts_with = "template")]
    template_file: Option<PathBuf>,
    /// Which of the model's templates, if it has several
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// A variable of the template as NAME=JSON, such as enable_thinking=false; may be repeated
    #[arg(long = "template-var", value_name = "NAME=JSON", value_parser = variable)]
    variables: Vec<(String, Value)>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

fn variable(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=JSON, such as enable_thinking=false")?;
    let value = serde_json::from_str(value).map_err(|_| "the value is no JSON: write a text as NAME='\"text\"'")?;
    Ok((name.into(), value))
}

/// A conversation with a model and what of it the cache holds.
struct Chat<'a> {
    model: &'a Decoder,
    tokenizer: &'a ModelTokenizer,
    checked: &'a StackPlan,
    options: GenerateOptions,
    sampler: Sampler,
    conversation: Conversation<'a>,
    cache: Option<Cache<'static>>,
    context: usize,
    json: bool,
}

pub(super) fn run(args: &ChatArgs, global: &Global) -> Result<(), CliError> {
    let options = args.sampling.options(global)?;
    args.stack.parse()?;
    let files = args.model.open(global)?;
    let checked = args.stack.check(&files)?;
    check_placement(&files, &checked.plan, global)?;
    let tokenizer = files.tokenizer()?;
    let template = match &args.template_file {
        Some(path) => files.chat_template_from(path)?,
        None => files.chat_template(args.template.as_deref())?,
    };
    let trained = files.config().max_positions;
    let context = args.context.map_or(trained.min(4096), |context| context as usize);
    if context > trained {
        complain(&format!("warning: the model was trained for {trained} tokens; expect nonsense beyond"));
    }
    let lengths = Lengths { prompt: None, tokens: context };
    check_fits(&files, checked.plan.bytes(1, lengths, global.dtype.dtype().size()), global)?;
    let model = checked.load(&files, global)?;
    let variables: Map<String, Value> = args.variables.iter().cloned().collect();
    let mut chat = Chat {
        model: &model,
        tokenizer: &tokenizer,
        checked: &checked,
        sampler: Sampler::new(options.sampling.clone())?,
        options,
        conversation: Conversation::new(&template, &tokenizer, args.system.clone(), variables),
        cache: None,
        context,
        json: global.json,
    };
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        complain(&format!("{} with {}; {HELP}", files.name(), checked.names.join(" + ")));
    }
    chat.listen(interactive)
}

impl Chat<'_> {
    /// A message a line. Where people type, an error is told and the conversation goes on; where a program writes, it
    /// ends.
    fn listen(&mut self, interactive: bool) -> Result<(), CliError> {
        let mut lines = std::io::stdin().lock().lines();
        loop {
            if interactive {
                emit("> ")?;
            }
            let Some(line) = lines.next() else {
                return if interactive { emit("\n") } else { Ok(()) };
            };
            let line = line.map_err(|error| CliError::file("stdin".as_ref(), error))?;
            match line.trim() {
                "" => {}
                "/exit" => return Ok(()),
                "/help" => complain(HELP),
                "/reset" => {
                    self.conversation.reset();
                    self.cache = None;
                }
                text => match self.turn(text) {
                    Err(CliError::Failure(error)) if interactive => complain(&format!("error: {error}")),
                    result => result?,
                },
            }
        }
    }

    fn turn(&mut self, text: &str) -> Result<(), CliError> {
        let turn = self.conversation.ask(text)?;
        let answered = self.answer(&turn);
        let Ok(generated) = answered else {
            // What the cache holds of the failed turn is not known.
            self.cache = None;
            self.conversation.retract();
            return answered.map(drop);
        };
        let (whole, cached) = (turn.ids.len(), turn.cached);
        self.conversation.answer(turn, &generated);
        let kv_bytes = self.cache.as_ref().map_or(0, Cache::bytes);
        let rate = generated.ids.len() as f64 / (generated.prefill + generated.decode).as_secs_f64();
        if self.json {
            return emit(&format!(
                "{}\n",
                json!({
                    "content": generated.text, "ids": generated.ids, "stopped": reason(generated.stopped),
                    "prompt_tokens": whole, "cached_tokens": cached, "tokens_per_second": rate, "kv_bytes": kv_bytes,
                })
            ));
        }
        emit("\n")?;
        complain(&format!(
            "[{} tokens run, {cached} cached, {} new at {rate:.1} tokens/s, KV {}]",
            whole - cached,
            generated.ids.len(),
            human_bytes(kv_bytes)
        ));
        Ok(())
    }

    fn answer(&mut self, turn: &Turn) -> Result<Generated, CliError> {
        let mut options = self.options.clone();
        // A policy that evicts may hold conversations of any length.
        if !self.checked.evicts() {
            let room = self.context.saturating_sub(turn.ids.len());
            if room == 0 {
                return Err(CliError::Failure(
                    format!(
                        "the conversation has {} tokens, --context {} holds no more: /reset it, raise --context, or add an evicting policy",
                        turn.ids.len(),
                        self.context
                    )
                    .into(),
                ));
            }
            options.max_tokens = options.max_tokens.min(room);
        }
        if turn.cached == 0 {
            // The old one goes first: two need not fit.
            self.cache = None;
        }
        let cache = match &mut self.cache {
            Some(cache) => cache,
            none => {
                let sizes = self.model.cache_options(1, self.context).for_prompt(turn.ids.len());
                none.insert(self.model.cache(self.checked.stack()?, sizes)?)
            }
        };
        let text = (turn.ids.as_slice(), turn.cached);
        let (json, mut written) = (self.json, Ok(()));
        let stream = |piece: &str| {
            if !json && written.is_ok() {
                written = emit(piece);
            }
        };
        let generated = generate_from(self.model, self.tokenizer, text, cache, &options, &mut self.sampler, stream)?;
        written.map(|()| generated)
    }
}
