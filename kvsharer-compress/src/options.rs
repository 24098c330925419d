//! Options that all scored methods take in SPECs.

use crate::scored::{Decode, Options, Readers, Reduction};
use crate::spec::{Spec, SpecError};
use std::fmt::Write;

/// What `kvsharer policies` says of them.
pub(crate) const COMMON: &str = "protect=0, readers=mean|donor|sum|max, group=mean|max|sum, positions=original|cache";

/// Takes the common options out of a SPEC. `decodes` are the values of `decode` that the method knows, with their
/// meanings, the default first.
pub(crate) fn take(spec: &mut Spec<'_>, decodes: &[(&'static str, Decode)]) -> Result<Options, SpecError> {
    let names: Vec<&'static str> = decodes.iter().map(|(name, _)| *name).collect();
    let decode = spec.choice("decode", &names)?;
    Ok(Options {
        protect: spec.number("protect", 0, 0..=1 << 20)?,
        readers: match spec.choice("readers", &["mean", "donor", "sum", "max"])? {
            "donor" => Readers::Donor,
            "sum" => Readers::Sum,
            "max" => Readers::Max,
            _ => Readers::Mean,
        },
        group: match spec.choice("group", &["mean", "max", "sum"])? {
            "max" => Reduction::Max,
            "sum" => Reduction::Sum,
            _ => Reduction::Mean,
        },
        cache_positions: spec.choice("positions", &["original", "cache"])? == "cache",
        decode: decodes.iter().find(|(name, _)| *name == decode).map_or(decodes[0].1, |(_, decode)| *decode),
    })
}

/// The common options that differ from their defaults, as they stand in a SPEC.
pub(crate) fn print(options: Options) -> String {
    let mut text = String::new();
    if options.protect > 0 {
        let _ = write!(text, ",protect={}", options.protect);
    }
    text.push_str(match options.readers {
        Readers::Mean => "",
        Readers::Donor => ",readers=donor",
        Readers::Sum => ",readers=sum",
        Readers::Max => ",readers=max",
    });
    text.push_str(match options.group {
        Reduction::Mean => "",
        Reduction::Max => ",group=max",
        Reduction::Sum => ",group=sum",
    });
    text.push_str(if options.cache_positions { ",positions=cache" } else { "" });
    text
}

/// The budget must leave room beside what stays anyway.
pub(crate) fn check_room(least: usize, protect: usize, recent: usize) -> Result<(), String> {
    match least > protect + recent || (least > 0 && protect + recent == 0) {
        true => Ok(()),
        false => Err(format!(
            "a budget of {least} tokens has no room beside {protect} protected and {recent} recent ones: make it larger"
        )),
    }
}
