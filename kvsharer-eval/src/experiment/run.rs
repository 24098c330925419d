//! Running the cells that have no result yet.

use super::file::{Cell, CellKind, Experiment, Shard, StrategySpec};
use super::record::{Record, Records, check_same};
use super::{ExperimentError, SearchSpec, Work, bench};
use crate::{BenchmarkOptions, EvalError, Job, Step, Target, build_stack, check_memory, solve_budget, strategy_path};
use crate::{Journal, Journaled};
use burn::tensor::Device;
use kvsharer_core::{
    Lengths, ModelShape, Plan, Progress, SearchModel, Sharing, Stack, Strategy, hex, search, write_atomically,
};
use kvsharer_models::{Decoder, Dtypes, ModelError, ModelFiles, ModelTokenizer, open_model};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What a runner tells while it works.
#[derive(Clone, Copy, Debug)]
pub enum Watch<'a> {
    /// So many cells of the shard have results already; so many bytes of an incomplete line were cut off.
    Resumed {
        /// Cells with results.
        done: usize,
        /// Cells of the shard.
        of: usize,
        /// Bytes that were cut off.
        cut: usize,
    },
    /// A cell begins.
    Begins(&'a Cell),
    /// A search for a strategy begins.
    Searches(&'a str),
    /// A step of the running cell.
    Step(Step),
    /// A cell has its result on the disk.
    Finished(&'a Record),
    /// A cell failed; the others go on.
    Failed(&'a Cell, &'a EvalError),
}

/// Everything beside the experiment that a run depends on.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Where to compute.
    pub device: Device,
    /// Its name.
    pub device_name: String,
    /// In what models compute and keep their matrices.
    pub dtypes: Dtypes,
    /// Its name.
    pub dtype_name: String,
    /// Tells the bytes of memory that are free; `None` if they are not known, or not to be checked.
    pub free_memory: fn() -> Option<u64>,
    /// How much is run at once.
    pub options: BenchmarkOptions,
    /// How calibration samples are run.
    pub work: Work,
    /// Which cells.
    pub shard: Shard,
    /// Folder that relative paths of the experiment start from.
    pub data: PathBuf,
    /// The results file.
    pub output: PathBuf,
}

/// A model that is loaded for a run of cells.
struct Loaded {
    name: String,
    seed: u64,
    files: ModelFiles,
    hash: String,
    model: Decoder,
    /// Random weights have none, and need none to be timed.
    tokenizer: Result<ModelTokenizer, ModelError>,
}

impl Loaded {
    fn tokenizer(&self) -> Result<&ModelTokenizer, EvalError> {
        self.tokenizer.as_ref().map_err(|error| EvalError::NoTokenizer(error.to_string()))
    }
}

impl Runner {
    /// Runs all cells of the shard that have no result in the output file, one after the other; each uses all threads.
    /// Gives the number of failed cells.
    ///
    /// # Errors
    /// [`EvalError`] for files that cannot be read, [`ExperimentError`] in it for the results file. A cell that fails is
    /// told of, and the others go on.
    pub fn run(&self, experiment: &Experiment, watch: impl Fn(Watch<'_>) + Sync) -> Result<usize, EvalError> {
        let hash = experiment.hash();
        let cells: Vec<Cell> = experiment.cells().into_iter().filter(|cell| self.shard.has(cell)).collect();
        let resolved = experiment.clone().with_paths_from(&self.data);
        // Files are judged before anything is loaded or written for them.
        let jobs: Vec<Job> = resolved.tasks.iter().cloned().map(|task| task.prepare()).collect::<Result<_, _>>()?;
        for stack in &resolved.stacks {
            build_stack(None, &stack.policies)?;
        }
        let mut records = Records::open(&self.output)?;
        for (line, record) in (1..).zip(records.records()) {
            let expected = Record {
                experiment_hash: hash.clone(),
                library: LIBRARY.into(),
                device: self.device_name.clone(),
                dtype: self.dtype_name.clone(),
                ..record.clone()
            };
            check_same(&self.output, line, record, &expected)?;
        }
        let has = |cell: &Cell| records.records().iter().any(|record| record.cell == cell.index);
        let open: Vec<Cell> = cells.iter().filter(|cell| !has(cell)).copied().collect();
        watch(Watch::Resumed { done: cells.len() - open.len(), of: cells.len(), cut: records.cut() });
        let (mut loaded, mut failed) = (None, 0);
        for cell in open {
            watch(Watch::Begins(&cell));
            match self.cell(&resolved, &jobs, &cell, &mut loaded, &watch) {
                Ok(record) => {
                    let record = Record {
                        experiment: experiment.name.clone(),
                        experiment_hash: hash.clone(),
                        cells: experiment.cells().len(),
                        spec: match cell.kind {
                            CellKind::Task(task) => json!(experiment.tasks[task]),
                            CellKind::Bench(bench) => json!(experiment.benches[bench]),
                        },
                        ..record
                    };
                    records.append(record.clone())?;
                    watch(Watch::Finished(&record));
                }
                Err(error) => {
                    failed += 1;
                    watch(Watch::Failed(&cell, &error));
                }
            }
        }
        Ok(failed)
    }

    fn cell(
        &self,
        experiment: &Experiment,
        jobs: &[Job],
        cell: &Cell,
        loaded: &mut Option<Loaded>,
        watch: &(impl Fn(Watch<'_>) + Sync),
    ) -> Result<Record, EvalError> {
        let seed = experiment.seeds[cell.seed];
        let loaded = self.load(&experiment.models[cell.model], seed, loaded)?;
        let found = self.strategy(&experiment.strategies[cell.strategy], loaded, seed, watch)?;
        let (sharing, model) = match &found {
            Some(found) => (Some(found.strategy.sharing()?), Some(found.adapted(&loaded.model)?)),
            None => (None, None),
        };
        let model = model.as_ref().unwrap_or(&loaded.model);
        let start = Instant::now();
        let stack = &experiment.stacks[cell.stack];
        let policies = match (stack.kv_share, cell.kind) {
            (None, _) => stack.policies.clone(),
            (Some(share), kind) => {
                let (batch, lengths) = match kind {
                    CellKind::Task(task) => jobs[task].lengths()?,
                    CellKind::Bench(bench) => {
                        let spec = &experiment.benches[bench];
                        let batch = spec.batch.iter().copied().max().unwrap_or(1);
                        (batch, Lengths::new(spec.prompt, spec.prompt + spec.generate))
                    }
                };
                self.solved(
                    (&loaded.files.shape(), model.shape()),
                    sharing.as_ref(),
                    &stack.policies,
                    share,
                    batch,
                    lengths,
                )?
            }
        };
        let stack_of = || build_stack(sharing.as_ref(), &policies);
        let (result, (batch, lengths)) = match cell.kind {
            CellKind::Task(task) => {
                let tokenizer = loaded.tokenizer()?;
                let options = BenchmarkOptions { seed, ..self.options.clone() };
                let progress = |step| watch(Watch::Step(step));
                let evaluated = jobs[task].run(model, &loaded.model, tokenizer, &options, stack_of, progress)?;
                (json!(evaluated.result), evaluated.largest)
            }
            CellKind::Bench(bench_index) => {
                let spec = &experiment.benches[bench_index];
                watch(Watch::Step(Step::Total(spec.batch.len() * (spec.repeats + 1))));
                let done = |steps| watch(Watch::Step(Step::Done(steps)));
                let rows = spec.batch.iter().map(|&batch| bench(model, spec, batch, stack_of, done));
                let rows = rows.collect::<Result<Vec<_>, _>>()?;
                let batch = spec.batch.iter().copied().max().unwrap_or(1);
                (json!(rows), (batch, Lengths::new(spec.prompt, spec.prompt + spec.generate)))
            }
        };
        let full = loaded.files.shape();
        let bytes = |shape: &ModelShape, stack: &Stack<'_>| -> Result<usize, EvalError> {
            Ok(Plan::new(shape, stack)?.bytes(batch, lengths, self.dtypes.compute.size()))
        };
        let own = stack_of()?;
        let search_seconds = found.as_ref().and_then(|found| found.seconds);
        Ok(Record {
            experiment: String::new(),
            experiment_hash: String::new(),
            cell: cell.index,
            cells: 0,
            library: LIBRARY.into(),
            model: loaded.name.clone(),
            model_hash: loaded.hash.clone(),
            seed,
            strategy: experiment.strategies[cell.strategy].name.clone(),
            strategy_record: found.map_or(Value::Null, |found| {
                let Strategy { key_map, value_map, search, calibration, reached, requested, saved, .. } =
                    found.strategy;
                let (fitted, trials) = (found.strategy.adapters.len(), found.trials);
                let (objective, held_back) = (found.objective, found.held_back);
                json!({ "key_map": key_map, "value_map": value_map, "search": search, "calibration": calibration,
                    "reached": reached, "requested": requested, "saved": saved, "fitted_layers": fitted,
                    "trials": trials, "objective": objective, "held_back": held_back,
                    "average_values": found.average_values })
            }),
            stack: stack.name.clone(),
            policies: own.names(),
            spec: Value::Null,
            result,
            plan_bytes: bytes(model.shape(), &own)?,
            full_bytes: bytes(&full, &Stack::new())?,
            device: self.device_name.clone(),
            dtype: self.dtype_name.clone(),
            threads: rayon::current_num_threads(),
            seconds: start.elapsed().as_secs_f64(),
            search_seconds,
            finished: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        })
    }

    /// The model of a cell, kept for the next.
    fn load<'a>(&self, name: &str, seed: u64, kept: &'a mut Option<Loaded>) -> Result<&'a Loaded, EvalError> {
        // Only random weights depend on the seed.
        let seed = if name.starts_with("random:") { seed } else { 0 };
        // Another model is let go before this one is loaded: two may not fit.
        let same = kept.take().filter(|kept| kept.name == name && kept.seed == seed);
        let loaded = match same {
            Some(loaded) => loaded,
            None => {
                let files = open_model(name, seed)?;
                check_memory(&files, self.dtypes.weights.size(), 0, (self.free_memory)())?;
                let hash = files.fingerprint()?.hash;
                let model = files.load(&self.device, self.dtypes)?;
                let tokenizer = files.tokenizer();
                Loaded { name: name.into(), seed, files, hash, model, tokenizer }
            }
        };
        Ok(kept.insert(loaded))
    }

    fn strategy(
        &self,
        spec: &StrategySpec,
        loaded: &Loaded,
        seed: u64,
        watch: &impl Fn(Watch<'_>),
    ) -> Result<Option<FoundStrategy>, EvalError> {
        let (whole, path) = match (&spec.file, &spec.search) {
            (None, None) => return Ok(None),
            (Some(path), _) => {
                let path = strategy_path(path)?;
                let strategy = Strategy::load(&path)?;
                strategy.check(&loaded.files.fingerprint()?)?;
                (strategy, path)
            }
            (None, Some(search)) => self.searched(&spec.name, search, loaded, seed, watch)?,
        };
        let seconds = std::fs::read_to_string(seconds_of(&path)).ok().and_then(|text| text.trim().parse().ok());
        let strategy = match spec.at {
            Some(at) => whole.at(at.fraction(whole.model.layers))?,
            None => whole,
        };
        // Up to the step that is used: what a search for so much would have taken.
        let step = strategy.steps.iter().find(|step| (step.saved - strategy.saved).abs() < 1e-9);
        let trials = step.map_or(strategy.trials.len(), |step| step.trials);
        let (objective, held_back) = step.map_or((None, None), |step| (Some(step.objective), step.held_back));
        let average_values = spec.average_values;
        Ok(Some(FoundStrategy { strategy, path, trials, objective, held_back, seconds, average_values }))
    }

    /// The strategy that a search finds, kept in a file beside the results so that it is found once.
    fn searched(
        &self,
        name: &str,
        spec: &SearchSpec,
        loaded: &Loaded,
        seed: u64,
        watch: &impl Fn(Watch<'_>),
    ) -> Result<(Strategy, PathBuf), EvalError> {
        let tokenizer = loaded.tokenizer()?;
        // Only random orders and drawn samples depend on the seed.
        let seed = if spec.is_random() { seed } else { 0 };
        let set = spec.calibration(tokenizer, loaded.files.config().vocab, seed)?;
        // What the samples are says their hash, wherever they lie.
        let named = SearchSpec { calibration: None, ..spec.clone() };
        let key = json!([named, set.hash(), loaded.hash, seed, self.dtype_name, LIBRARY]).to_string();
        let key = hex(&Sha256::digest(key))[..16].to_owned();
        let folder = strategies_of(&self.output);
        let path = folder.join(format!("{key}.json"));
        if path.is_file() {
            return Ok((Strategy::load(&path)?, path));
        }
        watch(Watch::Searches(name));
        std::fs::create_dir_all(&folder).map_err(|source| EvalError::Io { path: folder.clone(), source })?;
        let options = spec.options(self.work, set.samples().len());
        let strategy = spec.strategy(loaded.files.config().layers, seed)?;
        let mut journal = Journal::open(&path.with_extension("journal"), &key)?;
        let mut observer = Journaled { journal: journal.as_mut(), watch: |_: Progress<'_>| {} };
        let start = Instant::now();
        let found = search(&loaded.model, &set, strategy.as_ref(), &options, &mut observer)?;
        let seconds = start.elapsed().as_secs_f64();
        let strategy = Strategy::new(loaded.files.fingerprint()?, &set, strategy.as_ref(), &options, &found);
        let timed = seconds_of(&path);
        write_atomically(&timed, format!("{seconds}\n").as_bytes())
            .map_err(|source| EvalError::Io { path: timed.clone(), source })?;
        strategy.save_with(&path, &found.adapters)?;
        if let Some(journal) = journal {
            journal.remove()?;
        }
        Ok((Strategy::load(&path)?, path))
    }

    fn solved(
        &self,
        (full, shape): (&ModelShape, &ModelShape),
        sharing: Option<&Sharing>,
        policies: &[String],
        share: f64,
        batch: usize,
        lengths: Lengths,
    ) -> Result<Vec<String>, EvalError> {
        let full = Plan::new(full, &Stack::new())?.bytes(batch, lengths, self.dtypes.compute.size());
        let bytes = (full as f64 * share) as usize;
        let target = Target { bytes, batch, lengths, element_bytes: self.dtypes.compute.size() };
        Ok(solve_budget(shape, sharing, policies, target)?.policies)
    }
}

/// A strategy and where it comes from.
struct FoundStrategy {
    strategy: Strategy,
    path: PathBuf,
    /// Trials up to the step that is used.
    trials: usize,
    /// The objective of that step, on the samples searched with and on those held back.
    objective: Option<f64>,
    held_back: Option<f64>,
    /// Seconds of the whole search, if it was made here and in one go.
    seconds: Option<f64>,
    average_values: bool,
}

impl FoundStrategy {
    /// The model as the strategy wants it: with its fitted maps, without what it drops.
    fn adapted(&self, model: &Decoder) -> Result<Decoder, EvalError> {
        let adapters = self.strategy.load_adapters(&self.path, &model.device())?;
        let folded = match self.average_values {
            true => model.averaged_values(self.strategy.sharing()?.values())?,
            false => model.folded(&adapters)?,
        };
        Ok(folded.without_attention(&self.strategy.dropped)?)
    }
}

/// Where the seconds of a search are kept.
fn seconds_of(strategy: &Path) -> PathBuf {
    strategy.with_extension("seconds")
}

/// Folder of the strategies that searches found for a results file.
fn strategies_of(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".strategies");
    output.with_file_name(name)
}

const LIBRARY: &str = concat!("kvsharer ", env!("CARGO_PKG_VERSION"));

impl From<ExperimentError> for EvalError {
    fn from(error: ExperimentError) -> Self {
        EvalError::Experiment(Box::new(error))
    }
}
