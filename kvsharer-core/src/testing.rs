//! A toy model and host-side references, for tests of policies, caches and backends (feature `testing`).
//!
//! A device is right if the toy model gives on it what it gives on one that is known, whatever the passes that the text
//! comes in, and in exactly the planned bytes:
//!
//! ```
//! use burn::tensor::Device;
//! use kvsharer_core::testing::{ToyModel, max_difference, toy_tokens};
//! use kvsharer_core::{Cache, SearchModel, Sharing, Stack};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (known, device) = (Device::flex(), Device::flex()); // put your device in the place of the second
//! let run = |device: &Device, passes: &[usize]| {
//!     let model = ToyModel::new(6, 6, 2, 8, 1, device); // layers, query and key-value heads, channels, seed
//!     let stack = Stack::new().with(Sharing::both([(3, 1), (5, 1)])?);
//!     let mut cache = Cache::new(model.shape(), stack, model.cache_options(2, 12), device)?;
//!     let states = model.run(&toy_tokens(2, 12, 7), passes, &mut cache)?;
//!     assert_eq!(cache.bytes(), cache.plan().bytes(2, 12, 4));
//!     Ok::<_, Box<dyn std::error::Error>>(states)
//! };
//! let (expected, found) = (run(&known, &[12])?, run(&device, &[5, 4, 1, 1, 1])?);
//! let error = max_difference(expected, found.to_device(&known));
//! assert!(error < 1e-4, "{error}");
//! # Ok(())
//! # }
//! ```

use crate::{Attend, Cache, CacheError, CacheOptions, KvShape, LayerId, ModelShape, Rope, SearchModel};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation::silu};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

/// A small random decoder with grouped-query attention and rotary positions.
#[derive(Clone, Debug)]
pub struct ToyModel {
    shape: ModelShape,
    heads: usize,
    rope: Rope,
    embedding: Tensor<2>,
    layers: Vec<ToyLayer>,
}

#[derive(Clone, Debug)]
struct ToyLayer {
    query: Tensor<2>,
    key: Tensor<2>,
    value: Tensor<2>,
    output: Tensor<2>,
}

impl ToyModel {
    /// Tokens of its vocabulary.
    pub const VOCAB: usize = 50;

    /// `layers` equal layers; weights depend on `seed` alone, not on the device.
    pub fn new(layers: usize, heads: usize, kv_heads: usize, head_dim: usize, seed: u64, device: &Device) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let hidden = heads * head_dim;
        let mut matrix = |rows: usize, columns: usize| -> Tensor<2> {
            let spread = 1.5 / (rows as f32).sqrt();
            let values: Vec<f32> = (0..rows * columns).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * spread).collect();
            Tensor::from_data(TensorData::new(values, [rows, columns]), device)
        };
        let embedding = matrix(Self::VOCAB, hidden) * 4.0;
        let layers: Vec<ToyLayer> = (0..layers)
            .map(|_| ToyLayer {
                query: matrix(hidden, heads * head_dim),
                key: matrix(hidden, kv_heads * head_dim),
                value: matrix(hidden, kv_heads * head_dim),
                output: matrix(heads * head_dim, hidden),
            })
            .collect();
        Self {
            shape: ModelShape::uniform(layers.len(), KvShape::new(kv_heads, head_dim)),
            heads,
            rope: Rope::new(head_dim, 100.0),
            embedding,
            layers,
        }
    }

    /// The same model with a sliding window in some layers, one entry a layer.
    pub fn with_windows(self, windows: &[Option<usize>]) -> Self {
        let layers = self.shape.layers().iter().zip(windows);
        let layers = layers.map(|(&shape, &window)| KvShape { window, ..shape }).collect();
        Self { shape: ModelShape::new(layers), ..self }
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Its rotary encoding.
    pub fn rope(&self) -> &Rope {
        &self.rope
    }

    /// Options for a cache of this model.
    pub fn cache_options(&self, batch: usize, tokens: usize) -> CacheOptions {
        CacheOptions { batch, tokens, prompt: None, dtype: DType::F32, rope: Some(self.rope.clone()) }
    }

    /// Runs `tokens[batch][token]` through the cache in chunks of the given lengths; returns the final states
    /// `[batch, token, hidden]` of all of them.
    ///
    /// # Errors
    /// Whatever the cache refuses.
    pub fn run(&self, tokens: &[Vec<u32>], chunks: &[usize], cache: &mut Cache<'_>) -> Result<Tensor<3>, CacheError> {
        self.run_padded(tokens, &[], chunks, cache)
    }

    /// [`run`](Self::run) with rows that start with padding, see [`Cache::begin_padded`].
    ///
    /// # Errors
    /// Whatever the cache refuses.
    pub fn run_padded(
        &self,
        tokens: &[Vec<u32>],
        padding: &[usize],
        chunks: &[usize],
        cache: &mut Cache<'_>,
    ) -> Result<Tensor<3>, CacheError> {
        let mut outputs = Vec::new();
        let mut start = 0;
        for &chunk in chunks {
            cache.begin_padded(chunk, if start == 0 { padding } else { &[] })?;
            outputs.push(self.forward(tokens, start..start + chunk, cache)?);
            start += chunk;
        }
        Ok(Tensor::cat(outputs, 1))
    }

    /// One forward pass of a range of `tokens` through any attention.
    ///
    /// # Errors
    /// Whatever the attention refuses.
    pub fn forward<A: Attend>(
        &self,
        tokens: &[Vec<u32>],
        range: Range<usize>,
        attention: &mut A,
    ) -> Result<Tensor<3>, CacheError> {
        let ids: Vec<i64> = tokens.iter().flat_map(|row| row[range.clone()].iter().map(|&id| i64::from(id))).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [tokens.len(), range.len()]), &self.device());
        let mut hidden = self.embed(ids);
        for layer in self.shape.ids() {
            hidden = self.layer(layer, hidden, attention)?;
        }
        Ok(self.final_norm(hidden))
    }

    fn split(&self, x: Tensor<3>, weight: &Tensor<2>) -> Tensor<4> {
        let [batch, tokens, _] = x.dims();
        let dim = self.rope.head_dim();
        let width = weight.dims()[1];
        x.matmul(weight.clone().unsqueeze()).reshape([batch, tokens, width / dim, dim]).swap_dims(1, 2)
    }
}

impl SearchModel for ToyModel {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn device(&self) -> Device {
        self.embedding.device()
    }

    fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, length] = tokens.dims();
        self.embedding.clone().select(0, tokens.reshape([batch * length])).reshape([batch as i64, length as i64, -1])
    }

    fn layer<A: Attend>(&self, layer: LayerId, hidden: Tensor<3>, attention: &mut A) -> Result<Tensor<3>, CacheError> {
        let weights = &self.layers[layer.0];
        let rope = self.rope.table(attention.positions(), &self.device());
        let x = self.final_norm(hidden.clone());
        let query = rope.apply(self.split(x.clone(), &weights.query));
        let key = || rope.apply(self.split(x.clone(), &weights.key));
        let value = || self.split(x.clone(), &weights.value);
        let mixed = attention.attend(layer, query, key, value)?;
        let [batch, heads, tokens, dim] = mixed.dims();
        let mixed = mixed.swap_dims(1, 2).reshape([batch, tokens, heads * dim]);
        Ok(hidden + silu(mixed).matmul(weights.output.clone().unsqueeze()))
    }

    fn final_norm(&self, hidden: Tensor<3>) -> Tensor<3> {
        let scale = (hidden.clone().square().mean_dim(2) + 1e-6).sqrt();
        hidden / scale
    }

    /// The embedding serves as the head.
    fn logits(&self, hidden: Tensor<2>) -> Option<Tensor<2>> {
        Some(hidden.matmul(self.embedding.clone().transpose()) * 0.25)
    }
}

/// Reproducible token ids, `[batch][token]`.
pub fn toy_tokens(batch: usize, tokens: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut row = || (0..tokens).map(|_| rng.random_range(0..ToyModel::VOCAB as u32)).collect();
    (0..batch).map(|_| row()).collect()
}

/// The largest absolute difference of two tensors of one shape.
///
/// # Panics
/// If the shapes differ or the device fails.
pub fn max_difference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    assert_eq!(a.dims(), b.dims(), "shapes differ");
    (a - b).abs().max().into_scalar::<f32>()
}
