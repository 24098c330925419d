//! All policies by name. A new policy is one file and one line here.

use crate::spec::{Spec, SpecError};
use crate::streaming_llm;
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
    /// Paper and reference code.
    pub source: &'static str,
    pub(crate) parse: fn(Spec<'_>) -> Result<Box<dyn LayerKvPolicy>, SpecError>,
}

const FULL: Entry = Entry {
    name: "full",
    summary: "keep everything (the default)",
    options: "",
    source: "",
    parse: |spec| {
        spec.finish()?;
        Ok(Box::new(FullCache))
    },
};

/// All policies.
pub fn policies() -> &'static [Entry] {
    &[FULL, streaming_llm::ENTRY]
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
    fn bad_specs_are_refused_with_what_would_be_right() {
        for (spec, expected) in [
            ("h3o", "no policy `h3o`: known are full, streaming-llm"),
            ("streaming-llm:sink=4", "has no option `sink`"),
            ("streaming-llm:sinks", "write `key=value`"),
            ("streaming-llm:window=0", "expected a whole number from 1"),
            ("streaming-llm:window=-3", "expected a whole number from 1"),
            ("streaming-llm:window=1,window=2", "given twice"),
            ("streaming-llm:positions=slots", "expected cache or original"),
            ("full:x=1", "has no option `x`"),
        ] {
            let Err(error) = parse_policy(spec) else { panic!("{spec} was accepted") };
            assert!(error.to_string().contains(expected), "{spec}: {error}");
        }
    }
}
