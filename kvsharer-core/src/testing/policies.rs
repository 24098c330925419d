//! Policies in a cache beside the mirror: whatever they keep, exactly that is attended to, and the bytes are the plan's.

use super::{Case, Measured, Mirror, Subject, Tolerance, ToyModel, Unmeasured, kept_tokens, largest, toy_tokens};
use crate::{Cache, CacheOptions, KvShape, LayerId, ModelShape, Plan, SearchModel, Sharing, Stack, Storage};
use std::sync::Arc;

/// Tokens of a prompt.
const PROMPT: usize = 40;
/// Tokens generated after it.
const STEPS: usize = 12;
const BATCH: usize = 2;
const LAYERS: usize = 5;

/// Final states have a root mean square of 1, and a neighbour in the place of one token changes them by 0.15 or more.
const ATTENDED: Tolerance = Tolerance::new(1e-4, 1e-2, 6e-2);
/// Of 256 and 16 steps of the range of values.
const IN_8_BITS: Tolerance = Tolerance::new(0.02, 0.03, 0.1);
const IN_4_BITS: Tolerance = Tolerance::new(0.2, 0.2, 0.3);
/// Share of the kept tokens that differ from those kept in f32. Half precision tips near ties, and one tipped token
/// tips others later.
const DECIDED: Tolerance = Tolerance::new(0.0, 0.05, 0.2);

/// Runs `passes` in a cache and beside it in the [`Mirror`]; the largest difference of final states, where rows are no
/// padding. Fails as well if a reader keeps other tokens than its donor, or the cache holds other bytes than planned.
///
/// # Errors
/// Whatever the cache refuses, and what is said above.
pub fn follow(
    model: &ToyModel,
    sharing: &Sharing,
    cache: &mut Cache<'_>,
    tokens: &[Vec<u32>],
    padding: &[usize],
    passes: &[usize],
) -> Result<Measured, Unmeasured> {
    let padding = if padding.is_empty() { vec![0; tokens.len()] } else { padding.to_vec() };
    let options = cache.options().clone();
    let mut mirror = Mirror::new(model, sharing, &padding);
    let planned = cache.plan().bytes(options.batch, options.lengths(), options.dtype.size());
    let mut all = Vec::new();
    for &pass in passes {
        cache.begin_padded(pass, if cache.seen() == 0 { &padding } else { &[] })?;
        let pass = crate::Attend::positions(cache);
        let expected = mirror.kept(tokens, cache)?;
        let found = super::host(model.forward(tokens, pass.clone(), cache)?)?;
        let width = found.len() / tokens.len() / pass.len();
        let errors = found.iter().zip(&expected).enumerate().filter_map(|(index, (found, expected))| {
            let (row, token) = (index / width / pass.len(), pass.start + index / width % pass.len());
            (token >= padding[row]).then_some((found - expected).abs())
        });
        all.push(Measured { worst: largest(errors), note: format!("worst at tokens {pass:?}") });
        for (reader, donor) in sharing.keys().iter().chain(sharing.values().iter()) {
            if kept_tokens(cache, reader)? != kept_tokens(cache, donor)? {
                let what = format!("layer {reader} keeps other tokens than layer {donor}, which it reads, at {pass:?}");
                return Err(Unmeasured::Failed(what));
            }
        }
        // Before the prompt is complete a policy may hold it in flight.
        if cache.seen() >= options.prompt.unwrap_or(0) && cache.bytes() != planned {
            let what = format!("{} bytes are held at {pass:?}, {planned} were planned", cache.bytes());
            return Err(Unmeasured::Failed(what));
        }
    }
    Ok(Measured::worst_of(all))
}

type Make = dyn Fn() -> Result<Stack<'static>, Unmeasured> + Send + Sync;

/// How a policy is run.
#[derive(Clone, Copy)]
struct How {
    name: &'static str,
    share: bool,
    padding: &'static [usize],
    prompt: &'static [usize],
    /// Whether the length of the prompt is told.
    told: bool,
}

const HOWS: [How; 3] = [
    How { name: "alone", share: false, padding: &[], prompt: &[PROMPT], told: false },
    How { name: "under sharing, in chunks", share: true, padding: &[], prompt: &[17, 1, 19, 3], told: true },
    How { name: "in a padded batch", share: false, padding: &[0, 9], prompt: &[PROMPT], told: false },
];

/// Cases of a stack of policies, made anew for each run: alone, under a sharing map with its prompt in chunks, in a padded batch,
/// and whether it decides as in f32 on the other device.
///
/// It runs a prompt of 40 tokens and 12 more in 5 layers of 4 query heads and 2 key-value heads of 8 channels: its
/// budget should be small enough to evict, and its storage must fit such heads.
pub fn policy_cases(
    name: &str,
    make: impl Fn() -> Result<Stack<'static>, Unmeasured> + Send + Sync + 'static,
) -> Vec<Case> {
    let make: Arc<Make> = Arc::new(make);
    let tolerance = tolerance(&*make);
    let mut cases: Vec<Case> = HOWS
        .into_iter()
        .map(|how| {
            let make = make.clone();
            let name = format!("policy {name}: attends to what it keeps, {}", how.name);
            Case::new(name, tolerance, move |subject| Ok(run(&*make, how, subject)?.0))
        })
        .collect();
    cases.push(Case::new(
        format!("policy {name}: keeps the tokens that f32 keeps elsewhere"),
        DECIDED,
        move |subject| {
            let kept = |subject: &Subject| Ok::<_, Unmeasured>(run(&*make, HOWS[0], subject)?.1);
            Ok(apart(&kept(subject)?, &kept(&subject.other())?))
        },
    ));
    cases
}

/// By what the policy stores the tokens in.
fn tolerance(make: &Make) -> Tolerance {
    let shape = ModelShape::uniform(LAYERS, KvShape::new(2, 8));
    let plan = || Some(Plan::new(&shape, &make().ok()?).ok()?.groups()[0].storage);
    match plan() {
        Some(Storage::Quantised(codec)) if codec.bits() == 8 => IN_8_BITS,
        Some(Storage::Quantised(_)) => IN_4_BITS,
        // A plan that is refused fails in the case.
        _ => ATTENDED,
    }
}

/// Tokens kept at the end, by layer, row and head.
type Kept = Vec<Vec<Vec<i64>>>;

fn run(make: &Make, how: How, subject: &Subject) -> Result<(Measured, Kept), Unmeasured> {
    let model = ToyModel::new(LAYERS, 4, 2, 8, 3, &subject.device);
    let sharing = if how.share { Sharing::both([(2, 0), (3, 1), (4, 0)])? } else { Sharing::default() };
    let options = CacheOptions { dtype: subject.dtype, ..model.cache_options(BATCH, PROMPT + STEPS) };
    let options = CacheOptions { prompt: how.told.then_some(PROMPT), ..options };
    let stack = make()?.with(sharing.clone());
    let mut cache = Cache::new(model.shape(), stack, options, &subject.device)?;
    let tokens = toy_tokens(BATCH, PROMPT + STEPS, 11);
    let passes = [how.prompt, &[1; STEPS]].concat();
    let measured = follow(&model, &sharing, &mut cache, &tokens, how.padding, &passes)?;
    let kept = (0..LAYERS).map(|layer| kept_tokens(&cache, LayerId(layer))).collect::<Result<_, _>>()?;
    Ok((measured, kept))
}

/// Share of the tokens of `found` that are not among those of `expected`.
fn apart(found: &Kept, expected: &Kept) -> Measured {
    let heads = || found.iter().flatten().zip(expected.iter().flatten());
    let all: usize = heads().map(|(found, _)| found.len()).sum();
    let other: usize =
        heads().map(|(found, expected)| found.iter().filter(|token| !expected.contains(token)).count()).sum();
    let same_sizes = heads().all(|(found, expected)| found.len() == expected.len());
    let worst = if same_sizes { other as f64 / all.max(1) as f64 } else { f64::INFINITY };
    Measured { worst, note: format!("{other} of {all} kept tokens differ") }
}
