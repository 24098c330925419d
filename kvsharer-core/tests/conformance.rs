//! The conformance suite on the CPU, and that it tells what does not conform.

use burn::tensor::{DType, Device};
use kvsharer_core::testing::{Subject, Verdict, failures, policy_cases, suite};
use kvsharer_core::{Budget, Eviction, Group, GroupState, LayerKvPolicy, Stack};

#[test]
fn the_cpu_conforms_in_every_dtype() {
    let run = |dtype| (dtype, failures(&suite(), &Subject::new(Device::flex(), dtype)));
    let failed: Vec<_> = [DType::F32, DType::F16, DType::BF16].map(run).into();
    assert!(failed.iter().all(|(_, failed)| failed.is_empty()), "{failed:#?}");
}

#[test]
fn a_dtype_that_does_not_fit_is_skipped_with_the_reason() {
    let outcome = suite()[0].run(&Subject::new(Device::flex(), DType::U8));
    assert_eq!((outcome.verdict, outcome.worst_error), (Verdict::Skipped, None), "{outcome}");
    assert!(outcome.note.contains("U8 is no float"), "{outcome}");
}

/// Keeps the newest tokens, but drops one too few while decoding.
struct Greedy;

impl LayerKvPolicy for Greedy {
    fn name(&self) -> String {
        "greedy".into()
    }
    fn budget(&self, _group: &Group) -> Option<Budget> {
        Some(20.into())
    }
    fn evict(&mut self, _group: &Group, state: &GroupState<'_>) -> Eviction {
        let limit = if state.pass > 1 { 20 } else { 21 };
        Eviction::Span { start: 0, end: (state.len + state.incoming).saturating_sub(limit).min(state.len) }
    }
}

#[test]
fn a_policy_that_keeps_more_than_it_asked_for_fails() {
    let failed = failures(&policy_cases("greedy", || Ok(Stack::new().with(Greedy))), &cpu());
    assert_eq!(failed.len(), 4, "{failed:?}");
    assert!(failed.iter().all(|line| line.contains("FAILED") && line.contains("asked for 20 cells")), "{failed:?}");
}

fn cpu() -> Subject {
    Subject::new(Device::flex(), DType::F32)
}
