//! Runs a target on its seeds broken in many ways, and on what was found before.

use crate::memory::measured;
use crate::mutate::{Mutation, mutation};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

/// Files by their path in the folder.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// A sound input: a folder.
pub(crate) struct Seed {
    /// Its name, which the judge is told.
    pub(crate) name: String,
    /// Files that are broken.
    pub(crate) open: Files,
    /// Files that stay as they are.
    pub(crate) fixed: Files,
}

impl Seed {
    pub(crate) fn new(name: &str, open: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        Self { name: name.into(), open: open.into_iter().collect(), fixed: Files::new() }
    }
}

/// Something that reads files of strangers.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) seeds: Vec<Seed>,
    /// Reads the folder of the seed of this name: refuses with an error, or uses what was read.
    pub(crate) judge: fn(&Path, &str) -> Result<(), String>,
    /// Memory that an input may take: so many times its size, and so many bytes.
    pub(crate) memory: (usize, usize),
}

/// Inputs of every target; the long run sets the variable.
fn inputs() -> u32 {
    std::env::var("KVSHARER_FUZZ").map_or(250, |inputs| inputs.parse().expect("KVSHARER_FUZZ is a number"))
}

/// An input that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(10);

/// Memory and time are the process', so that targets take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The process' memory and time, until it is dropped.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    // A panic that is caught would count with the memory of its backtrace.
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was seen of a target.
#[derive(Default)]
struct Seen {
    inputs: usize,
    accepted: usize,
    /// The most memory beyond the allowed multiple of the input, and the most at all.
    beyond: usize,
    peak: usize,
    slowest: Duration,
}

impl Target {
    /// Fails at the first input that panics, or takes too much memory or time; the input is written where the message
    /// says. The turn is taken before the target is made: seeds are memory too.
    pub(crate) fn run(&self, _turn: &MutexGuard<'static, ()>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (seen, watch) = (RefCell::new(Seen::default()), Watch::new(folder.path()));
        for seed in &self.seeds {
            let sound = self.judge(seed, &seed.open, folder.path(), &seen, &watch).expect(self.name);
            assert_eq!(sound, Ok(()), "{} {}: the seed is refused", self.name, seed.name);
        }
        for (seed, what, open) in self.regressions() {
            self.judge(seed, &open, folder.path(), &seen, &watch)
                .unwrap_or_else(|fault| panic!("{what}: {fault}"))
                .ok();
        }
        let config = Config { cases: inputs(), failure_persistence: None, max_shrink_iters: 4096, ..Config::default() };
        let mut rng = [0; 32];
        let seed = std::env::var("KVSHARER_FUZZ_SEED").map_or(1, |seed| seed.parse::<u64>().expect("a number"));
        rng[..8].copy_from_slice(&seed.to_le_bytes());
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &rng));
        let strategy = (any::<Index>(), prop::collection::vec((any::<Index>(), mutation()), 1..4));
        let result = runner.run(&strategy, |input| {
            let (seed, open) = self.broken(&input);
            let judged = self.judge(seed, &open, folder.path(), &seen, &watch);
            judged.map(drop).map_err(TestCaseError::fail)
        });
        if let Err(TestError::Fail(reason, input)) = result {
            let (seed, open) = self.broken(&input);
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz").join(self.name).join(&seed.name);
            write(&kept, &open);
            panic!(
                "{}: {reason}\nby {:?}\nThe files are in {}: mend it and keep them in tests/fuzz/regressions/{}/{}--WHAT",
                self.name,
                input.1,
                kept.display(),
                self.name,
                seed.name
            );
        }
        let Seen { inputs, accepted, peak, beyond, slowest } = seen.into_inner();
        println!(
            "{}: {inputs} inputs, {accepted} read, {} refused; peak memory {peak} bytes, {beyond} beyond {} x the input; slowest {slowest:.0?}",
            self.name,
            inputs - accepted,
            self.memory.0
        );
    }

    fn broken(&self, (seed, mutations): &(Index, Vec<(Index, Mutation)>)) -> (&Seed, Files) {
        let seed = seed.get(&self.seeds);
        let mut open = seed.open.clone();
        let names: Vec<String> = open.keys().cloned().collect();
        for (file, mutation) in mutations {
            mutation.apply(open.get_mut(file.get(&names)).expect("a file of the seed"));
        }
        (seed, open)
    }

    /// Judges one input; the outer error is a finding.
    fn judge(
        &self,
        seed: &Seed,
        open: &Files,
        folder: &Path,
        seen: &RefCell<Seen>,
        watch: &Watch,
    ) -> Result<Result<(), String>, String> {
        for part in std::fs::read_dir(folder).expect("a folder").map(|part| part.expect("an entry").path()) {
            if part.is_dir() { std::fs::remove_dir_all(part) } else { std::fs::remove_file(part) }.expect("its own");
        }
        write(folder, &seed.fixed);
        write(folder, open);
        let length: usize = open.values().chain(seed.fixed.values()).map(Vec::len).sum();
        let start = Instant::now();
        watch.begins(Some(start));
        let (judged, peak) = measured(|| (self.judge)(folder, &seed.name));
        watch.begins(None);
        let mut seen = seen.borrow_mut();
        seen.inputs += 1;
        seen.accepted += usize::from(judged.is_ok());
        seen.slowest = seen.slowest.max(start.elapsed());
        seen.peak = seen.peak.max(peak);
        seen.beyond = seen.beyond.max(peak.saturating_sub(self.memory.0 * length));
        if peak > self.memory.0 * length + self.memory.1 {
            return Err(format!("{length} bytes took {peak} bytes of memory"));
        }
        Ok(judged)
    }

    /// What was found before: `SEED--WHAT` has the broken files of a seed.
    fn regressions(&self) -> Vec<(&Seed, String, Files)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/regressions").join(self.name);
        let Ok(cases) = std::fs::read_dir(folder) else { return Vec::new() };
        let case = |path: PathBuf| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let (seed, _) = name.split_once("--").expect("SEED--WHAT");
            let seed = self.seeds.iter().find(|other| other.name == seed).expect("a seed of the target");
            let read = |file: &String| std::fs::read(path.join(file)).ok();
            let open = seed.open.keys().filter_map(|file| Some((file.clone(), read(file)?))).collect();
            (seed, name.clone(), open)
        };
        cases.map(|entry| case(entry.expect("an entry").path())).collect()
    }
}

pub(crate) fn write(folder: &Path, files: &Files) {
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a writable folder");
        std::fs::write(path, content).expect("a writable folder");
    }
}

/// Ends the process if an input hangs, and says where it is.
struct Watch(Arc<Mutex<Option<Instant>>>);

impl Watch {
    fn new(folder: &Path) -> Self {
        let (began, folder) = (Arc::new(Mutex::new(None)), folder.to_owned());
        let watched = Arc::downgrade(&began);
        std::thread::spawn(move || {
            while let Some(began) = watched.upgrade() {
                let began: Option<Instant> = *began.lock().unwrap_or_else(PoisonError::into_inner);
                if began.is_some_and(|began| began.elapsed() > LONGEST) {
                    eprintln!("an input takes more than {LONGEST:?}: its files are in {}", folder.display());
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Self(began)
    }

    fn begins(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}
