//! A real model on a device, in the dtype asked for, against itself on another one in f32.

use crate::texts;
use kvsharer_compress::parse_policy;
use kvsharer_core::testing::{
    Case, Measured, Subject, Tolerance, Unmeasured, compare_trials, host, kept_tokens, worst,
};
use kvsharer_core::{CalibrationSet, Found, Paper, Progress, SearchModel, SearchOptions, Stack, search};
use kvsharer_models::{Decoder, ModelFiles};
use std::sync::{Arc, OnceLock};

/// Tokens of the prompt.
const PROMPT: usize = 128;
/// Tokens decoded after it.
const STEPS: usize = 64;
/// Samples a search is made with, and their tokens.
const SAMPLES: [usize; 2] = [8, 32];
/// A policy that decides by head and while decoding.
const POLICY: &str = "h2o:heavy=32,recent=32";

/// Relative to the standard deviation of the logits.
const LOGITS: Tolerance = Tolerance::new(1e-4, 1e-2, 5e-2);
/// Of the tokens decoded.
const TOKENS: Tolerance = Tolerance::new(0.0, 0.05, 0.1);
/// Of the kept tokens; mass adds up over 192 queries, and heads have near ties.
const KEPT: Tolerance = Tolerance::new(0.002, 0.05, 0.15);
/// Of the similarities of trials.
const SIMILARITIES: Tolerance = Tolerance::new(1e-4, 1e-2, 5e-2);

/// A model with what it is to read.
pub struct ModelText {
    /// The model.
    pub files: ModelFiles,
    /// A prompt and what follows.
    text: Vec<u32>,
    samples: Vec<Vec<u32>>,
    ours: OnceLock<Decoder>,
    theirs: OnceLock<Decoder>,
    decoded: OnceLock<[Logits; 2]>,
}

/// By step, then token of the vocabulary.
type Logits = Vec<Vec<f64>>;

impl ModelText {
    /// The text that travels with the program, or any token ids for a model without a tokenizer.
    pub fn new(files: ModelFiles) -> Self {
        let vocab = files.config().vocab as u32;
        // Any ids will do: multiples of a prime, so that none comes twice soon.
        let ids =
            |count: usize, seed: u32| (0..count as u32).map(|i| ((i + seed) * 7919 + 13) % vocab).collect::<Vec<_>>();
        let encode = |text: &str| files.tokenizer().ok()?.encode(text).ok();
        let text = encode(texts::DEMO).filter(|text| text.len() >= PROMPT).unwrap_or_else(|| ids(PROMPT, 0));
        let lines = texts::samples(texts::CALIBRATION).take(SAMPLES[0]).enumerate();
        let samples = lines.map(|(line, text)| encode(text).unwrap_or_else(|| ids(SAMPLES[1], line as u32))).collect();
        Self {
            text: text[..PROMPT].to_vec(),
            samples,
            files,
            ours: OnceLock::new(),
            theirs: OnceLock::new(),
            decoded: OnceLock::new(),
        }
    }

    /// The model on the device that is tested, and on the other one; each is loaded once.
    fn both(&self, subject: &Subject) -> Result<(&Decoder, &Decoder), Unmeasured> {
        let other = subject.other();
        Ok((self.load(&self.ours, subject)?, self.load(&self.theirs, &other)?))
    }

    fn load<'a>(&self, loaded: &'a OnceLock<Decoder>, subject: &Subject) -> Result<&'a Decoder, Unmeasured> {
        if let Some(model) = loaded.get() {
            return Ok(model);
        }
        let model = self.files.load(&subject.device, subject.dtype)?;
        Ok(loaded.get_or_init(|| model))
    }
}

/// Cases of one model: logits and greedy tokens over 64 decoded ones, the tokens H2O keeps by layer, and the search's
/// trials. All of them for one subject.
pub fn model_cases(model: ModelText) -> Vec<Case> {
    let (name, model) = (model.files.name().to_owned(), Arc::new(model));
    type Measure = fn(&ModelText, &Subject) -> Result<Measured, Unmeasured>;
    let cases: [(&str, Tolerance, Measure); 4] = [
        ("logits over 64 decoded tokens", LOGITS, drift),
        ("greedy tokens of the same text", TOKENS, greedy),
        ("tokens that H2O keeps", KEPT, kept),
        ("trials of the paper's search", SIMILARITIES, trials),
    ];
    let case = |(what, tolerance, measure): (&str, Tolerance, Measure)| {
        let model = model.clone();
        Case::new(format!("{name}: {what}"), tolerance, move |subject| measure(&model, subject))
    };
    cases.into_iter().map(case).collect()
}

/// Logits `[step][vocab]` of the last token of the prompt and of the decoded ones, which `next` chooses by their logits.
fn decode(model: &Decoder, prompt: &[u32], mut next: impl FnMut(usize, &[f64]) -> u32) -> Result<Logits, Unmeasured> {
    let mut cache = model.cache(Stack::new(), model.cache_options(1, prompt.len() + STEPS))?;
    let (mut input, mut all) = (prompt.to_vec(), Vec::new());
    for step in 0..=STEPS {
        let hidden = model.forward(&[&input], &mut cache)?;
        let tokens = hidden.dims()[1];
        let logits = host(Decoder::logits(model, hidden.slice_dim(1, tokens - 1..tokens)))?;
        input = vec![next(step, &logits)];
        all.push(logits);
    }
    Ok(all)
}

fn best(logits: &[f64]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(id, _)| id as u32)
}

/// Both models' logits on the text that the other one decodes.
fn decoded<'a>(model: &'a ModelText, subject: &Subject) -> Result<&'a [Logits; 2], Unmeasured> {
    if let Some(both) = model.decoded.get() {
        return Ok(both);
    }
    let (ours, theirs) = model.both(subject)?;
    let mut text = Vec::new();
    let expected = decode(theirs, &model.text, |_, logits| {
        text.push(best(logits));
        best(logits)
    })?;
    let found = decode(ours, &model.text, |step, _| text[step])?;
    Ok(model.decoded.get_or_init(|| [found, expected]))
}

/// The worst single logit depends on how flat a step's logits happen to be, so that it is told but not judged.
fn drift(model: &ModelText, subject: &Subject) -> Result<Measured, Unmeasured> {
    let [found, expected] = decoded(model, subject)?;
    let (mut error, mut power, mut largest_error) = (0.0, 0.0, 0.0_f64);
    for (found, expected) in found.iter().zip(expected) {
        let mean = expected.iter().sum::<f64>() / expected.len() as f64;
        power += expected.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        error += found.iter().zip(expected).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
        largest_error = largest_error.max(worst(found, expected));
    }
    let note = format!("root mean square, of the logits' standard deviation; the largest error is {largest_error:.2e}");
    Ok(Measured { worst: (error / power).sqrt(), note })
}

fn greedy(model: &ModelText, subject: &Subject) -> Result<Measured, Unmeasured> {
    let [found, expected] = decoded(model, subject)?;
    let other: Vec<usize> = (0..=STEPS).filter(|&step| best(&found[step]) != best(&expected[step])).collect();
    let note = match other.first() {
        None => format!("all {} alike", STEPS + 1),
        Some(&step) => {
            let margin = expected[step][best(&expected[step]) as usize] - expected[step][best(&found[step]) as usize];
            format!(
                "{} differ, first at step {step}, where the other device prefers its own by {margin:.1e}",
                other.len()
            )
        }
    };
    Ok(Measured { worst: other.len() as f64 / (STEPS + 1) as f64, note })
}

fn kept(model: &ModelText, subject: &Subject) -> Result<Measured, Unmeasured> {
    let (ours, theirs) = model.both(subject)?;
    let run = |model: &Decoder, prompt: &[u32]| -> Result<Vec<Vec<Vec<i64>>>, Unmeasured> {
        let stack = Stack::new().with(parse_policy(POLICY)?);
        let mut cache = model.cache(stack, model.cache_options(1, prompt.len() + STEPS))?;
        model.forward(&[prompt], &mut cache)?;
        for &token in &prompt[..STEPS] {
            model.forward(&[&[token]], &mut cache)?;
        }
        model.shape().ids().map(|layer| kept_tokens(&cache, layer)).collect()
    };
    let (found, expected) = (run(ours, &model.text)?, run(theirs, &model.text)?);
    let layer = |(found, expected): (&Vec<Vec<i64>>, &Vec<Vec<i64>>)| {
        let heads = found.iter().zip(expected);
        let other: usize = heads.map(|(f, e)| f.iter().filter(|token| !e.contains(token)).count()).sum();
        (other, found.iter().map(Vec::len).sum::<usize>())
    };
    let layers: Vec<(usize, usize)> = found.iter().zip(&expected).map(layer).collect();
    let (other, all) = layers.iter().fold((0, 0), |(a, b), (other, all)| (a + other, b + all));
    let whole = layers.iter().filter(|(other, _)| *other == 0).count();
    let worst = layers.iter().enumerate().max_by_key(|(_, (other, _))| *other);
    let worst = worst.map_or(String::new(), |(layer, (other, all))| format!(", {other} of {all} in layer {layer}"));
    let note = format!("{POLICY}: {other} of {all} differ{worst}; {whole} of {} layers alike", layers.len());
    Ok(Measured { worst: other as f64 / all.max(1) as f64, note })
}

fn trials(model: &ModelText, subject: &Subject) -> Result<Measured, Unmeasured> {
    let (ours, theirs) = model.both(subject)?;
    let set = CalibrationSet::new(model.samples.clone(), SAMPLES[1])?;
    let share = (model.files.config().layers / 4).max(1);
    let run = |model: &Decoder| -> Result<Found, Unmeasured> {
        let options = SearchOptions { batch: SAMPLES[0], ..SearchOptions::new(share) };
        Ok(search(model, &set, &Paper::default(), &options, &mut |_: Progress<'_>| {})?)
    };
    let (found, expected) = (run(ours)?.trials, run(theirs)?.trials);
    Ok(compare_trials(&found, &expected, subject.dtype))
}
