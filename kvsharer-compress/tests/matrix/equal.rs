//! What makes no difference: the identity, budgets that hold everything, chunks of a prompt, starting over.

use crate::support::{Case, LAYERS, PROMPT, STEPS, Shared, cases, go_on, in_f32, kept, model, pairs, run};
use burn::tensor::{DType, Tensor};
use kvsharer_compress::parse_policy;
use kvsharer_compress::testing::{ROWS, Row};
use kvsharer_core::testing::max_difference;
use kvsharer_core::{Budget, EvidenceKind, Group, LayerKvPolicy};
use std::collections::HashMap;

const WHOLE: &[usize] = &[PROMPT];
const CHUNKS: &[usize] = &[17, 1, 19, 3];
const SINGLE: &[usize] = &[1; PROMPT];

/// Keeps everything, but looks at what every query attends to, so that the same attention path runs as for policies
/// that go by key mass.
struct Watcher;

impl LayerKvPolicy for Watcher {
    fn name(&self) -> String {
        "watcher".into()
    }
    fn budget(&self, _group: &Group) -> Option<Budget> {
        Some(Budget::tokens(usize::MAX))
    }
    fn evidence(&self, _group: &Group) -> EvidenceKind {
        EvidenceKind::KeyMass
    }
}

fn only_full(row: &Row) -> &'static [&'static str] {
    if row.policy == "full" { row.small } else { &[] }
}

fn of_prompt(outputs: Tensor<3>) -> Tensor<3> {
    outputs.slice_dim(1, 0..PROMPT)
}

#[test]
fn the_identity_equals_no_policy_bit_for_bit() {
    let model = model();
    for case in cases(only_full) {
        for prompt in [WHOLE, CHUNKS] {
            let full = run(&case, &model, prompt, &mut case.cache(&model, case.stack(), None));
            let none = run(&case, &model, prompt, &mut case.cache(&model, case.base(), None));
            assert_eq!(max_difference(full, none), 0.0, "{case}");
        }
    }
}

#[test]
fn looking_at_the_key_mass_changes_outputs_by_rounding_alone() {
    let model = model();
    for case in in_f32(cases(only_full)).into_iter().filter(Case::in_full) {
        let full = run(&case, &model, WHOLE, &mut case.cache(&model, case.base(), None));
        let watched = run(&case, &model, WHOLE, &mut case.cache(&model, case.base().with(Watcher), None));
        let error = max_difference(watched, full);
        assert!(error <= 1e-5, "{case}: {error}");
    }
}

/// Bit for bit, as the full cache runs the same attention path: the fused one, or, for policies that go by key mass,
/// that of a watcher which keeps everything.
#[test]
fn a_budget_that_holds_everything_equals_the_full_cache_bit_for_bit() {
    let model = model();
    for (index, case) in cases(|row| row.ample).into_iter().enumerate() {
        let full = if case.spec.starts_with("quant") { case.stack() } else { case.base() };
        let full = if case.looks(&model) { full.with(Watcher) } else { full };
        let full = run(&case, &model, WHOLE, &mut case.cache(&model, full, None));
        // Whether its length is known before makes no difference to a prompt in one pass.
        let known = if index % 2 == 0 { None } else { Some(PROMPT) };
        let ample = run(&case, &model, WHOLE, &mut case.cache(&model, case.stack(), known));
        // A share of the prompt that does not grow holds the prompt and no more.
        let error = match case.evicts_before() && case.spec.contains('%') {
            true => max_difference(of_prompt(ample), of_prompt(full)),
            false => max_difference(ample, full),
        };
        assert_eq!(error, 0.0, "{case}, length of the prompt known: {known:?}");
    }
}

/// By rounding: blocks of queries have other lengths, and the full cache looks at no key mass. Full storage, as a
/// quantised full cache reads a chunk back in few bits, while policies that wait for the prompt do not.
#[test]
fn a_budget_that_holds_everything_equals_the_full_cache_for_a_prompt_in_chunks() {
    let model = model();
    for case in in_f32(cases(|row| row.ample)).into_iter().filter(Case::in_full) {
        let full = go_on(&case, &model, WHOLE, &mut case.cache(&model, case.base(), None));
        for prompt in [CHUNKS, SINGLE] {
            let ample = go_on(&case, &model, prompt, &mut case.cache(&model, case.stack(), Some(PROMPT)));
            let error = max_difference(ample, full.clone());
            assert!(error <= 1e-5, "{case}: {error}");
        }
    }
}

/// Why a combination may tell chunks of a prompt from a prompt in one pass.
fn tells_chunks(case: &Case) -> Option<&'static str> {
    let waits = !case.evicts_before() && case.spec != "full" && !case.spec.starts_with("quant");
    match case.spec {
        _ if case.evicts_before() => Some("room is made before each chunk, which sees less, as in the reference"),
        spec if spec.contains("group=max") => Some("a sum of maxima over a query group is not the maximum of sums"),
        spec if spec.contains("readers=max") => Some("a sum of maxima over readers is not the maximum of sums"),
        _ if !waits && !case.in_full() => Some("a chunk is read back in few bits by the next one"),
        // Else a policy that waits holds the prompt in full precision until it is complete, in any storage.
        _ => None,
    }
}

#[test]
fn chunks_of_a_prompt_of_known_length_make_no_difference() {
    let model = model();
    // For each reason of an exception, whether any case shows that it is one.
    let mut reasons: HashMap<&str, bool> = HashMap::new();
    for (index, case) in in_f32(pairs(|row| row.small)).into_iter().enumerate() {
        let prompt_and_steps = |prompt: &[usize]| {
            let mut cache = case.cache(&model, case.stack(), Some(PROMPT));
            let of_prompt = go_on(&case, &model, prompt, &mut cache);
            let kept: Vec<_> = (0..LAYERS).map(|layer| kept(&cache, layer)).collect();
            (of_prompt, kept, go_on(&case, &model, &[1; STEPS], &mut cache))
        };
        let (whole, whole_kept, whole_steps) = prompt_and_steps(WHOLE);
        let chunks = if index % 8 == 0 { SINGLE } else { CHUNKS };
        let (found, found_kept, found_steps) = prompt_and_steps(chunks);
        let error = max_difference(found, whole);
        if let Some(reason) = tells_chunks(&case) {
            *reasons.entry(reason).or_default() |= error > 1e-3 || found_kept != whole_kept;
            continue;
        }
        assert!(error <= 1e-5, "{case}, chunks {chunks:?}: {error}");
        assert_eq!(found_kept, whole_kept, "{case}, chunks {chunks:?}");
        // In few bits a rounding error may tip a code, and a code later a choice.
        let error = max_difference(found_steps, whole_steps);
        assert!(error <= 1e-4 || !case.in_full(), "{case}, chunks {chunks:?}: {error} after the prompt");
    }
    assert!(reasons.values().all(|&shown| shown), "a reason without a case: {reasons:?}");
}

#[test]
fn a_cache_that_starts_over_gives_the_same_bits() {
    let model = model();
    for case in pairs(|row| row.small) {
        let mut cache = case.cache(&model, case.stack(), None);
        let first = run(&case, &model, WHOLE, &mut cache);
        cache.reset();
        let again = run(&case, &model, WHOLE, &mut cache);
        assert_eq!(max_difference(again, first), 0.0, "{case}");
    }
}

/// Names are written into results: they must say everything.
#[test]
fn a_policy_made_from_its_own_name_gives_the_same_bits() {
    let model = model();
    for spec in ROWS.iter().flat_map(|row| row.small) {
        let case = Case { spec, shared: Shared::Both, storage: None, dtype: DType::F32 };
        let first = run(&case, &model, WHOLE, &mut case.cache(&model, case.stack(), None));
        let name = parse_policy(spec).unwrap().name();
        let again = case.base().with(parse_policy(&name).unwrap());
        let again = run(&case, &model, WHOLE, &mut case.cache(&model, again, None));
        assert_eq!(max_difference(again, first), 0.0, "{spec} calls itself {name}");
    }
}
