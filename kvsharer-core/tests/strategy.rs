//! Strategy files: what is written is read, what is broken is refused with the reason, nothing panics.

use burn::tensor::{Device, Distribution, Tensor};
use kvsharer_core::testing::{ToyModel, max_difference, toy_tokens};
use kvsharer_core::{Adapter, AdapterFile, AdaptersError, Fit, Greedy, LayerId, Objective, Units};
use kvsharer_core::{
    CalibrationSet, Fingerprint, Paper, Progress, SearchOptions, Strategy, StrategyError, Trial, search,
    write_atomically,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

fn fingerprint() -> Fingerprint {
    Fingerprint { architecture: "llama".into(), layers: 30, heads: 9, kv_heads: 3, head_dim: 64, hash: "abc".into() }
}

/// A paper search on a toy model, with a map that the tests below speak of.
static STRATEGY: LazyLock<Strategy> = LazyLock::new(|| {
    let model = ToyModel::new(6, 4, 2, 8, 5, &Device::flex());
    let set = CalibrationSet::new([vec![1, 2, 3], vec![4]], 2).unwrap();
    let (ungated, options) = (Paper { threshold: -1.0, ..Paper::default() }, SearchOptions::new(2));
    let found = search(&model, &set, &ungated, &options, &mut |_: Progress<'_>| {}).unwrap();
    let map = BTreeMap::from([(LayerId(7), LayerId(3)), (LayerId(9), LayerId(3))]);
    let strategy = Strategy::new(fingerprint(), &set, &ungated, &options, &found);
    let first = Trial {
        borrower: LayerId(7),
        donor: LayerId(3),
        distance: Some(1.5),
        similarity: Some(0.75),
        ..strategy.trials[0]
    };
    Strategy { key_map: map.clone(), value_map: map, trials: vec![first], requested: 3, ..strategy }
});

fn strategy() -> Strategy {
    STRATEGY.clone()
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("strategy.json");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn load(text: &str) -> Result<Strategy, StrategyError> {
    let (_folder, path) = written(text);
    Strategy::load(&path)
}

#[test]
fn a_strategy_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.json");
    strategy().save(&path).unwrap();
    assert_eq!(Strategy::load(&path).unwrap(), strategy());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn the_agreed_fields_are_there_by_name() {
    let json = serde_json::to_value(strategy()).unwrap();
    assert_eq!(json["key_map"], serde_json::json!({"7": 3, "9": 3}));
    assert_eq!(json["value_map"], json["key_map"]);
    assert_eq!(json["search"]["name"], "paper");
    assert_eq!(json["search"]["order"], "dissimilar");
    assert_eq!(json["search"]["distance"], "code");
    for field in ["objective", "threshold", "seed"] {
        assert!(!json["search"][field].is_null(), "{field}");
    }
    assert_eq!((&json["calibration"]["samples"], &json["calibration"]["tokens"]), (&2.into(), &3.into()));
    assert_eq!(
        json["trials"][0],
        serde_json::json!(
            {"borrower": 7, "donor": 3, "units": "both", "distance": 1.5, "similarity": 0.75, "accepted": true}
        )
    );
    assert_eq!((&json["reached"], &json["requested"], &json["version"]), (&2.into(), &3.into(), &1.into()));
}

#[test]
fn a_strategy_for_another_model_is_refused_with_the_difference() {
    let other = Fingerprint { layers: 32, hash: "def".into(), ..fingerprint() };
    let message = strategy().check(&other).unwrap_err().to_string();
    assert!(message.contains("number of layers is 30, the loaded model's is 32"), "{message}");
    let retrained = Fingerprint { hash: "def".into(), ..fingerprint() };
    assert!(strategy().check(&retrained).unwrap_err().to_string().contains("weight hash"));
    assert!(strategy().check(&fingerprint()).is_ok());
}

#[test]
fn chains_written_by_hand_are_resolved_and_impossible_maps_are_refused() {
    let with_map = |map: &str| {
        let mut json = serde_json::to_value(strategy()).unwrap();
        json["key_map"] = serde_json::from_str(map).unwrap();
        load(&json.to_string())
    };
    let chain = with_map(r#"{"9": 7, "7": 3, "12": 9}"#).unwrap();
    assert!(chain.key_map.values().all(|donor| *donor == LayerId(3)));
    for (map, expected) in [
        (r#"{"3": 7}"#, "a donor must come before its borrower"),
        (r#"{"5": 5}"#, "a donor must come before its borrower"),
        (r#"{"30": 2}"#, "layer 30 does not exist: the model has layers 0 to 29"),
    ] {
        let message = with_map(map).unwrap_err().to_string();
        assert!(message.contains(expected), "{map}: {message}");
    }
}

#[test]
fn a_step_serves_as_a_strategy_at_its_share_of_bytes() {
    let strategy = strategy();
    let at = strategy.at(0.1).unwrap();
    assert_eq!((at.key_map.len(), at.reached), (1, 1));
    assert!((at.saved - 1.0 / 6.0).abs() < 1e-12);
    let message = strategy.at(0.5).unwrap_err().to_string();
    assert!(message.contains("saves at most 33.3 % of the KV bytes, not 50.0 %"), "{message}");
}

#[test]
fn fitted_maps_survive_their_file_and_another_file_is_refused() {
    let model = ToyModel::new(6, 4, 2, 8, 5, &Device::flex());
    let set = CalibrationSet::new(toy_tokens(4, 12, 1), 12).unwrap();
    for (fit, permute_heads, rank) in [(Fit::Heads, true, None), (Fit::Full, false, None), (Fit::Full, true, Some(3))] {
        let options = SearchOptions {
            objective: Objective::LogitKl,
            fit,
            rank,
            permute_heads,
            units: Units::Apart,
            ..SearchOptions::new(2)
        };
        let greedy = Greedy { width: Some(3) };
        let found = search(&model, &set, &greedy, &options, &mut |_: Progress<'_>| {}).unwrap();
        let shape = Fingerprint { layers: 6, heads: 4, kv_heads: 2, head_dim: 8, ..fingerprint() };
        let strategy = Strategy::new(shape, &set, &greedy, &options, &found);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.json");
        strategy.save_with(&path, &found.adapters).unwrap();
        let loaded = Strategy::load(&path).unwrap();
        let adapters = loaded.load_adapters(&path, &Device::flex()).unwrap();
        assert_eq!(adapters.len(), found.draft.adapters().len());
        let query = Tensor::<4>::random([1, 4, 3, 8], Distribution::Default, &Device::flex());
        for (layer, adapter) in &adapters {
            let own = &found.draft.adapters()[layer];
            assert_eq!(adapter.heads, own.heads);
            for apply in [Adapter::before, Adapter::after] {
                assert!(max_difference(apply(adapter, query.clone()), apply(own, query.clone())) < 1e-6);
            }
        }
        let maps = folder.path().join("s.safetensors");
        let mut bytes = std::fs::read(&maps).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&maps, &bytes).unwrap();
        assert!(matches!(loaded.load_adapters(&path, &Device::flex()), Err(AdaptersError::Hash { .. })));
        std::fs::remove_file(&maps).unwrap();
        let message = loaded.load_adapters(&path, &Device::flex()).unwrap_err().to_string();
        assert!(message.contains("belongs beside it"), "{message}");
    }
}

#[test]
fn fitted_maps_are_read_from_the_strategys_own_folder_only() {
    for name in ["../x.safetensors", "/etc/passwd", "a/b", "..", ""] {
        let mut strategy = strategy();
        strategy.adapters = BTreeMap::from([(LayerId(7), "step0.layer7".into())]);
        strategy.adapter_file = Some(AdapterFile { name: name.into(), sha256: String::new() });
        let error = strategy.load_adapters(std::path::Path::new("/tmp/s.json"), &Device::flex()).unwrap_err();
        assert!(matches!(error, AdaptersError::Name(_)), "{name}: {error}");
    }
}

#[test]
fn two_searches_part_at_the_first_trial_they_judge_otherwise() {
    let ours = strategy();
    assert!(ours.parts_from(&ours).is_none());
    let mut theirs = ours.clone();
    theirs.trials[0].accepted ^= true;
    assert_eq!(ours.parts_from(&theirs).map(|(index, ..)| index), Some(0));
    theirs.trials.clear();
    assert_eq!(ours.parts_from(&theirs), Some((0, Some(&ours.trials[0]), None)));
}

#[test]
fn other_versions_and_other_files_are_refused() {
    let later = serde_json::to_string(&strategy()).unwrap().replace("\"version\":1", "\"version\":2");
    assert!(matches!(load(&later), Err(StrategyError::Version { found: 2, .. })));
    for text in ["", "{}", "[]", "null", "{\"version\":1}", "not json"] {
        let message = load(text).unwrap_err().to_string();
        assert!(message.contains("strategy.json: not a strategy file"), "{message}");
    }
}

#[cfg(unix)]
#[test]
fn an_atomic_write_goes_through_links_and_into_devices() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    std::fs::write(&file, "old").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    write_atomically(&link, b"new").unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"new");
    assert!(link.is_symlink());
    write_atomically(std::path::Path::new("/dev/null"), b"gone").unwrap();
    assert!(!std::path::Path::new("/dev/null").is_file());
}

#[test]
fn an_atomic_write_leaves_the_old_file_when_it_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing").join("file");
    assert!(write_atomically(&path, b"new").is_err());
    let path = folder.path().join("file");
    write_atomically(&path, b"old").unwrap();
    write_atomically(&path, b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Bytes changed, cut, doubled: an error or a strategy whose map is valid.
    #[test]
    fn a_mutated_strategy_never_panics_and_never_gives_an_invalid_map(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        number in proptest::option::of((any::<prop::sample::Index>(), any::<i64>())),
    ) {
        let mut text = serde_json::to_vec(&strategy()).unwrap();
        if let Some((at, number)) = number {
            let at = at.index(text.len());
            text.splice(at..at, number.to_string().into_bytes());
        }
        for (at, byte) in edits {
            let at = at.index(text.len());
            text[at] = byte;
        }
        if let Some(cut) = cut {
            text.truncate(cut.index(text.len() + 1));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.json");
        std::fs::write(&path, &text).unwrap();
        if let Ok(strategy) = Strategy::load(&path) {
            for map in [&strategy.key_map, &strategy.value_map] {
                prop_assert!(map.iter().all(|(borrower, donor)| donor < borrower && !map.contains_key(donor)));
            }
            prop_assert!(strategy.sharing().is_ok());
        }
    }
}
