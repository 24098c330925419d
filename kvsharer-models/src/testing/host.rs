//! A decoder on the host in f64, with the weights that one on a device has.

use crate::linear::Linear;
use crate::norm::RmsNorm;
use crate::{Activation, Decoder, DecoderConfig, DecoderLayer};
use burn::tensor::Tensor;
use kvsharer_core::testing::{Unmeasured, host};
use kvsharer_core::{LayerId, Sharing};

/// Weights of a decoder, read back in f64.
pub(super) struct HostDecoder {
    config: DecoderConfig,
    embedding: HostLinear,
    layers: Vec<HostLayer>,
    final_norm: Vec<f64>,
    head: HostLinear,
}

/// `[out, in]` and `[out]`.
struct HostLinear {
    inputs: usize,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

struct HostLayer {
    attention_norm: Vec<f64>,
    query: HostLinear,
    key: HostLinear,
    value: HostLinear,
    output: HostLinear,
    query_norm: Option<Vec<f64>>,
    key_norm: Option<Vec<f64>>,
    score_scale: f64,
    post_attention_norm: Option<Vec<f64>>,
    mlp_norm: Vec<f64>,
    gate: HostLinear,
    up: HostLinear,
    down: HostLinear,
    post_mlp_norm: Option<Vec<f64>>,
}

impl HostLinear {
    fn read(linear: &Linear) -> Result<Self, Unmeasured> {
        let bias = linear.bias().map_or(Ok(Vec::new()), |bias| host(bias.clone()))?;
        Ok(Self { bias, ..Self::matrix(linear.weight())? })
    }

    fn matrix(weight: &Tensor<2>) -> Result<Self, Unmeasured> {
        Ok(Self { inputs: weight.dims()[1], weight: host(weight.clone())?, bias: Vec::new() })
    }

    fn forward(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.weight.chunks(self.inputs).enumerate();
        rows.map(|(i, row)| dot(row, x) + self.bias.get(i).copied().unwrap_or(0.0)).collect()
    }
}

impl HostLayer {
    fn read(layer: &DecoderLayer) -> Result<Self, Unmeasured> {
        let norm = |norm: &RmsNorm| host(norm.weight().clone());
        let maybe = |given: &Option<RmsNorm>| given.as_ref().map(norm).transpose();
        let (attention, mlp) = (&layer.attention, &layer.mlp);
        Ok(Self {
            attention_norm: norm(&layer.attention_norm)?,
            query: HostLinear::read(&attention.query)?,
            key: HostLinear::read(&attention.key)?,
            value: HostLinear::read(&attention.value)?,
            output: HostLinear::read(&attention.output)?,
            query_norm: maybe(&attention.query_norm)?,
            key_norm: maybe(&attention.key_norm)?,
            score_scale: attention.score_scale,
            post_attention_norm: maybe(&layer.post_attention_norm)?,
            mlp_norm: norm(&layer.mlp_norm)?,
            gate: HostLinear::read(&mlp.gate)?,
            up: HostLinear::read(&mlp.up)?,
            down: HostLinear::read(&mlp.down)?,
            post_mlp_norm: maybe(&layer.post_mlp_norm)?,
        })
    }
}

impl HostDecoder {
    pub(super) fn read(model: &Decoder) -> Result<Self, Unmeasured> {
        let (embedding, norm, head) = (model.embedding(), model.last_norm(), model.head());
        Ok(Self {
            config: model.config().clone(),
            embedding: HostLinear::matrix(embedding)?,
            layers: model.layers().iter().map(HostLayer::read).collect::<Result<_, _>>()?,
            final_norm: host(norm.weight().clone())?,
            head: HostLinear::read(head)?,
        })
    }

    /// Logits `[token, vocab]` of a text in one uncached pass under a sharing map.
    pub(super) fn logits(&self, tokens: &[u32], sharing: &Sharing) -> Vec<f64> {
        let (scale, width) = (self.config.embedding_scale, self.config.hidden);
        let row = |&id: &u32| &self.embedding.weight[id as usize * width..][..width];
        let mut hidden: Vec<Vec<f64>> = tokens.iter().map(|id| row(id).iter().map(|x| x * scale).collect()).collect();
        // By layer, then token.
        let mut keys: Vec<Vec<Vec<f64>>> = Vec::new();
        let mut values: Vec<Vec<Vec<f64>>> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let id = LayerId(index);
            let inputs: Vec<Vec<f64>> = hidden.iter().map(|x| self.normed(x, &layer.attention_norm)).collect();
            let key = |(position, x): (usize, &Vec<f64>)| {
                self.turned(id, layer.key.forward(x), &layer.key_norm, position, tokens.len())
            };
            keys.push(inputs.iter().enumerate().map(key).collect());
            values.push(inputs.iter().map(|x| layer.value.forward(x)).collect());
            let keys = &keys[sharing.keys().donor(id).unwrap_or(id).0];
            let values = &values[sharing.values().donor(id).unwrap_or(id).0];
            for (position, (x, state)) in inputs.iter().zip(&mut hidden).enumerate() {
                let query = self.turned(id, layer.query.forward(x), &layer.query_norm, position, tokens.len());
                let mixed = self.attend(id, query, &keys[..=position], values, layer.score_scale);
                self.add(state, layer.output.forward(&mixed), &layer.post_attention_norm);
                let x = self.normed(state, &layer.mlp_norm);
                let gate = layer.gate.forward(&x).into_iter().map(|x| self.activate(x));
                let inner: Vec<f64> = gate.zip(layer.up.forward(&x)).map(|(gate, up)| gate * up).collect();
                self.add(state, layer.down.forward(&inner), &layer.post_mlp_norm);
            }
        }
        hidden.iter().flat_map(|state| self.head.forward(&self.normed(state, &self.final_norm))).collect()
    }

    fn attend(&self, layer: LayerId, query: Vec<f64>, keys: &[Vec<f64>], values: &[Vec<f64>], scale: f64) -> Vec<f64> {
        let dim = self.config.head_dim;
        let first = self.config.window(layer).map_or(0, |window| keys.len().saturating_sub(window));
        let group = self.config.heads / self.config.kv_heads;
        let head = |(head, query): (usize, &[f64])| {
            let part = head / group * dim..(head / group + 1) * dim;
            let score = |key: &Vec<f64>| dot(query, &key[part.clone()]) * scale / (dim as f64).sqrt();
            let scores: Vec<f64> = keys[first..].iter().map(score).collect();
            let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - best).exp()).sum();
            let mut mixed = vec![0.0; dim];
            for (score, value) in scores.iter().zip(&values[first..]) {
                let share = (score - best).exp() / total;
                mixed.iter_mut().zip(&value[part.clone()]).for_each(|(sum, value)| *sum += share * value);
            }
            mixed
        };
        query.chunks(dim).enumerate().flat_map(head).collect()
    }

    /// Each head normed, if the family does so, and turned for its position.
    fn turned(&self, layer: LayerId, x: Vec<f64>, norm: &Option<Vec<f64>>, position: usize, length: usize) -> Vec<f64> {
        let dim = self.config.head_dim;
        let rope = self.config.rope_of(layer).rope(dim, length);
        let frequencies = rope.inverse_frequencies();
        let head = |head: &[f64]| {
            let x = norm.as_ref().map_or(head.to_vec(), |norm| self.normed(head, norm));
            let turned = (0..dim).map(|i| {
                let (sin, cos) = (position as f64 * frequencies[i % (dim / 2)]).sin_cos();
                x[i] * cos + if i < dim / 2 { -x[i + dim / 2] } else { x[i - dim / 2] } * sin
            });
            turned.collect::<Vec<f64>>()
        };
        x.chunks(dim).flat_map(head).collect()
    }

    fn add(&self, state: &mut [f64], mixed: Vec<f64>, norm: &Option<Vec<f64>>) {
        let mixed = norm.as_ref().map_or(mixed.clone(), |norm| self.normed(&mixed, norm));
        state.iter_mut().zip(mixed).for_each(|(state, more)| *state += more);
    }

    fn normed(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let scale = (dot(x, x) / x.len() as f64 + self.config.norm_eps).sqrt();
        x.iter().zip(weight).map(|(x, weight)| x / scale * weight).collect()
    }

    fn activate(&self, x: f64) -> f64 {
        match self.config.activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
