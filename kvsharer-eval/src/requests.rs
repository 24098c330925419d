//! From an item to token sequences, by each harness' own rules of tokenising and cutting.

use crate::EvalError;
use crate::score::Sequence;
use crate::tasks::{Ask, Item, Protocol};
use kvsharer_models::{ModelError, ModelTokenizer};

/// What the model is asked for one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// One a choice; of a document, one a window.
    pub(crate) sequences: Vec<Sequence>,
    /// Whether the text was longer than the model's context and was cut.
    pub(crate) truncated: bool,
    /// Texts as they were asked, `(context, scored text)`; OpenCompass scores the context too.
    pub(crate) texts: Vec<(String, String)>,
    /// Examples that fitted.
    pub(crate) shots: usize,
}

/// How texts become tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'a> {
    pub(crate) tokenizer: &'a ModelTokenizer,
    pub(crate) protocol: Protocol,
    /// Tokens of the longest text.
    pub(crate) max_length: usize,
}

impl Asker<'_> {
    /// # Errors
    /// [`EvalError::BadText`] for an item that cannot be asked.
    pub(crate) fn ask(&self, item: &Item) -> Result<Request, EvalError> {
        let mut request =
            Request { sequences: Vec::new(), truncated: false, texts: Vec::new(), shots: item.shots.len() };
        let before = item.before(item.shots.len(), self.protocol);
        match &item.ask {
            Ask::Choices(choices) => {
                for choice in choices {
                    self.continuation(item, format!("{before}{}", choice.context), &choice.continuation, &mut request)?;
                }
            }
            Ask::Continuation(choice) => {
                self.continuation(item, format!("{before}{}", choice.context), &choice.continuation, &mut request)?;
            }
            Ask::Document { text, .. } => self.rolling(item, text, &mut request)?,
            Ask::Prompts(prompts) => {
                for prompt in prompts {
                    let (ids, text) = self.whole_prompt(item, prompt, &mut request)?;
                    self.check(item, ids.len() >= 2, "is too short to be scored")?;
                    request.sequences.push(Sequence { prompt: 0, scored: 1..ids.len(), ids });
                    request.texts.push((text, String::new()));
                }
                set_common_prompt(&mut request.sequences);
            }
            Ask::Likelihoods(pairs) => {
                for (prompt, continuation) in pairs {
                    let (ids, text) = self.whole_prompt(item, prompt, &mut request)?;
                    // The harness masks as many tokens as the continuation has, but from the start of the prompt.
                    let masked = self.encode(continuation)?.len().max(1);
                    self.check(item, masked < ids.len(), "is too short to be scored")?;
                    request.sequences.push(Sequence { prompt: 0, scored: masked..ids.len(), ids });
                    request.texts.push((text, continuation.clone()));
                }
                set_common_prompt(&mut request.sequences);
            }
            Ask::Summary { .. } => {}
        }
        Ok(request)
    }

    /// lm-eval's `_encode_pair` and `_loglikelihood_tokens`: white space at the end of the context goes to the
    /// continuation; both are tokenised together, then the context alone; of what is too long the end stays.
    fn continuation(
        &self,
        item: &Item,
        context: String,
        continuation: &str,
        request: &mut Request,
    ) -> Result<(), EvalError> {
        let kept = context.trim_end();
        let moved = format!("{}{continuation}", &context[kept.len()..]);
        let (mut before, mut after) = if kept.is_empty() && context.is_empty() {
            (vec![self.prefix_token(item)?], self.encode(&moved)?)
        } else {
            let whole = self.encode(&format!("{kept}{moved}"))?;
            let before = self.encode(kept)?.len().min(whole.len());
            (whole[..before].to_vec(), whole[before..].to_vec())
        };
        if before.is_empty() {
            // A context of nothing but white space.
            before.push(self.prefix_token(item)?);
        }
        if context.is_empty() && after.len() > 1 && after.first() == before.first() {
            after.remove(0);
        }
        self.check(item, !after.is_empty(), "has a choice without a token")?;
        self.check(item, after.len() <= self.max_length, "has a choice longer than the model's context")?;
        let mut ids = [before, after.clone()].concat();
        if ids.len() > self.max_length + 1 {
            request.truncated = true;
            ids.drain(..ids.len() - self.max_length - 1);
        }
        let prompt = ids.len() - after.len();
        request.sequences.push(Sequence { prompt, scored: prompt..ids.len(), ids });
        request.texts.push((context, continuation.into()));
        Ok(())
    }

    /// lm-eval's `loglikelihood_rolling`: windows whose predictions are disjoint, each after one token of context, the
    /// last one after as many as fill it.
    fn rolling(&self, item: &Item, text: &str, request: &mut Request) -> Result<(), EvalError> {
        let tokens = self.encode(text)?;
        self.check(item, !tokens.is_empty(), "is empty")?;
        let prefixed = [vec![self.prefix_token(item)?], tokens].concat();
        for start in (1..prefixed.len()).step_by(self.max_length) {
            let end = (start + self.max_length).min(prefixed.len());
            let ids = prefixed[end.saturating_sub(self.max_length + 1)..end].to_vec();
            request.sequences.push(Sequence { prompt: 0, scored: ids.len() - (end - start)..ids.len(), ids });
        }
        request.texts.push((String::new(), text.into()));
        Ok(())
    }

    /// OpenCompass drops examples from the end of their list until the prompt fits, then cuts it at its beginning.
    /// Examples that one label dropped stay dropped for the labels after it.
    fn whole_prompt(&self, item: &Item, prompt: &str, request: &mut Request) -> Result<(Vec<u32>, String), EvalError> {
        loop {
            let text = item.before(request.shots, self.protocol) + prompt;
            let mut ids = self.tokenizer.encode(&text).map_err(ModelError::from)?;
            if ids.len() > self.max_length && request.shots > 0 {
                request.shots -= 1;
                continue;
            }
            if ids.len() > self.max_length {
                request.truncated = true;
                ids.drain(..ids.len() - self.max_length);
            }
            return Ok((ids, text));
        }
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        Ok(self.tokenizer.encode_bare(text).map_err(ModelError::from)?)
    }

    /// What stands before a text that begins with what is scored: BOS, else the first end-of-text token.
    fn prefix_token(&self, item: &Item) -> Result<u32, EvalError> {
        let token = self.tokenizer.bos().or(self.tokenizer.eos().first().copied());
        token.ok_or_else(|| EvalError::BadText {
            place: item.place.clone(),
            what: "is scored from its first token, but the tokenizer has neither BOS nor EOS to stand before it".into(),
        })
    }

    fn check(&self, item: &Item, right: bool, what: &str) -> Result<(), EvalError> {
        if right { Ok(()) } else { Err(EvalError::BadText { place: item.place.clone(), what: what.into() }) }
    }
}

/// Where whole prompts are scored, what all of them begin with is the prompt that a policy may reduce.
fn set_common_prompt(sequences: &mut [Sequence]) {
    let Some(first) = sequences.first().map(|sequence| sequence.ids.clone()) else {
        return;
    };
    let alike = |sequence: &Sequence| first.iter().zip(&sequence.ids).take_while(|(a, b)| a == b).count();
    let shortest = sequences.iter().map(|sequence| sequence.ids.len()).min().unwrap_or(0);
    let common = sequences.iter().map(alike).min().unwrap_or(0).min(shortest.saturating_sub(1));
    sequences.iter_mut().for_each(|sequence| sequence.prompt = common);
}
