//! Sequences that begin alike.

use super::Sequence;

/// One sequence of one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) item: usize,
    pub(super) sequence: usize,
}

/// Sequences of an item that go on from one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Family {
    /// Tokens that all members begin with and that are run once; 0 if every member is run from its start.
    pub(super) prefix: usize,
    pub(super) members: Vec<Member>,
    /// Tokens that the longest member runs after the prefix.
    pub(super) tail: usize,
    /// Tokens that all members run after the prefix.
    tails: usize,
}

impl Family {
    fn new(prefix: usize, members: Vec<Member>, items: &[Vec<Sequence>]) -> Self {
        let tails = || members.iter().map(|member| member.of(items).ids.len() - 1 - prefix);
        Self { prefix, tail: tails().max().unwrap_or(0), tails: tails().sum(), members }
    }

    fn join(&mut self, member: Member, items: &[Vec<Sequence>]) {
        let tail = member.of(items).ids.len() - 1 - self.prefix;
        self.members.push(member);
        self.tail = self.tail.max(tail);
        self.tails += tail;
    }

    /// Tokens that its members run after the prefix.
    pub(super) fn tails(&self) -> usize {
        self.tails
    }

    /// Tokens that are run for it.
    pub(super) fn tokens(&self) -> usize {
        self.prefix + self.tails
    }
}

impl Member {
    pub(super) fn of(self, items: &[Vec<Sequence>]) -> &Sequence {
        &items[self.item][self.sequence]
    }
}

/// All families. If prompts must be run `exact`ly as they are, members have one prompt, and that is their prefix.
pub(super) fn families(items: &[Vec<Sequence>], exact: bool, share: bool) -> Vec<Family> {
    let of_item = |(item, sequences): (usize, &Vec<Sequence>)| {
        let members = (0..sequences.len()).map(|sequence| Member { item, sequence });
        match (exact, share) {
            (false, true) => vec![Family::new(common(sequences), members.collect(), items)],
            (false, false) => members.map(|member| Family::new(0, vec![member], items)).collect(),
            (true, _) => {
                let mut families: Vec<Family> = Vec::new();
                for member in members {
                    let Sequence { ids, prompt, .. } = member.of(items);
                    let same = |family: &&mut Family| {
                        let other = family.members[0].of(items);
                        share && other.prompt == *prompt && other.ids[..*prompt] == ids[..*prompt]
                    };
                    match families.iter_mut().find(same) {
                        Some(family) => family.join(member, items),
                        None => families.push(Family::new(*prompt, vec![member], items)),
                    }
                }
                families
            }
        }
    };
    items.iter().enumerate().filter(|(_, sequences)| !sequences.is_empty()).flat_map(of_item).collect()
}

/// Tokens that all sequences begin with, but for the last of the shortest, which is only predicted.
fn common(sequences: &[Sequence]) -> usize {
    let Some((first, rest)) = sequences.split_first() else {
        return 0;
    };
    let alike = |other: &Sequence| first.ids.iter().zip(&other.ids).take_while(|(a, b)| a == b).count();
    let alike = rest.iter().map(alike).min().unwrap_or(first.ids.len());
    let shortest = sequences.iter().map(|sequence| sequence.ids.len()).min().unwrap_or(0);
    alike.min(shortest.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(ids: &[u32], prompt: usize) -> Sequence {
        Sequence { ids: ids.into(), prompt, scored: prompt..ids.len() }
    }

    #[test]
    fn what_all_begin_with_is_one_prefix_unless_prompts_are_to_be_reduced() {
        let items = vec![vec![sequence(&[1, 2, 3, 4], 2), sequence(&[1, 2, 3, 5, 6], 2), sequence(&[1, 2, 3], 2)]];
        let shared = families(&items, false, true);
        assert_eq!((shared.len(), shared[0].prefix, shared[0].tail), (1, 2, 2));
        assert_eq!(shared[0].tokens(), 2 + 1 + 2);
        let exact = families(&items, true, true);
        assert_eq!((exact.len(), exact[0].prefix, exact[0].tail), (1, 2, 2));
        assert_eq!(families(&items, false, false).len(), 3);
    }

    #[test]
    fn different_prompts_are_families_of_their_own_where_they_are_reduced() {
        let items = vec![vec![sequence(&[1, 2, 9], 2), sequence(&[1, 3, 9], 2), sequence(&[1, 2, 8, 7], 2)]];
        let exact = families(&items, true, true);
        assert_eq!(exact.iter().map(|family| family.members.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(families(&items, false, true)[0].prefix, 1);
    }
}
