//! A conversation that knows what of it a cache holds already.

use super::{ChatTemplate, Message};
use crate::import::ModelTokenizer;
use crate::{Generated, ModelError, Stopped};
use serde_json::{Map, Value};

/// What has to be run for the next answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The whole conversation up to where the answer begins.
    pub ids: Vec<u32>,
    /// Ids at its beginning that the cache holds; 0 if it has to start over.
    pub cached: usize,
}

/// Messages, and the ids that were run for them.
///
/// Usually the text of a longer conversation begins with the text of the shorter one, and only the rest is run. Some
/// templates change what was said before (Qwen3 drops earlier thoughts): then the conversation is run anew.
pub struct Conversation<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a ModelTokenizer,
    variables: Map<String, Value>,
    system: Option<String>,
    messages: Vec<Message>,
    /// Ids that the cache holds, in order.
    held: Vec<u32>,
    /// Text and ids with the last answer in its own words, if the next text may go on from them.
    said: Option<(String, Vec<u32>)>,
    /// Text of the running turn.
    asked: String,
}

impl<'a> Conversation<'a> {
    /// An empty conversation; `variables` are what the template knows beyond the messages.
    pub fn new(
        template: &'a ChatTemplate,
        tokenizer: &'a ModelTokenizer,
        system: Option<String>,
        variables: Map<String, Value>,
    ) -> Self {
        let mut conversation = Self {
            template,
            tokenizer,
            variables,
            system,
            messages: Vec::new(),
            held: Vec::new(),
            said: None,
            asked: String::new(),
        };
        conversation.reset();
        conversation
    }

    /// All that was said.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Forgets everything but the system prompt.
    pub fn reset(&mut self) {
        self.messages = self.system.iter().map(|system| Message::new("system", system.clone())).collect();
        self.forget();
    }

    /// The cache is lost: the next turn runs everything.
    pub fn forget(&mut self) {
        self.held.clear();
        self.said = None;
    }

    /// Says something to the model.
    ///
    /// # Errors
    /// [`ModelError::Chat`] if the template refuses it; the message is taken back then.
    pub fn ask(&mut self, text: &str) -> Result<Turn, ModelError> {
        self.messages.push(Message::new("user", text));
        let turn = self.turn();
        if turn.is_err() {
            self.messages.pop();
        }
        turn
    }

    fn turn(&mut self) -> Result<Turn, ModelError> {
        self.asked = self.template.render(&self.messages, true, &self.variables).map_err(ModelError::from)?;
        // A template spells out its BOS.
        let ids = self.tokenizer.encode_bare(&self.asked)?;
        let held = self.held.len();
        if held < ids.len() && ids.starts_with(&self.held) {
            return Ok(Turn { ids, cached: held });
        }
        // The model need not have spelt its answer as the tokenizer would: then its own ids stay, and the rest follows.
        if let Some((said, own)) = self.said.as_ref()
            && let Some(rest) = self.asked.strip_prefix(said.as_str()).filter(|rest| !rest.is_empty())
        {
            let own = [own.clone(), self.tokenizer.encode_bare(rest)?].concat();
            // Some tokenizers put a space before every text they are given.
            if held < own.len() && self.tokenizer.decode(&own, false)? == self.tokenizer.decode(&ids, false)? {
                return Ok(Turn { ids: own, cached: held });
            }
        }
        tracing::info!("the chat template changed what was said before: the conversation is run anew");
        Ok(Turn { ids, cached: 0 })
    }

    /// Notes what the model answered to `turn`.
    pub fn answer(&mut self, turn: Turn, answer: &Generated) {
        let mut ids = turn.ids;
        ids.extend(&answer.ids);
        // The last token was chosen, but not run.
        let held = ids.len() - usize::from(!answer.ids.is_empty());
        self.held = ids[..held].to_vec();
        if answer.stopped == Stopped::EndOfText {
            ids.pop();
        }
        // After a stop string the cache holds more than the answer says.
        let exact = answer.stopped != Stopped::StopString;
        self.said = exact.then(|| (format!("{}{}", self.asked, answer.text), ids));
        self.messages.push(Message::new("assistant", answer.text.clone()));
    }

    /// Takes the last message back, when there is no answer to it.
    pub fn retract(&mut self) {
        if self.messages.last().is_some_and(|message| message.role == "user") {
            self.messages.pop();
        }
        self.forget();
    }
}
