//! The conformance suite on a backend and a policy of one's own.
//!
//! From the root of the workspace: `cargo run --release --example conformance`. For another backend, switch its feature
//! of burn on and name its device below.
#![allow(clippy::print_stdout)]

use burn::tensor::{DType, Device};
use kvsharer_core::testing::{Subject, Verdict, policy_cases, suite};
use kvsharer_core::{Budget, Eviction, Group, GroupState, LayerKvPolicy, Stack};
use std::process::ExitCode;

/// Keeps the newest tokens.
struct Newest(usize);

impl LayerKvPolicy for Newest {
    fn name(&self) -> String {
        format!("newest:tokens={}", self.0)
    }
    fn budget(&self, _group: &Group) -> Option<Budget> {
        Some(self.0.into())
    }
    fn evict(&mut self, _group: &Group, state: &GroupState<'_>) -> Eviction {
        let excess = (state.len + state.incoming).saturating_sub(self.0);
        Eviction::Span { start: 0, end: excess.min(state.len) }
    }
}

fn main() -> ExitCode {
    let mut cases = suite();
    cases.extend(policy_cases("newest", || Ok(Stack::new().with(Newest(18)))));
    let mut failed = false;
    for dtype in [DType::F32, DType::F16] {
        let subject = Subject::new(Device::flex(), dtype);
        for case in &cases {
            let outcome = case.run(&subject);
            println!("{dtype:?}, {outcome}");
            failed |= outcome.verdict == Verdict::Failed;
        }
    }
    ExitCode::from(u8::from(failed))
}
