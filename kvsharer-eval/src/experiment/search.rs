//! A search as an experiment file describes it.

use crate::{EvalError, Share, texts};
use kvsharer_core::{CalibrationSet, Distance, Gate, Order, SearchOptions, Units};
use kvsharer_models::{ModelError, ModelTokenizer};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The paper's search with its options; the defaults are those of the official code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchSpec {
    /// Layers to share: `8` or `25%`.
    pub share: Share,
    /// What is shared.
    pub units: Units,
    /// Which pairs come first.
    pub order: Order,
    /// How caches are compared.
    pub distance: Distance,
    /// How outputs are compared.
    pub gate: Gate,
    /// A pair is kept if the similarity is greater; -1 keeps every pair.
    pub threshold: f64,
    /// Text with one sample a line; the embedded one if `None`.
    pub calibration: Option<PathBuf>,
    /// Samples used, the first of the text.
    pub samples: usize,
    /// Tokens each sample is cut to.
    pub sample_tokens: usize,
    /// Give up after this many trials.
    pub max_trials: Option<usize>,
}

impl Default for SearchSpec {
    fn default() -> Self {
        Self {
            share: Share::Percent(25.0),
            units: Units::default(),
            order: Order::default(),
            distance: Distance::default(),
            gate: Gate::default(),
            threshold: 0.5,
            calibration: None,
            samples: 30,
            sample_tokens: 64,
            max_trials: None,
        }
    }
}

impl SearchSpec {
    /// Options for a model of `layers` layers.
    pub fn options(&self, layers: usize, seed: u64, batch: usize) -> SearchOptions {
        SearchOptions {
            units: self.units,
            distance: self.distance,
            order: self.order,
            gate: self.gate,
            threshold: self.threshold,
            seed,
            batch,
            max_trials: self.max_trials,
            ..SearchOptions::new(self.share.of(layers))
        }
    }

    /// The samples, tokenised for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// [`EvalError`] for a text that cannot be read or has no sample.
    pub fn calibration(&self, tokenizer: &ModelTokenizer, vocab: usize) -> Result<CalibrationSet, EvalError> {
        let own = match &self.calibration {
            Some(path) => {
                let io = |source| EvalError::Io { path: path.clone(), source };
                let text = String::from_utf8(std::fs::read(path).map_err(io)?);
                Some(text.map_err(|_| io(std::io::Error::new(std::io::ErrorKind::InvalidData, "is no UTF-8 text")))?)
            }
            None => None,
        };
        let text = own.as_deref().unwrap_or(texts::CALIBRATION);
        let lines: Vec<&str> = texts::samples(text).take(self.samples).collect();
        let ids = tokenizer.encode_batch(&lines).map_err(ModelError::from)?;
        if let Some(&id) = ids.iter().flatten().find(|&&id| id as usize >= vocab) {
            return Err(ModelError::TokenOutOfRange { id, vocab }.into());
        }
        CalibrationSet::new(ids, self.sample_tokens).map_err(|source| EvalError::Calibration {
            path: self.calibration.clone().unwrap_or_else(|| "builtin:calibration".into()),
            source,
        })
    }
}
