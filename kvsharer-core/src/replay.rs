//! Re-running calibration samples under a sharing map, from the first layer that the map changes.

use crate::attend::{Fresh, MaskCache, Pass, attend};
use crate::{Attend, CacheError, CalibrationSet, LayerId, ModelShape, Sharing};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rayon::prelude::*;
use std::ops::Range;

/// What a search needs of a model: its layers one by one. A user's own model becomes searchable by implementing it.
pub trait SearchModel: Sync {
    /// Shapes of the layers' keys and values.
    fn shape(&self) -> &ModelShape;

    /// The device the model's weights are on.
    fn device(&self) -> Device;

    /// Whether `borrower` may read the cache of `donor` at all, such as where both lie on one device. A search leaves
    /// other pairs out.
    fn may_share(&self, borrower: LayerId, donor: LayerId) -> bool {
        let _ = (borrower, donor);
        true
    }

    /// Token ids `[batch, token]` to hidden states `[batch, token, hidden]`.
    fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3>;

    /// One decoder layer, `[batch, token, hidden]` to the same; its attention goes through `attention`.
    ///
    /// # Errors
    /// Whatever `attention` refuses.
    fn layer<A: Attend>(&self, layer: LayerId, hidden: Tensor<3>, attention: &mut A) -> Result<Tensor<3>, CacheError>;

    /// The norm after the last layer, `[batch, token, hidden]` to the same.
    fn final_norm(&self, hidden: Tensor<3>) -> Tensor<3>;
}

/// One batch of samples under the accepted map: what is needed to start again at any layer.
///
/// Memory: a hidden state and a key-value pair a layer and token.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    lengths: Vec<usize>,
    run: Run,
    reference: Vec<f32>,
}

/// What a forward pass leaves behind, by layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    /// Layer inputs `[batch, token, hidden]`.
    inputs: Vec<Tensor<3>>,
    /// Own keys `[batch, kv_head, token, head_dim]`, `None` for borrowers.
    keys: Vec<Option<Tensor<4>>>,
    /// Own values, likewise.
    values: Vec<Option<Tensor<4>>>,
    /// States after the final norm `[batch, token, hidden]`, flattened on the host.
    output: Vec<f32>,
}

impl Batch {
    /// Runs `samples`, padded at the right to the longest, through the untouched model. Attention is causal, so the
    /// padding changes nothing before it.
    pub(crate) fn new<M: SearchModel>(model: &M, samples: &[Vec<u32>]) -> Result<Self, CacheError> {
        let lengths: Vec<usize> = samples.iter().map(Vec::len).collect();
        let width = lengths.iter().copied().max().unwrap_or(0);
        let padded = samples.iter().flat_map(|sample| {
            let ids = sample.iter().map(|&id| i64::from(id));
            ids.chain(std::iter::repeat(0)).take(width)
        });
        let tokens = TensorData::new(padded.collect::<Vec<i64>>(), [samples.len(), width]);
        let hidden = model.embed(Tensor::from_data(tokens, &model.device()));
        let run = Run::forward(model, LayerId(0), hidden, &Sharing::default(), &Run::default())?;
        Ok(Self { lengths, reference: run.output.clone(), run })
    }

    /// Runs the samples under `sharing`, which differs from the accepted map only from `layer` on. No layer below is
    /// computed again.
    pub(crate) fn try_from_layer<M: SearchModel>(
        &self,
        model: &M,
        layer: LayerId,
        sharing: &Sharing,
    ) -> Result<Run, CacheError> {
        Run::forward(model, layer, self.run.inputs[layer.0].clone(), sharing, &self.run)
    }

    /// Makes a run of [`try_from_layer`](Self::try_from_layer) the accepted one.
    pub(crate) fn accept(&mut self, run: Run) {
        let from = self.run.inputs.len() - run.inputs.len();
        self.run.inputs.splice(from.., run.inputs);
        self.run.keys.splice(from.., run.keys);
        self.run.values.splice(from.., run.values);
        self.run.output = run.output;
    }

    /// Tokens of each sample.
    pub(crate) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Tokens of the longest sample.
    pub(crate) fn width(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Own keys (or values) of a layer summed over the samples, `[kv_head, position, head_dim]`; padding counts as 0.
    pub(crate) fn sum(&self, tensor: &Tensor<4>) -> Result<Vec<f32>, CacheError> {
        let width = self.width();
        let valid =
            self.lengths.iter().flat_map(|&length| (0..width).map(move |position| f32::from(position < length)));
        let valid = TensorData::new(valid.collect::<Vec<f32>>(), [self.lengths.len(), 1, width, 1]);
        let valid = Tensor::<4>::from_data(valid, &tensor.device());
        host((tensor.clone().cast(DType::F32) * valid).sum_dim(0))
    }

    /// Own keys of a layer.
    pub(crate) fn keys(&self, layer: usize) -> Option<&Tensor<4>> {
        self.run.keys[layer].as_ref()
    }

    /// Own values of a layer.
    pub(crate) fn values(&self, layer: usize) -> Option<&Tensor<4>> {
        self.run.values[layer].as_ref()
    }

    /// For every sample, its final states `[token, hidden]` in the untouched model and in `run`.
    pub(crate) fn outputs<'a>(&'a self, run: &'a Run) -> impl Iterator<Item = (&'a [f32], &'a [f32])> {
        let row = self.reference.len() / self.lengths.len().max(1);
        let hidden = row / self.width().max(1);
        self.lengths.iter().enumerate().map(move |(sample, length)| {
            let states = sample * row..sample * row + length * hidden;
            (&self.reference[states.clone()], &run.output[states])
        })
    }
}

impl Run {
    fn forward<M: SearchModel>(
        model: &M,
        from: LayerId,
        hidden: Tensor<3>,
        sharing: &Sharing,
        below: &Run,
    ) -> Result<Self, CacheError> {
        let tokens = hidden.dims()[1];
        let mut replay = Replay {
            sharing,
            below,
            from,
            fresh: Fresh::appended(0, tokens),
            masks: MaskCache::default(),
            keys: Vec::new(),
            values: Vec::new(),
        };
        let mut inputs = Vec::new();
        let mut hidden = hidden;
        for layer in model.shape().ids().skip(from.0) {
            inputs.push(hidden.clone());
            hidden = model.layer(layer, hidden, &mut replay)?;
        }
        let (keys, values) = (replay.keys, replay.values);
        let output = host(model.final_norm(hidden).cast(DType::F32))?;
        Ok(Self { inputs, keys, values, output })
    }
}

/// The attention of a replay: layers below `from` are read from the accepted run.
struct Replay<'a> {
    sharing: &'a Sharing,
    below: &'a Run,
    from: LayerId,
    fresh: Fresh,
    masks: MaskCache,
    keys: Vec<Option<Tensor<4>>>,
    values: Vec<Option<Tensor<4>>>,
}

impl Attend for Replay<'_> {
    fn positions(&self) -> Range<usize> {
        0..self.fresh.len()
    }

    fn attend(
        &mut self,
        layer: LayerId,
        query: Tensor<4>,
        key: impl FnOnce() -> Tensor<4>,
        value: impl FnOnce() -> Tensor<4>,
    ) -> Result<Tensor<4>, CacheError> {
        let (key_donor, value_donor) = (self.sharing.keys().donor(layer), self.sharing.values().donor(layer));
        self.keys.push(key_donor.is_none().then(key));
        self.values.push(value_donor.is_none().then(value));
        let find = |own: &[Option<Tensor<4>>], below: &[Option<Tensor<4>>], donor: Option<LayerId>| {
            let source = donor.unwrap_or(layer);
            let found = match source.0.checked_sub(self.from.0) {
                Some(above) => own.get(above),
                None => below.get(source.0),
            };
            found.cloned().flatten().ok_or(CacheError::OutOfTurn { layer: source })
        };
        // Of a donor on another device, a copy.
        let device = query.device();
        let keys = find(&self.keys, &self.below.keys, key_donor)?.to_device(&device);
        let values = find(&self.values, &self.below.values, value_donor)?.to_device(&device);
        Ok(attend(query, keys, values, &Pass::new(&self.fresh), &mut self.masks).0)
    }
}

/// Reads a tensor back as f32.
fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, CacheError> {
    tensor.try_into_vec_as::<f32>().map_err(|error| CacheError::Device(error.to_string()))
}

/// Runs every batch of `rows` samples of `set` through the untouched model, batches in parallel.
pub(crate) fn batches<M: SearchModel>(model: &M, set: &CalibrationSet, rows: usize) -> Result<Vec<Batch>, CacheError> {
    set.samples().par_chunks(rows.max(1)).map(|samples| Batch::new(model, samples)).collect()
}
