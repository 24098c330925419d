//! Errors of models: each says what was found and what to do.

use crate::chat::ChatError;
use crate::hub::HubError;
use crate::import::ImportError;
use kvsharer_core::CacheError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a model cannot be found, loaded or run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// There is no place for what is fetched.
    #[error("no cache folder is known on this system: set KVSHARER_HOME to a folder")]
    NoHome,
    /// A file of weights, metadata or a tokenizer.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The attention or its cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The Hugging Face hub.
    #[error(transparent)]
    Hub(Box<HubError>),
    /// A chat template.
    #[error(transparent)]
    Chat(Box<ChatError>),
    /// A name that stands for no model.
    #[error(
        "no model `{name}`: give a name from `kvsharer models`, hf:ORG/NAME, a folder with config.json, or a .gguf file"
    )]
    UnknownModel {
        /// What was asked for.
        name: String,
    },
    /// A random shape that is not known.
    #[error("no random shape `{shape}`: known are {known}")]
    UnknownShape {
        /// What was asked for.
        shape: String,
        /// What there is.
        known: String,
    },
    /// A model of a family that is not supported.
    #[error("{}: architecture `{architecture}` is not supported: supported are {supported}", path.display())]
    UnknownArchitecture {
        /// The model's file.
        path: PathBuf,
        /// The name in the file.
        architecture: String,
        /// The names that are.
        supported: String,
    },
    /// A feature of a family that is not supported.
    #[error("{}: `{field}` = {found} is not supported{remedy}", path.display())]
    UnsupportedConfig {
        /// The model's file.
        path: PathBuf,
        /// The setting.
        field: String,
        /// Its value.
        found: String,
        /// What would be.
        remedy: String,
    },
    /// A setting that is missing or of the wrong type.
    #[error("{}: `{field}` {problem}: the file is not a complete model configuration", path.display())]
    ConfigField {
        /// The model's file.
        path: PathBuf,
        /// The setting.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A number that cannot belong to a model.
    #[error("the {field} is {found}, but it {rule}: the model's configuration is broken")]
    BadConfig {
        /// The number's meaning.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it has to satisfy.
        rule: &'static str,
    },
    /// A model without a tokenizer.
    #[error("model `{name}` has no tokenizer: {remedy}")]
    NoTokenizer {
        /// The model.
        name: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A prompt without tokens.
    #[error("the prompt has no tokens: give at least one")]
    EmptyPrompt,
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}: the tokenizer belongs to another model")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A strategy's fitted map for a layer that the model lacks.
    #[error("a fitted map of layer {layer} for a model of {layers} layers: the strategy belongs to another model")]
    UnknownLayer {
        /// The layer.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// A strategy's fitted map that this model cannot take in.
    #[error("layer {layer} has a query norm, behind which turned keys cannot be folded: search this model again")]
    TurnBehindNorm {
        /// The layer.
        layer: usize,
    },
    /// A sampling option out of range.
    #[error("{option} = {found} is out of range: it {rule}")]
    BadSampling {
        /// The option.
        option: &'static str,
        /// Its value.
        found: f64,
        /// What it has to satisfy.
        rule: &'static str,
    },
    /// Scores that are no numbers.
    #[error("the model gives no finite score for the next token: its weights or dtype are broken")]
    NotFinite,
    /// The device failed to give a result back.
    #[error("the device could not return a result: {0}")]
    Device(String),
    /// A download that failed.
    #[error("fetching `{model}` failed: {what}")]
    Fetch {
        /// The model.
        model: String,
        /// What happened and what to do.
        what: String,
    },
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<HubError> for ModelError {
    fn from(error: HubError) -> Self {
        ModelError::Hub(Box::new(error))
    }
}

impl From<ChatError> for ModelError {
    fn from(error: ChatError) -> Self {
        ModelError::Chat(Box::new(error))
    }
}
