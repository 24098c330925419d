//! While a prompt comes in, the cache holds the bytes that the plan said.

use crate::support::{BATCH, Case, PROMPT, TOKENS, cases, in_f32, model, pairs, tokens};
use burn::tensor::{Device, Int, Tensor, TensorData};
use kvsharer_compress::parse_policy;
use kvsharer_core::testing::ToyModel;
use kvsharer_core::{
    Budget, CacheError, Eviction, Group, GroupId, GroupState, LayerKvPolicy, Lengths, Plan, Positions, SearchModel,
};

/// Breaks off after the last reader of `group` in the pass that completes the prompt, before anything is evicted: the
/// group is never larger. It goes before the evictor it is `like`.
struct Stop {
    group: GroupId,
    like: Plan,
}

impl LayerKvPolicy for Stop {
    fn name(&self) -> String {
        "stop".into()
    }
    fn budget(&self, group: &Group) -> Option<Budget> {
        let budget = Budget::tokens(usize::MAX);
        Some(if self.like.group(group.id).waits() { budget.after_prompt() } else { budget })
    }
    fn positions(&self, group: &Group) -> Positions {
        self.like.group(group.id).positions
    }
    fn evict(&mut self, group: &Group, state: &GroupState<'_>) -> Eviction {
        if state.incoming > 0 || group.id != self.group || !state.prompt_done() {
            return Eviction::Nothing;
        }
        // No answer to this question: a row too many.
        let cells = TensorData::new(vec![0_i64; BATCH + 1], [BATCH + 1, 1, 1]);
        Eviction::Keep(Tensor::<3, Int>::from_data(cells, &Device::flex()))
    }
}

/// The most bytes held at any time while a prompt comes in chunks: within a pass until a group is stopped at its
/// largest, each group in a run of its own.
fn peak(case: &Case, model: &ToyModel, chunk: usize) -> usize {
    let plan = case.plan(model);
    plan.groups().iter().map(|group| peak_of_group(case, model, chunk, group.id, &plan)).max().unwrap()
}

fn peak_of_group(case: &Case, model: &ToyModel, chunk: usize, group: GroupId, plan: &Plan) -> usize {
    let stop = Stop { group, like: plan.clone() };
    let stack = case.base().with(stop).with(parse_policy(case.spec).unwrap()).evict_in_order();
    let mut cache = case.cache(model, stack, Some(PROMPT));
    let (tokens, mut peak) = (tokens(), 0);
    for start in (0..PROMPT).step_by(chunk) {
        let pass = start..(start + chunk).min(PROMPT);
        cache.begin(pass.len()).unwrap();
        let ids: Vec<i64> = tokens.iter().flat_map(|row| row[pass.clone()].iter().map(|&id| i64::from(id))).collect();
        let ids = TensorData::new(ids, [BATCH, pass.len()]);
        let mut hidden = model.embed(Tensor::<2, Int>::from_data(ids, &Device::flex()));
        for layer in model.shape().ids() {
            let states = model.layer(layer, hidden.clone(), &mut cache);
            peak = peak.max(cache.bytes());
            match states {
                Ok(states) => hidden = states,
                Err(CacheError::BadEviction { .. }) => return peak,
                Err(error) => panic!("{case}: {error}"),
            }
        }
    }
    panic!("{case}: the group was not stopped")
}

#[test]
fn the_peak_of_a_prompt_in_one_pass_is_what_the_plan_says() {
    let model = model();
    for case in cases(|row| row.small).into_iter().filter(Case::in_full) {
        let lengths = Lengths::new(PROMPT, TOKENS);
        let planned = case.plan(&model).prefill_peak_bytes(BATCH, lengths, PROMPT, case.dtype.size());
        assert_eq!(peak(&case, &model, PROMPT), planned, "{case}");
    }
}

#[test]
fn the_peak_of_a_prompt_in_chunks_never_exceeds_what_the_plan_says() {
    let model = model();
    for (index, case) in in_f32(pairs(|row| row.small)).into_iter().enumerate() {
        let chunk = [1, 7, 17][index % 3];
        let planned = case.plan(&model).prefill_peak_bytes(BATCH, Lengths::new(PROMPT, TOKENS), chunk, 4);
        let found = peak(&case, &model, chunk);
        assert!(found <= planned, "{case}, chunks of {chunk}: {found} bytes, planned {planned}");
    }
}
