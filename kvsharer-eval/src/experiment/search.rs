//! A search as the command line or an experiment file describes it.

use crate::{EvalError, Share, strategy_path, texts};
use clap::ValueEnum;
use kvsharer_core::{
    Adjacent, Beam, CalibrationSet, Distance, DropLayers, Fit, Fixed, Gate, Greedy, Kv, LayerId, LayerMap, Objective,
    Order, Paper, Refine, Refit, SearchOptions, SearchStrategy, Sharing, Strategies, Strategy, Units,
};
use kvsharer_models::{ModelError, ModelTokenizer};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of a search strategy.
/// (The descriptions of the strategies are the help of the program's `--strategy-search`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum StrategyName {
    /// arXiv 2410.18517: in the order of distance, gated by the output's cosine
    Paper,
    /// The same in random order; with --threshold -1 ungated
    Random,
    /// Layers spread evenly over the model read the one below
    Adjacent,
    /// The best of all moves at every step
    Greedy,
    /// Greedy that only looks at moves that were cheap when last judged
    LazyGreedy,
    /// Greedy with several drafts at a time
    Beam,
    /// Gives a unit back and takes the best other one, while that helps
    Refine,
    /// Fits all maps anew
    Refit,
    /// A baseline: layers lose their attention altogether
    Drop,
    /// A given map, see --map and --layer-types
    Fixed,
}

impl StrategyName {
    /// Whether candidates are told apart by small differences, for which the hidden cosine is too coarse.
    fn chooses(self) -> bool {
        !matches!(self, StrategyName::Paper | StrategyName::Random)
    }
}

/// A search with its options; the defaults are those of the paper's official code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchSpec {
    /// How much to share: layers (`8`) or percent of the KV bytes (`25%`).
    pub share: Share,
    /// Strategies, one after the other.
    pub strategy: Vec<StrategyName>,
    /// What is shared.
    pub units: Units,
    /// How candidates are judged; the strategy's own choice if `None`.
    pub objective: Option<Objective>,
    /// Which maps are fitted.
    pub fit: Fit,
    /// Whether fits also choose which head reads which.
    pub permute_heads: bool,
    /// Whether moves are tried without fitted maps, too.
    pub plain_too: bool,
    /// Strength of the fits' ridge.
    pub ridge: f64,
    /// Rank of what full fits add to fits head by head; any if `None`.
    pub rank: Option<usize>,
    /// The farthest a donor may be below its borrower.
    pub reach: Option<usize>,
    /// Candidates that lazy strategies judge at a step.
    pub width: usize,
    /// Drafts of a beam search.
    pub beams: usize,
    /// The most passes of a refinement.
    pub passes: usize,
    /// Fraction of the samples that nothing is chosen by.
    pub held_back: f64,
    /// Which pairs come first.
    pub order: Order,
    /// How caches are compared.
    pub distance: Distance,
    /// How outputs are compared, for the objective `hidden-cosine`.
    pub gate: Gate,
    /// A pair is kept if the similarity is greater; -1 keeps every pair.
    pub threshold: f64,
    /// A JSON map, for the strategy `fixed`; of a strategy file the step that saves `share`.
    pub map: Option<PathBuf>,
    /// A map in LCKV's notation, for the strategy `fixed`.
    pub layer_types: Option<String>,
    /// Text with one sample a line; the embedded one if `None`.
    pub calibration: Option<PathBuf>,
    /// Whether the text is cut into windows of `sample_tokens` tokens instead of lines.
    pub windows: bool,
    /// Samples of the text that are left out before the first.
    pub skip: usize,
    /// Whether samples are drawn from the rest of the text, by the seed, instead of being its first.
    pub shuffle: bool,
    /// Samples used.
    pub samples: usize,
    /// Tokens each sample is cut to.
    pub sample_tokens: usize,
    /// Give up after this many trials.
    pub max_trials: Option<usize>,
}

/// How calibration samples are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// On all threads in several batches, so that hopeless candidates are given up after some of them; as many whatever
    /// the threads, so that sums are the same.
    Threads,
    /// About so many tokens a forward pass, one pass after the other: for devices that one pass fills.
    Tokens(usize),
}

impl Default for SearchSpec {
    fn default() -> Self {
        Self {
            share: Share::Percent(25.0),
            strategy: vec![StrategyName::Paper],
            units: Units::default(),
            objective: None,
            fit: Fit::default(),
            permute_heads: false,
            plain_too: false,
            ridge: 0.1,
            rank: None,
            reach: None,
            width: 40,
            beams: 4,
            passes: 2,
            held_back: 0.0,
            order: Order::default(),
            distance: Distance::default(),
            gate: Gate::default(),
            threshold: 0.5,
            map: None,
            layer_types: None,
            calibration: None,
            windows: false,
            skip: 0,
            shuffle: false,
            samples: 30,
            sample_tokens: 64,
            max_trials: None,
        }
    }
}

impl SearchSpec {
    /// The objective by which candidates are judged.
    pub fn objective(&self) -> Objective {
        self.objective.unwrap_or(match self.strategy.iter().any(|strategy| strategy.chooses()) {
            true => Objective::LogitKl,
            false => Objective::HiddenCosine,
        })
    }

    /// Options for so many samples, run in a way that suits the device.
    pub fn options(&self, work: Work, samples: usize) -> SearchOptions {
        let (batch, parallel, pass_tokens) = match work {
            Work::Threads => (samples.div_ceil(8), rayon::current_num_threads(), 0),
            Work::Tokens(tokens) => ((tokens / self.sample_tokens.max(1)).clamp(1, samples.max(1)), 1, tokens),
        };
        SearchOptions {
            share: self.share.target(),
            units: self.units,
            objective: self.objective(),
            gate: self.gate,
            fit: self.fit,
            permute_heads: self.permute_heads,
            plain_too: self.plain_too,
            ridge: self.ridge,
            rank: self.rank,
            reach: self.reach,
            held_back: self.held_back,
            batch,
            parallel,
            pass_tokens,
            max_trials: self.max_trials,
        }
    }

    /// The strategy for a model of `layers` layers.
    ///
    /// # Errors
    /// [`EvalError`] for a map that cannot be read or carried out.
    pub fn strategy(&self, layers: usize, seed: u64) -> Result<Box<dyn SearchStrategy>, EvalError> {
        let Self { distance, order, threshold, width, .. } = *self;
        let mut strategies: Vec<Box<dyn SearchStrategy>> = Vec::new();
        for name in &self.strategy {
            strategies.push(match name {
                StrategyName::Paper => Box::new(Paper { distance, order, threshold, seed }),
                StrategyName::Random => Box::new(Paper { distance, order: Order::Random, threshold, seed }),
                StrategyName::Adjacent => Box::new(Adjacent),
                StrategyName::Greedy => Box::new(Greedy { width: None }),
                StrategyName::LazyGreedy => Box::new(Greedy { width: Some(width) }),
                StrategyName::Beam => Box::new(Beam { beams: self.beams.max(1), width: Some(width) }),
                StrategyName::Refine => Box::new(Refine { width, passes: self.passes }),
                StrategyName::Refit => Box::new(Refit),
                StrategyName::Drop => Box::new(DropLayers),
                StrategyName::Fixed => Box::new(self.fixed(layers)?),
            });
        }
        match strategies.len() {
            0 => Err(EvalError::BadSearch("no strategy was named".into())),
            1 => Ok(strategies.remove(0)),
            _ => Ok(Box::new(Strategies(strategies))),
        }
    }

    /// Whether the seed matters.
    pub fn is_random(&self) -> bool {
        let random = |&name| name == StrategyName::Random || name == StrategyName::Paper && self.order == Order::Random;
        self.shuffle || self.strategy.iter().any(random)
    }

    fn fixed(&self, layers: usize) -> Result<Fixed, EvalError> {
        match (&self.map, &self.layer_types) {
            (Some(path), None) => Ok(Fixed { sharing: read_map(path, self.share, layers)?, name: "fixed".into() }),
            (None, Some(types)) => {
                Fixed::from_layer_types(types, layers).map_err(|error| EvalError::BadSearch(error.to_string()))
            }
            _ => Err(EvalError::BadSearch("the strategy `fixed` wants a map or layer types, one of the two".into())),
        }
    }

    /// The samples, tokenised for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// [`EvalError`] for a text that cannot be read or has no sample.
    pub fn calibration(
        &self,
        tokenizer: &ModelTokenizer,
        vocab: usize,
        seed: u64,
    ) -> Result<CalibrationSet, EvalError> {
        let own = match &self.calibration {
            Some(path) => {
                let io = |source| EvalError::Io { path: path.clone(), source };
                let text = String::from_utf8(std::fs::read(path).map_err(io)?);
                Some(text.map_err(|_| io(std::io::Error::new(std::io::ErrorKind::InvalidData, "is no UTF-8 text")))?)
            }
            None => None,
        };
        let text = own.as_deref().unwrap_or(texts::CALIBRATION);
        let ids = match self.windows {
            true => {
                let ids = tokenizer.encode(text).map_err(ModelError::from)?;
                let windows = self.drawn(ids.chunks(self.sample_tokens.max(1)), seed);
                windows.into_iter().map(<[u32]>::to_vec).collect()
            }
            false => tokenizer.encode_batch(&self.drawn(texts::samples(text), seed)).map_err(ModelError::from)?,
        };
        if let Some(&id) = ids.iter().flatten().find(|&&id| id as usize >= vocab) {
            return Err(ModelError::TokenOutOfRange { id, vocab }.into());
        }
        CalibrationSet::new(ids, self.sample_tokens).map_err(|source| EvalError::Calibration {
            path: self.calibration.clone().unwrap_or_else(|| "builtin:calibration".into()),
            source,
        })
    }

    /// The samples wanted of all of them.
    fn drawn<T>(&self, all: impl Iterator<Item = T>, seed: u64) -> Vec<T> {
        let rest = all.skip(self.skip);
        if !self.shuffle {
            return rest.take(self.samples).collect();
        }
        let mut rest: Vec<T> = rest.collect();
        rest.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        rest.truncate(self.samples);
        rest
    }
}

/// A map: `{"5": 3}` for keys and values alike, `{"key_map": {…}, "value_map": {…}}`, or a strategy file (or
/// `builtin:NAME`) as it was when it had saved `share`.
fn read_map(path: &Path, share: Share, layers: usize) -> Result<Sharing, EvalError> {
    #[derive(Deserialize)]
    struct Apart {
        key_map: BTreeMap<LayerId, LayerId>,
        value_map: BTreeMap<LayerId, LayerId>,
    }
    let path = &strategy_path(path)?;
    let text = std::fs::read(path).map_err(|source| EvalError::Io { path: path.into(), source })?;
    let bad = |what: String| EvalError::BadSearch(format!("{}: {what}", path.display()));
    let none = || bad("no map: give {\"borrower\": donor, …} or {\"key_map\": {…}, \"value_map\": {…}}".into());
    if let Ok(strategy) = serde_json::from_slice::<Strategy>(&text)
        && !strategy.steps.is_empty()
    {
        return Ok(strategy.at(share.fraction(layers))?.sharing()?);
    }
    let (keys, values) = match serde_json::from_slice(&text) {
        Ok(Apart { key_map, value_map }) => (key_map, value_map),
        Err(_) => {
            let both: BTreeMap<LayerId, LayerId> = serde_json::from_slice(&text).map_err(|_| none())?;
            (both.clone(), both)
        }
    };
    let resolve = |kind, map: BTreeMap<LayerId, LayerId>| LayerMap::resolve(kind, map).map_err(|e| bad(e.to_string()));
    Ok(Sharing::new(resolve(Kv::Key, keys)?, resolve(Kv::Value, values)?))
}
