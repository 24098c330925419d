//! How much to share, `8` layers or `25%` of the bytes.

use kvsharer_core::Target;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A number of layers, or a part of the KV bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// So many layers.
    Layers(usize),
    /// So many percent of the KV bytes, rounded to the nearest number of replacements (halves up), at least one.
    Percent(f64),
}

/// A share that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no share: give a number of layers (8) or a percentage above 0 and below 100 (25%)")]
pub struct BadShare(String);

impl Share {
    /// The part of the KV bytes of a model with so many equal layers.
    pub fn fraction(self, layers: usize) -> f64 {
        match self {
            Share::Layers(count) => count as f64 / layers.max(1) as f64,
            Share::Percent(percent) => percent / 100.0,
        }
    }

    /// As a search wants it.
    pub fn target(self) -> Target {
        match self {
            Share::Layers(count) => Target::Layers(count),
            Share::Percent(percent) => Target::Bytes(percent / 100.0),
        }
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text as on the command line, or a number of layers.
impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Typed {
            Layers(u64),
            Text(String),
        }
        let text = match Typed::deserialize(deserializer)? {
            Typed::Layers(layers) => layers.to_string(),
            Typed::Text(text) => text,
        };
        text.parse().map_err(D::Error::custom)
    }
}

impl FromStr for Share {
    type Err = BadShare;

    fn from_str(text: &str) -> Result<Self, BadShare> {
        let bad = || BadShare(text.into());
        match text.trim().strip_suffix('%') {
            Some(percent) => {
                let percent: f64 = percent.trim().parse().map_err(|_| bad())?;
                if percent > 0.0 && percent < 100.0 { Ok(Share::Percent(percent)) } else { Err(bad()) }
            }
            None => {
                let count: usize = text.trim().parse().map_err(|_| bad())?;
                if count > 0 { Ok(Share::Layers(count)) } else { Err(bad()) }
            }
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::Layers(count) => count.fmt(f),
            Share::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_percentages_are_told_apart() {
        assert_eq!("8".parse(), Ok(Share::Layers(8)));
        assert_eq!("12.5%".parse::<Share>().map(Share::target), Ok(Target::Bytes(0.125)));
    }

    #[test]
    fn nothing_and_everything_are_no_shares() {
        for text in ["0", "0%", "100%", "120%", "-1", "-5%", "NaN%", "", "%", "eight", "2.5"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }
}
