//! From a strategy and SPECs to a stack of policies.

use crate::EvalError;
use kvsharer_compress::parse_policy;
use kvsharer_core::{Sharing, Stack};

/// Stacks the sharing map (if any) and the policies the SPECs name, in order.
///
/// # Errors
/// [`EvalError::Spec`] for a SPEC that names no policy.
pub fn build_stack(sharing: Option<&Sharing>, policies: &[String]) -> Result<Stack<'static>, EvalError> {
    let stack = match sharing {
        Some(sharing) => Stack::new().with(sharing.clone()),
        None => Stack::new(),
    };
    policies.iter().try_fold(stack, |stack, spec| Ok(stack.with(parse_policy(spec)?)))
}
