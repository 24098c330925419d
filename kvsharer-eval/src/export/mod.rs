//! Strategies taken elsewhere: files that run a sharing map in other programs.
//!
//! A target is one file; what it cannot express is refused, never left out. Fitted maps go into the weights, so that a
//! target needs to know about sharing only.

mod error;
mod folder;
mod hugging_face;
mod llama_cpp;
mod transformers;
mod vllm;

use burn::tensor::{DType, Device};
pub use error::ExportError;
use folder::Staged;
use kvsharer_core::{LayerId, Plan, Stack, Strategy};
use kvsharer_models::ModelFiles;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder of the weights beside the files of a target, if fitted maps are in them.
const WEIGHTS: &str = "model";

/// Where a strategy can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportTarget {
    /// A Hugging Face folder with the fitted maps in its weights, and the strategy that belongs to it.
    HuggingFace,
    /// A Python module for transformers.
    Transformers,
    /// A plugin for vLLM.
    Vllm,
    /// llama.cpp, which has no way to run one.
    LlamaCpp,
}

/// What is exported, and from what.
pub struct Export<'a> {
    /// Where to.
    pub target: ExportTarget,
    /// The strategy, at the step that is wanted, and its file, beside which its fitted maps are.
    pub strategy: Option<(&'a Strategy, &'a Path)>,
    /// The model it was found on: needed for its weights, else only checked.
    pub model: Option<&'a ModelFiles>,
    /// The type of weights that are written.
    pub dtype: DType,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The files, relative to the folder.
    pub files: Vec<PathBuf>,
    /// Whether weights with fitted maps in them are among the files.
    pub folded: bool,
}

impl Export<'_> {
    /// Writes the files into `output`, all of them or none: a new or an empty folder, or with `force` one that has
    /// other files, of which those of the same names are replaced. Weights are loaded onto `device`.
    ///
    /// # Errors
    /// [`ExportError`] says why the target cannot run the strategy, or what is missing or wrong.
    pub fn write(&self, output: &Path, force: bool, device: &Device) -> Result<Exported, ExportError> {
        let strategy = self.strategy.map(|(strategy, _)| strategy);
        if let Some(strategy) = strategy {
            self.check(strategy)?;
        }
        let folder = Staged::new(output, force)?;
        let fitted = strategy.is_some_and(|strategy| !strategy.adapters.is_empty());
        match (self.target, strategy) {
            (ExportTarget::LlamaCpp, _) => return Err(llama_cpp::refusal()),
            (ExportTarget::HuggingFace, _) => {
                self.write_model(folder.path(), device)?;
            }
            (_, None) => return Err(ExportError::NoStrategy),
            (target, Some(strategy)) => {
                let written = match fitted {
                    true => self.write_model(&folder.new_folder(WEIGHTS)?, device)?,
                    false => None,
                };
                let strategy = written.as_ref().unwrap_or(strategy);
                match target {
                    ExportTarget::Vllm => vllm::write(strategy, folder.path())?,
                    _ => transformers::write(strategy, folder.path())?,
                }
            }
        }
        Ok(Exported { files: folder.commit()?, folded: fitted })
    }

    /// Whether the target can run the strategy, and the strategy fits the model, if there is one.
    fn check(&self, strategy: &Strategy) -> Result<(), ExportError> {
        if !strategy.dropped.is_empty() && self.target != ExportTarget::LlamaCpp {
            let why = "it drops the attention of some layers, which is an ablation and no sharing map";
            return Err(ExportError::unsupported("an exported model", why));
        }
        match self.target {
            ExportTarget::LlamaCpp => return Err(llama_cpp::refusal()),
            ExportTarget::Vllm => vllm::check(strategy)?,
            ExportTarget::HuggingFace | ExportTarget::Transformers => {}
        }
        let Some(model) = self.model else {
            return if strategy.adapters.is_empty() { Ok(()) } else { Err(ExportError::NoModel) };
        };
        strategy.check(&model.fingerprint()?)?;
        // Donors whose window or shape is another one are found here.
        Plan::new(&model.shape(), &Stack::new().with(strategy.sharing()?))?;
        Ok(())
    }

    /// Writes the weights with the strategy's fitted maps in them; gives the strategy that belongs to them.
    fn write_model(&self, folder: &Path, device: &Device) -> Result<Option<Strategy>, ExportError> {
        let model = self.model.ok_or(ExportError::NoModel)?;
        let adapters = match self.strategy {
            Some((strategy, path)) => strategy.load_adapters(path, device)?,
            None => BTreeMap::new(),
        };
        hugging_face::write(model, &adapters, self.dtype, device, folder)?;
        let Some((strategy, _)) = self.strategy else { return Ok(None) };
        let strategy = hugging_face::strategy_of(strategy, folder)?;
        if self.target == ExportTarget::HuggingFace {
            strategy.save(&folder.join("strategy.json"))?;
        }
        Ok(Some(strategy))
    }
}

/// Layers whose keys and values are not borrowed from the same layer.
fn apart(strategy: &Strategy) -> Vec<LayerId> {
    let layers = strategy.key_map.keys().chain(strategy.value_map.keys());
    let mut apart: Vec<LayerId> =
        layers.copied().filter(|layer| strategy.key_map.get(layer) != strategy.value_map.get(layer)).collect();
    apart.sort();
    apart.dedup();
    apart
}
