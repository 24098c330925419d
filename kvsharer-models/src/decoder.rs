//! The one decoder that all families share.

use crate::attention::Attention;
use crate::linear::Linear;
use crate::mlp::Mlp;
use crate::norm::RmsNorm;
use crate::{DecoderConfig, ModelError, Placement, RopeConfig};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use kvsharer_core::{
    Attend, Cache, CacheError, CacheOptions, LayerId, ModelShape, PlanError, RopeTable, SearchModel, Stack, Steps,
};
use std::ops::Range;
use std::sync::Mutex;

/// One decoder layer: attention and MLP, each behind a norm and around a residual.
#[derive(Clone, Debug)]
pub struct DecoderLayer {
    /// Before the attention.
    pub attention_norm: RmsNorm,
    /// The attention.
    pub attention: Attention,
    /// Behind the attention, before the residual.
    pub post_attention_norm: Option<RmsNorm>,
    /// Before the MLP.
    pub mlp_norm: RmsNorm,
    /// The MLP.
    pub mlp: Mlp,
    /// Behind the MLP, before the residual.
    pub post_mlp_norm: Option<RmsNorm>,
    /// Layers above this one that lost their attention: what is left of them.
    pub bare: Vec<BareLayer>,
}

/// A layer without attention.
#[derive(Clone, Debug)]
pub struct BareLayer {
    /// Before the MLP.
    pub mlp_norm: RmsNorm,
    /// The MLP.
    pub mlp: Mlp,
    /// Behind the MLP, before the residual.
    pub post_mlp_norm: Option<RmsNorm>,
}

impl BareLayer {
    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let open = self.mlp.open(self.mlp_norm.forward(hidden.clone()));
        added(&self.mlp.down, open, hidden, &self.post_mlp_norm)
    }
}

/// A decoder-only language model.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    shape: ModelShape,
    /// `[vocab, hidden]`.
    embedding: Tensor<2>,
    /// Of activations.
    dtype: DType,
    layers: Vec<DecoderLayer>,
    /// One a layer.
    devices: Vec<Device>,
    /// The place of each layer in the model as it was loaded, before some lost their attention.
    origins: Vec<LayerId>,
    /// Which layers are on one device, if the others' caches must not be read.
    apart: Option<Placement>,
    final_norm: RmsNorm,
    head: Linear,
    /// The last tables made, of the layers without and with a rotary encoding of their own: all layers of a forward
    /// pass need the same ones.
    tables: Mutex<[Option<PositionTable>; 2]>,
}

/// Rotary encodings of planned steps, of the layers without and with one of their own.
pub(crate) struct StepTurns([Option<RopeTable>; 2]);

/// A table, and the positions it is for.
type PositionTable = (Range<usize>, RopeTable);

impl Decoder {
    /// Puts a decoder together; shapes are those of `config`.
    ///
    /// `embedding` and `head` are `[vocab, hidden]`; without a head the embedding serves (tied).
    pub fn new(
        config: DecoderConfig,
        embedding: Tensor<2>,
        layers: Vec<DecoderLayer>,
        final_norm: RmsNorm,
        head: Option<Tensor<2>>,
    ) -> Self {
        Self {
            shape: config.shape(),
            head: Linear::new(head.unwrap_or_else(|| embedding.clone())),
            devices: vec![embedding.device(); layers.len()],
            origins: (0..layers.len()).map(LayerId).collect(),
            apart: None,
            dtype: embedding.dtype(),
            embedding,
            layers,
            final_norm,
            config,
            tables: Mutex::default(),
        }
    }

    /// The layers, in order.
    pub(crate) fn layers(&self) -> &[DecoderLayer] {
        &self.layers
    }

    /// `[vocab, hidden]`.
    pub(crate) fn embedding(&self) -> &Tensor<2> {
        &self.embedding
    }

    /// The norm before the head.
    pub(crate) fn last_norm(&self) -> &RmsNorm {
        &self.final_norm
    }

    /// `[vocab, hidden]`, the embedding if tied.
    pub(crate) fn head(&self) -> &Linear {
        &self.head
    }

    /// The same model with other layers, each in the place of one of its own.
    pub(crate) fn with_layers(&self, layers: Vec<(LayerId, DecoderLayer)>) -> Self {
        let shape = layers.iter().map(|(place, _)| self.shape.layers()[place.0]).collect();
        let devices = layers.iter().map(|(place, _)| self.devices[place.0].clone()).collect();
        let origins = layers.iter().map(|(place, _)| self.origins[place.0]).collect();
        let layers = layers.into_iter().map(|(_, layer)| layer).collect();
        Self {
            config: self.config.clone(),
            shape: ModelShape::new(shape),
            devices,
            origins,
            apart: self.apart.clone(),
            dtype: self.dtype,
            embedding: self.embedding.clone(),
            layers,
            final_norm: self.final_norm.clone(),
            head: self.head.clone(),
            tables: Mutex::default(),
        }
    }

    /// The same, whose layers were loaded onto these devices, one a layer, and whose head is on the last. `apart` says
    /// which layers may share caches.
    pub(crate) fn placed(self, devices: &[Device], apart: Option<Placement>) -> Self {
        Self { devices: devices.to_vec(), apart, ..self }
    }

    /// The same, whose activations have another dtype than its matrices.
    pub(crate) fn computing_in(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// A cache for this model, each layer's on the layer's device.
    ///
    /// # Errors
    /// [`PlanError`] if the policies do not fit together or the model.
    pub fn cache<'p>(&self, stack: Stack<'p>, options: CacheOptions) -> Result<Cache<'p>, PlanError> {
        Cache::placed(&self.shape, stack, options, &self.devices)
    }

    /// The hyperparameters.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The dtype of activations and, unless chosen otherwise, caches; matrices may be kept in a smaller one.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Options for a cache that fits this model. Its rotary encoding is that of the layers without a sliding window,
    /// the only ones whose keys policies may turn further; there is none if it changes with the length of the text.
    pub fn cache_options(&self, batch: usize, tokens: usize) -> CacheOptions {
        let rope = &self.config.rope;
        let rope = (!rope.is_dynamic()).then(|| rope.rope(self.config.head_dim, 0));
        CacheOptions { batch, tokens, prompt: None, dtype: self.dtype(), rope }
    }

    /// Runs new tokens, one row a sequence, through all layers and the final norm.
    ///
    /// # Shapes
    /// `rows`: `[batch][token]`, all rows equally long; result `[batch, token, hidden]`.
    ///
    /// # Errors
    /// [`ModelError::TokenOutOfRange`], [`ModelError::EmptyPrompt`], and whatever the cache refuses.
    pub fn forward(&self, rows: &[&[u32]], cache: &mut Cache<'_>) -> Result<Tensor<3>, ModelError> {
        let tokens = rows.first().map_or(0, |row| row.len());
        if tokens == 0 || rows.iter().any(|row| row.len() != tokens) {
            return Err(ModelError::EmptyPrompt);
        }
        self.run(rows, &[], cache)
    }

    /// Runs prompts of different lengths: shorter rows are padded in front, and the last state of every row is that of
    /// its last token. Only into an empty cache.
    ///
    /// # Shapes
    /// `rows`: `[batch][token]`; result `[batch, longest row, hidden]`, of which the padding means nothing.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_padded(&self, rows: &[&[u32]], cache: &mut Cache<'_>) -> Result<Tensor<3>, ModelError> {
        let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        if rows.iter().any(|row| row.is_empty()) || longest == 0 {
            return Err(ModelError::EmptyPrompt);
        }
        let padding: Vec<usize> = rows.iter().map(|row| longest - row.len()).collect();
        let padded: Vec<Vec<u32>> =
            rows.iter().zip(&padding).map(|(row, &pad)| [&vec![0; pad], *row].concat()).collect();
        let padded: Vec<&[u32]> = padded.iter().map(Vec::as_slice).collect();
        self.run(&padded, &padding, cache)
    }

    fn run(&self, rows: &[&[u32]], padding: &[usize], cache: &mut Cache<'_>) -> Result<Tensor<3>, ModelError> {
        let (tokens, vocab) = (rows[0].len(), self.config.vocab);
        let ids: Vec<i64> = rows.iter().flat_map(|row| row.iter().map(|&id| i64::from(id))).collect();
        if let Some(&id) = ids.iter().find(|&&id| id >= vocab as i64) {
            return Err(ModelError::TokenOutOfRange { id: id as u32, vocab });
        }
        cache.begin_padded(tokens, padding)?;
        let ids = Tensor::from_data(TensorData::new(ids, [rows.len(), tokens]), &self.device());
        let mut hidden = self.embed(ids);
        for layer in self.shape.ids() {
            hidden = self.layer(layer, hidden, cache)?;
        }
        Ok(self.final_norm(hidden))
    }

    /// Runs a token a row, in a step that was planned ahead.
    ///
    /// # Shapes
    /// `ids` `[batch, 1]`; `step` `[1]`; result `[batch, 1, hidden]` after the final norm.
    pub(crate) fn step(
        &self,
        ids: Tensor<2, Int>,
        step: &Tensor<1, Int>,
        turns: &StepTurns,
        steps: &mut Steps<'_, '_>,
    ) -> Result<Tensor<3>, ModelError> {
        steps.begin(step);
        let mut hidden = self.embed(ids);
        let rows = [&turns.0[0], &turns.0[1]].map(|table| table.as_ref().map(|table| table.row(step)));
        for layer in self.shape.ids() {
            let table = rows[usize::from(self.is_local(layer))].as_ref();
            let Some(table) = table else { return Err(CacheError::OutOfTurn { layer }.into()) };
            hidden = self.turned_layer(layer, hidden, table, steps)?;
        }
        Ok(self.final_norm(hidden))
    }

    /// The rotary encodings of steps at these positions; `None` if they depend on the length of the text.
    pub(crate) fn step_turns(&self, positions: Range<usize>) -> Option<StepTurns> {
        let table = |rope: &RopeConfig| {
            let rope = (!rope.is_dynamic()).then(|| rope.rope(self.config.head_dim, positions.end))?;
            Some(rope.table(positions.clone(), &self.device()))
        };
        let local = match &self.config.local_rope {
            Some(rope) => Some(table(rope)?),
            None => None,
        };
        Some(StepTurns([Some(table(&self.config.rope)?), local]))
    }

    /// Whether a layer has the local rotary encoding.
    fn is_local(&self, layer: LayerId) -> bool {
        self.config.local_rope.as_ref() == Some(self.config.rope_of(self.origins[layer.0]))
    }

    /// Scores of the next token.
    ///
    /// # Shapes
    /// `[batch, token, hidden]` after the final norm to `[batch, token, vocab]`.
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.head.forward(hidden)
    }

    fn turned_layer<A: Attend>(
        &self,
        layer: LayerId,
        hidden: Tensor<3>,
        rope: &RopeTable,
        attention: &mut A,
    ) -> Result<Tensor<3>, CacheError> {
        let own = &self.layers[layer.0];
        let mixed = own.attention.mix(layer, own.attention_norm.forward(hidden.clone()), rope, attention)?;
        let hidden = added(&own.attention.output, mixed, hidden, &own.post_attention_norm);
        let open = own.mlp.open(own.mlp_norm.forward(hidden.clone()));
        let hidden = added(&own.mlp.down, open, hidden, &own.post_mlp_norm);
        Ok(own.bare.iter().fold(hidden, |hidden, bare| bare.forward(hidden)))
    }

    fn rope_table(&self, layer: LayerId, positions: Range<usize>) -> RopeTable {
        let (rope, local) = (self.config.rope_of(self.origins[layer.0]), self.is_local(layer));
        let device = &self.devices[layer.0];
        // A poisoned lock only means that a panic elsewhere interrupted a refresh; the value is replaced as a whole.
        let mut tables = self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let last = &mut tables[usize::from(local)];
        match last {
            Some((range, table)) if *range == positions && table.device() == *device => table.clone(),
            _ => {
                let table = rope.rope(self.config.head_dim, positions.end).table(positions.clone(), device);
                *last = Some((positions, table.clone()));
                table
            }
        }
    }
}

impl SearchModel for Decoder {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn device(&self) -> Device {
        self.embedding.device()
    }

    fn may_share(&self, borrower: LayerId, donor: LayerId) -> bool {
        self.apart.as_ref().is_none_or(|placed| placed.device(borrower) == placed.device(donor))
    }

    fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, length] = tokens.dims();
        let rows = self.embedding.clone().select(0, tokens.reshape([batch * length])).cast(self.dtype);
        let rows = rows.reshape([batch, length, self.config.hidden]);
        if self.config.embedding_scale == 1.0 { rows } else { rows * self.config.embedding_scale }
    }

    fn layer<A: Attend>(&self, layer: LayerId, hidden: Tensor<3>, attention: &mut A) -> Result<Tensor<3>, CacheError> {
        let hidden = hidden.to_device(&self.devices[layer.0]);
        let rope = self.rope_table(layer, attention.positions());
        self.turned_layer(layer, hidden, &rope, attention)
    }

    fn final_norm(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.final_norm.forward(hidden)
    }

    /// Query norms stand between the projection and the turn.
    fn turns_fold(&self) -> bool {
        self.layers.iter().all(|layer| layer.attention.query_norm.is_none())
    }

    fn logits(&self, hidden: Tensor<2>) -> Option<Tensor<2>> {
        Some(self.head.forward(hidden.unsqueeze()).squeeze_dim(0))
    }
}

/// `hidden + norm(linear(x))`.
fn added(linear: &Linear, x: Tensor<3>, hidden: Tensor<3>, norm: &Option<RmsNorm>) -> Tensor<3> {
    match norm {
        Some(norm) => hidden + norm.forward(linear.forward(x)),
        None => linear.forward_added(x, hidden),
    }
}
