//! Strategies that choose by the objective: what they find, what they spare, and that interruptions change nothing.

use burn::tensor::Device;
use kvsharer_core::testing::{ToyModel, toy_tokens};
use kvsharer_core::{
    Beam, CalibrationSet, DropLayers, Fit, Found, Greedy, Objective, Observer, Progress, Refine, Refit, SearchError,
    SearchOptions, SearchStrategy, Strategies, Target, Units, search,
};
use std::collections::HashMap;

const LAYERS: usize = 6;

fn model() -> ToyModel {
    ToyModel::new(LAYERS, 4, 2, 8, 5, &Device::flex())
}

fn set() -> CalibrationSet {
    CalibrationSet::new((0..8).map(|seed| toy_tokens(1, 24, seed).remove(0)), 24).unwrap()
}

fn options(units: Units) -> SearchOptions {
    SearchOptions {
        share: Target::Bytes(1.0 / 3.0),
        units,
        objective: Objective::LogitKl,
        batch: 2,
        parallel: 1,
        ..SearchOptions::new(1)
    }
}

fn run(strategy: &dyn SearchStrategy, options: &SearchOptions) -> Found {
    search(&model(), &set(), strategy, options, &mut |_: Progress<'_>| {}).unwrap()
}

#[test]
fn greedy_takes_the_best_of_all_moves_whether_hopeless_ones_are_given_up_or_not() {
    let early = run(&Greedy { width: None }, &options(Units::Apart));
    let whole = run(&Greedy { width: None }, &SearchOptions { batch: 8, ..options(Units::Apart) });
    assert!(early.trials.iter().any(|trial| trial.abandoned));
    assert!(whole.trials.iter().all(|trial| !trial.abandoned));
    assert_eq!(early.draft.sharing(), whole.draft.sharing());
    let mut first = 0;
    for step in &whole.steps {
        let of_step = &whole.trials[first..step.trials];
        let least = of_step.iter().filter_map(|trial| trial.objective).fold(f64::INFINITY, f64::min);
        assert_eq!(least, step.objective);
        assert_eq!(of_step.iter().filter(|trial| trial.accepted).count(), 1);
        first = step.trials;
    }
    assert_eq!(whole.exhaustive, whole.trials.len());
    // A third of twelve units.
    assert_eq!((whole.requested, whole.reached, whole.steps.len()), (4, 4, 4));
    assert!((whole.saved - 1.0 / 3.0).abs() < 1e-12);
}

#[test]
fn lazy_greedy_spares_trials_and_says_how_many() {
    let greedy = run(&Greedy { width: None }, &options(Units::Apart));
    let lazy = run(&Greedy { width: Some(8) }, &options(Units::Apart));
    assert!(lazy.trials.len() < greedy.trials.len(), "{} of {}", lazy.trials.len(), greedy.trials.len());
    assert!(lazy.exhaustive >= greedy.trials.len());
    // The first step knows nothing to be lazy about. Layers of random weights depend on each other more than a real
    // model's, so the later ones may differ.
    assert_eq!(lazy.steps[0], greedy.steps[0]);
    let wide = run(&Greedy { width: Some(usize::MAX) }, &options(Units::Apart));
    assert_eq!((wide.draft.sharing(), wide.trials.len()), (greedy.draft.sharing(), greedy.trials.len()));
}

#[test]
fn candidates_judged_together_get_the_verdicts_they_get_alone() {
    for (units, fit, plain_too) in
        [(Units::Apart, Fit::None, false), (Units::Both, Fit::Heads, true), (Units::Apart, Fit::Full, false)]
    {
        let alone = SearchOptions { fit, plain_too, batch: 6, ..options(units) };
        // Three candidates of 6 x 24 tokens.
        let together = SearchOptions { pass_tokens: 3 * 6 * 24, ..alone };
        let [alone, together] = [alone, together].map(|options| run(&Greedy { width: None }, &options));
        assert_eq!(alone.draft.sharing(), together.draft.sharing());
        assert_eq!(alone.trials.len(), together.trials.len());
        for trial in together.trials.iter().filter(|trial| !trial.abandoned) {
            let same = |other: &&kvsharer_core::Trial| {
                (other.borrower, other.donor, other.units, other.fitted)
                    == (trial.borrower, trial.donor, trial.units, trial.fitted)
            };
            let (ours, theirs) = (trial.objective.unwrap(), alone.trials.iter().filter(same));
            let near = |other: &kvsharer_core::Trial| (other.objective.unwrap() - ours).abs() < 1e-5 * (1.0 + ours);
            assert!(theirs.clone().any(|other| other.abandoned || near(other)), "{trial:?}");
        }
        for (one, two) in alone.steps.iter().zip(&together.steps) {
            assert!((one.objective - two.objective).abs() < 1e-5, "{one:?} {two:?}");
        }
    }
}

#[test]
fn a_beam_is_no_worse_than_greedy_and_one_beam_is_greedy() {
    let options = options(Units::Both);
    let greedy = run(&Greedy { width: None }, &options);
    let one = run(&Beam { beams: 1, width: None }, &options);
    let three = run(&Beam { beams: 3, width: None }, &options);
    assert_eq!(one.draft.sharing(), greedy.draft.sharing());
    let loss = |found: &Found| found.steps.last().unwrap().objective;
    assert!(loss(&three) <= loss(&greedy) + 1e-9, "{} {}", loss(&three), loss(&greedy));
    assert_eq!(three.steps.len(), greedy.steps.len(), "only the steps of the best draft are kept");
}

#[test]
fn neighbours_are_found_for_any_share() {
    for share in [0.1, 0.2, 0.3, 0.4] {
        let found =
            run(&kvsharer_core::Adjacent, &SearchOptions { share: Target::Bytes(share), ..options(Units::Values) });
        assert_eq!(found.reached, found.requested, "{share}");
        assert!((found.saved - share).abs() < 1.0 / 12.0, "{} instead of {share}", found.saved);
    }
}

#[test]
fn refining_keeps_the_bytes_and_never_raises_the_objective() {
    for held_back in [0.0, 0.25] {
        let options = SearchOptions { held_back, ..options(Units::Apart) };
        let adjacent = run(&kvsharer_core::Adjacent, &options);
        let refined: Strategies =
            Strategies(vec![Box::new(kvsharer_core::Adjacent), Box::new(Refine { width: 100, passes: 2 })]);
        let refined = run(&refined, &options);
        let [before, after] = [&adjacent, &refined].map(|found| found.steps.last().unwrap().clone());
        assert!(after.objective < before.objective);
        assert!(after.held_back.zip(before.held_back).is_none_or(|(after, before)| after <= before));
        assert_eq!((after.saved, held_back > 0.0), (before.saved, after.held_back.is_some()));
    }
}

#[test]
fn fitted_maps_lower_the_objective_and_say_what_they_leave_unexplained() {
    let plain = run(&Greedy { width: None }, &SearchOptions { held_back: 0.25, ..options(Units::Values) });
    for (fit, permute_heads) in [(Fit::Heads, false), (Fit::Heads, true), (Fit::Full, false)] {
        let options = SearchOptions { fit, permute_heads, held_back: 0.25, ..options(Units::Values) };
        let fitted = run(&Strategies(vec![Box::new(Greedy { width: None }), Box::new(Refit)]), &options);
        let [before, after] = [&plain, &fitted].map(|found| found.steps.last().unwrap().objective);
        assert!(after < before, "{fit:?}: {after} instead of {before}");
        let residuals: Vec<f64> = fitted.steps.iter().filter_map(|step| step.residual).collect();
        assert!(residuals.len() >= 4 && residuals.iter().all(|residual| *residual > 0.0), "{residuals:?}");
        let names = &fitted.steps.last().unwrap().adapters;
        assert_eq!(names.len(), fitted.draft.adapters().len());
        assert!(names.values().all(|name| fitted.adapters.contains_key(name)));
    }
}

#[test]
fn dropping_layers_saves_their_keys_and_values() {
    let found = run(&DropLayers, &options(Units::Both));
    assert_eq!((found.draft.dropped().len(), found.reached), (2, 2));
    assert!(found.draft.sharing().keys().is_empty());
    assert!((found.saved - 1.0 / 3.0).abs() < 1e-12);
}

/// Remembers all trials and dies at one of them.
struct Mortal {
    known: HashMap<String, (f64, bool)>,
    judged: usize,
    dies_at: usize,
}

impl Observer for Mortal {
    fn watch(&mut self, _progress: Progress<'_>) {}

    fn recall(&mut self, key: &str) -> Option<(f64, bool)> {
        self.known.get(key).copied()
    }

    fn keep(&mut self, key: &str, loss: f64, whole: bool) -> Result<(), String> {
        if self.judged == self.dies_at {
            return Err("killed".into());
        }
        self.judged += 1;
        assert!(self.known.insert(key.into(), (loss, whole)).is_none(), "{key} was judged twice");
        Ok(())
    }
}

#[test]
fn an_interrupted_search_goes_on_and_finds_the_same_without_judging_anything_twice() {
    let strategies: [Box<dyn SearchStrategy>; 2] = [
        Box::new(Strategies(vec![Box::new(Greedy { width: Some(5) }), Box::new(Refine { width: 5, passes: 1 })])),
        Box::new(Beam { beams: 2, width: Some(5) }),
    ];
    for strategy in &strategies {
        let options = SearchOptions { fit: Fit::Heads, held_back: 0.25, ..options(Units::Apart) };
        let mut whole = Mortal { known: HashMap::new(), judged: 0, dies_at: usize::MAX };
        let expected = search(&model(), &set(), strategy.as_ref(), &options, &mut whole).unwrap();
        let mut mortal = Mortal { known: HashMap::new(), judged: 0, dies_at: 0 };
        let found = loop {
            mortal.dies_at += 17;
            match search(&model(), &set(), strategy.as_ref(), &options, &mut mortal) {
                Ok(found) => break found,
                Err(error) => assert_eq!(error, SearchError::Observer("killed".into())),
            }
        };
        assert_eq!(mortal.judged, whole.judged);
        assert_eq!((found.trials, found.steps), (expected.trials, expected.steps));
    }
}

#[test]
fn impossible_options_are_refused_before_anything_runs() {
    let good = options(Units::Both);
    for (bad, part) in [
        (SearchOptions { held_back: 1.0, ..good }, "held back"),
        (SearchOptions { held_back: 0.97, ..good }, "leave none"),
        (SearchOptions { ridge: f64::NAN, ..good }, "ridge"),
        (SearchOptions { share: Target::Bytes(0.9), ..good }, "bytes"),
    ] {
        let error = search(&model(), &set(), &Greedy { width: None }, &bad, &mut |_: Progress<'_>| {}).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}
