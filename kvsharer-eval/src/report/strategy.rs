//! Strategy files: what a search saw, tried and found.

use super::filters::Filters;
use super::number::{hash, percent, short, tick};
use super::plot::{Axis, Chart, Plot, Point, Series, arcs, heat};
use super::table::{Field, Table};
use super::{ReportError, Results, Section};
use kvsharer_core::{LayerId, Pair, Strategy, Trial, Units};
use std::collections::BTreeSet;

/// Trials that are drawn and listed; of more, all that were kept and an even selection of the others.
const MAX_TRIALS: usize = 1500;

pub(super) fn sections(results: &Results, filters: &Filters) -> Result<Vec<Section>, ReportError> {
    let mut drawn = BTreeSet::new();
    let section = |(path, file_hash, strategy): &(std::path::PathBuf, String, Strategy)| {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let mut plots = vec![map(strategy, filters)?];
        plots.extend(objective(strategy, filters)?);
        plots.extend(acceptance(strategy, filters)?);
        let mut about = about(strategy, file_hash);
        let key = (strategy.model.hash.clone(), strategy.calibration.hash.clone(), strategy.search.distance);
        if strategy.distances.is_empty() {
            about
                .push("The file has no distances of layers: this search ranks no pairs, or is older than them.".into());
        } else if drawn.insert(format!("{key:?}")) {
            plots.extend(distances(strategy, filters)?);
        } else {
            about.push("The distances of its layers are those of a strategy above.".into());
        }
        Ok(Section { title: format!("Strategy {name}"), about, table: steps(strategy), plots })
    };
    results.strategies.iter().map(section).collect()
}

fn about(strategy: &Strategy, file_hash: &str) -> Vec<String> {
    let Strategy { model, search, calibration, .. } = strategy;
    let mut how = vec![format!("search {}", search.name), format!("objective {}", search.objective)];
    how.extend(search.order.map(|order| format!("order {order:?}").to_lowercase()));
    how.extend(search.distance.map(|distance| format!("distance {distance:?}").to_lowercase()));
    how.extend(search.threshold.map(|threshold| format!("threshold {threshold}")));
    how.extend(search.seed.map(|seed| format!("seed {seed}")));
    how.push(format!("fit {:?}", search.fit).to_lowercase());
    let kept = if search.units == Units::Both { "layers" } else { "keys and values" };
    vec![
        format!(
            "{} of {} {kept} asked for share, {} of the KV bytes saved, {} trials",
            strategy.reached,
            strategy.requested,
            percent(strategy.saved),
            strategy.trials.len()
        ),
        how.join("; "),
        format!(
            "{} with {} layers (weights {}); {} samples, {} tokens (hash {}); {}; file {}",
            model.architecture,
            model.layers,
            hash(&model.hash),
            calibration.samples,
            calibration.tokens,
            hash(&calibration.hash),
            strategy.library,
            hash(file_hash)
        ),
    ]
}

/// Similarities are recorded as losses in steps; here they are what they are.
fn as_seen(strategy: &Strategy, objective: f64) -> f64 {
    if strategy.search.objective == "hidden-cosine" { -objective } else { objective }
}

fn steps(strategy: &Strategy) -> Table {
    let name = if strategy.search.objective == "hidden-cosine" { "similarity" } else { &strategy.search.objective };
    let mut table = Table::new(&["step#", "trials#", "saved#", &format!("{name}#"), "held back#", "unexplained#"]);
    let number = |value: f64| Field::number(short(value), value);
    for (step, index) in strategy.steps.iter().zip(1..) {
        let fields = vec![
            Field::count(index),
            Field::count(step.trials),
            Field::number(percent(step.saved), step.saved),
            number(as_seen(strategy, step.objective)),
            step.held_back.map_or_else(Field::default, |held| number(as_seen(strategy, held))),
            step.residual.map_or_else(Field::default, number),
        ];
        table.push(None, fields);
    }
    table.without_empty_columns()
}

fn map(strategy: &Strategy, filters: &Filters) -> Result<Plot, ReportError> {
    let Strategy { key_map, value_map, dropped, model, .. } = strategy;
    let (svg, legend) = arcs(model.layers, key_map, value_map, dropped, filters)?;
    let mut table = Table::new(&["layer#", "keys of#", "values of#"]);
    let readers: BTreeSet<&LayerId> = key_map.keys().chain(value_map.keys()).collect();
    for layer in readers {
        let donor = |donor: Option<&LayerId>| donor.map_or_else(|| Field::text("its own"), |d| Field::count(d.0));
        table.push(None, vec![Field::count(layer.0), donor(key_map.get(layer)), donor(value_map.get(layer))]);
    }
    let about = "arcs join a layer and the one whose cache it reads; full dots own a cache, rings do not".into();
    Ok(Plot { title: "Sharing map".into(), about, svg, legend, table })
}

fn objective(strategy: &Strategy, filters: &Filters) -> Result<Option<Plot>, ReportError> {
    if strategy.steps.is_empty() {
        return Ok(None);
    }
    let name = if strategy.search.objective == "hidden-cosine" { "similarity" } else { &strategy.search.objective };
    let series = |name: &str, hollow: bool, of: &dyn Fn(&kvsharer_core::Step) -> Option<f64>| {
        let point = |step: &kvsharer_core::Step| {
            let (x, y) = (100.0 * step.saved, as_seen(strategy, of(step)?));
            let title = format!("{name}: {} at {:.1} % saved, after {} trials", short(y), x, step.trials);
            Some(Point { x, y, range: None, hollow, title, tags: None })
        };
        Series { name: name.into(), joined: true, points: strategy.steps.iter().filter_map(point).collect() }
    };
    let mut all = vec![series("samples searched with", false, &|step| Some(step.objective))];
    all.push(series("samples held back", true, &|step| step.held_back));
    all.retain(|series| !series.points.is_empty());
    let x = Axis { zero: true, ..Axis::new("KV bytes saved, %", |at| format!("{at:.0}")) };
    let chart = Chart::new(x, Axis::new(name, tick), all, Vec::new());
    Ok(Some(Plot {
        title: "Objective along the search".into(),
        about: format!("{name} after every accepted step"),
        svg: chart.svg(filters)?,
        legend: chart.legend(),
        table: steps(strategy),
    }))
}

/// Where the pair of a trial stands in the ranking, from 1. A trial names the owner that a donor was followed to, so that
/// the pair is known by its borrower and distance.
fn rank(distances: &[Pair], units: Units, trial: &Trial) -> Option<usize> {
    let distance = trial.distance?;
    let is_pair = |pair: &Pair| pair.borrower == trial.borrower && units.distance(pair) == distance;
    distances.iter().position(is_pair).map(|index| index + 1)
}

fn acceptance(strategy: &Strategy, filters: &Filters) -> Result<Option<Plot>, ReportError> {
    let ranks: Option<Vec<usize>> =
        strategy.trials.iter().map(|trial| rank(&strategy.distances, trial.units, trial)).collect();
    let ranked = ranks.is_some();
    let ranks = ranks.unwrap_or_else(|| (1..=strategy.trials.len()).collect());
    let rejected = strategy.trials.iter().filter(|trial| !trial.accepted).count();
    let every = rejected.div_ceil(MAX_TRIALS).max(1);
    let mut table = Table::new(&["rank#", "layer#", "reads#", "what", "distance#", "judged at#", "kept"]);
    let (mut kept, mut other) = (Vec::new(), Vec::new());
    let mut seen = 0;
    for (trial, &rank) in strategy.trials.iter().zip(&ranks) {
        let Some(y) = trial.similarity.or(trial.objective) else { continue };
        seen += usize::from(!trial.accepted);
        if !trial.accepted && seen % every != 0 {
            continue;
        }
        let (layer, donor, what) = (trial.borrower, trial.donor, trial.units.letters());
        let verdict = if trial.accepted { "kept" } else { "not kept" };
        let title = format!("{rank}: {layer} reads {what} of {donor}, {}: {verdict}", short(y));
        let point = Point { x: rank as f64, y, range: None, hollow: !trial.accepted, title, tags: None };
        if trial.accepted {
            kept.push(point)
        } else {
            other.push(point)
        }
        let distance = trial.distance.map_or_else(Field::default, |distance| Field::number(short(distance), distance));
        let fields = vec![
            Field::count(rank),
            Field::count(layer.0),
            Field::count(donor.0),
            Field::text(what),
            distance,
            Field::number(short(y), y),
            Field::text(if trial.accepted { "yes" } else { "" }),
        ];
        table.push(None, fields);
    }
    if table.lines.is_empty() {
        return Ok(None);
    }
    let name = if strategy.search.objective == "hidden-cosine" { "similarity" } else { &strategy.search.objective };
    let mut about = match ranked {
        true => "trials by the rank of their pair of layers; pairs in between were not tried".to_owned(),
        false => "trials in their order: this search ranks no pairs".to_owned(),
    };
    if let Some(threshold) = strategy.search.threshold {
        about += &format!("; kept above {threshold}");
    }
    if every > 1 {
        about += &format!("; of {rejected} not kept, every {every}th");
    }
    let series =
        [("kept", kept), ("not kept", other)].map(|(name, points)| Series { name: name.into(), joined: false, points });
    let judged = series.iter().flat_map(|series| &series.points).map(|point| point.y);
    let y = Axis::new(name, tick).log_if(judged, 16.0);
    let x = Axis::new(if ranked { "rank" } else { "trial" }, |at| format!("{at:.0}"));
    let chart = Chart::new(x, y, series.into(), Vec::new());
    Ok(Some(Plot {
        title: "Acceptance against rank".into(),
        about,
        svg: chart.svg(filters)?,
        legend: chart.legend(),
        table: table.without_empty_columns(),
    }))
}

/// Distances of keys and of values.
fn distances(strategy: &Strategy, filters: &Filters) -> Result<Vec<Plot>, ReportError> {
    let plot = |what: &str, of: fn(&Pair) -> f64| -> Result<Plot, ReportError> {
        let layers = strategy.model.layers;
        let inside = |pair: &&Pair| pair.donor.0.max(pair.borrower.0) < layers;
        let mut pairs: Vec<&Pair> = strategy.distances.iter().filter(inside).collect();
        pairs.sort_by_key(|pair| (pair.donor, pair.borrower));
        // A search for keys and values apart ranks a pair twice.
        pairs.dedup_by_key(|pair| (pair.donor, pair.borrower));
        let values: Vec<_> = pairs.iter().map(|pair| (pair.donor.0, pair.borrower.0, of(pair))).collect();
        let (svg, legend) = heat(layers, &values, filters)?;
        let mut table = Table::new(&["read#", "reader#", "distance#"]);
        for (donor, borrower, value) in values {
            let fields = vec![Field::count(donor), Field::count(borrower), Field::number(short(value), value)];
            table.push(None, fields);
        }
        let about = "distance of the layers' average caches in the untouched model; pointed at: read, reader: distance";
        Ok(Plot { title: format!("Distances of {what}"), about: about.into(), svg, legend, table })
    };
    Ok(vec![plot("keys", |pair| pair.key)?, plot("values", |pair| pair.value)?])
}
