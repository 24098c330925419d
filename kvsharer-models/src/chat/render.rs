//! A chat template, as `transformers` renders it.

use super::ChatError;
use super::json::tojson;
use super::tags::without_generation_blocks;
use jiff::ZonedDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Map;
use std::error::Error as _;
use std::fmt;

/// Largest template that is read; the longest in use has 20 kB.
pub(super) const MAX_TEMPLATE: usize = 1 << 20;

/// Steps of a rendering, which also pay for memory, 64 bytes a step: 256 MiB at most.
const FUEL: u64 = 4 << 20;

/// Nested blocks, calls and expressions.
const RECURSION: usize = 200;

const NAME: &str = "chat template";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template with its special tokens.
///
/// The environment is that of `transformers` (`utils/chat_template_utils.py`): `trim_blocks`, `lstrip_blocks`, loop
/// controls, `tojson`, `raise_exception`, `strftime_now`, Python's methods of texts and dictionaries, and `generation`
/// blocks. Differences: `True`, `False` and `None` are printed as Python prints them, but lists and dictionaries, which
/// no known template prints without `tojson`, are not; `lipsum`, `cycler` and `joiner` of Jinja are left out; tools and
/// documents are always `none`.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// Parses a template; `special` are its variables `bos_token`, `eos_token` and so on.
    ///
    /// # Errors
    /// [`ChatError::TooLarge`], [`ChatError::Broken`] with the line.
    pub fn new(template: &str, special: Map<String, serde_json::Value>) -> Result<Self, ChatError> {
        if template.len() > MAX_TEMPLATE {
            return Err(ChatError::TooLarge { bytes: template.len(), most: MAX_TEMPLATE });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(broken)?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.set_formatter(print);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", |value: &Value, options| tojson(value, options));
        environment.add_test("iterable", is_iterable);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, without_generation_blocks(template)).map_err(broken)?;
        Ok(Self { environment, special })
    }

    /// The text of a conversation; with `answer`, up to where the model's answer begins. `variables` are what a template
    /// knows beyond that, such as Qwen3's `enable_thinking`.
    ///
    /// # Errors
    /// [`ChatError::Refused`] by the template, [`ChatError::Broken`], [`ChatError::Endless`].
    pub fn render(
        &self,
        messages: &[Message],
        answer: bool,
        variables: &Map<String, serde_json::Value>,
    ) -> Result<String, ChatError> {
        let mut context = self.special.clone();
        context.insert("tools".into(), serde_json::Value::Null);
        context.insert("documents".into(), serde_json::Value::Null);
        context.extend(variables.clone());
        let message = |message: &Message| {
            Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
        };
        let mut context: Vec<(String, Value)> =
            context.into_iter().map(|(name, value)| (name, from_json(value))).collect();
        context.push(("messages".into(), messages.iter().map(message).collect()));
        context.push(("add_generation_prompt".into(), answer.into()));
        let template = self.environment.get_template(NAME).map_err(broken)?;
        template.render(Value::from_pairs(context)).map_err(broken)
    }
}

/// Leaves the template out.
impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("special", &self.special).finish_non_exhaustive()
    }
}

fn from_json(value: serde_json::Value) -> Value {
    // Every JSON value is one of the engine's.
    serde_json::from_value(value).unwrap_or_default()
}

/// What a template gave to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

/// As in Python, `none` and what is undefined cannot be iterated over.
fn is_iterable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

/// The time here and now, by C's `strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    let text = jiff::fmt::strtime::format(format, &ZonedDateTime::now());
    text.map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
}

fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let python = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(python).map_err(|_| Error::from(ErrorKind::WriteFailure))
}

fn broken(error: Error) -> ChatError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return ChatError::Refused(message.clone());
        }
        cause = error.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return ChatError::Endless;
    }
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    ChatError::Broken { line: error.line().unwrap_or(0), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> Result<String, ChatError> {
        let messages = [Message::new("user", " Hi "), Message::new("assistant", "Yo")];
        ChatTemplate::new(template, Map::new())?.render(&messages, true, &Map::new())
    }

    #[test]
    fn a_template_has_what_transformers_gives_it() {
        for (template, expected) in [
            (
                "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n\n",
                "user\nassistant\n",
            ),
            ("{{ messages[0].content.strip().startswith('H') }} {{ none }} {{ tools is none }}", "True None True"),
            ("{{ tools is iterable }} {{ nothing is iterable }} {{ messages is iterable }}", "False False True"),
            ("{{ ('a</t>\\n\\nb'.split('</t>')[-1]).lstrip('\\n') }}", "b"),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
                "Yo",
            ),
            ("{% set ns = namespace(x=1) %}{% generation %}{% set ns.x = 2 %}{{ ns.x }}{% endgeneration %}", "2"),
            ("{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}", "1"),
            ("{{ {'b': 1, 'a': [true, none]} | tojson }}", "{\"b\": 1, \"a\": [true, null]}"),
            ("{{ undefined_thing }}{{ messages[1:] | length }}{{ messages[::-1][0].role }}", "1assistant"),
            ("{% if strftime_now is defined %}{{ strftime_now('%Y') | length }}{% endif %}", "4"),
        ] {
            assert_eq!(render(template).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn a_refusal_is_told_as_the_template_words_it() {
        let error = render("{% macro m() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ m() }}");
        assert!(matches!(error, Err(ChatError::Refused(what)) if what == "roles must alternate"));
    }

    #[test]
    fn broken_and_endless_templates_are_errors() {
        assert!(matches!(render("\n{% if %}"), Err(ChatError::Broken { line: 2, .. })));
        assert!(matches!(render("{{ messages | nofilter }}"), Err(ChatError::Broken { .. })));
        assert!(matches!(render("{% include 'etc/passwd' %}"), Err(ChatError::Broken { .. })));
        for endless in [
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{{ 'aaaa' * 99999999 }}{{ 'aaaa' * 99999999 }}",
        ] {
            assert!(matches!(render(endless), Err(ChatError::Endless | ChatError::Broken { .. })), "{endless}");
        }
        assert!(render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").is_err());
        assert!(render(&format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000))).is_err());
        assert!(matches!(render(&" ".repeat(MAX_TEMPLATE + 1)), Err(ChatError::TooLarge { .. })));
    }
}
