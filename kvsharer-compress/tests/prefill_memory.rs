//! The prefill of a stack in which nobody goes by key mass runs the fused attention path: it never holds so much as one
//! block of attention weights.
#![allow(unsafe_code)]

use burn::tensor::Device;
use kvsharer_compress::parse_policy;
use kvsharer_core::testing::{ToyModel, toy_tokens};
use kvsharer_core::{Cache, SearchModel, Sharing, Stack};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TOKENS: usize = 2048;
const HEADS: usize = 4;
/// Weights of 256 queries over all cells, in f32.
const BLOCK: usize = HEADS * 256 * TOKENS * size_of::<f32>();

/// The most bytes that a prefill holds beside the cache itself.
fn peak(specs: &[&str]) -> usize {
    let model = ToyModel::new(2, HEADS, HEADS, 8, 1, &Device::flex());
    let stack = Stack::new().with(Sharing::both([(1, 0)]).unwrap());
    let stack = specs.iter().fold(stack, |stack, spec| stack.with(parse_policy(spec).unwrap()));
    let tokens = toy_tokens(1, TOKENS, 2);
    let mut cache = Cache::new(model.shape(), stack, model.cache_options(1, TOKENS), &Device::flex()).unwrap();
    let live = LIVE.load(Ordering::Relaxed);
    PEAK.store(live, Ordering::Relaxed);
    model.run(&tokens, &[TOKENS], &mut cache).unwrap();
    PEAK.load(Ordering::Relaxed) - live
}

// One test, as the counters are those of the process.
#[test]
fn only_policies_that_go_by_key_mass_hold_blocks_of_weights_in_prefill() {
    const QUANT: &str = "quant:bits=8,group=8,residual=8";
    // What threads set up once (packing buffers of the matrix products) is no part of a prefill.
    peak(&["full"]);
    for specs in [
        &["full"][..],
        &["streaming-llm:sinks=4,window=252"],
        &["window:budget=256"],
        &["knorm:budget=256"],
        &["random:budget=256"],
        &[QUANT],
        &["streaming-llm:sinks=4,window=252", QUANT],
        &["window:budget=25%", QUANT],
    ] {
        let peak = peak(specs);
        assert!(peak < BLOCK, "{specs:?}: {peak} bytes, a block of weights has {BLOCK}");
    }
    for specs in [&["h2o:heavy=128,recent=128"][..], &["snapkv:budget=256"], &["tova:budget=256", QUANT]] {
        let peak = peak(specs);
        // Two blocks, the masks of all blocks, and the model's own states.
        assert!(peak > BLOCK && peak < 3 * BLOCK, "{specs:?}: {peak} bytes, a block of weights has {BLOCK}");
    }
}
