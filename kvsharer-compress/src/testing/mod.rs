//! Conformance cases of every policy (feature `testing`), see [`kvsharer_core::testing`].

mod table;

use crate::parse_policy;
use kvsharer_core::Stack;
use kvsharer_core::testing::{Case, policy_cases};
pub use table::{QUANTISED, ROWS, Row};

/// Beside evictors of each kind, tokens in few bits.
const STACKED: [[&str; 2]; 4] = [
    ["streaming-llm:sinks=3,window=19", QUANTISED[0]],
    ["h2o:heavy=11,recent=11", QUANTISED[0]],
    ["snapkv:budget=22,window=6", QUANTISED[1]],
    ["knorm:budget=28..16,positions=cache", QUANTISED[1]],
];

/// Cases of the first two SPECs of every policy, and of evictors in quantised storage.
pub fn suite() -> Vec<Case> {
    let single = ROWS.iter().flat_map(|row| row.small.iter().take(2)).map(|spec| vec![*spec]);
    let stacked = STACKED.iter().map(|specs| specs.to_vec());
    let cases = single.chain(stacked).flat_map(|specs| {
        policy_cases(&specs.join(" + "), move || {
            specs.iter().try_fold(Stack::new(), |stack, spec| Ok(stack.with(parse_policy(spec)?)))
        })
    });
    cases.collect()
}
