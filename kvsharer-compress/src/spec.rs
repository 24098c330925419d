//! Policy SPECs, `name:key=value,…`.

use crate::amounts::Amounts;
use std::ops::RangeInclusive;
use thiserror::Error;

/// Why a SPEC names no policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A name that no policy has.
    #[error("no policy `{name}`: known are {known}")]
    UnknownPolicy {
        /// The name.
        name: String,
        /// What there is.
        known: String,
    },
    /// An option that the policy does not have.
    #[error("policy `{policy}` has no option `{option}`: see `kvsharer policies`")]
    UnknownOption {
        /// The policy.
        policy: String,
        /// The option.
        option: String,
    },
    /// An option without `=`.
    #[error("policy `{policy}`: `{part}` is no option, write `key=value`")]
    NoValue {
        /// The policy.
        policy: String,
        /// What stood there.
        part: String,
    },
    /// An option given twice.
    #[error("policy `{policy}`: option `{option}` is given twice")]
    Twice {
        /// The policy.
        policy: String,
        /// The option.
        option: String,
    },
    /// A value that the option cannot take.
    #[error("policy `{policy}`: {option} = `{value}` is not possible, expected {expected}")]
    BadValue {
        /// The policy.
        policy: String,
        /// The option.
        option: String,
        /// The value.
        value: String,
        /// What would be.
        expected: String,
    },
}

/// A parsed SPEC; a policy takes its options out one by one.
#[derive(Clone, Debug)]
pub struct Spec<'a> {
    name: &'a str,
    options: Vec<(&'a str, &'a str)>,
    taken: Vec<(&'a str, &'a str)>,
}

impl<'a> Spec<'a> {
    /// Splits a SPEC.
    ///
    /// # Errors
    /// [`SpecError::NoValue`] and [`SpecError::Twice`].
    pub fn parse(text: &'a str) -> Result<Self, SpecError> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut options: Vec<(&str, &str)> = Vec::new();
        for part in rest.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(SpecError::NoValue { policy: name.into(), part: part.into() });
            };
            if options.iter().any(|(other, _)| *other == key) {
                return Err(SpecError::Twice { policy: name.into(), option: key.into() });
            }
            options.push((key, value));
        }
        Ok(Self { name: name.trim(), options, taken: Vec::new() })
    }

    /// The policy's name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    fn take(&mut self, option: &str) -> Option<&'a str> {
        let index = self.options.iter().position(|(key, _)| *key == option)?;
        let taken = self.options.remove(index);
        self.taken.push(taken);
        Some(taken.1)
    }

    /// Whether an option is given and not taken yet.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|(key, _)| *key == option)
    }

    /// Whether an option was given and taken.
    pub fn took(&self, option: &str) -> bool {
        self.taken.iter().any(|(key, _)| *key == option)
    }

    /// What was given for an option that is taken.
    pub(crate) fn text_of(&self, option: &str) -> String {
        self.taken.iter().find(|(key, _)| *key == option).map_or_else(String::new, |(_, value)| (*value).into())
    }

    pub(crate) fn bad(&self, option: &str, value: &str, expected: String) -> SpecError {
        SpecError::BadValue { policy: self.name.into(), option: option.into(), value: value.into(), expected }
    }

    /// A whole number in `range`, or `default` if it is not given.
    ///
    /// # Errors
    /// [`SpecError::BadValue`].
    pub fn number(&mut self, option: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize, SpecError> {
        let Some(value) = self.take(option) else {
            return Ok(default);
        };
        let number = value.parse().ok().filter(|number| range.contains(number));
        number
            .ok_or_else(|| self.bad(option, value, format!("a whole number from {} to {}", range.start(), range.end())))
    }

    /// An odd number in `range`, or `default`.
    ///
    /// # Errors
    /// [`SpecError::BadValue`].
    pub fn odd(&mut self, option: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize, SpecError> {
        let number = self.number(option, default, range)?;
        if number % 2 == 1 { Ok(number) } else { Err(self.bad(option, &number.to_string(), "an odd number".into())) }
    }

    /// A share, `0.25` or `25%`, or `default`.
    ///
    /// # Errors
    /// [`SpecError::BadValue`].
    pub fn share(&mut self, option: &str, default: f64) -> Result<f64, SpecError> {
        let Some(value) = self.take(option) else {
            return Ok(default);
        };
        let share: Option<f64> = match value.strip_suffix('%') {
            Some(percent) => percent.parse().ok().map(|percent: f64| percent / 100.0),
            None => value.parse().ok(),
        };
        let share = share.filter(|share| (0.0..=1.0).contains(share));
        share.ok_or_else(|| self.bad(option, value, "a share such as 0.25 or 25%".into()))
    }

    /// Tokens for every layer, see [`Amounts`], or `default`.
    ///
    /// # Errors
    /// [`SpecError::BadValue`].
    pub fn amounts(&mut self, option: &str, default: &str) -> Result<Amounts, SpecError> {
        let value = self.take(option).unwrap_or(default);
        let amounts = value.parse::<Amounts>();
        amounts.map_err(|()| self.bad(option, value, Amounts::GRAMMAR.into()))
    }

    /// One of `choices`; the first is the default.
    ///
    /// # Errors
    /// [`SpecError::BadValue`].
    pub fn choice(&mut self, option: &str, choices: &[&'static str]) -> Result<&'static str, SpecError> {
        let value = self.take(option).unwrap_or(choices[0]);
        let found = choices.iter().copied().find(|choice| *choice == value);
        found.ok_or_else(|| self.bad(option, value, choices.join(" or ")))
    }

    /// Refuses options that nobody took.
    ///
    /// # Errors
    /// [`SpecError::UnknownOption`].
    pub fn finish(self) -> Result<(), SpecError> {
        match self.options.first() {
            None => Ok(()),
            Some((option, _)) => Err(SpecError::UnknownOption { policy: self.name.into(), option: (*option).into() }),
        }
    }
}
