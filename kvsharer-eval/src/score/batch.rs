//! Families that go through one cache, and how they are run.

use super::family::{Family, Member};
use super::{Likelihood, ScoreOptions, Sequence};
use crate::EvalError;
use crate::logits::{Scores, score_positions};
use burn::tensor::Tensor;
use kvsharer_core::{Cache, CacheError, Stack};
use kvsharer_models::Decoder;

/// Families of about one length, the longest first.
#[derive(Clone, Debug)]
pub(super) struct Batch<'a> {
    families: Vec<&'a Family>,
    /// Members of all of them, tokens of their prefixes, and tokens after those.
    rows: usize,
    prefixes: usize,
    tails: usize,
}

/// Puts families of like length together, within the limits of the options.
pub(super) fn batches<'a>(families: &'a [Family], exact: bool, options: &ScoreOptions) -> Vec<Batch<'a>> {
    let mut sorted: Vec<&Family> = families.iter().collect();
    // The longest first: what takes longest should not start last.
    sorted.sort_by_key(|family| std::cmp::Reverse((family.prefix, family.tail)));
    let mut batches: Vec<Batch<'a>> = Vec::new();
    for family in sorted {
        match batches.last_mut() {
            Some(batch) if batch.takes(family, exact, options) => batch.push(family),
            _ => {
                let mut batch = Batch { families: Vec::new(), rows: 0, prefixes: 0, tails: 0 };
                batch.push(family);
                batches.push(batch);
            }
        }
    }
    batches
}

/// A token to score: after which state of the pass, and for whom.
struct Want {
    position: usize,
    target: u32,
    members: Vec<usize>,
}

/// What was asked of a batch; a device may still be at work on it.
pub(super) struct Running {
    members: Vec<Member>,
    scores: Vec<(Scores, Vec<Want>)>,
}

impl Running {
    /// Waits for the scores.
    pub(super) fn read(self) -> Result<Vec<(Member, Likelihood)>, EvalError> {
        let mut likelihoods = vec![Likelihood { log_likelihood: 0.0, greedy: true }; self.members.len()];
        for (scores, wants) in self.scores {
            for (want, found) in wants.iter().zip(scores.read()?) {
                for &member in &want.members {
                    likelihoods[member].log_likelihood -= found.nll;
                    likelihoods[member].greedy &= found.greedy;
                }
            }
        }
        Ok(self.members.into_iter().zip(likelihoods).collect())
    }
}

impl<'a> Batch<'a> {
    /// Sequences of the batch.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens that are run for it, without padding.
    pub(super) fn tokens(&self) -> usize {
        self.families.iter().map(|family| family.tokens()).sum()
    }

    fn push(&mut self, family: &'a Family) {
        self.rows += family.members.len();
        self.prefixes += family.prefix;
        self.tails += family.tails();
        self.families.push(family);
    }

    fn takes(&self, family: &Family, exact: bool, options: &ScoreOptions) -> bool {
        let longest = self.families[0];
        if (exact || family.prefix == 0) && family.prefix != longest.prefix {
            return false;
        }
        let rows = self.rows + family.members.len();
        let prefixes = (self.families.len() + 1) * longest.prefix;
        // Whole texts run in one pass, padding included; what follows prefixes may take several.
        let tails = if family.prefix == 0 { rows * longest.tail } else { self.tails + family.tails() };
        let tokens = prefixes + tails;
        let padding = prefixes - self.prefixes - family.prefix;
        rows <= options.rows && tokens <= options.tokens && padding <= options.padding
    }

    /// Tokens that it runs, padding included, and what its passes cost, in tokens.
    pub(super) fn cost(&self, items: &[Vec<Sequence>], exact: bool, options: &ScoreOptions) -> usize {
        let members = self.members();
        let prefix = self.families[0].prefix;
        let trunk = if prefix > 0 { self.families.len() * prefix + options.padding } else { 0 };
        let of_pass = |pass: &Vec<usize>| pass.len() * tail(members[pass[0]], &self.families, items).len();
        let passes = passes(&members, &self.families, items, exact, options);
        trunk + passes.iter().map(|pass| of_pass(pass) + options.padding).sum::<usize>()
    }

    /// All members, each with the row of its prefix.
    fn members(&self) -> Vec<(usize, Member)> {
        let of_family = |(row, family): (usize, &&'a Family)| family.members.iter().map(move |&member| (row, member));
        self.families.iter().enumerate().flat_map(of_family).collect()
    }

    /// Runs the prefixes in one pass and the tails in as few as their lengths and what padding may cost allow.
    pub(super) fn run<'p>(
        &self,
        model: &Decoder,
        items: &[Vec<Sequence>],
        exact: bool,
        options: &ScoreOptions,
        stack: &impl Fn() -> Result<Stack<'p>, EvalError>,
    ) -> Result<Running, EvalError> {
        let prefix = self.families.iter().map(|family| family.prefix).max().unwrap_or(0);
        let members = self.members();
        let mut scores = Vec::new();
        let mut score = |hidden: Tensor<3>, wants: Vec<Want>| -> Result<(), EvalError> {
            let positions: Vec<usize> = wants.iter().map(|want| want.position).collect();
            let targets: Vec<u32> = wants.iter().map(|want| want.target).collect();
            scores.push((score_positions(model, hidden, &positions, &targets, options.reduce)?, wants));
            Ok(())
        };
        let fresh = |rows: usize, tail: usize| -> Result<Cache<'p>, EvalError> {
            let cache_options = model.cache_options(rows, prefix + tail);
            let cache_options = if prefix > 0 { cache_options.for_prompt(prefix) } else { cache_options };
            Ok(model.cache(stack()?, cache_options)?)
        };
        let prefix_of = |row: usize| {
            let family = self.families[row];
            &family.members[0].of(items).ids[..family.prefix]
        };
        let run_prefixes = |rows: &[usize], cache: &mut Cache<'_>| {
            let texts: Vec<&[u32]> = rows.iter().map(|&row| prefix_of(row)).collect();
            model.forward_padded(&texts, cache)
        };

        let mut trunk = None;
        if prefix > 0 {
            // Where policies count on the whole length, the trunk must have it.
            let tail = if exact { self.families.iter().map(|family| family.tail).max().unwrap_or(0) } else { 0 };
            let mut cache = fresh(self.families.len(), tail)?;
            let rows: Vec<usize> = (0..self.families.len()).collect();
            let hidden = run_prefixes(&rows, &mut cache)?;
            score(hidden, self.wants_of_prefixes(prefix, &members, items))?;
            trunk = Some(cache);
        }
        for pass in passes(&members, &self.families, items, exact, options) {
            let rows: Vec<usize> = pass.iter().map(|&index| members[index].0).collect();
            let longest =
                pass.iter().map(|&index| tail(members[index], &self.families, items).len()).max().unwrap_or(0);
            let mut cache = match &trunk {
                None => fresh(rows.len(), longest)?,
                Some(trunk) => match trunk.branch_for(&rows, trunk.options().tokens.max(prefix + longest)) {
                    Ok(branches) => branches,
                    // A policy that cannot be copied sees every prefix again.
                    Err(CacheError::CannotBranch { .. }) => {
                        let mut cache = fresh(rows.len(), longest)?;
                        run_prefixes(&rows, &mut cache)?;
                        cache
                    }
                    Err(error) => return Err(error.into()),
                },
            };
            let hidden = self.run_tails(model, &pass, &members, items, &mut cache)?;
            score(hidden, self.wants_of_tails(&pass, &members, items))?;
        }
        Ok(Running { members: members.into_iter().map(|(_, member)| member).collect(), scores })
    }

    /// Tokens that the states of the prefixes predict: those of the prefixes themselves, and the first of every tail.
    fn wants_of_prefixes(&self, longest: usize, members: &[(usize, Member)], items: &[Vec<Sequence>]) -> Vec<Want> {
        let mut wants = Vec::new();
        let mut next = 0;
        for (row, family) in self.families.iter().enumerate() {
            // Shorter prefixes stand at the right end of their rows.
            let start = row * longest + longest - family.prefix;
            // Members stand in the order of their families.
            let own = next..next + family.members.len();
            next = own.end;
            for token in 1..family.prefix {
                let asks = |&index: &usize| members[index].1.of(items).scored.contains(&token);
                let asking: Vec<usize> = own.clone().filter(asks).collect();
                if !asking.is_empty() {
                    let target = family.members[0].of(items).ids[token];
                    wants.push(Want { position: start + token - 1, target, members: asking });
                }
            }
            for index in own {
                let Sequence { ids, scored, .. } = members[index].1.of(items);
                if scored.contains(&family.prefix) {
                    let position = start + family.prefix - 1;
                    wants.push(Want { position, target: ids[family.prefix], members: vec![index] });
                }
            }
        }
        wants
    }

    /// Runs what follows the prefix in every row of a pass, padded behind, where nothing looks.
    fn run_tails(
        &self,
        model: &Decoder,
        pass: &[usize],
        members: &[(usize, Member)],
        items: &[Vec<Sequence>],
        cache: &mut Cache<'_>,
    ) -> Result<Tensor<3>, EvalError> {
        let tails = pass.iter().map(|&index| tail(members[index], &self.families, items));
        let longest = tails.clone().map(<[u32]>::len).max().unwrap_or(0);
        let rows: Vec<Vec<u32>> = tails.map(|tail| [tail, &vec![0; longest - tail.len()]].concat()).collect();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        Ok(model.forward(&rows, cache)?)
    }

    fn wants_of_tails(&self, pass: &[usize], members: &[(usize, Member)], items: &[Vec<Sequence>]) -> Vec<Want> {
        let longest = pass.iter().map(|&index| tail(members[index], &self.families, items).len()).max().unwrap_or(0);
        let mut wants = Vec::new();
        for (row, &index) in pass.iter().enumerate() {
            let (family, member) = members[index];
            let (Sequence { ids, scored, .. }, prefix) = (member.of(items), self.families[family].prefix);
            for token in scored.clone().filter(|&token| token > prefix) {
                let position = row * longest + token - 1 - prefix;
                wants.push(Want { position, target: ids[token], members: vec![index] });
            }
        }
        wants
    }
}

/// What a member runs after its prefix: all but its last token, which is only predicted.
fn tail<'a>((row, member): (usize, Member), families: &[&Family], items: &'a [Vec<Sequence>]) -> &'a [u32] {
    let ids = &member.of(items).ids;
    &ids[families[row].prefix..ids.len() - 1]
}

/// Members that run their tails together, the longest first: of like length, or of equal length where padding could
/// count.
fn passes(
    members: &[(usize, Member)],
    families: &[&Family],
    items: &[Vec<Sequence>],
    exact: bool,
    options: &ScoreOptions,
) -> Vec<Vec<usize>> {
    let length = |index: usize| tail(members[index], families, items).len();
    let mut order: Vec<usize> = (0..members.len()).filter(|&index| length(index) > 0).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(length(index)));
    let mut passes: Vec<Vec<usize>> = Vec::new();
    let mut padding = 0;
    for index in order {
        let short = passes.last().map_or(0, |pass| length(pass[0]) - length(index));
        let joins = |pass: &&mut Vec<usize>| {
            let fits = (pass.len() + 1) * length(pass[0]) <= options.tokens && pass.len() < options.rows;
            fits && padding + short <= options.padding && (!exact || short == 0)
        };
        match passes.last_mut().filter(|pass| joins(pass)) {
            Some(pass) => {
                pass.push(index);
                padding += short;
            }
            None => {
                passes.push(vec![index]);
                padding = 0;
            }
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::family::families;

    #[test]
    fn a_batch_of_whole_texts_is_one_pass() {
        let text = |length: usize| Sequence { ids: vec![1; length], prompt: 1, scored: 1..length };
        let items: Vec<Vec<Sequence>> = (0..90).map(|index| vec![text(2 + index % 9), text(3 + index % 5)]).collect();
        let families = families(&items, false, false);
        let options = ScoreOptions { tokens: 100, padding: 30, ..ScoreOptions::default() };
        let batches = batches(&families, false, &options);
        assert_eq!(batches.iter().map(Batch::rows).sum::<usize>(), 180);
        for batch in &batches {
            let members = batch.members();
            let lengths = || members.iter().map(|&member| tail(member, &batch.families, &items).len());
            let longest = lengths().max().unwrap();
            assert!(longest * members.len() <= options.tokens);
            let padding: usize = lengths().map(|length| longest - length).sum();
            let passes = passes(&members, &batch.families, &items, false, &options);
            assert!(passes.len() == 1 || padding > options.padding, "{passes:?}");
            assert_eq!(passes.iter().map(Vec::len).sum::<usize>(), batch.rows());
        }
    }
}
