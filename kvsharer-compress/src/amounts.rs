//! Numbers of tokens as they are written in SPECs: fixed, as a share of the prompt, layer by layer.

use std::fmt;
use std::str::FromStr;

/// A number of tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Fixed.
    Tokens(usize),
    /// A share of the prompt, from 0 to 1, rounded down.
    Share(f64),
}

impl Amount {
    /// Tokens for a prompt of `prompt` tokens.
    pub fn of(self, prompt: usize) -> usize {
        match self {
            Amount::Tokens(tokens) => tokens,
            // 0.7 * 10 is a little less than 7 in floating point.
            Amount::Share(share) => (share * prompt as f64 + 1e-9) as usize,
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Tokens(tokens) => write!(f, "{tokens}"),
            Amount::Share(share) => write!(f, "{}%", (share * 1e8).round() / 1e6),
        }
    }
}

impl FromStr for Amount {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().map_err(drop)?;
            return if (0.0..=100.0).contains(&percent) { Ok(Self::Share(percent / 100.0)) } else { Err(()) };
        }
        let tokens: usize = text.parse().map_err(drop)?;
        if tokens <= 1 << 24 { Ok(Self::Tokens(tokens)) } else { Err(()) }
    }
}

/// A number of tokens for every layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Amounts {
    /// The same everywhere.
    Same(Amount),
    /// From the first layer to the last in equal steps, rounded: `768..256` is a pyramid.
    Between(Amount, Amount),
    /// One a layer: `64/64/32/…`.
    Each(Vec<Amount>),
}

impl Amounts {
    /// What a SPEC may say.
    pub const GRAMMAR: &'static str = "tokens (512), a share of the prompt (25%), from the first layer to the last (768..256), or one a layer (64/32/…)";

    /// Tokens of one of `layers` layers for a prompt of `prompt` tokens.
    pub fn of(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        match self {
            Self::Same(amount) => amount.of(prompt),
            Self::Between(first, last) => {
                let way = layer as f64 / layers.saturating_sub(1).max(1) as f64;
                let (first, last) = (first.of(prompt) as f64, last.of(prompt) as f64);
                (first + (last - first) * way + 0.5) as usize
            }
            Self::Each(amounts) => amounts.get(layer).map_or(0, |amount| amount.of(prompt)),
        }
    }

    /// [`of`](Self::of) before it is rounded down, where it is a share of the prompt.
    pub(crate) fn exactly(&self, layer: usize, layers: usize, prompt: usize) -> f64 {
        match self {
            Self::Same(Amount::Share(share)) => share * prompt as f64,
            _ => self.of(layer, layers, prompt) as f64,
        }
    }

    /// The least number of tokens of any layer, shares taken of an endless prompt.
    pub fn least(&self) -> usize {
        let endless = |amount: &Amount| amount.of(1 << 40);
        match self {
            Self::Same(amount) => endless(amount),
            Self::Between(first, last) => endless(first).min(endless(last)),
            Self::Each(amounts) => amounts.iter().map(endless).min().unwrap_or(0),
        }
    }

    /// Both halves, the second one rounded up.
    pub(crate) fn halves(&self) -> (Self, Self) {
        let half = |amount: &Amount, up: usize| match amount {
            Amount::Tokens(tokens) => Amount::Tokens((tokens + up) / 2),
            Amount::Share(share) => Amount::Share(share / 2.0),
        };
        (self.map(|amount| half(amount, 0)), self.map(|amount| half(amount, 1)))
    }

    /// `tokens` tokens fewer; shares stay.
    pub(crate) fn less(&self, tokens: usize) -> Self {
        self.map(|amount| match amount {
            Amount::Tokens(all) => Amount::Tokens(all.saturating_sub(tokens)),
            share => *share,
        })
    }

    /// `tokens` tokens more; shares stay.
    pub(crate) fn more(&self, tokens: usize) -> Self {
        self.map(|amount| match amount {
            Amount::Tokens(all) => Amount::Tokens(all + tokens),
            share => *share,
        })
    }

    fn map(&self, f: impl Fn(&Amount) -> Amount) -> Self {
        match self {
            Self::Same(amount) => Self::Same(f(amount)),
            Self::Between(first, last) => Self::Between(f(first), f(last)),
            Self::Each(amounts) => Self::Each(amounts.iter().map(f).collect()),
        }
    }

    /// # Errors
    /// A list that has not one amount a layer.
    pub fn check(&self, option: &str, layers: usize) -> Result<(), String> {
        match self {
            Self::Each(amounts) if amounts.len() != layers => {
                Err(format!("{option} lists {} amounts, the model has {layers} layers", amounts.len()))
            }
            _ => Ok(()),
        }
    }
}

impl From<usize> for Amounts {
    fn from(tokens: usize) -> Self {
        Self::Same(Amount::Tokens(tokens))
    }
}

impl fmt::Display for Amounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same(amount) => amount.fmt(f),
            Self::Between(first, last) => write!(f, "{first}..{last}"),
            Self::Each(amounts) => {
                let texts: Vec<String> = amounts.iter().map(Amount::to_string).collect();
                f.write_str(&texts.join("/"))
            }
        }
    }
}

impl FromStr for Amounts {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some((first, last)) = text.split_once("..") {
            return Ok(Self::Between(first.parse()?, last.parse()?));
        }
        match text.contains('/') {
            true => Ok(Self::Each(text.split('/').map(str::parse).collect::<Result<_, _>>()?)),
            false => Ok(Self::Same(text.parse()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amount() -> impl Strategy<Value = Amount> {
        prop_oneof![
            (0..100_000_usize).prop_map(Amount::Tokens),
            (0..10_000_u32).prop_map(|share| Amount::Share(f64::from(share) / 1e4))
        ]
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_itself(first in amount(), last in amount(), more in prop::collection::vec(amount(), 2..5)) {
            for amounts in [Amounts::Same(first), Amounts::Between(first, last), Amounts::Each(more)] {
                let again: Amounts = amounts.to_string().parse().unwrap();
                for prompt in [1, 10, 4096] {
                    prop_assert!((0..3).all(|layer| again.of(layer, 3, prompt) == amounts.of(layer, 3, prompt)));
                }
            }
        }

        #[test]
        fn no_text_panics(text in "[0-9%./ -]{0,12}") {
            let _ = text.parse::<Amounts>();
        }
    }

    #[test]
    fn a_pyramid_goes_from_the_first_layer_to_the_last() {
        let pyramid: Amounts = "12..4".parse().unwrap();
        assert_eq!((0..5).map(|layer| pyramid.of(layer, 5, 100)).collect::<Vec<_>>(), [12, 10, 8, 6, 4]);
        let shares: Amounts = "50%..10%".parse().unwrap();
        assert_eq!((0..5).map(|layer| shares.of(layer, 5, 100)).collect::<Vec<_>>(), [50, 40, 30, 20, 10]);
        assert_eq!(pyramid.of(0, 1, 100), 12);
        assert_eq!("70%".parse::<Amounts>().unwrap().of(0, 1, 10), 7);
    }
}
