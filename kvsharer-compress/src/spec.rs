//! Policy SPECs, `name:key=value,…`.

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
        Ok(Self { name: name.trim(), options })
    }

    /// The policy's name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    fn take(&mut self, option: &str) -> Option<&'a str> {
        let index = self.options.iter().position(|(key, _)| *key == option)?;
        Some(self.options.remove(index).1)
    }

    fn bad(&self, option: &str, value: &str, expected: String) -> SpecError {
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
