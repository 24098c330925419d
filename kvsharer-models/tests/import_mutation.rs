//! Files broken at random: opening one gives an error or a source whose every tensor loads or
//! gives an error. Nothing panics, and no number in a file makes the reader take more memory than
//! the file is long, and a constant; a counting allocator proves it.
#![allow(unsafe_code)] // A global allocator cannot be written without.

mod import_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use import_support::{GgufWriter, array, fixture, shard};
use kvsharer_models::import::{GgufFile, ImportError, ModelTokenizer, SafetensorsFolder, TensorSource};
use proptest::prelude::*;

/// Memory that opening may take beside the file's length: paths, messages, maps of names.
const CONSTANT: usize = 64 << 10;
/// Values of f32 for one byte of the densest quantisation take 128 / 18 bytes.
const UNPACKED: usize = 8;

/// Counts the bytes in use, and the most that were.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The counts are for the whole process, so that tests take turns.
static TURN: Mutex<()> = Mutex::new(());

// SAFETY: both methods hand on to the system's allocator what they were given, and only count.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the pointer came from `alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result of a function and the most memory that it had in use at a time.
fn measured<T>(function: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = function();
    (result, PEAK.load(Relaxed).saturating_sub(before))
}

/// One way to break a file.
#[derive(Debug, Clone)]
enum Mutation {
    Flip {
        at: prop::sample::Index,
        bits: u8,
    },
    Truncate {
        at: prop::sample::Index,
    },
    Extend {
        bytes: Vec<u8>,
    },
    /// Overwrites what may be a count, a length, an offset or a dimension.
    Number {
        at: prop::sample::Index,
        number: u64,
        bytes: usize,
    },
}

impl Mutation {
    fn apply(&self, file: &mut Vec<u8>) {
        // Most of what can go wrong stands in the header: half of the places are near the start.
        let place = |at: &prop::sample::Index, length: usize| {
            let length = if at.index(2) == 0 { length } else { length.min(2048) };
            at.index(length.max(1))
        };
        match self {
            Self::Flip { at, bits } => {
                let at = place(at, file.len());
                file.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bits);
            }
            Self::Truncate { at } => file.truncate(place(at, file.len())),
            Self::Extend { bytes } => file.extend(bytes),
            Self::Number { at, number, bytes } => {
                let at = place(at, file.len());
                let number = &number.to_le_bytes()[..*bytes];
                file.iter_mut().skip(at).zip(number).for_each(|(byte, new)| *byte = *new);
            }
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    // Small numbers, numbers near the file's length, and all that overflows somewhere.
    let number = prop_oneof![
        0u64..300,
        (0u32..64).prop_map(|bit| 1 << bit),
        Just(u64::MAX),
        Just(u64::MAX / 8 + 1),
        any::<u64>()
    ];
    prop_oneof![
        (at(), 1u8..).prop_map(|(at, bits)| Mutation::Flip { at, bits }),
        at().prop_map(|at| Mutation::Truncate { at }),
        prop::collection::vec(any::<u8>(), 1..64).prop_map(|bytes| Mutation::Extend { bytes }),
        (at(), number, prop_oneof![Just(4usize), Just(8)]).prop_map(|(at, number, bytes)| Mutation::Number {
            at,
            number,
            bytes
        }),
    ]
}

fn broken(mut file: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    mutations.iter().for_each(|mutation| mutation.apply(&mut file));
    file
}

/// Opens a source, loads all of it, and holds the memory against the files' length.
fn check_source<S: TensorSource>(open: impl FnOnce() -> Result<S, ImportError>, length: usize) -> Option<S> {
    let (opened, peak) = measured(open);
    assert!(peak <= length + CONSTANT, "opening {length} bytes took {peak}");
    let source = match opened {
        Ok(source) => source,
        Err(error) => {
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
            return None;
        }
    };
    for name in source.names() {
        let (loaded, peak) = measured(|| source.load(name).map(|data| data.shape().to_vec()));
        assert!(peak <= UNPACKED * length + CONSTANT, "loading from {length} bytes took {peak}");
        if let Ok(shape) = loaded {
            assert_eq!(Some(shape), source.info(name).map(|info| info.shape.clone()));
        }
    }
    Some(source)
}

fn check_gguf(bytes: &[u8], path: &Path) {
    std::fs::write(path, bytes).unwrap();
    if let Some(file) = check_source(|| GgufFile::open(path), bytes.len()) {
        let keys: Vec<&str> = file.metadata().keys().collect();
        for key in keys {
            let ((), peak) = measured(|| {
                let _ = file.metadata().get::<Vec<&str>>(key);
            });
            // A text takes 16 bytes in a list, at least 8 in the file; growing doubles a list.
            assert!(peak <= 8 * bytes.len() + CONSTANT, "{key} of {} bytes took {peak}", bytes.len());
        }
        let _ = ModelTokenizer::from_gguf(&file);
    }
}

/// All value kinds, nested arrays, tensors of several types, and a tokenizer.
fn small_gguf() -> Vec<u8> {
    GgufWriter::default()
        .u32("general.alignment", 32)
        .entry("nested", 9, &array(9, 2, &[array(0, 3, &[1, 2, 3]), array(7, 1, &[1])].concat()))
        .entry("f64", 12, &[0; 8])
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "smollm")
        .strs("tokenizer.ggml.tokens", &["<s>", "a", "b", "ab"])
        .i32s("tokenizer.ggml.token_type", &[3, 1, 4, 1])
        .strs("tokenizer.ggml.merges", &["a b"])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .tensor("f32", &[4, 2], 0, &[1; 32])
        .tensor("q4_0", &[32, 3], 2, &[2; 54])
        .tensor("q6_k", &[256], 14, &[3; 210])
        .tensor("scalar", &[], 1, &[4; 2])
        .bytes()
}

fn small_shards() -> [Vec<u8>; 3] {
    let first = shard(&[("a", "F32", &[2, 2], &[1; 16]), ("mask", "BOOL", &[3], &[1; 3])]);
    let second = shard(&[("b", "BF16", &[4], &[2; 8]), ("c", "F16", &[0, 7], &[])]);
    let index =
        br#"{"metadata":{"total_size":27},"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}}"#;
    [first, second, index.to_vec()]
}

fn tokenizer_json() -> Vec<u8> {
    br#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"<s>","single_word":false,
"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"NFC"},"pre_tokenizer":
{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":
{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,
"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,
"vocab":{"<s>":0,"a":1,"b":2,"ab":3},"merges":["a b"]}}"#
        .to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_small_gguf_file(mutations in prop::collection::vec(mutation(), 0..4)) {
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        check_gguf(&broken(small_gguf(), &mutations), &folder.path().join("model.gguf"));
    }

    #[test]
    fn safetensors_shards_and_their_index(mutations in prop::collection::vec((0..3usize, mutation()), 0..4)) {
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let mut length = 0;
        for (number, file) in small_shards().into_iter().enumerate() {
            let own: Vec<_> = mutations.iter().filter(|(of, _)| *of == number).map(|(_, m)| m.clone()).collect();
            let name = ["1.safetensors", "2.safetensors", "model.safetensors.index.json"][number];
            let file = broken(file, &own);
            length += file.len();
            std::fs::write(folder.path().join(name), file).unwrap();
        }
        check_source(|| SafetensorsFolder::open(folder.path()), length);
        // Each shard is a model file of its own.
        for name in ["1.safetensors", "2.safetensors"] {
            check_source(|| SafetensorsFolder::open(folder.path().join(name)), length);
        }
    }

    #[test]
    fn a_tokenizer_json(mutations in prop::collection::vec(mutation(), 0..4)) {
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, broken(tokenizer_json(), &mutations)).unwrap();
        if let Ok(tokenizer) = ModelTokenizer::from_file(&path) {
            let _ = tokenizer.encode("abba <s> 1").map(|ids| tokenizer.decode(&ids, true));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_whole_gguf_model(mutations in prop::collection::vec(mutation(), 1..4)) {
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(fixture("tiny.gguf")).unwrap();
        check_gguf(&broken(bytes, &mutations), &folder.path().join("model.gguf"));
    }
}

#[test]
fn the_files_are_sound_before_they_are_broken() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, small_gguf()).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert!(file.names().iter().all(|name| file.load(name).is_ok()));
    assert!(ModelTokenizer::from_gguf(&file).is_ok());

    let names = ["1.safetensors", "2.safetensors", "model.safetensors.index.json"];
    for (name, file) in names.into_iter().zip(small_shards()) {
        std::fs::write(folder.path().join(name), file).unwrap();
    }
    let shards = SafetensorsFolder::open(folder.path()).unwrap();
    assert!(shards.names().iter().all(|name| shards.load(name).is_ok()));

    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, tokenizer_json()).unwrap();
    assert!(ModelTokenizer::from_file(&path).is_ok());
}
