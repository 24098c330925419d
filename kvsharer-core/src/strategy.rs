//! The strategy file: a sharing map, where it came from, and every trial that led to it.

use crate::{
    CalibrationSet, Distance, Found, Gate, Kv, LayerId, LayerMap, Order, PlanError, SearchOptions, Sharing, Trial,
    Units, write_atomically,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The version of the schema this library writes.
const VERSION: u32 = 1;

/// Strategy files are small; anything larger is not one.
const MAX_BYTES: u64 = 64 << 20;

/// Why a strategy file cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StrategyError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a strategy.
    #[error("{}: not a strategy file ({source}); make one with `kvsharer search --output`", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The file is too large to be a strategy.
    #[error("{}: {bytes} bytes are too many for a strategy file (at most {MAX_BYTES})", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A schema this library does not know.
    #[error(
        "{}: strategy version {found} is not supported, this library reads version {VERSION}: update kvsharer or search again",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
    },
    /// A map that does not fit the model it names.
    #[error("{}: the strategy's map is invalid: {source}", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PlanError,
    },
    /// A strategy found on another model.
    #[error(
        "the strategy was found on another model: {field} is {theirs}, the loaded model's is {ours}; search again on this model"
    )]
    OtherModel {
        /// What differs.
        field: &'static str,
        /// The strategy's.
        theirs: String,
        /// The loaded model's.
        ours: String,
    },
}

/// What identifies a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Architecture name, such as `llama`.
    pub architecture: String,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Hash over tensor names, shapes and a sample of the weights.
    pub hash: String,
}

/// How the map was searched for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchRecord {
    /// Name of the search.
    pub name: String,
    /// What was shared.
    #[serde(default)]
    pub units: Units,
    /// Order of trial.
    pub order: Order,
    /// Distance that ranked the pairs.
    pub distance: Distance,
    /// How outputs were compared.
    #[serde(default)]
    pub gate: Gate,
    /// What was compared.
    pub objective: String,
    /// Similarity above which a pair was kept.
    pub threshold: f64,
    /// Seed of a random order.
    pub seed: u64,
}

/// The samples that were used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// SHA-256 over the token ids.
    pub hash: String,
    /// Number of samples.
    pub samples: usize,
    /// Tokens of all samples.
    pub tokens: usize,
}

/// The content of a strategy file. Fields unknown to this version are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Strategy {
    /// Version of the schema.
    pub version: u32,
    /// The model it was found on.
    pub model: Fingerprint,
    /// Borrower -> owner whose keys it reads.
    pub key_map: BTreeMap<LayerId, LayerId>,
    /// Borrower -> owner whose values it reads.
    pub value_map: BTreeMap<LayerId, LayerId>,
    /// How it was searched for.
    pub search: SearchRecord,
    /// On what.
    pub calibration: CalibrationRecord,
    /// Every trial, in order.
    pub trials: Vec<Trial>,
    /// Layers that share.
    pub reached: usize,
    /// Layers asked for.
    pub requested: usize,
    /// Library and version that wrote it.
    pub library: String,
}

impl Strategy {
    /// The record of a search.
    pub fn new(model: Fingerprint, set: &CalibrationSet, options: &SearchOptions, found: &Found) -> Self {
        let sharing = options.units.sharing(&found.map);
        Self {
            version: VERSION,
            model,
            key_map: sharing.keys().iter().collect(),
            value_map: sharing.values().iter().collect(),
            search: SearchRecord {
                name: "paper".into(),
                units: options.units,
                order: options.order,
                distance: options.distance,
                gate: options.gate,
                objective: "hidden-cosine".into(),
                threshold: options.threshold,
                seed: options.seed,
            },
            calibration: CalibrationRecord { hash: set.hash(), samples: set.samples().len(), tokens: set.tokens() },
            trials: found.trials.clone(),
            reached: found.map.len(),
            requested: options.share,
            library: concat!("kvsharer ", env!("CARGO_PKG_VERSION")).into(),
        }
    }

    /// Reads a file and checks it. Chains in a hand-written map are resolved to their owners.
    ///
    /// # Errors
    /// [`StrategyError`] says what is wrong with the file.
    pub fn load(path: &Path) -> Result<Self, StrategyError> {
        let io = |source| StrategyError::Io { path: path.into(), source };
        let bytes = std::fs::metadata(path).map_err(io)?.len();
        if bytes > MAX_BYTES {
            return Err(StrategyError::TooLarge { path: path.into(), bytes });
        }
        let text = std::fs::read(path).map_err(io)?;
        Self::parse(&text).map_err(|error| match error {
            ParseError::Json(source) => StrategyError::Broken { path: path.into(), source },
            ParseError::Version(found) => StrategyError::Version { path: path.into(), found },
            ParseError::Map(source) => StrategyError::Map { path: path.into(), source },
        })
    }

    fn parse(text: &[u8]) -> Result<Self, ParseError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        // The version comes first: a later schema may not parse as this one.
        let Version { version } = serde_json::from_slice(text).map_err(ParseError::Json)?;
        if version != VERSION {
            return Err(ParseError::Version(version));
        }
        let mut strategy: Self = serde_json::from_slice(text).map_err(ParseError::Json)?;
        for (kind, map) in [(Kv::Key, &mut strategy.key_map), (Kv::Value, &mut strategy.value_map)] {
            let layers = strategy.model.layers;
            if let Some(&layer) = map.keys().find(|layer| layer.0 >= layers) {
                return Err(ParseError::Map(PlanError::UnknownLayer { layer, layers }));
            }
            let resolved = LayerMap::resolve(kind, map.iter().map(|(&b, &d)| (b, d)));
            *map = resolved.map_err(ParseError::Map)?.iter().collect();
        }
        Ok(strategy)
    }

    /// Writes the file, all or nothing.
    ///
    /// # Errors
    /// [`StrategyError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), StrategyError> {
        let io = |source| StrategyError::Io { path: path.into(), source };
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| io(error.into()))?;
        text.push(b'\n');
        write_atomically(path, &text).map_err(io)
    }

    /// Refuses a model other than the one the strategy was found on.
    ///
    /// # Errors
    /// [`StrategyError::OtherModel`] names the first difference.
    pub fn check(&self, model: &Fingerprint) -> Result<(), StrategyError> {
        let fields = [
            ("architecture", self.model.architecture.clone(), model.architecture.clone()),
            ("number of layers", self.model.layers.to_string(), model.layers.to_string()),
            ("number of heads", self.model.heads.to_string(), model.heads.to_string()),
            ("number of key-value heads", self.model.kv_heads.to_string(), model.kv_heads.to_string()),
            ("head dimension", self.model.head_dim.to_string(), model.head_dim.to_string()),
            ("weight hash", self.model.hash.clone(), model.hash.clone()),
        ];
        for (field, theirs, ours) in fields {
            if theirs != ours {
                return Err(StrategyError::OtherModel { field, theirs, ours });
            }
        }
        Ok(())
    }

    /// The policy that applies it.
    ///
    /// # Errors
    /// [`PlanError`] if the maps were changed by hand after loading.
    pub fn sharing(&self) -> Result<Sharing, PlanError> {
        let resolve =
            |kind, map: &BTreeMap<LayerId, LayerId>| LayerMap::resolve(kind, map.iter().map(|(&b, &d)| (b, d)));
        Ok(Sharing::new(resolve(Kv::Key, &self.key_map)?, resolve(Kv::Value, &self.value_map)?))
    }
}

enum ParseError {
    Json(serde_json::Error),
    Version(u32),
    Map(PlanError),
}
