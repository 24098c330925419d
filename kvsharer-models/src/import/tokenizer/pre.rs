//! Pre-tokenizers: the rule that splits a text before its parts are encoded, by the name llama.cpp gives it.
//!
//! Names and rules are those of llama.cpp's `llama-vocab.cpp`; where a rule stands in a tokenizer.json on the hub, it is
//! built as it stands there. Names whose rule is not known here are refused: a text split otherwise would be encoded
//! otherwise without a word.

use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, SplitDelimiterBehavior};

use super::super::TokenizerFault;

/// What `tokenizer.ggml.pre` may be, the common ones.
const SUPPORTED: &str =
    "\"llama-bpe\", \"qwen2\", \"smollm\", \"gpt-2\", \"tekken\", \"default\" and others that share their rules";

/// The end of most rules since GPT-4: marks, line ends, spaces.
const TAIL: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a text is prepared for byte-level BPE.
pub(super) struct Rule {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: PreTokenizerWrapper,
    /// Whether a part that is a token as a whole becomes that token, without merges.
    pub(super) whole_words: bool,
    /// Whether BOS goes before a text unless the file says otherwise.
    pub(super) adds_bos: bool,
}

/// The rule of a name.
pub(super) fn rule(name: &str) -> Result<Rule, TokenizerFault> {
    let contractions = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    let letters = r"[^\r\n\p{L}\p{N}]?\p{L}+";
    let rule = |pre_tokenizer| Rule { normalizer: None, pre_tokenizer, whole_words: false, adds_bos: false };
    Ok(match name {
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "roberta-bpe" => rule(words().into()),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            rule(Sequence::new(vec![Digits::new(true).into(), words().into()]).into())
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" => {
            let by_three = splits(&[&format!(r"{contractions}|{letters}|\p{{N}}{{1,3}}|{TAIL}")])?;
            Rule { whole_words: true, adds_bos: true, ..rule(by_three) }
        }
        "dbrx" | "smaug-bpe" => rule(splits(&[&format!(r"{contractions}|{letters}|\p{{N}}{{1,3}}|{TAIL}")])?),
        "qwen2" | "deepseek-r1-qwen" => Rule {
            normalizer: Some(NFC.into()),
            ..rule(splits(&[&format!(r"{contractions}|{letters}|\p{{N}}|{TAIL}")])?)
        },
        "tekken" => {
            let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
            let start = r"[^\r\n\p{L}\p{N}]?";
            let cased = format!("{start}{upper}*{lower}+|{start}{upper}+{lower}*");
            let marks = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
            Rule { whole_words: true, adds_bos: true, ..rule(splits(&[&format!(r"{cased}|\p{{N}}|{marks}")])?) }
        }
        // llama.cpp's own, for files that name none.
        "default" => rule(splits(&[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        ])?),
        _ => return Err(TokenizerFault::UnsupportedPre { pre: name.to_owned(), supported: SUPPORTED }),
    })
}

/// GPT-2's rule, and bytes as the symbols that stand for them.
fn words() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

/// Splits by one expression after the other, matches and what lies between them apart, then bytes as symbols.
fn splits(expressions: &[&str]) -> Result<PreTokenizerWrapper, TokenizerFault> {
    let split = |expression: &&str| {
        let pattern = SplitPattern::Regex((*expression).to_owned());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(TokenizerFault::Library)
    };
    let mut steps = Vec::new();
    for expression in expressions {
        steps.push(split(expression)?.into());
    }
    steps.push(ByteLevel::new(false, true, false).into());
    Ok(Sequence::new(steps).into())
}
