//! The search: distances, similarities and verdicts are those of a model run whole, on the host, in f64.

use super::{Case, Measured, Mirror, Subject, Tolerance, ToyModel, Unmeasured, largest, toy_tokens};
use crate::{
    Averages, CalibrationSet, Distance, Found, Greedy, LayerMap, Objective, Paper, Progress, SearchModel,
    SearchOptions, Sharing, Step, Trial, Units, search,
};
use burn::tensor::DType;

const LAYERS: usize = 6;
const TOKENS: usize = 12;
const SAMPLES: usize = 3;

pub(super) fn cases() -> Vec<Case> {
    let tolerance = Tolerance::always(1e-5);
    vec![
        Case::new("search: distances of caches", tolerance, |subject| {
            let (model, found) = run(subject, -1.0)?;
            distances(&model, &found)
        }),
        Case::new("search: similarities and verdicts of trials", tolerance, |subject| {
            // Between the similarities of this model's trials, so that some are kept and some are not.
            let (model, found) = run(subject, 0.9)?;
            similarities(&model, &found)
        }),
        Case::new("search: greedy steps, several candidates a pass", tolerance, greedy),
    ]
}

const IN_F32: &str = "the toy model searches in f32 whatever the dtype of caches";

fn model(subject: &Subject) -> ToyModel {
    ToyModel::new(LAYERS, 4, 2, 8, 5, &subject.device)
}

fn samples() -> Vec<Vec<u32>> {
    (0..SAMPLES as u64).flat_map(|seed| toy_tokens(1, TOKENS, seed)).collect()
}

fn run(subject: &Subject, threshold: f64) -> Result<(ToyModel, Found), Unmeasured> {
    if subject.dtype != DType::F32 {
        return Err(Unmeasured::Skipped(IN_F32.into()));
    }
    let model = model(subject);
    let set = CalibrationSet::new(samples(), TOKENS)?;
    let paper = Paper { threshold, ..Paper::default() };
    let found = search(&model, &set, &paper, &SearchOptions::new(4), &mut |_: Progress<'_>| {})?;
    Ok((model, found))
}

/// Candidates judged together on the device against each by itself on the other one.
fn greedy(subject: &Subject) -> Result<Measured, Unmeasured> {
    let run = |subject: &Subject, pass_tokens: usize| -> Result<Found, Unmeasured> {
        let set = CalibrationSet::new(samples(), TOKENS)?;
        let (objective, units) = (Objective::LogitKl, Units::Apart);
        let options = SearchOptions { objective, units, pass_tokens, ..SearchOptions::new(2) };
        Ok(search(&model(subject), &set, &Greedy { width: None }, &options, &mut |_: Progress<'_>| {})?)
    };
    if subject.dtype != DType::F32 {
        return Err(Unmeasured::Skipped(IN_F32.into()));
    }
    let (found, expected) = (run(subject, 8192)?.steps, run(&subject.other(), 0)?.steps);
    let maps = |steps: &[Step]| steps.iter().map(|s| (s.key_map.clone(), s.value_map.clone())).collect::<Vec<_>>();
    if maps(&found) != maps(&expected) {
        return Err(Unmeasured::Failed(format!("other steps: {:?} instead of {:?}", maps(&found), maps(&expected))));
    }
    let errors = found.iter().zip(&expected).map(|(found, expected)| (found.objective - expected.objective).abs());
    Ok(Measured { worst: largest(errors), note: format!("of the KL divergence of {} steps", found.len()) })
}

/// Relative to the reference's.
fn distances(model: &ToyModel, found: &Found) -> Result<Measured, Unmeasured> {
    let plain = Sharing::default();
    let (mut keys, mut values) = (vec![Vec::new(); LAYERS], vec![Vec::new(); LAYERS]);
    for sample in samples() {
        let mut mirror = Mirror::new(model, &plain, &[0]);
        mirror.all(&[sample], 0..TOKENS);
        for (sums, of_keys) in [(&mut keys, true), (&mut values, false)] {
            for (layer, sum) in sums.iter_mut().enumerate() {
                let held = mirror.held(layer, of_keys).iter().flatten().flatten().map(|x| x / SAMPLES as f64);
                match sum.is_empty() {
                    true => *sum = held.collect(),
                    false => sum.iter_mut().zip(held).for_each(|(sum, x): (&mut f64, f64)| *sum += x),
                }
            }
        }
    }
    let averages = Averages { shapes: model.shape().layers().to_vec(), keys, values };
    let expected = Distance::Code.pairs(&averages);
    let all = found.ranking.iter().map(|pair| {
        let expected = expected.iter().find(|other| (other.donor, other.borrower) == (pair.donor, pair.borrower));
        let off =
            |of: fn(&crate::Pair) -> f64| expected.map_or(f64::NAN, |expected| (of(pair) / of(expected) - 1.0).abs());
        let worst = largest([off(|pair| pair.key), off(|pair| pair.value)]);
        Measured { worst, note: format!("worst of layers {} and {}", pair.donor, pair.borrower) }
    });
    Ok(Measured::worst_of(all))
}

fn similarities(model: &ToyModel, found: &Found) -> Result<Measured, Unmeasured> {
    let states = |map: &LayerMap| -> Vec<Vec<f64>> {
        let sharing = Sharing::new(map.clone(), map.clone());
        samples().into_iter().map(|sample| Mirror::new(model, &sharing, &[0]).all(&[sample], 0..TOKENS)).collect()
    };
    let plain = states(&LayerMap::default());
    let cosine = |a: &[f64], b: &[f64]| {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let kept = found.trials.iter().filter(|trial| trial.accepted).count();
    let mut accepted = LayerMap::default();
    let all = found.trials.iter().map(|trial| {
        let mut map = accepted.clone();
        map.share(trial.borrower, trial.donor);
        let pairs = plain.iter().zip(states(&map)).map(|(plain, shared)| cosine(plain, &shared));
        let expected = pairs.sum::<f64>() / SAMPLES as f64;
        let worst = trial.similarity.map_or(f64::NAN, |found| (found - expected).abs());
        if trial.accepted {
            accepted = map;
        }
        // A verdict may differ only where the similarity is as near to the threshold as it is to the reference.
        let worst = if trial.accepted == (expected > 0.9) { worst } else { f64::NAN };
        Measured { worst, note: format!("{kept} of {} trials kept", found.trials.len()) }
    });
    Ok(Measured::worst_of(all))
}

/// The largest difference of similarities up to the trial where two searches part; infinite if they do in f32.
pub fn compare_trials(found: &[Trial], expected: &[Trial], dtype: DType) -> Measured {
    let verdict = |trial: &Trial| (trial.borrower, trial.donor, trial.accepted);
    let alike = found.iter().zip(expected).take_while(|(ours, theirs)| verdict(ours) == verdict(theirs)).count();
    let error = |(ours, theirs): (&Trial, &Trial)| match (ours.similarity, theirs.similarity) {
        (Some(ours), Some(theirs)) => (ours - theirs).abs(),
        _ => f64::NAN,
    };
    let worst = largest(found.iter().zip(expected).take(alike).map(error));
    match (found.get(alike), expected.get(alike)) {
        (None, None) => Measured { worst, note: format!("{alike} trials alike") },
        (ours, theirs) => {
            let told = |trial: Option<&Trial>| {
                trial.map_or("none".into(), |trial| {
                    let verdict = if trial.accepted { "kept" } else { "not kept" };
                    format!("{} = {} {verdict}", trial.borrower, trial.donor)
                })
            };
            let note = format!("part at trial {} ({} here, {} there)", alike + 1, told(ours), told(theirs));
            // Half precision tips near ties.
            Measured { worst: if dtype == DType::F32 { f64::INFINITY } else { worst }, note }
        }
    }
}
