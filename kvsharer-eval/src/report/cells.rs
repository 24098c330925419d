//! Numbers of one cell over its seeds, beside the full cache under the same conditions.

use super::row::{Conditions, Row, Setup};
use serde::Serialize;
use std::collections::BTreeMap;

/// What all seeds (or repeated timings) of one setup under the same conditions gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// What it may be compared with.
    pub conditions: Conditions,
    /// What it was measured for.
    pub setup: Setup,
    /// Name of the number.
    pub metric: String,
    /// The mean over runs.
    pub value: f64,
    /// Standard error from the items: the mean of the runs' own. Runs share their items, so that more of them make it no
    /// smaller.
    pub stderr: Option<f64>,
    /// Runs: seeds, or repeated timings.
    pub runs: usize,
    /// Their seeds.
    pub seeds: Vec<u64>,
    /// Least and greatest run; of a single timed run, of its repeats.
    pub range: Option<(f64, f64)>,
    /// KV bytes of the plan, the mean over runs.
    pub kv_bytes: f64,
    /// The same of the full cache, where it is known.
    pub full_bytes: Option<f64>,
    /// What it is beside the full cache; `None` for the full cache, and without one under the same conditions.
    pub delta: Option<Delta>,
    /// What a reader of the number must know.
    pub notes: Vec<String>,
}

/// A number beside that of the full cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Delta {
    /// The full cache's number.
    pub full: f64,
    /// The difference to it.
    pub difference: f64,
    /// Its standard error as if the two were measured on different items. They share them, so that the true one is
    /// smaller as a rule.
    pub stderr: Option<f64>,
    /// The quotient; `None` if the full cache's number is 0.
    pub ratio: Option<f64>,
}

impl Cell {
    /// Part of the full cache's bytes.
    pub fn share(&self) -> Option<f64> {
        self.full_bytes.filter(|full| *full > 0.0).map(|full| self.kv_bytes / full)
    }
}

/// Summarises rows by conditions, setup and metric, sorted by these; the full cache comes first under its conditions.
pub fn cells(rows: &[Row]) -> Vec<Cell> {
    let mut groups: BTreeMap<(&Conditions, &str, bool, &Setup), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let key = (&row.conditions, row.metric.as_str(), !row.setup.is_full(), &row.setup);
        groups.entry(key).or_default().push(row);
    }
    let mut cells: Vec<Cell> = groups.into_values().filter_map(|rows| summary(&rows)).collect();
    let full: BTreeMap<(Conditions, String), Cell> = cells
        .iter()
        .filter(|cell| cell.setup.is_full())
        .map(|cell| ((cell.conditions.clone(), cell.metric.clone()), cell.clone()))
        .collect();
    for cell in &mut cells {
        if let Some(full) = full.get(&(cell.conditions.clone(), cell.metric.clone())) {
            cell.full_bytes = cell.full_bytes.or(Some(full.kv_bytes));
            cell.delta = (!cell.setup.is_full()).then(|| delta(cell, full));
        }
    }
    cells
}

fn summary(rows: &[&Row]) -> Option<Cell> {
    let first = *rows.first()?;
    let mean = |of: &dyn Fn(&Row) -> f64| rows.iter().map(|row| of(row)).sum::<f64>() / rows.len() as f64;
    let all = |of: &dyn Fn(&Row) -> Option<f64>| {
        let values: Option<Vec<f64>> = rows.iter().map(|row| of(row)).collect();
        values.map(|values| values.iter().sum::<f64>() / values.len() as f64)
    };
    let values = || rows.iter().map(|row| row.value);
    let spread = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let mut seeds: Vec<u64> = rows.iter().filter_map(|row| row.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let mut notes: Vec<String> = rows.iter().flat_map(|row| row.notes.iter().cloned()).collect();
    notes.sort();
    notes.dedup();
    Some(Cell {
        conditions: first.conditions.clone(),
        setup: first.setup.clone(),
        metric: first.metric.clone(),
        value: mean(&|row| row.value),
        stderr: all(&|row| row.stderr),
        runs: rows.len(),
        seeds,
        range: if rows.len() > 1 { Some(spread) } else { first.range },
        kv_bytes: mean(&|row| row.kv_bytes as f64),
        full_bytes: all(&|row| row.full_bytes.map(|bytes| bytes as f64)),
        delta: None,
        notes,
    })
}

fn delta(cell: &Cell, full: &Cell) -> Delta {
    let stderr = cell.stderr.zip(full.stderr).map(|(a, b)| a.hypot(b));
    let ratio = (full.value != 0.0).then(|| cell.value / full.value);
    Delta { full: full.value, difference: cell.value - full.value, stderr, ratio }
}

#[cfg(test)]
mod tests {
    use super::super::row::{Measure, StrategyId};
    use super::*;

    fn row(strategy: Option<&str>, seed: u64, value: f64) -> Row {
        let id = |name: &str| StrategyId { name: name.into(), id: "hash".into() };
        Row {
            conditions: Conditions {
                model: "m".into(),
                model_hash: Some("1".into()),
                measure: Measure::Bench { batch: 1, prompt: 2, generated: 3, threads: 4 },
                device: "cpu".into(),
                dtype: "f32".into(),
                library: "kvsharer 0".into(),
            },
            setup: Setup::new(&[], strategy.map(id)),
            metric: "acc".into(),
            seed: Some(seed),
            value,
            stderr: Some(0.3),
            range: None,
            kv_bytes: 75,
            full_bytes: Some(100),
            notes: Vec::new(),
            place: String::new(),
        }
    }

    #[test]
    fn seeds_become_one_cell_with_mean_spread_and_delta() {
        let mut full = row(None, 0, 2.0);
        full.stderr = Some(0.4);
        let cells = cells(&[row(Some("a"), 1, 5.0), full, row(Some("a"), 0, 3.0)]);
        let [full, shared] = &cells[..] else { panic!("{cells:?}") };
        assert_eq!((full.value, full.delta, full.runs), (2.0, None, 1));
        assert_eq!((shared.value, shared.range, &shared.seeds[..]), (4.0, Some((3.0, 5.0)), &[0, 1][..]));
        assert_eq!((shared.runs, shared.share()), (2, Some(0.75)));
        // The error of the difference: the square root of 0.3² + 0.4².
        let delta = shared.delta.expect("a full cache");
        assert_eq!((delta.full, delta.difference, delta.ratio), (2.0, 2.0, Some(2.0)));
        assert!((delta.stderr.expect("both have one") - 0.5).abs() < 1e-12);
    }

    #[test]
    fn what_differs_in_any_condition_is_neither_averaged_nor_compared() {
        let full = row(None, 0, 2.0);
        let changes: [fn(&mut Conditions); 6] = [
            |c| c.model_hash = Some("2".into()),
            |c| c.library = "kvsharer 1".into(),
            |c| c.device = "cuda".into(),
            |c| c.dtype = "f16".into(),
            |c| c.model = "n".into(),
            |c| c.measure = Measure::Bench { batch: 1, prompt: 2, generated: 3, threads: 5 },
        ];
        for change in changes {
            let mut other = row(Some("a"), 1, 5.0);
            change(&mut other.conditions);
            let cells = cells(&[full.clone(), row(Some("a"), 0, 3.0), other]);
            assert_eq!(cells.len(), 3, "{cells:?}");
            assert_eq!(cells.iter().filter(|cell| cell.delta.is_some()).count(), 1);
            assert!(cells.iter().all(|cell| cell.runs == 1));
        }
    }
}
