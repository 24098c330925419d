//! All policies by name. A new policy is one file and one line here.

use crate::spec::{Spec, SpecError};
use crate::{h2o, knorm, options, pyramidinfer, pyramidkv, quant, random, snapkv, streaming_llm, tova};
use kvsharer_core::{FullCache, LayerKvPolicy};

/// A policy that a SPEC can name.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Name in SPECs.
    pub name: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Its options with their defaults.
    pub options: &'static str,
    /// Whether it has the common options of scored methods too, see [`common_options`].
    pub scored: bool,
    /// Paper and reference code.
    pub source: &'static str,
    /// Options that `budget=` stands for, if the policy has a budget that can be solved for.
    pub(crate) solves: Option<&'static [&'static str]>,
    pub(crate) parse: fn(Spec<'_>) -> Result<Box<dyn LayerKvPolicy>, SpecError>,
}

const FULL: Entry = Entry {
    name: "full",
    summary: "keep everything (the default)",
    options: "",
    scored: false,
    source: "",
    solves: None,
    parse: |spec| {
        spec.finish()?;
        Ok(Box::new(FullCache))
    },
};

/// All policies.
pub fn policies() -> &'static [Entry] {
    &[
        FULL,
        streaming_llm::ENTRY,
        streaming_llm::WINDOW,
        h2o::ENTRY,
        snapkv::ENTRY,
        pyramidkv::ENTRY,
        pyramidinfer::ENTRY,
        tova::ENTRY,
        knorm::ENTRY,
        random::ENTRY,
        quant::ENTRY,
    ]
}

/// Options of every scored method, with their defaults.
pub fn common_options() -> &'static str {
    options::COMMON
}

/// The SPEC with a budget of `tokens` tokens in all instead of its own; `None` if its policy has none to set.
///
/// # Errors
/// [`SpecError`] if the SPEC is none.
pub fn with_budget(text: &str, tokens: usize) -> Result<Option<String>, SpecError> {
    parse_policy(text)?;
    let name = text.split_once(':').map_or(text, |(name, _)| name).trim();
    let solves = policies().iter().find(|entry| entry.name == name).and_then(|entry| entry.solves);
    Ok(solves.map(|replaced| {
        let options = text.split_once(':').map_or("", |(_, options)| options).split(',').map(str::trim);
        let stays = |option: &&str| {
            let key = option.split('=').next().unwrap_or_default();
            !option.is_empty() && key != "budget" && !replaced.contains(&key)
        };
        let options: Vec<String> =
            options.filter(stays).map(String::from).chain([format!("budget={tokens}")]).collect();
        format!("{name}:{}", options.join(","))
    }))
}

/// Makes the policy a SPEC names.
///
/// ```
/// let policy = kvsharer_compress::parse_policy("streaming-llm:sinks=4,window=252")?;
/// assert_eq!(policy.name(), "streaming-llm:sinks=4,window=252");
/// # Ok::<(), kvsharer_compress::SpecError>(())
/// ```
///
/// # Errors
/// [`SpecError`] names what is unknown or out of range, and what there is.
pub fn parse_policy(text: &str) -> Result<Box<dyn LayerKvPolicy>, SpecError> {
    let spec = Spec::parse(text)?;
    let Some(entry) = policies().iter().find(|entry| entry.name == spec.name()) else {
        let known: Vec<&str> = policies().iter().map(|entry| entry.name).collect();
        return Err(SpecError::UnknownPolicy { name: spec.name().into(), known: known.join(", ") });
    };
    (entry.parse)(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_parses_with_its_defaults_and_prints_a_spec_that_parses_to_itself() {
        for entry in policies() {
            let name = parse_policy(entry.name).unwrap().name();
            assert_eq!(parse_policy(&name).unwrap().name(), name);
        }
    }

    #[test]
    fn a_budget_replaces_what_it_stands_for() {
        let solved = |spec| with_budget(spec, 40).unwrap();
        assert_eq!(solved("h2o:heavy=8,recent=9,group=max").unwrap(), "h2o:group=max,budget=40");
        assert_eq!(solved("streaming-llm:sinks=2,window=6").unwrap(), "streaming-llm:sinks=2,budget=40");
        assert_eq!(solved("tova").unwrap(), "tova:budget=40");
        assert_eq!(parse_policy(&solved("h2o").unwrap()).unwrap().name(), "h2o:heavy=20,recent=20");
        assert_eq!(solved("quant:bits=4"), None);
        assert!(with_budget("nothing", 40).is_err());
    }

    #[test]
    fn bad_specs_are_refused_with_what_would_be_right() {
        for (spec, expected) in [
            ("h3o", "no policy `h3o`: known are full, streaming-llm, window, h2o"),
            ("streaming-llm:sink=4", "has no option `sink`"),
            ("streaming-llm:sinks", "write `key=value`"),
            ("streaming-llm:window=0", "window = `0` is not possible, expected room for the newest token"),
            ("streaming-llm:window=-3", "window = `-3` is not possible, expected tokens (512), a share"),
            ("streaming-llm:sinks=8,budget=8", "budget = `8` is not possible"),
            ("window:budget=4,protect=4", "room for the newest token beside the first 4"),
            ("h2o:budget=64,heavy=3", "has no option `heavy`"),
            ("h2o:variant=best", "expected real-drop or streaming or ratio or observed"),
            ("h2o:heavy=120%", "expected tokens (512)"),
            ("snapkv:kernel=4", "an odd number"),
            ("snapkv:decode=each", "expected grow or evict"),
            ("tova:readers=all", "expected mean or donor or sum or max"),
            ("quant:bits=3", "expected 8 or 4"),
            ("pyramidinfer-cache:final=2", "a share such as"),
            ("streaming-llm:window=1,window=2", "given twice"),
            ("streaming-llm:positions=slots", "expected cache or original"),
            ("full:x=1", "has no option `x`"),
        ] {
            let Err(error) = parse_policy(spec) else { panic!("{spec} was accepted") };
            assert!(error.to_string().contains(expected), "{spec}: {error}");
        }
    }
}
