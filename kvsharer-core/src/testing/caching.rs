//! The cache under a whole toy model: chunks, padding, sharing, sliding windows and branches make no difference.

use super::{Case, Measured, Mirror, Subject, Tolerance, ToyModel, Unmeasured, follow, host, toy_tokens, worst};
use crate::{Cache, CacheOptions, Kv, LayerMap, SearchModel, Sharing, Stack};
use burn::tensor::Tensor;

/// Final states have a root mean square of 1; only keys, values and attention are in half precision.
const TOLERANCE: Tolerance = Tolerance::new(1e-4, 1e-2, 6e-2);
const TOKENS: usize = 30;
const WINDOW: usize = 7;

/// A way to run a text.
#[derive(Clone)]
struct Text {
    windows: [Option<usize>; 5],
    sharing: Sharing,
    padding: &'static [usize],
    passes: &'static [usize],
}

pub(super) fn cases() -> Vec<Case> {
    let plain = Text { windows: [None; 5], sharing: Sharing::default(), padding: &[], passes: &[TOKENS] };
    let windows = [Some(WINDOW), None, Some(WINDOW), Some(3), Some(WINDOW)];
    let sharing = |keys: &[(usize, usize)], values: &[(usize, usize)]| {
        let map = |kind, pairs: &[(usize, usize)]| LayerMap::resolve(kind, pairs.iter().copied()).unwrap_or_default();
        Sharing::new(map(Kv::Key, keys), map(Kv::Value, values))
    };
    let pairs = &[(2, 0), (3, 1), (4, 0)][..];
    let texts = [
        ("one pass", plain.clone()),
        ("single tokens", Text { passes: &[1; TOKENS], ..plain.clone() }),
        ("chunks", Text { passes: &[5, 1, 3, 1, 12, 8], ..plain.clone() }),
        ("keys and values shared", Text { sharing: sharing(pairs, pairs), passes: &[9, 1, 20], ..plain.clone() }),
        ("keys shared", Text { sharing: sharing(&[(3, 1), (4, 0)], &[]), passes: &[28, 1, 1], ..plain.clone() }),
        ("values shared", Text { sharing: sharing(&[], &[(3, 1), (4, 0)]), passes: &[28, 1, 1], ..plain.clone() }),
        ("shared apart", Text { sharing: sharing(&[(2, 0)], &[(2, 1), (4, 3)]), passes: &[12, 18], ..plain.clone() }),
        ("padded rows", Text { padding: &[9, 0], passes: &[12, 1, 1, 16], ..plain.clone() }),
        ("sliding windows", Text { windows, passes: &[7, 7, 7, 7, 2], ..plain.clone() }),
        ("windows, single tokens", Text { windows, passes: &[12, 1, 1, 3, 1, 9, 1, 1, 1], ..plain.clone() }),
        ("windows, padded and shared", {
            let sharing = sharing(&[(2, 0), (4, 0)], &[(2, 0), (4, 0)]);
            Text { windows, sharing, padding: &[9, 0], passes: &[12, 1, 1, 16] }
        }),
    ];
    let cases = texts.map(|(name, text)| Case::new(format!("cache: {name}"), TOLERANCE, move |on| text.run(on)));
    let branch = Case::new("cache: a branch goes on by itself", TOLERANCE, branch);
    let again = Case::new("cache: what starts over has forgotten everything", TOLERANCE, again);
    cases.into_iter().chain([branch, again]).collect()
}

fn model(subject: &Subject) -> ToyModel {
    ToyModel::new(5, 6, 2, 8, 5, &subject.device)
}

fn options(model: &ToyModel, subject: &Subject) -> CacheOptions {
    CacheOptions { dtype: subject.dtype, ..model.cache_options(2, TOKENS) }
}

impl Text {
    fn run(&self, subject: &Subject) -> Result<Measured, Unmeasured> {
        let model = model(subject).with_windows(&self.windows);
        let stack = Stack::new().with(self.sharing.clone());
        let mut cache = Cache::new(model.shape(), stack, options(&model, subject), &subject.device)?;
        follow(&model, &self.sharing, &mut cache, &toy_tokens(2, TOKENS, 8), self.padding, self.passes)
    }
}

/// The second row goes on alone, and gives what it gives in one uncached pass.
fn branch(subject: &Subject) -> Result<Measured, Unmeasured> {
    let (model, tokens, sharing) = (model(subject), toy_tokens(2, TOKENS, 3), Sharing::default());
    let row = [tokens[1].clone()];
    let expected = Mirror::new(&model, &sharing, &[0]).all(&row, 0..TOKENS);
    let mut cache = Cache::new(model.shape(), Stack::new(), options(&model, subject), &subject.device)?;
    model.run(&tokens, &[12], &mut cache)?;
    let mut branch = cache.branch(&[1])?;
    drop(cache);
    let mut states = Vec::new();
    for token in 12..TOKENS {
        branch.begin(1)?;
        states.push(model.forward(&row, token..token + 1, &mut branch)?);
    }
    let found = host(Tensor::cat(states, 1))?;
    Ok(Measured::new(worst(&found, &expected[expected.len() - found.len()..])))
}

fn again(subject: &Subject) -> Result<Measured, Unmeasured> {
    let (model, sharing) = (model(subject), Sharing::both([(3, 1)])?);
    let stack = Stack::new().with(sharing.clone());
    let mut cache = Cache::new(model.shape(), stack, options(&model, subject), &subject.device)?;
    model.run(&toy_tokens(2, TOKENS, 1), &[TOKENS], &mut cache)?;
    cache.reset();
    follow(&model, &sharing, &mut cache, &toy_tokens(2, TOKENS, 2), &[], &[5, 1, 24])
}
