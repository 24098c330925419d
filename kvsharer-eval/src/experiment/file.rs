//! The experiment file and its cells.

use super::{BenchSpec, ExperimentError, SearchSpec};
use crate::{Share, TaskSpec};
use kvsharer_core::{hex, read_at_most};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Experiment files are small; anything larger is not one.
const MAX_BYTES: u64 = 1 << 20;

/// The most cells: five lists of a small file multiply to more than could be listed.
const MAX_CELLS: usize = 1 << 20;

/// A matrix of measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Its name, in every record.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub about: String,
    /// Models, as `--model` takes them.
    #[serde(default = "default_models")]
    pub models: Vec<String>,
    /// Seeds of random searches, random weights and retrieval prompts.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// Sharing strategies; the full cache if none.
    #[serde(default = "default_strategies", rename = "strategy")]
    pub strategies: Vec<StrategySpec>,
    /// Stacks of policies; none but the strategy if none.
    #[serde(default = "default_stacks", rename = "stack")]
    pub stacks: Vec<StackSpec>,
    /// What is measured.
    #[serde(default, rename = "task")]
    pub tasks: Vec<TaskSpec>,
    /// What is timed.
    #[serde(default, rename = "bench")]
    pub benches: Vec<BenchSpec>,
}

/// A sharing strategy: from a file, from a search, or (with neither) the full cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StrategySpec {
    /// Name in the records.
    pub name: String,
    /// A strategy file.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// A search, run when it is first needed.
    #[serde(default)]
    pub search: Option<SearchSpec>,
    /// The step of a search that went further, so that one search serves several shares.
    #[serde(default)]
    pub at: Option<Share>,
    /// Layers that share values compute the mean of their own and their readers'
    /// ([`Decoder::averaged_values`](kvsharer_models::Decoder::averaged_values)); the search knows nothing of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub average_values: bool,
}

/// Policies beside the strategy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StackSpec {
    /// Name in the records.
    pub name: String,
    /// SPECs, as `--policy` takes them.
    #[serde(default)]
    pub policies: Vec<String>,
    /// Sets the budget of the evicting policy such that the plan takes this share of the full cache's bytes, sharing
    /// counted in. For tasks of fixed lengths.
    #[serde(default)]
    pub kv_share: Option<f64>,
}

fn default_models() -> Vec<String> {
    vec![kvsharer_models::DEFAULT_MODEL.into()]
}

fn default_seeds() -> Vec<u64> {
    vec![0]
}

fn default_strategies() -> Vec<StrategySpec> {
    vec![StrategySpec { name: "full".into(), file: None, search: None, at: None, average_values: false }]
}

fn default_stacks() -> Vec<StackSpec> {
    vec![StackSpec { name: "none".into(), policies: Vec::new(), kv_share: None }]
}

/// What a cell does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellKind {
    /// Runs the task of this index.
    Task(usize),
    /// Times the bench of this index.
    Bench(usize),
}

/// One measurement of the matrix, by indices into the experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its own index, in the order of the file: models, seeds, strategies, stacks, tasks, benches.
    pub index: usize,
    /// Of `models`.
    pub model: usize,
    /// Of `seeds`.
    pub seed: usize,
    /// Of `strategies`.
    pub strategy: usize,
    /// Of `stacks`.
    pub stack: usize,
    /// Task or bench.
    pub kind: CellKind,
}

impl Experiment {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ExperimentError::Io`], [`ExperimentError::Broken`].
    pub fn load(path: &Path) -> Result<Self, ExperimentError> {
        let bytes =
            read_at_most(path, MAX_BYTES).map_err(|source| ExperimentError::Io { path: path.into(), source })?;
        let broken = |what: String| ExperimentError::Broken { path: path.into(), what };
        let text = String::from_utf8(bytes).map_err(|_| broken("it is no UTF-8 text".into()))?;
        let experiment: Self =
            toml::from_str(&text).map_err(|error| broken(error.to_string().trim_end().replace('\n', " ")))?;
        experiment.check().map_err(broken)?;
        Ok(experiment)
    }

    fn check(&self) -> Result<(), String> {
        if self.tasks.is_empty() && self.benches.is_empty() {
            return Err("it has neither a [[task]] nor a [[bench]]".into());
        }
        for (what, empty) in [
            ("models", self.models.is_empty()),
            ("seeds", self.seeds.is_empty()),
            ("[[strategy]]", self.strategies.is_empty()),
            ("[[stack]]", self.stacks.is_empty()),
        ] {
            if empty {
                return Err(format!("{what} is an empty list"));
            }
        }
        let lists = [self.models.len(), self.seeds.len(), self.strategies.len(), self.stacks.len()];
        let kinds = self.tasks.len() + self.benches.len();
        let cells = lists.into_iter().fold(kinds, usize::saturating_mul);
        if cells > MAX_CELLS {
            return Err(format!(
                "it has {cells} cells, at most {MAX_CELLS} are possible: make several experiments of it"
            ));
        }
        let strategies = self.strategies.iter().map(|strategy| &strategy.name);
        let stacks = self.stacks.iter().map(|stack| &stack.name);
        for (what, names) in [("strategy", strategies.collect::<Vec<_>>()), ("stack", stacks.collect())] {
            let twice = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name));
            if let Some((_, name)) = twice {
                return Err(format!("two {what} entries are named `{name}`"));
            }
        }
        if let Some(both) = self.strategies.iter().find(|strategy| strategy.file.is_some() && strategy.search.is_some())
        {
            return Err(format!("strategy `{}` has a file and a search: give one of them", both.name));
        }
        match self.stacks.iter().find(|stack| stack.kv_share.is_some_and(|share| !(share > 0.0 && share <= 1.0))) {
            Some(stack) => Err(format!("kv_share of stack `{}` must be above 0 and at most 1", stack.name)),
            None => Ok(()),
        }
    }

    /// All cells, in order.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        let kinds = (0..self.tasks.len()).map(CellKind::Task).chain((0..self.benches.len()).map(CellKind::Bench));
        let kinds: Vec<CellKind> = kinds.collect();
        for model in 0..self.models.len() {
            for seed in 0..self.seeds.len() {
                for strategy in 0..self.strategies.len() {
                    for stack in 0..self.stacks.len() {
                        for &kind in &kinds {
                            cells.push(Cell { index: cells.len(), model, seed, strategy, stack, kind });
                        }
                    }
                }
            }
        }
        cells
    }

    /// SHA-256 over everything that the file says, however it is laid out.
    pub fn hash(&self) -> String {
        // Plain data: nothing in it can fail to be written.
        let text = serde_json::to_vec(self).unwrap_or_default();
        hex(&Sha256::digest(text))
    }

    /// The same with relative paths taken from `folder`.
    pub fn with_paths_from(mut self, folder: &Path) -> Self {
        let from = |path: &mut Option<PathBuf>| {
            if let Some(path) = path
                && !["builtin:", "hf:"].iter().any(|start| path.to_string_lossy().starts_with(start))
            {
                *path = folder.join(&*path);
            }
        };
        for task in &mut self.tasks {
            from(&mut task.path);
            from(&mut task.dev);
        }
        for strategy in &mut self.strategies {
            from(&mut strategy.file);
            if let Some(search) = &mut strategy.search {
                from(&mut search.calibration);
                from(&mut search.map);
            }
        }
        self
    }
}

/// A part of the cells: every `of`-th, beginning with `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which part, from 0.
    pub index: usize,
    /// How many parts.
    pub of: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, of: 1 }
    }
}

impl Shard {
    /// Whether a cell is in it.
    pub fn has(self, cell: &Cell) -> bool {
        cell.index % self.of == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            _ => Err(format!("`{text}` is no shard: write I/N with I from 0 to N-1, such as 0/4")),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Experiment, String> {
        let experiment: Experiment = toml::from_str(text).map_err(|error| error.to_string())?;
        experiment.check().map(|()| experiment)
    }

    const SMALL: &str = r#"
        name = "x"
        seeds = [0, 1]
        [[strategy]]
        name = "full"
        [[strategy]]
        name = "paper"
        search = { share = "25%", threshold = -1, order = "random", units = "keys" }
        [[task]]
        task = "perplexity"
        path = "builtin:demo"
        [[bench]]
        batch = [1, 2]
    "#;

    #[test]
    fn cells_are_the_product_and_shards_split_them() {
        let cells = parse(SMALL).unwrap().cells();
        assert_eq!(cells.len(), 2 * 2 * 2);
        let all: Vec<usize> = cells.iter().map(|cell| cell.index).collect();
        assert_eq!(all, (0..8).collect::<Vec<_>>());
        for of in 1..5 {
            let parts = (0..of).map(|index| Shard { index, of });
            let split: usize = parts.map(|shard| cells.iter().filter(|cell| shard.has(cell)).count()).sum();
            assert_eq!(split, 8);
        }
        assert!(["3/3", "1", "a/2", "-1/2", "0/0"].iter().all(|text| text.parse::<Shard>().is_err()));
    }

    #[test]
    fn the_hash_is_of_what_is_said_and_not_of_how() {
        let other =
            SMALL.replace("seeds = [0, 1]", "# two\n seeds = [ 0,1 ]").replace("threshold = -1,", "threshold = -1.0,");
        assert_eq!(parse(SMALL).unwrap().hash(), parse(&other).unwrap().hash());
        assert_ne!(parse(SMALL).unwrap().hash(), parse(&SMALL.replace("25%", "26%")).unwrap().hash());
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, expected) in [
            ("seeds", "sedes", "unknown field `sedes`"),
            ("[0, 1]", "[]", "seeds is an empty list"),
            ("\"paper\"", "\"full\"", "two strategy entries are named `full`"),
            ("order = \"random\"", "order = \"any\"", "unknown variant `any`"),
            ("25%", "125%", "is no share"),
            ("search =", "file = \"s.json\"\nsearch =", "has a file and a search"),
        ] {
            let error = parse(&SMALL.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(parse("name = \"x\"").unwrap_err().contains("neither a [[task]] nor a [[bench]]"));
    }
}
