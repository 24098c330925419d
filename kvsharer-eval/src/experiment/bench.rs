//! Memory and speed of prefill and decoding, as in the paper's table 2.

use crate::{EvalError, Spread};
use burn::tensor::{DType, Tensor};
use kvsharer_core::{Lengths, SearchModel, Stack};
use kvsharer_models::{Decoder, DeviceLoop, ModelError};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// What to time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BenchSpec {
    /// Sequences at once.
    pub batch: Vec<usize>,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Tokens generated after it.
    pub generate: usize,
    /// Repeats after a warm-up.
    pub repeats: usize,
    /// Choose tokens greedily on the device, where steps can be planned ahead
    /// ([`DeviceLoop`](kvsharer_models::DeviceLoop)): what a GPU can do without waiting for the host.
    #[serde(skip)]
    pub on_device: bool,
}

impl Default for BenchSpec {
    fn default() -> Self {
        Self { batch: vec![1], prompt: 512, generate: 128, repeats: 3, on_device: false }
    }
}

/// One line of `bench`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// Sequences.
    pub batch: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated.
    pub generated: usize,
    /// Milliseconds until the scores of the prompts' last tokens are on the host.
    pub prefill_ms: Spread,
    /// Milliseconds of a decoding step of all sequences.
    pub decode_ms_per_step: Spread,
    /// Tokens generated a second by all sequences, decoding alone.
    pub tokens_per_second: Spread,
    /// Tokens generated a second, the prefill's time counted in.
    pub tokens_per_second_with_prefill: Spread,
    /// KV bytes that the plan says.
    pub kv_bytes_plan: usize,
    /// KV bytes that the buffers hold after the last step.
    pub kv_bytes: usize,
    /// Bytes in use by the device's allocator after the last step; `None` where the backend does not tell.
    pub bytes_in_use: Option<u64>,
    /// Bytes reserved by it.
    pub bytes_reserved: Option<u64>,
    /// Largest resident set of the process so far, in bytes; `None` where the system does not tell.
    pub peak_rss: Option<u64>,
    /// Whether decoding steps were recorded once and replayed by the hardware, the tokens chosen there.
    #[serde(default)]
    pub replayed: bool,
    /// Seconds of the warm-up: kernel compilation and autotuning are in it.
    pub warmup_seconds: f64,
}

/// Times a prefill of `batch` prompts and the decoding after it, `repeats` times after one run to warm up. Tokens are
/// drawn from the vocabulary in a fixed order, the same in every configuration, and each step ends when its scores are
/// on the host, as sampling needs them; with `on_device`, steps follow each other without the host and are timed together.
///
/// # Errors
/// [`EvalError`] for lengths of 0, or whatever model, policies and cache refuse.
pub fn bench<'p>(
    model: &Decoder,
    spec: &BenchSpec,
    batch: usize,
    stack: impl Fn() -> Result<Stack<'p>, EvalError>,
    done: impl Fn(usize),
) -> Result<BenchRow, EvalError> {
    if batch == 0 || spec.prompt == 0 || spec.generate == 0 || spec.repeats == 0 {
        return Err(EvalError::EmptyBench {
            batch,
            prompt: spec.prompt,
            generate: spec.generate,
            repeats: spec.repeats,
        });
    }
    let tokens = spec.prompt + spec.generate;
    let options = model.cache_options(batch, tokens).for_prompt(spec.prompt);
    let mut cache = model.cache(stack()?, options)?;
    let kv_bytes_plan = cache.plan().bytes(batch, Lengths::new(spec.prompt, tokens), model.dtype().size());
    let (vocab, mut replayed) = (model.config().vocab, false);
    let mut once = || -> Result<(f64, Vec<f64>), EvalError> {
        cache.reset();
        let rows: Vec<Vec<u32>> = (0..batch).map(|row| token_row(row, 0..spec.prompt, model.config().vocab)).collect();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let start = Instant::now();
        let hidden = model.forward(&rows, &mut cache)?;
        scores(model, hidden.slice_dim(1, spec.prompt - 1..spec.prompt))?;
        let prefill = start.elapsed().as_secs_f64();
        if spec.on_device {
            let first: Vec<u32> =
                (0..batch).map(|row| token_row(row, spec.prompt..spec.prompt + 1, vocab)[0]).collect();
            if let Some(mut steps) = DeviceLoop::new(model, &mut cache, &first, spec.generate)? {
                steps.wait()?;
                let (start, left) = (Instant::now(), steps.left());
                steps.run(left)?;
                steps.wait()?;
                let step = start.elapsed().as_secs_f64() / left as f64;
                replayed = steps.is_recorded();
                done(1);
                return Ok((prefill, vec![step; spec.generate]));
            }
        }
        let mut steps = Vec::with_capacity(spec.generate);
        for at in spec.prompt..tokens {
            let rows: Vec<Vec<u32>> = (0..batch).map(|row| token_row(row, at..at + 1, model.config().vocab)).collect();
            let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            let start = Instant::now();
            scores(model, model.forward(&rows, &mut cache)?)?;
            steps.push(start.elapsed().as_secs_f64());
        }
        done(1);
        Ok((prefill, steps))
    };
    let start = Instant::now();
    once()?;
    let warmup_seconds = start.elapsed().as_secs_f64();
    let runs: Vec<(f64, Vec<f64>)> = (0..spec.repeats).map(|_| once()).collect::<Result<_, _>>()?;
    let new = (batch * spec.generate) as f64;
    let prefills: Vec<f64> = runs.iter().map(|(prefill, _)| *prefill).collect();
    let decodes: Vec<f64> = runs.iter().map(|(_, steps)| steps.iter().sum()).collect();
    let usage = model.device().memory_pool_usage();
    Ok(BenchRow {
        batch,
        prompt: spec.prompt,
        generated: spec.generate,
        prefill_ms: Spread::of(prefills.iter().map(|seconds| seconds * 1e3).collect()),
        decode_ms_per_step: Spread::of(runs.iter().flat_map(|(_, steps)| steps).map(|step| step * 1e3).collect()),
        tokens_per_second: Spread::of(decodes.iter().map(|seconds| new / seconds).collect()),
        tokens_per_second_with_prefill: Spread::of(
            prefills.iter().zip(&decodes).map(|(prefill, decode)| new / (prefill + decode)).collect(),
        ),
        kv_bytes_plan,
        kv_bytes: cache.bytes(),
        bytes_in_use: usage.as_ref().map(|usage| usage.bytes_in_use),
        bytes_reserved: usage.as_ref().map(|usage| usage.bytes_reserved),
        peak_rss: peak_rss(),
        replayed,
        warmup_seconds,
    })
}

/// Scores on the host: their elements are read, as data alone may come when they are.
fn scores(model: &Decoder, hidden: Tensor<3>) -> Result<Vec<f32>, EvalError> {
    let scores = model.logits(hidden).cast(DType::F32).try_into_vec_as::<f32>();
    scores.map_err(|error| ModelError::Device(error.to_string()).into())
}

fn token_row(row: usize, positions: std::ops::Range<usize>, vocab: usize) -> Vec<u32> {
    positions.map(|at| ((at * 31 + row * 17 + 7) % vocab) as u32).collect()
}

/// Largest resident set of this process, from the kernel (Linux: `VmHWM` of /proc/self/status).
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_the_peak_of_the_resident_set() {
        if cfg!(target_os = "linux") {
            assert!(peak_rss().is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
