//! The protocol `stepwise` against the windows protocol, against itself in batches, and with a prompt before it.

use burn::tensor::{DType, Device};
use kvsharer_core::{Sharing, Stack};
use kvsharer_eval::{Perplexity, PerplexityOptions, StepwiseOptions, build_stack, perplexity, stepwise};
use kvsharer_models::{Decoder, open_model};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One model for all tests: its weights are drawn from a generator that all threads share.
static MODEL: LazyLock<Decoder> = LazyLock::new(|| {
    open_model("random:tiny", 0).and_then(|files| files.load(&Device::flex(), DType::F32)).expect("no file is needed")
});

/// Evicts within documents of [`DOCUMENT`] tokens.
const STREAMING: &str = "streaming-llm:sinks=2,window=6";

const DOCUMENT: usize = 24;

/// `tokens` ids without a pattern.
fn text(tokens: u32) -> Vec<u32> {
    (0..tokens).map(|at| at.wrapping_mul(2_654_435_761) >> 23).collect()
}

/// A sharing map and policies: a full cache, one that evicts, and one that also shares.
fn stacks() -> [(Option<Sharing>, Vec<String>); 3] {
    let streaming = vec![STREAMING.to_owned()];
    let sharing = Sharing::both([(2, 1)]).expect("a map");
    [(None, Vec::new()), (None, streaming.clone()), (Some(sharing), streaming)]
}

fn step(text: &[u32], options: StepwiseOptions) -> Perplexity {
    stepwise(&MODEL, text, &options, || Ok(Stack::new()), |_| {}).expect("a perplexity")
}

fn by_windows(text: &[u32], window: usize, limit: Option<usize>) -> Perplexity {
    let options = PerplexityOptions { window, limit, ..PerplexityOptions::default() };
    perplexity(&MODEL, None, text, &options, || Ok(Stack::new()), |_| {}).expect("a perplexity")
}

fn sum(scored: &Perplexity) -> f64 {
    scored.nll * scored.tokens as f64
}

#[track_caller]
fn assert_close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{what}: {found} instead of {expected}");
}

#[test]
fn with_a_full_cache_it_is_the_windows_protocol() {
    let text = text(100);
    let options = StepwiseOptions { document: DOCUMENT, ..StepwiseOptions::default() };
    for limit in [None, Some(2), Some(9)] {
        let (steps, windows) = (step(&text, StepwiseOptions { limit, ..options }), by_windows(&text, DOCUMENT, limit));
        assert_close(steps.nll, windows.nll, "NLL");
        assert_close(steps.stderr.expect("several"), windows.stderr.expect("several"), "standard error");
        let counts = |scored: &Perplexity| (scored.windows, scored.tokens, scored.longest, scored.batch);
        assert_eq!(counts(&steps), counts(&windows));
    }
}

#[test]
fn what_is_evicted_counts_as_in_windows_of_one_token_a_pass() {
    let text = text(100);
    let options = StepwiseOptions { document: DOCUMENT, ..StepwiseOptions::default() };
    let windows = PerplexityOptions { window: DOCUMENT, chunk: 1, ..PerplexityOptions::default() };
    let full = step(&text, options);
    for (sharing, policies) in &stacks()[1..] {
        let stack = || build_stack(sharing.as_ref(), policies);
        let steps = stepwise(&MODEL, &text, &options, stack, |_| {}).expect("a perplexity");
        let chunks = perplexity(&MODEL, None, &text, &windows, stack, |_| {}).expect("a perplexity");
        assert_close(steps.nll, chunks.nll, "NLL");
        assert!((steps.nll / full.nll - 1.0).abs() > 1e-3, "{policies:?} had no effect");
    }
}

#[test]
fn batches_of_any_size_give_the_same_and_a_shorter_document_is_a_batch_of_its_own() {
    // Six documents, and a seventh of ten tokens.
    let text = text(6 * DOCUMENT as u32 + 10);
    for (sharing, policies) in stacks() {
        let stack = || build_stack(sharing.as_ref(), &policies);
        for prefill in [0, 5] {
            let score = |batch| {
                let options = StepwiseOptions { document: DOCUMENT, prefill, batch, limit: None };
                let counted = AtomicUsize::new(0);
                let count = |tokens| {
                    counted.fetch_add(tokens, Ordering::Relaxed);
                };
                let scored = stepwise(&MODEL, &text, &options, stack, count).expect("a perplexity");
                assert_eq!(counted.into_inner(), scored.tokens, "what was reported as done");
                scored
            };
            let one = score(1);
            let first = prefill.max(1);
            assert_eq!((one.windows, one.tokens), (7, 6 * (DOCUMENT - first) + 10 - first));
            for (batch, most) in [(2, 2), (4, 4), (6, 6), (usize::MAX, 6)] {
                let many = score(batch);
                assert_close(many.nll, one.nll, "NLL");
                assert_close(many.stderr.expect("several"), one.stderr.expect("several"), "standard error");
                assert_eq!((many.windows, many.tokens, many.longest, many.batch), (7, one.tokens, DOCUMENT, most));
            }
        }
    }
}

#[test]
fn a_prefill_leaves_the_tail_of_the_run_without() {
    let text = text(DOCUMENT as u32);
    let options = StepwiseOptions { document: DOCUMENT, ..StepwiseOptions::default() };
    let whole = step(&text, options);
    for prefill in [1, 2, 7, DOCUMENT - 1] {
        let tail = step(&text, StepwiseOptions { prefill, ..options });
        assert_eq!(tail.tokens, DOCUMENT - prefill);
        // A window of the prefill alone predicts what is left out; one token predicts nothing.
        let head = if prefill < 2 { 0.0 } else { sum(&by_windows(&text, prefill, Some(1))) };
        assert_close(sum(&tail), sum(&whole) - head, &format!("prefill of {prefill}"));
    }
}

#[test]
fn a_document_without_a_token_to_predict_is_left_out() {
    for (tokens, prefill, documents) in [(25, 0, 1), (26, 0, 2), (28, 4, 1), (29, 4, 2), (24, 23, 1)] {
        let options = StepwiseOptions { document: DOCUMENT, prefill, ..StepwiseOptions::default() };
        assert_eq!(step(&text(tokens), options).windows, documents, "{tokens} tokens, a prefill of {prefill}");
    }
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let refusal = |tokens, options| {
        let refused = stepwise(&MODEL, &text(tokens), &options, || Ok(Stack::new()), |_| {});
        refused.expect_err("nothing to predict").to_string()
    };
    let options = StepwiseOptions { document: DOCUMENT, ..StepwiseOptions::default() };
    for (tokens, options, expected) in [
        (9, StepwiseOptions { document: 1, ..options }, "a window of 1 tokens"),
        (
            99,
            StepwiseOptions { prefill: 24, ..options },
            "a prefill of 24 tokens leaves nothing to predict in a window of 24",
        ),
        (99, StepwiseOptions { batch: 0, ..options }, "a batch of 0 documents"),
        (1, options, "the text has 1 tokens: perplexity needs at least 2"),
        (7, StepwiseOptions { prefill: 7, ..options }, "the text has 7 tokens: perplexity needs at least 8"),
    ] {
        let refused = refusal(tokens, options);
        assert!(refused.starts_with(expected), "{refused}");
    }
}
