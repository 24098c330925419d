//! Steps that are planned ahead choose the tokens that steps one by one would.

use super::families::{Tiny, tiny_models};
use super::{LOGITS, PROMPT, tokens};
use crate::{Decoder, DeviceLoop};
use kvsharer_core::testing::{self, Case, Measured, Subject, Unmeasured, largest};
use kvsharer_core::{Budget, Cache, Eviction, Group, GroupState, LayerKvPolicy, Positions, Sharing, Stack};

const STEPS: usize = 14;
const ROWS: usize = 2;

/// What stays of the cache.
#[derive(Clone, Copy)]
enum Stays {
    All,
    /// As all, but layers share.
    Shared,
    /// A few sinks, turned at every step, and the newest tokens.
    Sinks,
}

pub(super) fn cases() -> Vec<Case> {
    let case = |model: Tiny, what: &str, stays: Stays| {
        let name = format!("model {}: tokens of planned steps{what}", model.name);
        Case::new(name, LOGITS, move |subject| planned(model, subject, stays))
    };
    let models = tiny_models();
    let sinks = case(models[0], " behind sinks", Stays::Sinks);
    let of_model = |&model: &Tiny| [case(model, "", Stays::All), case(model, " under sharing", Stays::Shared)];
    models.iter().flat_map(of_model).chain([sinks]).collect()
}

/// By how much the planned steps' tokens are worse than the best ones, as the same cache sees it step by step.
fn planned(model: Tiny, subject: &Subject, stays: Stays) -> Result<Measured, Unmeasured> {
    let model = model.load(subject)?;
    let sinks = SinksAndNewest { sinks: 3, newest: 9 };
    let stack = || -> Result<Stack<'static>, Unmeasured> {
        Ok(match stays {
            Stays::All => Stack::new(),
            Stays::Shared => Stack::new().with(Sharing::both([(3, 1)])?),
            Stays::Sinks => Stack::new().with(sinks),
        })
    };
    let options = || model.cache_options(ROWS, PROMPT + STEPS + 1);
    let prompts: Vec<Vec<u32>> = (0..ROWS).map(|row| tokens(PROMPT, row as u64)).collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let first = [7, 11];
    let mut cache = model.cache(stack()?, options())?;
    model.forward(&prompts, &mut cache)?;
    let (found, left, recorded) = run(&model, &mut cache, &first)?;

    let mut again = model.cache(stack()?, options())?;
    model.forward(&prompts, &mut again)?;
    let (mut worst, mut scale) = (0.0_f64, 0.0_f64);
    for step in 0..STEPS {
        let ids: Vec<[u32; 1]> =
            (0..ROWS).map(|row| [if step == 0 { first[row] } else { found[row][step - 1] }]).collect();
        let ids: Vec<&[u32]> = ids.iter().map(|id| id.as_slice()).collect();
        let logits = testing::host(model.logits(model.forward(&ids, &mut again)?))?;
        for (row, logits) in logits.chunks(model.config().vocab).enumerate() {
            let best = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            worst = worst.max(best - logits[found[row][step] as usize]);
            scale = scale.max(largest(logits.iter().map(|x| x.abs())));
        }
    }
    // Both caches go on alike.
    let next: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt[..1]).collect();
    let [ours, theirs] = [&mut cache, &mut again].map(|cache| model.forward(&next, cache).map(|x| model.logits(x)));
    worst = worst.max(testing::worst(&testing::host(ours?)?, &testing::host(theirs?)?));
    let how = if recorded { "replayed" } else { "one by one" };
    Ok(Measured {
        worst: if left == 0 { worst / scale } else { f64::INFINITY },
        note: format!("of the largest logit; {how}"),
    })
}

/// Tokens of the steps, how many did not run, and whether the hardware replayed them.
fn run(model: &Decoder, cache: &mut Cache<'_>, first: &[u32]) -> Result<(Vec<Vec<u32>>, usize, bool), Unmeasured> {
    let Some(mut steps) = DeviceLoop::new(model, cache, first, STEPS)? else {
        return Err(Unmeasured::Failed("not planned".into()));
    };
    steps.run(STEPS)?;
    Ok((steps.tokens()?, steps.left(), steps.is_recorded()))
}

/// As StreamingLLM does.
#[derive(Clone, Copy, Debug)]
struct SinksAndNewest {
    sinks: usize,
    newest: usize,
}

impl LayerKvPolicy for SinksAndNewest {
    fn name(&self) -> String {
        "sinks and newest".into()
    }

    fn budget(&self, _group: &Group) -> Option<Budget> {
        Some(Budget::tokens(self.sinks + self.newest))
    }

    fn positions(&self, _group: &Group) -> Positions {
        Positions::CacheSlot { sinks: self.sinks }
    }

    fn evict(&mut self, _group: &Group, state: &GroupState<'_>) -> Eviction {
        let excess = (state.len + state.incoming).saturating_sub(self.sinks + self.newest);
        let end = (self.sinks + excess).min(state.len);
        match self.sinks < end {
            true => Eviction::Span { start: self.sinks, end },
            false => Eviction::Nothing,
        }
    }

    fn regular(&self) -> bool {
        true
    }
}
