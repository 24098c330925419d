//! The fitted maps of a strategy: which, how good, how large.

use crate::cli::output::human_bytes;
use burn::tensor::Device;
use kvsharer_core::{Adapter, LayerId, Mix, Strategy};
use serde::Serialize;
use std::path::Path;

/// All fitted maps of a strategy.
#[derive(Serialize)]
pub(super) struct Fitted {
    /// The file that holds them.
    file: Option<String>,
    /// Its size.
    bytes: Option<u64>,
    /// Why it cannot be read.
    error: Option<String>,
    layers: Vec<FittedLayer>,
}

/// The maps of one layer.
#[derive(Serialize)]
struct FittedLayer {
    layer: LayerId,
    /// What was fitted; empty if the file cannot be read.
    maps: Vec<&'static str>,
    /// Share of the variance of the layer's output that the maps leave unexplained on samples held back.
    residual: Option<f64>,
}

impl Fitted {
    /// A file that is missing or broken is told of, and is no failure here.
    pub(super) fn of(strategy: &Strategy, path: &Path) -> Self {
        let file =
            strategy.adapter_file.as_ref().filter(|_| !strategy.adapters.is_empty()).map(|file| file.name.clone());
        let bytes = file.as_ref().and_then(|name| std::fs::metadata(path.with_file_name(name)).ok());
        let (maps, error) = match strategy.load_adapters(path, &Device::flex()) {
            Ok(maps) => (maps, None),
            Err(error) => (Default::default(), Some(error.to_string())),
        };
        let layer = |(&layer, name): (&LayerId, &String)| {
            // The step that made these maps of the layer is the first that has them.
            let step = strategy.steps.iter().find(|step| step.adapters.get(&layer) == Some(name));
            FittedLayer {
                layer,
                maps: maps.get(&layer).map(kinds).unwrap_or_default(),
                residual: step.and_then(|step| step.residual),
            }
        };
        let layers = strategy.adapters.iter().map(layer).collect();
        Self { file, bytes: bytes.map(|meta| meta.len()), error, layers }
    }

    pub(super) fn describe(&self) -> String {
        if self.layers.is_empty() {
            return String::new();
        }
        let layer = |fitted: &FittedLayer| {
            let residual = fitted.residual.map_or(String::new(), |residual| format!(", {residual:.3} unexplained"));
            format!("{} ({}{residual})", fitted.layer, fitted.maps.join(" + "))
        };
        let layers: Vec<String> = self.layers.iter().map(layer).collect();
        let file = self.file.as_deref().unwrap_or("no file");
        let size = self.bytes.map_or(String::new(), |bytes| format!(", {}", human_bytes(bytes as usize)));
        let error = self.error.as_ref().map_or(String::new(), |error| format!("\n{:<18}CANNOT BE READ: {error}", ""));
        format!("{} in {file}{size}: layers {}{error}", self.layers.len(), layers.join("; "))
    }
}

/// What an adapter is made of.
fn kinds(adapter: &Adapter) -> Vec<&'static str> {
    let heads = adapter.heads.as_ref().map(|_| "heads reordered");
    let turn = adapter.turn.as_ref().map(|_| "keys turned");
    let mix = adapter.mix.as_ref().map(|mix| match mix {
        Mix::Heads { .. } => "values mapped by head",
        Mix::LowRank { .. } => "outputs mapped together, with low rank",
        Mix::Full { .. } => "outputs mapped together",
    });
    [heads, turn, mix].into_iter().flatten().collect()
}
