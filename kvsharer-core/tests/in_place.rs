//! Decoding appends in place: a step allocates far less than one buffer. (If the cache ever held a second handle of a
//! buffer while writing, the backend would copy all of it at every step.)
#![allow(unsafe_code)]

use burn::tensor::Device;
use kvsharer_core::testing::{ToyModel, toy_tokens};
use kvsharer_core::{Cache, SearchModel, Sharing, Stack};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_decoding_step_copies_no_buffer() {
    const TOKENS: usize = 100_000;
    let model = ToyModel::new(3, 2, 1, 8, 1, &Device::flex());
    let stack = Stack::new().with(Sharing::both([(2, 0)]).unwrap());
    let mut cache = Cache::new(model.shape(), stack, model.cache_options(1, TOKENS), &Device::flex()).unwrap();
    let buffer = TOKENS * 8 * 4;
    assert_eq!(cache.bytes(), 4 * buffer);
    let tokens = toy_tokens(1, 40, 2);
    model.run(&tokens, &[30], &mut cache).unwrap();
    for at in 30..40 {
        let before = ALLOCATED.load(Ordering::Relaxed);
        cache.begin(1).unwrap();
        model.forward(&tokens, at..at + 1, &mut cache).unwrap();
        let step = ALLOCATED.load(Ordering::Relaxed) - before;
        assert!(step < buffer / 4, "a step allocated {step} bytes, a buffer has {buffer}");
    }
}
