//! Prompts of different lengths in one batch, the shorter ones padded in front, equal runs of their own.
//!
//! Left out, for good reasons: budgets that are shares of the prompt, and pyramids that depend on its length, as both
//! count the longest row; methods that evict every few tokens, where a row is shorter than the budget, as all rows are
//! reduced when the longest one is due; quantised storage, whose blocks begin with the padding.

use crate::support::{LAYERS, Shared, kept, model};
use burn::tensor::Device;
use kvsharer_compress::parse_policy;
use kvsharer_compress::testing::ROWS;
use kvsharer_core::testing::{ToyModel, max_difference};
use kvsharer_core::{Cache, SearchModel, Stack};

const PROMPTS: [usize; 4] = [20, 13, 9, 17];
const LONGEST: usize = 20;
const STEPS: usize = 12;

fn cache<'p>(model: &ToyModel, spec: &str, shared: Shared, batch: usize, tokens: usize) -> Cache<'p> {
    let stack = Stack::new().with(shared.sharing()).with(parse_policy(spec).unwrap());
    Cache::new(model.shape(), stack, model.cache_options(batch, tokens), &Device::flex()).unwrap()
}

/// No token twice in a row: the norms of their keys would differ by rounding alone, which depends on the position.
fn row(prompt: usize) -> Vec<u32> {
    let token = |at: usize| ((at * 17 + prompt * 3) % ToyModel::VOCAB) as u32;
    // What stands in the padding must not matter.
    (0..LONGEST + STEPS).map(|at| if at < LONGEST - prompt { 7 } else { token(at) }).collect()
}

#[test]
fn rows_of_a_padded_batch_equal_runs_of_their_own() {
    let model = model();
    let rows = PROMPTS.map(row);
    let padding = PROMPTS.map(|prompt| LONGEST - prompt);
    for spec in ROWS.iter().flat_map(|row| row.padded) {
        for shared in Shared::ALL {
            let mut batch = cache(&model, spec, shared, PROMPTS.len(), LONGEST + STEPS);
            let mut single = PROMPTS.map(|prompt| cache(&model, spec, shared, 1, prompt + STEPS));
            for step in 0..=STEPS {
                let (start, end) = if step == 0 { (0, LONGEST) } else { (LONGEST + step - 1, LONGEST + step) };
                batch.begin_padded(end - start, if step == 0 { &padding } else { &[] }).unwrap();
                let outputs = model.forward(&rows, start..end, &mut batch).unwrap();
                for (row, single) in single.iter_mut().enumerate() {
                    let pad = padding[row];
                    let pass = start.saturating_sub(pad)..end - pad;
                    single.begin(pass.len()).unwrap();
                    let expected = model.forward(&[rows[row][pad..].to_vec()], pass.clone(), single).unwrap();
                    let found = outputs.clone().slice([row..row + 1, end - start - pass.len()..end - start]);
                    let error = max_difference(found, expected);
                    assert!(error <= 1e-4, "{spec}, shared: {shared:?}: {error} in row {row} at step {step}");
                    for layer in 0..LAYERS {
                        let own = kept(single, layer);
                        let mut found = kept(&batch, layer).split_off(row * own.len());
                        found.truncate(own.len());
                        found.iter_mut().flatten().for_each(|position| *position -= pad as i64);
                        assert_eq!(found, own, "{spec}, shared: {shared:?}: row {row}, step {step}, layer {layer}");
                    }
                }
            }
        }
    }
}
