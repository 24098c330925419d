//! Re-running calibration samples under a draft, from the first layer that it changes.

use super::draft::Draft;
use crate::attend::{Fresh, MaskCache, Pass, Window, attend};
use crate::{Attend, CacheError, Kv, LayerId, ModelShape, axis};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
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

    /// Whether a [`Turn`](crate::Turn) of the keys can be folded into the query projections.
    fn turns_fold(&self) -> bool {
        true
    }

    /// Scores of the next token, `[token, hidden]` after the final norm to `[token, vocab]`; `None` if the model has
    /// no language head. Objectives over logits need it.
    fn logits(&self, hidden: Tensor<2>) -> Option<Tensor<2>> {
        let _ = hidden;
        None
    }
}

/// One batch of samples under the accepted draft: what is needed to start again at any layer.
///
/// Memory: a hidden state and a key-value pair a layer and token; as much again for the attention's outputs of the
/// untouched model, if maps are to be fitted to them.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    samples: Vec<Vec<u32>>,
    lengths: Vec<usize>,
    run: Run,
    /// States of the untouched model after the final norm, `[batch, token, hidden]`.
    untouched: Tensor<3>,
    /// The attention's outputs of the untouched model by layer, `[batch, query_head, token, head_dim]`.
    teacher: Vec<Tensor<4>>,
}

/// A batch on its way up, so that fitting layer after layer runs each layer once.
pub(crate) struct Climb {
    /// The accepted run, from below up to `from` the drafts' own.
    run: Run,
    from: LayerId,
    width: usize,
}

/// What a fit of a layer is made from.
pub(crate) struct Captured {
    /// The layer's own keys, `[batch, kv_head, token, head_dim]`.
    pub(crate) own_keys: Tensor<4>,
    /// The keys it reads.
    pub(crate) read_keys: Tensor<4>,
    /// The attention's output without any mix, `[batch, query_head, token, head_dim]`.
    pub(crate) mixed: Tensor<4>,
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
    /// States after the final norm `[batch, token, hidden]`; `None` if the run stopped before.
    output: Option<Tensor<3>>,
}

impl Batch {
    /// Runs `samples`, padded at the right to the longest, through the untouched model. Attention is causal, so the
    /// padding changes nothing before it. `teach` keeps the attention's outputs.
    pub(crate) fn new<M: SearchModel>(model: &M, samples: &[Vec<u32>], teach: bool) -> Result<Self, CacheError> {
        let lengths: Vec<usize> = samples.iter().map(Vec::len).collect();
        let width = lengths.iter().copied().max().unwrap_or(0);
        let padded = samples.iter().flat_map(|sample| {
            let ids = sample.iter().map(|&id| i64::from(id));
            ids.chain(std::iter::repeat(0)).take(width)
        });
        let tokens = TensorData::new(padded.collect::<Vec<i64>>(), [samples.len(), width]);
        let hidden = model.embed(Tensor::from_data(tokens, &model.device()));
        let (draft, below) = (Draft::default(), Run::default());
        let drafts = [&draft];
        let mut replay = Replay::new(model.shape(), &drafts, &below, LayerId(0), width);
        replay.teach = teach.then(Vec::new);
        let mut runs = Run::forward(model, hidden, LayerId(model.shape().len()), &mut replay)?;
        let run = runs.remove(0);
        let teacher = replay.teach.unwrap_or_default();
        let untouched = run.output.clone().ok_or(CacheError::Unsupported("models without layers"))?;
        Ok(Self { samples: samples.to_vec(), lengths, untouched, teacher, run })
    }

    /// Runs the samples under each of `drafts`, which differ from the accepted one only from `layer` on, in one pass: a
    /// run a draft. No layer below is computed again.
    pub(crate) fn try_from_layer<M: SearchModel>(
        &self,
        model: &M,
        layer: LayerId,
        drafts: &[&Draft],
    ) -> Result<Vec<Run>, CacheError> {
        let mut replay = Replay::new(model.shape(), drafts, &self.run, layer, self.width());
        let input = self.run.inputs[layer.0].clone();
        let inputs = if drafts.len() == 1 { input } else { Tensor::cat(vec![input; drafts.len()], 0) };
        Run::forward(model, inputs, LayerId(model.shape().len()), &mut replay)
    }

    /// The batch at `from`, on its way up under drafts that differ from the accepted one only from there on.
    pub(crate) fn climb(&self, from: LayerId) -> Climb {
        Climb { run: self.run.clone(), from, width: self.width() }
    }

    /// Makes a run of [`try_from_layer`](Self::try_from_layer) the accepted one.
    pub(crate) fn accept(&mut self, run: Run) {
        let from = self.run.inputs.len() - run.inputs.len();
        self.run.inputs.splice(from.., run.inputs);
        self.run.keys.splice(from.., run.keys);
        self.run.values.splice(from.., run.values);
        self.run.output = run.output;
    }

    /// The attention's output of a layer of the untouched model, `[batch, query_head, token, head_dim]`.
    pub(crate) fn teacher(&self, layer: LayerId) -> Option<&Tensor<4>> {
        self.teacher.get(layer.0)
    }

    /// The samples' token ids.
    pub(crate) fn samples(&self) -> &[Vec<u32>] {
        &self.samples
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

    /// Final states of the untouched model, `[batch, token, hidden]`.
    pub(crate) fn untouched(&self) -> &Tensor<3> {
        &self.untouched
    }

    /// Indices of the tokens that are no padding, in `[batch * token]`.
    pub(crate) fn rows(&self) -> Vec<i64> {
        let width = self.width();
        let lengths = self.lengths.iter().enumerate();
        lengths.flat_map(|(sample, &length)| (0..length).map(move |t| (sample * width + t) as i64)).collect()
    }

    /// States of each sample, `[token, hidden]`, of flattened `[batch, token, hidden]` ones.
    pub(crate) fn by_sample<'a>(&'a self, states: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        let row = states.len() / self.lengths.len().max(1);
        let hidden = row / self.width().max(1);
        self.lengths
            .iter()
            .enumerate()
            .map(move |(sample, length)| &states[sample * row..sample * row + length * hidden])
    }
}

impl Climb {
    /// The layer it has reached.
    pub(crate) fn from(&self) -> LayerId {
        self.from
    }

    /// What layer `at` sees and gives under `draft`, and the run up to it, for [`advance`](Self::advance).
    pub(crate) fn capture<M: SearchModel>(
        &self,
        model: &M,
        at: LayerId,
        draft: &Draft,
    ) -> Result<(Captured, Run), CacheError> {
        let drafts = [draft];
        let mut replay = Replay::new(model.shape(), &drafts, &self.run, self.from, self.width);
        replay.capture = Some(at);
        let input = self.run.inputs[self.from.0].clone();
        let run = Run::forward(model, input, LayerId(at.0 + 1), &mut replay)?.remove(0);
        Ok((replay.captured.ok_or(CacheError::OutOfTurn { layer: at })?, run))
    }

    /// Goes up to layer `at`, whose own maps may still change: only its input is taken over.
    pub(crate) fn advance(&mut self, at: LayerId, mut run: Run) {
        let below = at.0 - self.from.0;
        run.keys.truncate(below);
        run.values.truncate(below);
        self.run.inputs.splice(self.from.0..=at.0, run.inputs);
        self.run.keys.splice(self.from.0..at.0, run.keys);
        self.run.values.splice(self.from.0..at.0, run.values);
        self.from = at;
    }
}

impl Run {
    /// Final states `[batch, token, hidden]`.
    pub(crate) fn output(&self) -> Result<&Tensor<3>, CacheError> {
        self.output.as_ref().ok_or(CacheError::Unsupported("a run that stopped early"))
    }

    /// Runs the layers from where `replay` starts up to `end`, the final norm too if that is the last one; `hidden` is
    /// `[draft * batch, token, hidden]`.
    fn forward<M: SearchModel>(
        model: &M,
        mut hidden: Tensor<3>,
        end: LayerId,
        replay: &mut Replay<'_>,
    ) -> Result<Vec<Self>, CacheError> {
        let mut inputs = Vec::new();
        for layer in model.shape().ids().skip(replay.from.0).take(end.0 - replay.from.0) {
            inputs.push(hidden.clone());
            hidden = model.layer(layer, hidden, replay)?;
        }
        let whole = end.0 == model.shape().len();
        let output = whole.then(|| model.final_norm(hidden).cast(DType::F32));
        let of = |draft: usize| Self {
            inputs: inputs.iter().map(|input| replay.part(input, draft)).collect(),
            keys: replay.own(&replay.keys, Kv::Key, draft),
            values: replay.own(&replay.values, Kv::Value, draft),
            output: output.as_ref().map(|output| replay.part(output, draft)),
        };
        Ok((0..replay.drafts.len()).map(of).collect())
    }
}

/// The attention of a replay under one or several drafts, whose rows stand one after the other in every tensor. Layers
/// below `from` are read from the accepted run.
struct Replay<'a> {
    shape: &'a ModelShape,
    drafts: &'a [&'a Draft],
    below: &'a Run,
    from: LayerId,
    fresh: Fresh,
    masks: MaskCache,
    /// By layer, `[draft * batch, kv_head, token, head_dim]`; `None` where all drafts borrow. The rows of drafts that
    /// borrow mean nothing.
    keys: Vec<Option<Tensor<4>>>,
    values: Vec<Option<Tensor<4>>>,
    teach: Option<Vec<Tensor<4>>>,
    capture: Option<LayerId>,
    captured: Option<Captured>,
}

impl<'a> Replay<'a> {
    fn new(shape: &'a ModelShape, drafts: &'a [&'a Draft], below: &'a Run, from: LayerId, tokens: usize) -> Self {
        Self {
            shape,
            drafts,
            below,
            from,
            fresh: Fresh::appended(0, tokens),
            masks: MaskCache::default(),
            keys: Vec::new(),
            values: Vec::new(),
            teach: None,
            capture: None,
            captured: None,
        }
    }

    /// The rows of one draft.
    fn part<const D: usize>(&self, all: &Tensor<D>, draft: usize) -> Tensor<D> {
        if self.drafts.len() == 1 {
            return all.clone();
        }
        let rows = all.dims()[axis::BATCH] / self.drafts.len();
        all.clone().slice_dim(axis::BATCH, draft * rows..(draft + 1) * rows)
    }

    /// What one draft stores of each layer.
    fn own(&self, all: &[Option<Tensor<4>>], kind: Kv, draft: usize) -> Vec<Option<Tensor<4>>> {
        let owns = |index: usize| self.drafts[draft].owns(kind, LayerId(self.from.0 + index));
        let part = |(index, all): (usize, &Option<Tensor<4>>)| {
            all.as_ref().filter(|_| owns(index)).map(|all| self.part(all, draft))
        };
        all.iter().enumerate().map(part).collect()
    }

    /// Whether all drafts read this layer alike, and nothing from below, where there is one row for all of them.
    fn is_uniform(&self, layer: LayerId) -> bool {
        let above = |kind| self.drafts[0].source(kind, layer) >= self.from;
        let alike = self.drafts.windows(2).all(|pair| pair[0].reads_like(pair[1], layer));
        self.drafts.len() == 1 || (alike && above(Kv::Key) && above(Kv::Value))
    }

    /// What a draft reads; of `None` all rows.
    fn read(&self, kind: Kv, layer: LayerId, draft: Option<usize>) -> Result<Tensor<4>, CacheError> {
        let source = self.drafts[draft.unwrap_or(0)].source(kind, layer);
        let (own, below) = match kind {
            Kv::Key => (&self.keys, &self.below.keys),
            Kv::Value => (&self.values, &self.below.values),
        };
        let found = match source.0.checked_sub(self.from.0) {
            Some(above) => own.get(above).cloned().flatten().map(|all| match draft {
                Some(draft) => self.part(&all, draft),
                None => all,
            }),
            None => below.get(source.0).cloned().flatten(),
        };
        found.ok_or(CacheError::OutOfTurn { layer: source })
    }

    /// The attention of one draft, or of all of them.
    fn attend_as(
        &mut self,
        layer: LayerId,
        draft: Option<usize>,
        query: Tensor<4>,
        own_keys: Option<&Tensor<4>>,
    ) -> Result<Tensor<4>, CacheError> {
        let drafts = self.drafts;
        let of = drafts[draft.unwrap_or(0)];
        if of.dropped().contains(&layer) {
            return Ok(query.zeros_like());
        }
        let adapter = of.adapter(layer);
        // Of a donor on another device, a copy.
        let device = query.device();
        let keys = self.read(Kv::Key, layer, draft)?.to_device(&device);
        let values = self.read(Kv::Value, layer, draft)?.to_device(&device);
        let captured = own_keys.filter(|_| self.capture == Some(layer)).map(|own| (own.clone(), keys.clone()));
        let query = adapter.map_or(query.clone(), |adapter| adapter.before(query));
        let window = self.shape.layers()[layer.0].window.filter(|&window| window < self.fresh.len());
        let window = window.map(|window| Window::new(window, Vec::new()));
        let pass = Pass { window: window.as_ref(), ..Pass::new(&self.fresh) };
        let mixed = attend(query, keys, values, &pass, &mut self.masks).0;
        if let Some(teach) = &mut self.teach {
            teach.push(mixed.clone());
        }
        if let Some((own_keys, read_keys)) = captured {
            let plain = adapter.map_or(mixed.clone(), |adapter| adapter.unmixed(mixed.clone()));
            self.captured = Some(Captured { own_keys, read_keys, mixed: plain });
        }
        Ok(adapter.map_or(mixed.clone(), |adapter| adapter.after(mixed)))
    }

    /// What drafts store of a layer, in the order of heads each of them wants.
    fn stored(&self, layer: LayerId, own: Tensor<4>, uniform: bool) -> Tensor<4> {
        let stored = |draft: usize, own: Tensor<4>| match self.drafts[draft].adapter(layer) {
            Some(adapter) => adapter.stored(own),
            None => own,
        };
        if uniform || self.drafts.iter().all(|draft| draft.adapter(layer).is_none()) {
            return stored(0, own);
        }
        Tensor::cat((0..self.drafts.len()).map(|draft| stored(draft, self.part(&own, draft))).collect(), axis::BATCH)
    }
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
        let uniform = self.is_uniform(layer);
        let owned = |kind| self.drafts.iter().any(|draft| draft.owns(kind, layer));
        let (owns_keys, owns_values) = (owned(Kv::Key), owned(Kv::Value));
        let own_keys = (self.capture == Some(layer) || owns_keys).then(key);
        let stored = own_keys.clone().filter(|_| owns_keys).map(|own| self.stored(layer, own, uniform));
        self.keys.push(stored);
        let stored = owns_values.then(value).map(|own| self.stored(layer, own, uniform));
        self.values.push(stored);
        if uniform {
            return self.attend_as(layer, None, query, own_keys.as_ref());
        }
        let drafts = 0..self.drafts.len();
        let parts = drafts.map(|draft| self.attend_as(layer, Some(draft), self.part(&query, draft), None));
        Ok(Tensor::cat(parts.collect::<Result<_, _>>()?, axis::BATCH))
    }
}

/// Reads a tensor back as f32.
pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, CacheError> {
    tensor.try_into_vec_as::<f32>().map_err(|error| CacheError::Device(error.to_string()))
}
