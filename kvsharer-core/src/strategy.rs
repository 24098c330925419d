//! The strategy file: a sharing map, where it came from, and every trial that led to it.

use crate::{
    AdapterFile, AdaptersError, CalibrationSet, Distance, Fit, Found, Gate, Kv, LayerId, LayerMap, ModelShape, Order,
    Pair, PlanError, SearchOptions, SearchStrategy, Sharing, Step, Trial, Units, write_atomically,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The version of the schema this library writes.
const VERSION: u32 = 1;

/// Strategy files are small; anything larger is not one.
const MAX_BYTES: u64 = 64 << 20;

/// No model has more layers; a file that says so is broken, and memory is not to be asked for by its word.
const MAX_LAYERS: usize = 1 << 12;

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
    /// No step saves as much as asked for.
    #[error("the strategy saves at most {:.1} % of the KV bytes, not {:.1} %: search again with a larger --share", .most * 100.0, .wanted * 100.0)]
    NotReached {
        /// Fraction asked for.
        wanted: f64,
        /// Largest fraction.
        most: f64,
    },
    /// The file with its fitted maps cannot be used.
    #[error(transparent)]
    Adapters(#[from] AdaptersError),
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
    /// Name of the search strategy.
    pub name: String,
    /// What was shared.
    #[serde(default)]
    pub units: Units,
    /// Order of trial, of strategies that rank pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// Distance that ranked the pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<Distance>,
    /// How outputs were compared, for the objective `hidden-cosine`.
    #[serde(default)]
    pub gate: Gate,
    /// What was compared.
    pub objective: String,
    /// Similarity above which a pair was kept, by strategies with a gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// Seed of a random order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Which maps were fitted.
    #[serde(default)]
    pub fit: Fit,
    /// Fraction of the samples held back.
    #[serde(default)]
    pub held_back: f64,
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
    /// Layers without attention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<LayerId>,
    /// Names of the fitted maps by layer, in the file beside this one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub adapters: BTreeMap<LayerId, String>,
    /// The file with the fitted maps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_file: Option<AdapterFile>,
    /// Distances of the average keys and values of all pairs of layers that may share, in the order of trial, of
    /// strategies that rank pairs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distances: Vec<Pair>,
    /// Every trial, in order.
    pub trials: Vec<Trial>,
    /// Every accepted step, each a whole strategy at its share of bytes.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// Replacements made: layers, or keys and values one by one if they are shared apart.
    pub reached: usize,
    /// Replacements asked for.
    pub requested: usize,
    /// Fraction of the KV bytes of a token that is saved.
    #[serde(default)]
    pub saved: f64,
    /// Library and version that wrote it.
    pub library: String,
}

impl Strategy {
    /// The record of a search.
    pub fn new(
        model: Fingerprint,
        set: &CalibrationSet,
        strategy: &dyn SearchStrategy,
        options: &SearchOptions,
        found: &Found,
    ) -> Self {
        let mut search = SearchRecord {
            name: strategy.name(),
            units: options.units,
            order: None,
            distance: None,
            gate: options.gate,
            objective: options.objective.name().into(),
            threshold: None,
            seed: None,
            fit: options.fit,
            held_back: options.held_back,
        };
        strategy.describe(&mut search);
        Self {
            version: VERSION,
            model,
            key_map: found.draft.sharing().keys().iter().collect(),
            value_map: found.draft.sharing().values().iter().collect(),
            search,
            calibration: CalibrationRecord { hash: set.hash(), samples: set.samples().len(), tokens: set.tokens() },
            dropped: found.draft.dropped().iter().copied().collect(),
            adapters: found.steps.last().map(|step| step.adapters.clone()).unwrap_or_default(),
            adapter_file: None,
            distances: found.ranking.clone(),
            trials: found.trials.clone(),
            steps: found.steps.clone(),
            reached: found.reached,
            requested: found.requested,
            saved: found.saved,
            library: concat!("kvsharer ", env!("CARGO_PKG_VERSION")).into(),
        }
    }

    /// The strategy as it was when a search for `saved` of the bytes would have stopped: at the first step that comes as
    /// near as steps come (half a step is not yet there), or the one with the lowest objective of those that save as much.
    ///
    /// # Errors
    /// [`StrategyError::NotReached`] if no step came so far.
    pub fn at(&self, saved: f64) -> Result<Self, StrategyError> {
        let before = std::iter::once(0.0).chain(self.steps.iter().map(|step| step.saved));
        let gains = self.steps.iter().zip(before).map(|(step, before)| step.saved - before).filter(|gain| *gain > 1e-9);
        let half = gains.fold(f64::INFINITY, f64::min) / 2.0;
        let far = self.steps.iter().filter(|step| step.saved + half > saved + 1e-9);
        let best = far.min_by(|a, b| a.saved.total_cmp(&b.saved).then(a.objective.total_cmp(&b.objective)));
        let step = best.ok_or(StrategyError::NotReached {
            wanted: saved,
            most: self.steps.iter().map(|step| step.saved).fold(0.0, f64::max),
        })?;
        Ok(Self {
            key_map: step.key_map.clone(),
            value_map: step.value_map.clone(),
            dropped: step.dropped.clone(),
            adapters: step.adapters.clone(),
            reached: match self.search.units {
                Units::Apart => step.key_map.len() + step.value_map.len(),
                _ => step.key_map.len().max(step.value_map.len()) + step.dropped.len(),
            },
            saved: step.saved,
            ..self.clone()
        })
    }

    /// The first trial in which another search judged otherwise: its index, and both trials.
    pub fn parts_from<'a>(&'a self, other: &'a Self) -> Option<(usize, Option<&'a Trial>, Option<&'a Trial>)> {
        let verdict = |trial: &Trial| (trial.borrower, trial.donor, trial.units, trial.fitted, trial.accepted);
        let longer = self.trials.len().max(other.trials.len());
        let pairs = (0..longer).map(|index| (index, self.trials.get(index), other.trials.get(index)));
        pairs.into_iter().find(|(_, ours, theirs)| ours.map(verdict) != theirs.map(verdict))
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
        let layers = strategy.model.layers;
        if layers > MAX_LAYERS {
            let what = format!("a model of {layers} layers, at most {MAX_LAYERS} are read");
            return Err(ParseError::Json(serde::de::Error::custom(what)));
        }
        let steps =
            strategy.steps.iter_mut().flat_map(|step| [(Kv::Key, &mut step.key_map), (Kv::Value, &mut step.value_map)]);
        let maps = [(Kv::Key, &mut strategy.key_map), (Kv::Value, &mut strategy.value_map)];
        for (kind, map) in maps.into_iter().chain(steps) {
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

    /// The shape of a model without the layers whose attention the strategy drops.
    pub fn shape(&self, model: &ModelShape) -> ModelShape {
        let layers = model.ids().zip(model.layers()).filter(|(layer, _)| !self.dropped.contains(layer));
        ModelShape::new(layers.map(|(_, &shape)| shape).collect())
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
