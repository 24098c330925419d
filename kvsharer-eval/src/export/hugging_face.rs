//! The model as a Hugging Face folder, with fitted maps in its weights.

use super::ExportError;
use burn::tensor::{DType, Device};
use kvsharer_core::{Adapter, LayerId, Step, Strategy};
use kvsharer_models::ModelFiles;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the model into an existing folder.
pub(super) fn write(
    model: &ModelFiles,
    adapters: &BTreeMap<LayerId, Adapter>,
    dtype: DType,
    device: &Device,
    folder: &Path,
) -> Result<(), ExportError> {
    // The plain model goes before the folder is written: what folding leaves alone, both share.
    let folded = model.load(device, dtype)?.folded(adapters)?;
    Ok(model.write_folder(&folded, folder)?)
}

/// The strategy that belongs to a folder with the strategy's fitted maps in its weights: it has none itself, and no
/// steps before the last, which other maps were fitted for.
pub(super) fn strategy_of(strategy: &Strategy, folder: &Path) -> Result<Strategy, ExportError> {
    let plain = |step: &Step| Step { adapters: BTreeMap::new(), ..step.clone() };
    let fitted = !strategy.adapters.is_empty();
    let this = |step: &&Step| {
        (&step.key_map, &step.value_map, &step.adapters) == (&strategy.key_map, &strategy.value_map, &strategy.adapters)
    };
    let last = strategy.steps.iter().rfind(this);
    Ok(Strategy {
        model: ModelFiles::open_folder(folder)?.fingerprint()?,
        adapters: BTreeMap::new(),
        adapter_file: None,
        steps: if fitted { last.map(plain).into_iter().collect() } else { strategy.steps.clone() },
        ..strategy.clone()
    })
}
