//! The exported module against ours, in transformers itself: logits of a prefill and of decode steps, and bytes.
//!
//! Needs a Python with torch and transformers: `KVSHARER_PYTHON`, or else `python3`. Without one the tests say so and
//! pass; what is written is tested without Python in `cli_export.rs`.
#![allow(clippy::print_stderr)]

use burn::tensor::{DType, Device, Distribution, Tensor};
use kvsharer_core::{
    Adapter, Cache, CalibrationRecord, Fit, Gate, LayerId, Mix, SearchModel, SearchRecord, Stack, Strategy, Turn, Units,
};
use kvsharer_eval::export::{Export, ExportTarget};
use kvsharer_models::{DEFAULT_MODEL, ModelFiles, open_model};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

type Map<'a> = &'a [(usize, usize)];

/// A Python that can run the module.
fn python() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("KVSHARER_PYTHON").unwrap_or_else(|| "python3".into()));
    let found = Command::new(&python).args(["-c", "import torch, transformers"]).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        eprintln!("skipped: {} has no torch and transformers (set KVSHARER_PYTHON)", python.display());
    }
    found.then_some(python)
}

fn strategy(files: &ModelFiles, keys: Map<'_>, values: Map<'_>) -> Strategy {
    let map = |map: Map<'_>| map.iter().map(|&(b, d)| (LayerId(b), LayerId(d))).collect();
    Strategy {
        version: 1,
        model: files.fingerprint().unwrap(),
        key_map: map(keys),
        value_map: map(values),
        search: SearchRecord {
            name: "fixed".into(),
            units: Units::Apart,
            order: None,
            distance: None,
            gate: Gate::Code,
            objective: "nll".into(),
            threshold: None,
            seed: None,
            fit: Fit::None,
            held_back: 0.0,
        },
        calibration: CalibrationRecord { hash: String::new(), samples: 0, tokens: 0 },
        dropped: Vec::new(),
        adapters: BTreeMap::new(),
        adapter_file: None,
        distances: vec![],
        trials: Vec::new(),
        steps: Vec::new(),
        reached: keys.len(),
        requested: keys.len(),
        saved: 0.0,
        library: "test".into(),
    }
}

/// What both programs are asked.
fn question(vocab: usize) -> (Vec<Vec<u32>>, Vec<u32>) {
    let id = |row: u32, i: u32| (i * i * 31 + i * 7 + row * 13 + 3) % vocab as u32;
    let prompt = (0..2).map(|row| (0..24).map(|i| id(row, i)).collect()).collect();
    (prompt, (0..6).map(|i| id(5, i)).collect())
}

/// Ours: logits `[batch, prompt + step, vocab]` and the bytes that the cache needs for these tokens.
fn ours(files: &ModelFiles, strategy: &Strategy, path: &Path) -> (Vec<f32>, usize) {
    let device = Device::flex();
    let model = files.load(&device, DType::F32).unwrap();
    let model = model.folded(&strategy.load_adapters(path, &device).unwrap()).unwrap();
    let (prompt, steps) = question(files.config().vocab);
    let tokens = prompt[0].len() + steps.len();
    let stack = Stack::new().with(strategy.sharing().unwrap());
    let mut cache = Cache::new(model.shape(), stack, model.cache_options(prompt.len(), tokens), &device).unwrap();
    let rows: Vec<&[u32]> = prompt.iter().map(Vec::as_slice).collect();
    let mut parts = vec![model.logits(model.forward(&rows, &mut cache).unwrap())];
    for step in steps {
        let hidden = model.forward(&vec![[step].as_slice(); rows.len()], &mut cache).unwrap();
        parts.push(model.logits(hidden));
    }
    (Tensor::cat(parts, 1).try_into_vec_as::<f32>().unwrap(), cache.bytes())
}

/// Theirs, of a Hugging Face folder and a folder with the module.
fn theirs(python: &Path, folder: &Path, module: &Path, attention: &str, vocab: usize) -> (Vec<f32>, Value) {
    let (prompt, steps) = question(vocab);
    let out = tempfile::NamedTempFile::new().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/export_logits.py");
    let mut child = Command::new(python)
        .arg(script)
        .args([folder, module])
        .arg(attention)
        .arg(out.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let question = json!({ "prompt": prompt, "steps": steps }).to_string();
    child.stdin.take().unwrap().write_all(question.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    let last = printed.lines().last().unwrap();
    let bytes = std::fs::read(out.path()).unwrap();
    let logits = bytes.as_chunks::<4>().0.iter().map(|&x| f32::from_le_bytes(x)).collect();
    (logits, serde_json::from_str(last).unwrap())
}

/// Exports `strategy` and the model's folder, and compares both programs.
fn compare(python: &Path, files: &ModelFiles, strategy: &Strategy, maps: &BTreeMap<String, Adapter>, attention: &str) {
    let work = tempfile::tempdir().unwrap();
    let (path, folder, module) =
        (work.path().join("strategy.json"), work.path().join("hf"), work.path().join("module"));
    let strategy = strategy.save_with(&path, maps).unwrap();
    let write = |target, output: &Path| {
        let export = Export { target, strategy: Some((&strategy, &path)), model: Some(files), dtype: DType::F32 };
        export.write(output, false, &Device::flex()).unwrap()
    };
    write(ExportTarget::HuggingFace, &folder);
    let exported = write(ExportTarget::Transformers, &module);
    // A strategy with fitted maps comes with the weights that they are in.
    assert_eq!((exported.folded, module.join("model").exists()), (!maps.is_empty(), !maps.is_empty()));
    let folder = if exported.folded { module.join("model") } else { folder };
    let (logits, bytes) = ours(files, &strategy, &path);
    let (reference, told) = theirs(python, &folder, &module, attention, files.config().vocab);
    assert_eq!(logits.len(), reference.len());
    let error = logits.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    eprintln!("{}, {attention}: largest difference {error:.1e}, {told}", files.name());
    assert!(error < 1e-3, "{error}");
    let config = files.config();
    let projection = config.kv_heads * config.head_dim * config.hidden;
    let borrowed = strategy.key_map.len() + strategy.value_map.len();
    let windowed = config.windows.iter().any(Option::is_some);
    // They keep one token less than a window, and as much of everything else as our plan says.
    assert!(windowed || told["bytes"] == bytes, "{told}, ours {bytes}");
    assert!(told["freed"].as_u64().unwrap() as usize >= borrowed * projection, "{told}");
    assert!(told["without_cache"].as_f64().unwrap() < 1e-3, "{told}");
    assert!(told["refused"].as_array().unwrap().iter().all(Value::is_string), "{told}");
}

#[test]
fn the_module_gives_our_logits_in_our_bytes() {
    let Some(python) = python() else { return };
    let files = open_model("random:tiny", 3).unwrap();
    let both: Map<'_> = &[(2, 0), (3, 1)];
    for (keys, values) in [(both, both), (&[(3, 0)], &[(1, 0), (2, 0)]), (&[], both)] {
        compare(&python, &files, &strategy(&files, keys, values), &BTreeMap::new(), "sdpa");
    }
    compare(&python, &files, &strategy(&files, both, both), &BTreeMap::new(), "eager");
}

#[test]
fn fitted_maps_are_in_the_exported_weights() {
    let Some(python) = python() else { return };
    let files = open_model("random:tiny", 3).unwrap();
    let (config, device) = (files.config(), Device::flex());
    let (kv, dim) = (config.kv_heads, config.head_dim);
    let random = Distribution::Normal(0.0, 0.3);
    let turn = Turn {
        real: Tensor::random([kv, dim / 2], random, &device),
        imaginary: Tensor::random([kv, dim / 2], random, &device),
    };
    let mix = Mix::Heads {
        weight: Tensor::random([kv, dim, dim], random, &device),
        bias: Tensor::random([kv, dim], random, &device),
    };
    let map = Adapter { heads: Some((0..kv).rev().collect()), turn: Some(turn), mix: Some(mix) };
    let mut strategy = strategy(&files, &[(3, 1)], &[(3, 1)]);
    strategy.adapters = BTreeMap::from([(LayerId(3), "3".to_owned())]);
    compare(&python, &files, &strategy, &BTreeMap::from([("3".to_owned(), map)]), "sdpa");
}

#[test]
fn families_with_windows_norms_and_biases_share_too() {
    let Some(python) = python() else { return };
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kvsharer-models/tests/fixtures/families");
    for (case, map) in [
        ("llama_biases", &[(2, 0), (3, 1)]),
        ("mistral", &[(2, 0), (3, 1)]),
        ("qwen2_window", &[(1, 0), (3, 2)]),
        ("qwen3", &[(2, 0), (3, 1)]),
        ("gemma3", &[(4, 1), (6, 0)]),
    ] {
        let files = ModelFiles::open_folder(&families.join(case)).unwrap();
        compare(&python, &files, &strategy(&files, map, map), &BTreeMap::new(), "sdpa");
    }
}

#[test]
fn smollm2_shares_in_transformers_as_it_does_here() {
    let Some(python) = python() else { return };
    let files = open_model(DEFAULT_MODEL, 0).unwrap();
    let map: Map<'_> = &[(11, 9), (16, 9), (18, 9), (19, 9), (21, 9), (25, 9), (27, 9), (28, 9)];
    compare(&python, &files, &strategy(&files, map, map), &BTreeMap::new(), "sdpa");
}
