//! Strategy files with their fitted maps, and maps written by hand.

use super::{file, told};
use crate::driver::{Seed, Target};
use burn::tensor::{Device, Tensor};
use kvsharer_core::{
    Adapter, CalibrationRecord, Fingerprint, Fit, KvShape, LayerId, Mix, ModelShape, Plan, Stack, Step, Strategy, Turn,
    hex,
};
use kvsharer_eval::Share;
use kvsharer_eval::experiment::{SearchSpec, StrategyName};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

const LAYERS: usize = 4;

fn shape() -> ModelShape {
    ModelShape::new(vec![KvShape::new(2, 4); LAYERS])
}

/// A strategy with two steps, a chain of borrowers, a dropped layer and fitted maps of both kinds.
fn strategy(folder: &Path) -> Strategy {
    let map = |pairs: &[(usize, usize)]| pairs.iter().map(|&(b, d)| (LayerId(b), LayerId(d))).collect();
    let names = |names: &[(usize, &str)]| names.iter().map(|&(l, name)| (LayerId(l), name.into())).collect();
    let step = |key_map: BTreeMap<_, _>, adapters, saved| Step {
        value_map: key_map.clone(),
        key_map,
        dropped: vec![],
        adapters,
        residual: None,
        objective: 0.25,
        held_back: Some(0.5),
        saved,
        trials: 1,
    };
    let strategy = Strategy {
        version: 1,
        model: Fingerprint {
            architecture: "llama".into(),
            layers: LAYERS,
            heads: 2,
            kv_heads: 2,
            head_dim: 4,
            hash: "00ff".into(),
        },
        key_map: map(&[(1, 0), (3, 2)]),
        value_map: map(&[(1, 0)]),
        search: serde_json::from_str(r#"{"name": "paper", "objective": "hidden-cosine", "threshold": 0.5, "seed": 7}"#)
            .expect("a record"),
        calibration: CalibrationRecord { hash: "ff".into(), samples: 2, tokens: 16 },
        dropped: vec![],
        adapters: names(&[(1, "first"), (3, "second")]),
        adapter_file: None,
        distances: vec![],
        trials: vec![],
        steps: vec![
            step(map(&[(1, 0)]), names(&[(1, "first")]), 0.25),
            step(map(&[(1, 0), (3, 2)]), names(&[(1, "first"), (3, "second")]), 0.5),
        ],
        reached: 2,
        requested: 2,
        saved: 0.375,
        library: "kvsharer".into(),
    };
    let device = Device::flex();
    let ones = |shape: [usize; 2]| Tensor::<2>::ones(shape, &device);
    let maps = BTreeMap::from([
        (
            "first".into(),
            Adapter {
                heads: Some(vec![1, 0]),
                turn: Some(Turn { real: ones([2, 2]), imaginary: ones([2, 2]) }),
                mix: Some(Mix::Heads { weight: Tensor::ones([2, 4, 4], &device), bias: ones([2, 4]) }),
            },
        ),
        (
            "second".into(),
            Adapter {
                heads: None,
                turn: None,
                mix: Some(Mix::Full { weight: ones([8, 8]), bias: Tensor::ones([8], &device) }),
            },
        ),
    ]);
    strategy.save_with(&folder.join("s.json"), &maps).expect("a writable folder")
}

pub(crate) fn files() -> Target {
    let folder = tempfile::tempdir().expect("a folder");
    strategy(folder.path());
    let part = |name: &str| file(name, super::read(&folder.path().join(name)));
    let bare = {
        let mut strategy = Strategy { adapters: BTreeMap::new(), adapter_file: None, ..strategy(folder.path()) };
        strategy.steps.iter_mut().for_each(|step| step.adapters.clear());
        strategy
    };
    let bare = file("s.json", serde_json::to_vec_pretty(&bare).expect("JSON"));
    Target {
        name: "strategies",
        seeds: vec![Seed::new("fitted", [part("s.json"), part("s.safetensors")]), Seed::new("bare", [bare])],
        judge: |folder, _| {
            let path = folder.join("s.json");
            let mut strategy = Strategy::load(&path).map_err(told)?;
            // The hash would refuse every broken file before it is read.
            if let (Some(file), Ok(bytes)) = (&mut strategy.adapter_file, std::fs::read(folder.join("s.safetensors"))) {
                file.sha256 = hex(&Sha256::digest(bytes));
            }
            used(&strategy, &path)?;
            for share in [0.0, 0.2, 0.25, 1.0] {
                if let Ok(step) = strategy.at(share) {
                    used(&step, &path)?;
                }
            }
            strategy.check(&strategy.model).map_err(told)
        },
        memory: (64, 1 << 20),
    }
}

fn used(strategy: &Strategy, path: &Path) -> Result<(), String> {
    let sharing = strategy.sharing().map_err(told)?;
    Plan::new(&strategy.shape(&shape()), &Stack::new().with(sharing)).map_err(told)?;
    strategy.load_adapters(path, &Device::flex()).map(drop).map_err(told)
}

/// Maps for the search strategy `fixed`, in both notations.
pub(crate) fn maps() -> Target {
    let seeds = [
        ("both", r#"{"1": 0, "3": 2}"#),
        ("apart", r#"{"key_map": {"1": 0, "2": 1}, "value_map": {"3": 0}}"#),
        ("types", "0_1_1_3"),
    ];
    Target {
        name: "maps",
        seeds: seeds.map(|(name, text)| Seed::new(name, [file("map", text)])).into(),
        judge: |folder, name| {
            let path = folder.join("map");
            let types = (name == "types").then(|| String::from_utf8_lossy(&super::read(&path)).into_owned());
            let spec = SearchSpec {
                share: Share::Layers(1),
                strategy: vec![StrategyName::Fixed],
                map: types.is_none().then_some(path),
                layer_types: types,
                fit: Fit::default(),
                ..SearchSpec::default()
            };
            spec.strategy(LAYERS, 0).map(drop).map_err(told)
        },
        memory: (64, 1 << 20),
    }
}
