//! A toy model for tests of policies, caches and backends.

use crate::kernels::product;
use crate::{Attend, Cache, CacheError, CacheOptions, KvShape, LayerId, ModelShape, Rope, SearchModel};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation::silu};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;
use std::sync::Arc;

/// Base of its rotary frequencies.
pub(super) const THETA: f64 = 100.0;

/// A small random decoder with grouped-query attention and rotary positions.
#[derive(Clone, Debug)]
pub struct ToyModel {
    shape: ModelShape,
    heads: usize,
    rope: Rope,
    embedding: Tensor<2>,
    layers: Vec<ToyLayer<Tensor<2>>>,
    host: Arc<HostWeights>,
}

/// The same on the host.
#[derive(Debug)]
pub(super) struct HostWeights {
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<ToyLayer<Matrix>>,
}

/// `[row, column]`.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) columns: usize,
    pub(super) values: Vec<f32>,
}

/// The projections of a layer, `[in, out]`.
#[derive(Clone, Debug)]
pub(super) struct ToyLayer<M> {
    pub(super) query: M,
    pub(super) key: M,
    pub(super) value: M,
    pub(super) output: M,
}

impl<M> ToyLayer<M> {
    fn map<N>(&self, change: impl Fn(&M) -> N) -> ToyLayer<N> {
        let Self { query, key, value, output } = self;
        ToyLayer { query: change(query), key: change(key), value: change(value), output: change(output) }
    }
}

impl ToyModel {
    /// Tokens of its vocabulary.
    pub const VOCAB: usize = 50;

    /// `layers` equal layers; weights depend on `seed` alone, not on the device.
    pub fn new(layers: usize, heads: usize, kv_heads: usize, head_dim: usize, seed: u64, device: &Device) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let hidden = heads * head_dim;
        let mut matrix = |rows: usize, columns: usize, scale: f32| {
            let spread = scale * 1.5 / (rows as f32).sqrt();
            let values = (0..rows * columns).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * spread).collect();
            Matrix { columns, values }
        };
        let embedding = matrix(Self::VOCAB, hidden, 4.0);
        let layers: Vec<ToyLayer<Matrix>> = (0..layers)
            .map(|_| ToyLayer {
                query: matrix(hidden, heads * head_dim, 1.0),
                key: matrix(hidden, kv_heads * head_dim, 1.0),
                value: matrix(hidden, kv_heads * head_dim, 1.0),
                output: matrix(heads * head_dim, hidden, 1.0),
            })
            .collect();
        let tensor = |matrix: &Matrix| {
            let shape = [matrix.values.len() / matrix.columns, matrix.columns];
            Tensor::from_data(TensorData::new(matrix.values.clone(), shape), device)
        };
        Self {
            shape: ModelShape::uniform(layers.len(), KvShape::new(kv_heads, head_dim)),
            heads,
            rope: Rope::new(head_dim, THETA),
            embedding: tensor(&embedding),
            layers: layers.iter().map(|layer| layer.map(tensor)).collect(),
            host: Arc::new(HostWeights { embedding, layers }),
        }
    }

    pub(super) fn host(&self) -> &HostWeights {
        &self.host
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
        product(x, weight.clone().unsqueeze()).reshape([batch, tokens, width / dim, dim]).swap_dims(1, 2)
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
        Ok(hidden + product(silu(mixed), weights.output.clone().unsqueeze()))
    }

    fn final_norm(&self, hidden: Tensor<3>) -> Tensor<3> {
        let scale = (hidden.clone().square().mean_dim(2) + 1e-6).sqrt();
        hidden / scale
    }

    /// The embedding serves as the head.
    fn logits(&self, hidden: Tensor<2>) -> Option<Tensor<2>> {
        Some(product(hidden, self.embedding.clone().transpose()) * 0.25)
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
