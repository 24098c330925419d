//! What a page can be filtered by.

use super::Results;
use super::table::Tags;
use std::collections::BTreeSet;

/// All models, strategies and policies of the results, each sorted.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters {
    pub(super) models: Vec<String>,
    pub(super) strategies: Vec<String>,
    pub(super) policies: Vec<String>,
}

impl Filters {
    pub(super) fn new(results: &Results) -> Self {
        let rows = results.rows.iter().map(|row| Tags::new(&row.conditions.model, &row.setup));
        let memory = results.memory.iter().map(|memory| Tags::new(&memory.model, &memory.setup));
        let all: Vec<Tags> = rows.chain(memory).collect();
        let sorted = |of: fn(&Tags) -> &String| {
            all.iter().map(of).collect::<BTreeSet<_>>().into_iter().cloned().collect::<Vec<_>>()
        };
        Self { models: sorted(|t| &t.model), strategies: sorted(|t| &t.strategy), policies: sorted(|t| &t.policy) }
    }

    /// Indices into the three lists, as the page's script reads them.
    pub(super) fn indices(&self, tags: &Tags) -> String {
        let index = |list: &[String], name: &String| list.binary_search(name).unwrap_or(usize::MAX);
        let (model, strategy) = (index(&self.models, &tags.model), index(&self.strategies, &tags.strategy));
        format!("{model} {strategy} {}", index(&self.policies, &tags.policy))
    }
}
