//! Composition of policies.

use crate::{CacheError, FullCache, LayerKvPolicy};
use burn::tensor::{Int, Tensor};

/// Policies that answer together. Order matters only for evictors, and only after [`evict_in_order`](Self::evict_in_order).
///
/// Two members that both route a layer, or both evict from a group without that call, are refused when the
/// [`Plan`](crate::Plan) is made. Boxed policies and `&mut` references are policies too.
///
/// ```
/// use kvsharer_core::{FullCache, LayerKvPolicy, Sharing, Stack};
/// let sharing = Sharing::both([(7, 3)])?; // layer 7 reads layer 3's keys and values
/// let mut mine: Box<dyn LayerKvPolicy> = Box::new(FullCache);
/// let stack = Stack::new().with(sharing).with(&mut mine);
/// assert_eq!(stack.names(), ["sharing:7=3", "full"]);
/// # Ok::<(), kvsharer_core::PlanError>(())
/// ```
#[derive(Default)]
pub struct Stack<'p> {
    policies: Vec<Box<dyn LayerKvPolicy + 'p>>,
    evict_in_order: bool,
}

impl<'p> Stack<'p> {
    /// No policy: every layer keeps its own full cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a policy.
    pub fn with(mut self, policy: impl LayerKvPolicy + 'p) -> Self {
        self.policies.push(Box::new(policy));
        self
    }

    /// Allows several evictors of one group: they run in the order they were added, each on what the one before left.
    pub fn evict_in_order(mut self) -> Self {
        self.evict_in_order = true;
        self
    }

    /// Whether several evictors of one group are allowed.
    pub fn evicts_in_order(&self) -> bool {
        self.evict_in_order
    }

    /// The members' SPECs, in order; a stack without members is the full cache.
    pub fn names(&self) -> Vec<String> {
        if self.policies.is_empty() {
            return vec![FullCache.name()];
        }
        self.policies.iter().map(|policy| policy.name()).collect()
    }

    /// The members, in order.
    pub fn members(&self) -> impl Iterator<Item = &(dyn LayerKvPolicy + 'p)> {
        self.policies.iter().map(|policy| &**policy)
    }

    pub(crate) fn member_mut(&mut self, index: usize) -> &mut (dyn LayerKvPolicy + 'p) {
        &mut *self.policies[index]
    }

    /// The members with what they observed, for a batch whose row `i` goes on from row `rows[i]`.
    pub(crate) fn branch(&self, rows: &Tensor<1, Int>) -> Result<Stack<'static>, CacheError> {
        let branch = |policy: &(dyn LayerKvPolicy + 'p)| {
            policy.branch(rows).ok_or_else(|| CacheError::CannotBranch { policy: policy.name() })
        };
        let policies = self.members().map(branch).collect::<Result<_, _>>()?;
        Ok(Stack { policies, evict_in_order: self.evict_in_order })
    }

    /// Forgets everything the members observed.
    pub fn reset(&mut self) {
        for policy in &mut self.policies {
            policy.reset();
        }
    }
}
