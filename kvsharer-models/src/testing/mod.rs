//! Conformance cases of linear layers and of a tiny model of every family (feature `testing`), see [`kvsharer_core::testing`].

mod ahead;
mod families;
mod host;
mod linear;

use self::families::tiny_models;
use self::host::HostDecoder;
use crate::Decoder;
use burn::tensor::Tensor;
use kvsharer_core::testing::{self, Case, Measured, Subject, Tolerance, Unmeasured, compare_trials, largest, worst};
use kvsharer_core::{CalibrationSet, Found, Paper, Progress, SearchOptions, Sharing, Stack, search};

/// Relative to the largest logit. Rounding adds up over 4 layers with weights of no training.
const LOGITS: Tolerance = Tolerance::new(1e-4, 2e-2, 1.5e-1);
/// Of cosines.
const SIMILARITIES: Tolerance = Tolerance::new(1e-5, 5e-3, 5e-2);
const PROMPT: usize = 21;
const STEPS: usize = 6;

/// Cases of linear layers, of a tiny model of every family, and of a search on one.
pub fn suite() -> Vec<Case> {
    let models = tiny_models().into_iter().flat_map(|model| {
        [("a prompt, then single tokens", false), ("chunks under sharing", true)].map(|(how, share)| {
            let name = format!("model {}: logits of {how}", model.name);
            Case::new(name, LOGITS, move |subject| logits(model.load(subject)?, share))
        })
    });
    let name = "model llama: a search tries and keeps the pairs that it does in f32 elsewhere";
    linear::cases()
        .into_iter()
        .chain(models)
        .chain(ahead::cases())
        .chain([Case::new(name, SIMILARITIES, searches)])
        .collect()
}

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    testing::toy_tokens(1, count, seed).remove(0)
}

fn logits(model: Decoder, share: bool) -> Result<Measured, Unmeasured> {
    let tokens = tokens(PROMPT + STEPS, 5);
    let sharing = if share { Sharing::both([(3, 1)])? } else { Sharing::default() };
    let passes: &[usize] = if share { &[9, 1, 11, 1, 1, 1, 3] } else { &[PROMPT, 1, 1, 1, 1, 1, 1] };
    let options = model.cache_options(1, tokens.len());
    let mut cache = model.cache(Stack::new().with(sharing.clone()), options)?;
    let (mut parts, mut rest) = (Vec::new(), &tokens[..]);
    for &pass in passes {
        let (now, later) = rest.split_at(pass);
        parts.push(model.logits(model.forward(&[now], &mut cache)?));
        rest = later;
    }
    let expected = HostDecoder::read(&model)?.logits(&tokens, &sharing);
    let found = testing::host(Tensor::cat(parts, 1))?;
    let scale = largest(expected.iter().map(|x| x.abs()));
    Ok(Measured { worst: worst(&found, &expected) / scale, note: format!("of the largest logit, {scale:.1}") })
}

/// The paper's search without its gate, so that the order of trials is that of the distances.
fn searches(subject: &Subject) -> Result<Measured, Unmeasured> {
    let run = |subject: &Subject| -> Result<Found, Unmeasured> {
        let model = tiny_models()[0].load(subject)?;
        let set = CalibrationSet::new((0..4).map(|seed| tokens(16, seed)), 16)?;
        let paper = Paper { threshold: -1.0, ..Paper::default() };
        Ok(search(&model, &set, &paper, &SearchOptions::new(3), &mut |_: Progress<'_>| {})?)
    };
    let (ours, theirs) = (run(subject)?, run(&subject.other())?);
    Ok(compare_trials(&ours.trials, &theirs.trials, subject.dtype))
}
