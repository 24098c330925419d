//! How many layers to share, `8` or `25%`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A number of layers, absolute or in percent of all layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// So many layers.
    Layers(usize),
    /// So many percent of the layers, rounded to the nearest number (halves up), at least one.
    Percent(f64),
}

/// A share that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no share: give a number of layers (8) or a percentage above 0 and below 100 (25%)")]
pub struct BadShare(String);

impl Share {
    /// The number of layers of a model with `layers`.
    pub fn of(self, layers: usize) -> usize {
        match self {
            Share::Layers(count) => count,
            Share::Percent(percent) => ((layers as f64 * percent / 100.0 + 0.5).floor() as usize).max(1),
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
    fn percentages_round_to_the_nearest_layer_and_never_to_none() {
        let layers = |text: &str, layers| text.parse::<Share>().unwrap().of(layers);
        assert_eq!(layers("25%", 30), 8);
        assert_eq!(layers("25%", 32), 8);
        assert_eq!(layers("12.5%", 40), 5);
        assert_eq!(layers("1%", 30), 1);
        assert_eq!(layers("8", 30), 8);
    }

    #[test]
    fn nothing_and_everything_are_no_shares() {
        for text in ["0", "0%", "100%", "120%", "-1", "-5%", "NaN%", "", "%", "eight", "2.5"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }
}
