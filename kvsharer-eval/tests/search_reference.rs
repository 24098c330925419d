//! The paper's search against an independent PyTorch implementation, on SmolLM2 with the embedded calibration text;
//! the fixture lies beside the script that made it.

use burn::tensor::{DType, Device};
use kvsharer_core::{CalibrationSet, Distance, Found, LayerId, Order, Pair, Paper, Progress, SearchOptions, search};
use kvsharer_eval::texts;
use kvsharer_models::{DEFAULT_MODEL, open_model};
use serde_json::Value;
use std::collections::HashMap;

/// Trials compared of the run that rejects many; the reference has 120.
const REJECTING_TRIALS: usize = 16;

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/kvsharer_reference.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn index(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// Distances of one variant by (donor, borrower).
fn distances(golden: &Value, variant: &str, kind: &str) -> HashMap<(usize, usize), f64> {
    let rows = golden["distances"][variant][kind].as_array().unwrap();
    let cells = rows.iter().enumerate().flat_map(|(i, row)| {
        row.as_array().unwrap().iter().enumerate().map(move |(k, value)| ((i, i + 1 + k), value.as_f64().unwrap()))
    });
    cells.collect()
}

fn close(found: f64, expected: f64, relative: f64, what: &str) {
    assert!((found - expected).abs() <= relative * expected.abs(), "{what}: {found} instead of {expected}");
}

fn compare_distances(golden: &Value, variant: &str, ranking: &[Pair]) {
    assert_eq!(ranking.len(), 435);
    let (keys, values, mean) =
        (distances(golden, variant, "keys"), distances(golden, variant, "values"), distances(golden, variant, "mean"));
    for pair in ranking {
        let at = (pair.donor.0, pair.borrower.0);
        close(pair.key, keys[&at], 1e-4, "key distance");
        close(pair.value, values[&at], 1e-4, "value distance");
        close(kvsharer_core::Units::Both.distance(pair), mean[&at], 1e-4, "distance");
    }
}

/// The same order, but for neighbours that f32 cannot tell apart.
fn compare_ranking(golden: &Value, variant: &str, run: &Value, ranking: &[Pair]) {
    let mean = distances(golden, variant, "mean");
    let reference = run["ranked"].as_array().unwrap();
    let mut swapped = 0;
    for (rank, (pair, expected)) in ranking.iter().zip(reference).enumerate() {
        let (found, expected) = ((pair.donor.0, pair.borrower.0), (index(&expected[0]), index(&expected[1])));
        swapped += usize::from(found != expected);
        close(mean[&found], mean[&expected], 5e-6, &format!("rank {rank}: {found:?} instead of {expected:?}"));
    }
    assert!(swapped <= 8, "{swapped} pairs stand at another rank");
}

fn compare_trials(run: &Value, found: &Found) {
    let reference = run["trials"].as_array().unwrap();
    for (trial, expected) in found.trials.iter().zip(reference) {
        let (borrower, donor) = (index(&expected[0]), index(&expected[1]));
        assert_eq!((trial.borrower, trial.donor), (LayerId(borrower), LayerId(donor)));
        close(trial.distance.unwrap(), expected[2].as_f64().unwrap(), 1e-4, "distance");
        let similarity = expected[3].as_f64().unwrap();
        assert!((trial.similarity.unwrap() - similarity).abs() < 1e-3, "{trial:?}, expected {similarity}");
        assert_eq!(trial.accepted, expected[4].as_bool().unwrap(), "{trial:?}");
    }
}

#[test]
fn distances_order_trials_and_map_are_those_of_the_reference() {
    let golden = golden();
    let files = open_model(DEFAULT_MODEL, 0).unwrap();
    let tokenizer = files.tokenizer().unwrap();
    let lines: Vec<&str> = texts::samples(texts::CALIBRATION).take(30).collect();
    let set = CalibrationSet::new(tokenizer.encode_batch(&lines).unwrap(), 64).unwrap();
    let ids: Vec<Vec<u32>> = serde_json::from_value(golden["calibration"]["ids"].clone()).unwrap();
    assert_eq!(set.samples(), ids, "the calibration text changed: run kvsharer_reference.py again");
    let model = files.load(&Device::flex(), DType::F32).unwrap();

    for run in golden["runs"].as_array().unwrap() {
        let variant = run["distance"].as_str().unwrap();
        let rejecting = !run["max_trials"].is_null();
        let paper = Paper {
            distance: if variant == "code" { Distance::Code } else { Distance::Paper },
            order: if run["order"] == "similar" { Order::Similar } else { Order::Dissimilar },
            threshold: run["threshold"].as_f64().unwrap(),
            seed: 0,
        };
        let options = SearchOptions {
            batch: 15,
            max_trials: rejecting.then_some(REJECTING_TRIALS),
            ..SearchOptions::new(index(&run["requested"]))
        };
        let found = search(&model, &set, &paper, &options, &mut |_: Progress<'_>| {}).unwrap();
        compare_distances(&golden, variant, &found.ranking);
        if !run["ranked"].is_null() {
            compare_ranking(&golden, variant, run, &found.ranking);
        }
        compare_trials(run, &found);
        // No trial runs a layer below the one it touches.
        let touched: usize = found.trials.iter().map(|trial| 30 - trial.borrower.0).sum();
        assert_eq!(found.layers_run, 30 + touched);
        if rejecting {
            assert_eq!(found.trials.len(), REJECTING_TRIALS);
            assert!(found.trials.iter().any(|trial| !trial.accepted), "this run is here for its rejections");
            continue;
        }
        assert_eq!(found.trials.len(), run["trials"].as_array().unwrap().len());
        let map: HashMap<String, usize> = serde_json::from_value(run["map"].clone()).unwrap();
        let ours: HashMap<String, usize> =
            found.draft.sharing().keys().iter().map(|(b, d)| (b.to_string(), d.0)).collect();
        assert_eq!(ours, map);
    }
}
