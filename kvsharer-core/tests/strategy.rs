//! Strategy files: what is written is read, what is broken is refused with the reason, nothing panics.

use kvsharer_core::{
    CalibrationSet, Fingerprint, Found, Kv, LayerId, LayerMap, SearchOptions, Strategy, StrategyError, Trial,
    write_atomically,
};
use proptest::prelude::*;
use std::path::PathBuf;

fn fingerprint() -> Fingerprint {
    Fingerprint { architecture: "llama".into(), layers: 30, heads: 9, kv_heads: 3, head_dim: 64, hash: "abc".into() }
}

fn strategy() -> Strategy {
    let found = Found {
        map: LayerMap::resolve(Kv::Key, [(7, 3), (9, 3)]).unwrap(),
        ranking: Vec::new(),
        trials: vec![Trial {
            borrower: LayerId(7),
            donor: LayerId(3),
            distance: 1.5,
            similarity: 0.75,
            accepted: true,
        }],
        layers_run: 53,
    };
    let set = CalibrationSet::new([vec![1, 2, 3], vec![4]], 2).unwrap();
    Strategy::new(fingerprint(), &set, &SearchOptions::new(3), &found)
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
        serde_json::json!({"borrower": 7, "donor": 3, "distance": 1.5, "similarity": 0.75, "accepted": true})
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
