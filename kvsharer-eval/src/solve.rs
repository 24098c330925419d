//! Matched bytes: the budget of an evicting policy that fills a given memory.

use crate::{EvalError, build_stack};
use kvsharer_compress::with_budget;
use kvsharer_core::{Lengths, ModelShape, Plan, PlanError, Sharing};

/// A stack that fits a number of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solved {
    /// The SPECs, one of them with another budget.
    pub policies: Vec<String>,
    /// Tokens of that budget.
    pub tokens: usize,
    /// What the plan costs.
    pub bytes: usize,
}

/// What a solution is wanted for.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Bytes of keys and values at most.
    pub bytes: usize,
    /// Sequences.
    pub batch: usize,
    /// Their lengths.
    pub lengths: Lengths,
    /// Bytes of an element of the cache.
    pub element_bytes: usize,
}

/// Finds the largest `budget` of the one evicting policy among `policies` whose plan, with the sharing map and all
/// other policies, costs at most `target.bytes`.
///
/// # Errors
/// [`EvalError::NothingToSolve`] if none or several of the policies have a budget, [`EvalError::BudgetTooSmall`] if not
/// even the smallest budget fits, [`EvalError::Spec`], [`EvalError::Plan`].
pub fn solve_budget(
    model: &ModelShape,
    sharing: Option<&Sharing>,
    policies: &[String],
    target: Target,
) -> Result<Solved, EvalError> {
    let mut evictors = Vec::new();
    for (index, policy) in policies.iter().enumerate() {
        if with_budget(policy, 1 << 20)?.is_some() {
            evictors.push(index);
        }
    }
    let &[evictor] = evictors.as_slice() else {
        return Err(EvalError::NothingToSolve { policies: policies.join(" + "), found: evictors.len() });
    };
    let with = |tokens: usize| -> Result<Vec<String>, EvalError> {
        let mut policies = policies.to_vec();
        policies[evictor] = with_budget(&policies[evictor], tokens)?.unwrap_or_default();
        Ok(policies)
    };
    let cost = |tokens: usize| -> Result<Result<usize, EvalError>, EvalError> {
        let stack = match build_stack(sharing, &with(tokens)?) {
            Ok(stack) => stack,
            // Refused for having no room beside what it always keeps.
            Err(error @ EvalError::Spec(_)) => return Ok(Err(error)),
            Err(error) => return Err(error),
        };
        match Plan::new(model, &stack) {
            Ok(plan) => Ok(Ok(plan.bytes(target.batch, target.lengths, target.element_bytes))),
            Err(error @ (PlanError::Refused { .. } | PlanError::EmptyBudget { .. })) => Ok(Err(error.into())),
            Err(error) => Err(error.into()),
        }
    };
    // Budgets below `low` are refused or fit; `high` does not fit.
    let (mut low, mut high) = (0, target.lengths.tokens + 1);
    while low + 1 < high {
        let middle = (low + high) / 2;
        match cost(middle)? {
            Ok(bytes) if bytes > target.bytes => high = middle,
            _ => low = middle,
        }
    }
    let smallest = || -> Result<EvalError, EvalError> {
        let mut least = high;
        while least <= target.lengths.tokens && cost(least)?.is_err() {
            least += 1;
        }
        let needed = cost(least.min(target.lengths.tokens))??;
        Ok(EvalError::BudgetTooSmall { policy: policies[evictor].clone(), bytes: target.bytes, needed })
    };
    match cost(low.max(1))? {
        Ok(bytes) if bytes <= target.bytes && low > 0 => Ok(Solved { policies: with(low)?, tokens: low, bytes }),
        _ => Err(smallest()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvsharer_core::KvShape;
    use proptest::prelude::*;

    fn model() -> ModelShape {
        ModelShape::uniform(6, KvShape::new(2, 64))
    }

    fn target(bytes: usize, prompt: usize, tokens: usize) -> Target {
        Target { bytes, batch: 2, lengths: Lengths::new(prompt, tokens), element_bytes: 4 }
    }

    fn solve(policies: &[&str], target: Target) -> Result<Solved, EvalError> {
        let sharing = Sharing::both([(5, 2)]).unwrap();
        let policies: Vec<String> = policies.iter().map(|policy| (*policy).into()).collect();
        solve_budget(&model(), Some(&sharing), &policies, target)
    }

    proptest! {
        #[test]
        fn a_solution_fits_and_one_token_more_does_not(
            kib in 200_usize..4000, policy in prop::sample::select(vec!["streaming-llm", "window", "h2o", "snapkv:window=8", "tova", "knorm", "random"]), quant in any::<bool>(),
        ) {
            let target = target(kib << 10, 600, 700);
            let policies: Vec<&str> = [policy].into_iter().chain(quant.then_some("quant:bits=4")).collect();
            match solve(&policies, target) {
                Ok(solved) => {
                    prop_assert!(solved.bytes <= target.bytes);
                    let again = |tokens| {
                        let mut policies = solved.policies.clone();
                        policies[0] = with_budget(&policies[0], tokens).unwrap().unwrap();
                        let sharing = Sharing::both([(5, 2)]).unwrap();
                        let stack = build_stack(Some(&sharing), &policies).unwrap();
                        Plan::new(&model(), &stack).unwrap().bytes(target.batch, target.lengths, target.element_bytes)
                    };
                    prop_assert_eq!(again(solved.tokens), solved.bytes);
                    let full = solved.tokens >= target.lengths.tokens;
                    prop_assert!(full || again(solved.tokens + 1) > target.bytes);
                }
                Err(EvalError::BudgetTooSmall { needed, .. }) => prop_assert!(needed > target.bytes),
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
        }
    }

    #[test]
    fn a_stack_without_a_budget_or_with_two_is_refused() {
        for policies in [&["quant"][..], &[], &["tova", "h2o"], &["pyramidinfer-cache"]] {
            let error = solve(policies, target(1 << 20, 100, 200)).unwrap_err();
            assert!(matches!(error, EvalError::NothingToSolve { .. }), "{error}");
        }
    }
}
