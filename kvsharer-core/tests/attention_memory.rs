//! What attention over a long prompt holds at once: never queries x keys, two blocks of weights while key mass is
//! summed, and far less than one if nobody looks.
#![allow(unsafe_code)]

use burn::tensor::{Device, Tensor, TensorData};
use kvsharer_core::{Evidence, EvidenceKind, Fresh, MaskCache, Pass, attend};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        TOTAL.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counters are those of the process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes beyond those live before.
#[derive(Debug)]
struct Used {
    /// The most at once.
    peak: usize,
    /// All that was allocated, freed or not.
    total: usize,
}

const TOKENS: usize = 4096;
const HEADS: usize = 4;
const DIM: usize = 16;
/// Weights of one block of 256 queries over all cells, in f32.
const BLOCK: usize = HEADS * 256 * TOKENS * size_of::<f32>();
/// What a plain softmax(Q K^T) of the prompt would take.
const QUERIES_BY_KEYS: usize = HEADS * TOKENS * TOKENS * size_of::<f32>();

/// Threads have scratch of their own, and how many are at work at once is chance.
fn one_thread() -> &'static ThreadPool {
    static POOL: LazyLock<ThreadPool> =
        LazyLock::new(|| ThreadPoolBuilder::new().num_threads(1).build().expect("a thread"));
    &POOL
}

/// Attention over a whole prompt.
struct Prompt {
    query: Tensor<4>,
    keys: Tensor<4>,
    values: Tensor<4>,
    fresh: Fresh,
    masks: MaskCache,
}

impl Prompt {
    fn new(kv_heads: usize) -> Self {
        let tensor = |heads: usize, seed: usize| {
            let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
            let numbers: Vec<f32> = (0..heads * TOKENS * DIM).map(number).collect();
            Tensor::from_data(TensorData::new(numbers, [1, heads, TOKENS, DIM]), &Device::flex())
        };
        Self {
            query: tensor(HEADS, 1),
            keys: tensor(kv_heads, 2),
            values: tensor(kv_heads, 3),
            fresh: Fresh::appended(0, TOKENS),
            masks: MaskCache::default(),
        }
    }

    fn run(&mut self, evidence: EvidenceKind, weights: Option<&[f32]>) -> (Used, Option<Evidence>) {
        let pass = Pass { evidence, weights, ..Pass::new(&self.fresh) };
        let [query, keys, values] = [&self.query, &self.keys, &self.values].map(Tensor::clone);
        let (live, total) = (LIVE.load(Ordering::Relaxed), TOTAL.load(Ordering::Relaxed));
        PEAK.store(live, Ordering::Relaxed);
        let masks = &mut self.masks;
        let (_output, evidence) = one_thread().install(|| attend(query, keys, values, &pass, masks));
        let peak = PEAK.load(Ordering::Relaxed) - live;
        (Used { peak, total: TOTAL.load(Ordering::Relaxed) - total }, evidence)
    }

    /// The same with the masks of an earlier layer.
    fn run_again(&mut self, evidence: EvidenceKind, weights: Option<&[f32]>) -> Used {
        self.run(evidence, weights);
        self.run(evidence, weights).0
    }
}

#[test]
fn key_mass_of_a_long_prompt_holds_two_blocks_of_weights_and_never_queries_by_keys() {
    let _alone = alone();
    for kv_heads in [1, 2] {
        // With one key-value head all masks are more than are kept: some are made anew.
        let mut prompt = Prompt::new(kv_heads);
        let Used { peak, .. } = prompt.run_again(EvidenceKind::KeyMass, None);
        // Scores and the weights made of them; the rest is the result and masks made anew.
        assert!(peak > BLOCK && peak < 2 * BLOCK + BLOCK / 4, "{kv_heads} heads: {peak} bytes, a block has {BLOCK}");
        assert!(peak < QUERIES_BY_KEYS / 7, "{peak} bytes instead of {QUERIES_BY_KEYS}");
        // Each query with a weight of its own.
        let weights: Vec<f32> = (0..TOKENS).map(|query| 1.0 + query as f32).collect();
        let Used { peak, .. } = prompt.run_again(EvidenceKind::KeyMass, Some(&weights));
        assert!(peak < 2 * BLOCK + BLOCK / 4, "{kv_heads} heads, weighted: {peak} bytes, a block has {BLOCK}");
    }
}

#[test]
fn attention_that_nobody_looks_at_holds_far_less_than_a_block_of_weights() {
    let _alone = alone();
    for kv_heads in [1, 2] {
        let mut prompt = Prompt::new(kv_heads);
        let nothing = prompt.run_again(EvidenceKind::None, None);
        assert!(nothing.peak < BLOCK / 4, "{kv_heads} heads: {nothing:?}, a block has {BLOCK}");
        // Keys are there already: the same path, and no copy.
        let keys = prompt.run_again(EvidenceKind::Keys, None);
        assert!(keys.peak < nothing.peak + BLOCK / 100, "{kv_heads} heads: {keys:?} instead of {nothing:?}");
        // Key mass in which no query counts.
        let (none_count, evidence) = prompt.run(EvidenceKind::KeyMass, Some(&[0.0; TOKENS]));
        assert!(evidence.is_none() && none_count.peak < nothing.peak + BLOCK / 100, "{none_count:?}");
    }
}

#[test]
fn only_blocks_with_queries_that_count_pay_for_key_mass() {
    let _alone = alone();
    let mut prompt = Prompt::new(2);
    let only = |counts: std::ops::Range<usize>| -> Vec<f32> {
        (0..TOKENS).map(|query| if counts.contains(&query) { 1.0 } else { 0.0 }).collect()
    };
    let nothing = prompt.run_again(EvidenceKind::None, None);
    let all = prompt.run_again(EvidenceKind::KeyMass, None);
    // The last 32 queries look at all cells: the last block is the largest of 16 that grow in equal steps, so 2 of 17
    // of what all of them allocate.
    let last = prompt.run_again(EvidenceKind::KeyMass, Some(&only(TOKENS - 32..TOKENS)));
    let share = (last.total - nothing.total) as f64 / (all.total - nothing.total) as f64;
    assert!((0.05..0.2).contains(&share), "{last:?} of {all:?}, {nothing:?} without evidence");
    // The first 32 queries look at 256 cells: next to nothing.
    let first = prompt.run_again(EvidenceKind::KeyMass, Some(&only(0..32)));
    assert!(first.peak < BLOCK / 4, "{first:?}, a block has {BLOCK}");
}

#[test]
fn masks_kept_for_the_next_layer_are_bounded() {
    const KEPT: usize = 32 << 20;
    let _alone = alone();
    for kv_heads in [1, 2] {
        let mut prompt = Prompt::new(kv_heads);
        // One byte for each query of a group and each cell before it.
        let mask = HEADS / kv_heads * 256 * TOKENS;
        let live = LIVE.load(Ordering::Relaxed);
        let first = prompt.run(EvidenceKind::None, None).0;
        let kept = LIVE.load(Ordering::Relaxed) - live;
        assert!(kept < KEPT + mask, "{kv_heads} heads: masks of {kept} bytes are kept");
        // One is made on the host and moved.
        assert!(first.peak < KEPT + 3 * mask + BLOCK / 4, "{kv_heads} heads: {first:?}");
    }
}
