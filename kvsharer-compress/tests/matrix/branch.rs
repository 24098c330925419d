//! Going on from one prefix in several ways equals running every text from its start.

use crate::support::{BATCH, LAYERS, PROMPT, STEPS, go_on, kept, model, pairs, tokens};
use burn::tensor::Tensor;
use kvsharer_core::testing::max_difference;
use kvsharer_core::{Cache, Lengths};

/// Rows that branches go on from.
const ROWS: [usize; 3] = [1, 0, 1];

#[test]
fn branches_go_on_as_their_rows_would_and_leave_the_prefix_alone() {
    let model = model();
    let texts = tokens();
    let branched: Vec<Vec<u32>> = ROWS.map(|row| texts[row].clone()).into();
    // Halfway through decoding too, when cells have been freed and filled again.
    for before in [&[PROMPT][..], &[17, 23], &[PROMPT, 1, 1, 1, 1, 1]] {
        for case in pairs(|row| row.small) {
            let mut cache = case.cache(&model, case.stack(), Some(PROMPT));
            go_on(&case, &model, before, &mut cache);
            let mut branches = cache.branch(&ROWS).unwrap_or_else(|error| panic!("{case}: {error}"));
            let tokens_left = PROMPT + STEPS - cache.seen();
            let step = |cache: &mut Cache<'_>, rows: &[Vec<u32>]| {
                let outputs = (0..tokens_left).map(|_| {
                    let at = cache.seen();
                    cache.begin(1).unwrap();
                    model.forward(rows, at..at + 1, cache).unwrap()
                });
                Tensor::cat(outputs.collect(), 1)
            };
            let found = step(&mut branches, &branched);
            let expected = step(&mut cache, &texts);
            for (branch, row) in ROWS.into_iter().enumerate() {
                let error = max_difference(
                    found.clone().slice_dim(0, branch..branch + 1),
                    expected.clone().slice_dim(0, row..row + 1),
                );
                assert!(error <= 1e-5, "{case}: {error} in branch {branch}");
            }
            for layer in 0..LAYERS {
                let (all, own) = (kept(&branches, layer), kept(&cache, layer));
                let heads = own.len() / BATCH;
                for (branch, row) in ROWS.into_iter().enumerate() {
                    assert_eq!(all[branch * heads..][..heads], own[row * heads..][..heads], "{case}: layer {layer}");
                }
            }
            let planned = case.plan(&model).bytes(1, Lengths::new(PROMPT, PROMPT + STEPS), case.dtype.size());
            assert_eq!(branches.bytes(), ROWS.len() * planned, "{case}");
        }
    }
}
