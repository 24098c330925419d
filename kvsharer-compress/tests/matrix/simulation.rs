//! Donor and readers keep the same tokens, keys and values alike: outputs are those of a plain simulation on the host
//! that holds everything and looks at exactly the tokens that [`Cache::kept`] lists.

use crate::support::{Case, PROMPT, STEPS, Shared, TOKENS, cases, in_f32, model, pairs, tokens};
use burn::tensor::{DType, Device};
use kvsharer_compress::parse_policy;
use kvsharer_core::testing::{follow, toy_tokens};
use kvsharer_core::{Cache, SearchModel};

/// Runs `passes` in a cache and beside it in the mirror of the model.
fn compare(case: &Case, mut cache: Cache<'_>, tokens: &[Vec<u32>], padding: &[usize], passes: &[usize]) {
    let found = follow(&model(), &case.shared.sharing(), &mut cache, tokens, padding, passes);
    let found = found.unwrap_or_else(|error| panic!("{case}: {error:?}"));
    assert!(found.worst <= tolerance(case), "{case}: {found:?}");
}

/// A neighbour in the place of one token makes a difference of 0.15 or more in each of these cases.
fn tolerance(case: &Case) -> f64 {
    match case.storage.unwrap_or(case.spec) {
        storage if storage.contains("bits=8") => 0.02,
        // Steps of a fifteenth of the range of values.
        storage if storage.contains("bits=4") => 0.2,
        _ if case.dtype == DType::F16 => 5e-3,
        _ => 1e-4,
    }
}

#[test]
fn every_layer_attends_to_exactly_the_tokens_that_are_kept() {
    let model = model();
    for case in cases(|row| row.small) {
        let cache = case.cache(&model, case.stack(), None);
        compare(&case, cache, &tokens(), &[], &[&[PROMPT][..], &[1; STEPS]].concat());
    }
}

#[test]
fn every_layer_attends_to_exactly_the_tokens_that_are_kept_in_passes_of_any_size() {
    // After the prompt too: some fit the cells that evictions freed, some do not.
    let passes = [9, 21, 4, 1, 1, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1];
    let model = model();
    for case in in_f32(pairs(|row| row.small)) {
        compare(&case, case.cache(&model, case.stack(), None), &tokens(), &[], &passes);
    }
}

#[test]
fn every_row_of_a_padded_batch_attends_to_exactly_the_tokens_that_are_kept() {
    let model = model();
    let prompts = [PROMPT, 3, 31];
    let padding = prompts.map(|prompt| PROMPT - prompt);
    for (index, case) in in_f32(pairs(|row| row.small)).into_iter().enumerate() {
        // Three of four, so that all sharings and storages still have their turn.
        if index % 4 != 0 {
            let options = model.cache_options(prompts.len(), TOKENS);
            let cache = Cache::new(model.shape(), case.stack(), options, &Device::flex()).unwrap();
            let tokens = toy_tokens(prompts.len(), TOKENS, 8);
            compare(&case, cache, &tokens, &padding, &[&[PROMPT][..], &[1; STEPS]].concat());
        }
    }
}

/// The second one meets what the first one left, within a pass and before the next: scores and cells must follow.
#[test]
fn evictors_in_order_leave_exactly_the_tokens_that_are_kept() {
    let model = model();
    for [first, second] in [
        ["h2o:heavy=11,recent=11", "random:budget=12"],
        ["random:budget=22", "tova:budget=17"],
        ["window:budget=22", "tova:budget=17"],
        ["window:budget=15", "h2o:heavy=11,recent=11"],
        ["h2o:variant=observed,budget=50%", "window:budget=15,protect=2"],
        ["snapkv:budget=22,window=6,decode=evict", "window:budget=15"],
        ["knorm:budget=22", "streaming-llm:sinks=2,window=12,positions=original"],
        ["streaming-llm:sinks=3,window=19", "streaming-llm:sinks=3,window=9"],
    ] {
        for [spec, other] in [[first, second], [second, first]] {
            // The prompt in one pass, or 34 tokens of it in three, which some evictors wait for if they know.
            let one = [&[PROMPT][..], &[1; STEPS]].concat();
            let three = [9, 21, 4, 1, 1, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1];
            for (passes, padding, prompt) in
                [(&one[..], &[0, 6][..], None), (&three, &[], None), (&three, &[], Some(34))]
            {
                let case = Case { spec, shared: Shared::Values, storage: None, dtype: DType::F32 };
                let stack = case.stack().with(parse_policy(other).unwrap()).evict_in_order();
                compare(&case, case.cache(&model, stack, prompt), &tokens(), padding, passes);
            }
        }
    }
}
