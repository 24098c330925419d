//! Fitted maps of a strategy, folded into a loaded model: no run-time cost is left.

use crate::attention::Attention;
use crate::linear::Linear;
use crate::{BareLayer, Decoder, DecoderLayer, ModelError};
use burn::tensor::{DType, Tensor};
use kvsharer_core::{Adapter, LayerId, LayerMap, Mix, Turn, inverse, product};
use std::collections::BTreeMap;

impl Decoder {
    /// The same model with fitted maps folded into the projections of their layers; weights are shared where nothing
    /// changes. The result is to be run with the sharing map that the maps were fitted for.
    ///
    /// # Errors
    /// [`ModelError::UnknownLayer`] for a layer that the model lacks, [`ModelError::TurnBehindNorm`] for turned keys in
    /// a model whose queries have a norm between the projection and the attention.
    pub fn folded(&self, adapters: &BTreeMap<LayerId, Adapter>) -> Result<Self, ModelError> {
        let mut layers = self.layers().to_vec();
        for (&layer, adapter) in adapters {
            let count = layers.len();
            let found = layers.get_mut(layer.0).ok_or(ModelError::UnknownLayer { layer: layer.0, layers: count })?;
            if adapter.turn.is_some() && found.attention.query_norm.is_some() {
                return Err(ModelError::TurnBehindNorm { layer: layer.0 });
            }
            found.attention = found.attention.folded(adapter);
        }
        Ok(self.with_layers((0..).map(LayerId).zip(layers).collect()))
    }

    /// The same model in which layers that share values compute the mean of what their projections give, as owners: the
    /// weights of a donor and of its readers are averaged. A baseline in the manner of VFOLD's averaging, which needs no
    /// text; to be run with the sharing map.
    ///
    /// # Errors
    /// [`ModelError::UnknownLayer`] for a layer that the model lacks.
    pub fn averaged_values(&self, values: &LayerMap) -> Result<Self, ModelError> {
        let mut layers = self.layers().to_vec();
        let count = layers.len();
        if let Some((layer, _)) = values.iter().find(|(layer, donor)| layer.0.max(donor.0) >= count) {
            return Err(ModelError::UnknownLayer { layer: layer.0, layers: count });
        }
        let projection = |layer: LayerId| &self.layers()[layer.0].attention.value;
        for donor in (0..count).map(LayerId) {
            let alike: Vec<LayerId> = values.readers(donor).chain([donor]).collect();
            if alike.len() > 1 {
                let mean = |of: &dyn Fn(LayerId) -> Option<Tensor<2>>| {
                    let device = projection(donor).weight().device();
                    let parts = alike.iter().filter_map(|&layer| of(layer));
                    let sum = parts.map(|part| part.to_device(&device).cast(DType::F32)).reduce(|a, b| a + b);
                    sum.map(|sum| (sum / alike.len() as f64).cast(projection(donor).weight().dtype()))
                };
                let weight = mean(&|layer| Some(projection(layer).weight().clone()));
                let bias = mean(&|layer| projection(layer).bias().map(|bias| bias.clone().unsqueeze::<2>()));
                if let Some(weight) = weight {
                    let bias = bias.map(|bias| bias.squeeze_dim::<1>(0));
                    layers[donor.0].attention.value = with_bias(Linear::new(weight), bias);
                }
            }
        }
        Ok(self.with_layers((0..).map(LayerId).zip(layers).collect()))
    }

    /// The same model without the attention of some layers: they keep no cache, and their MLPs run behind the layer
    /// below. The result counts only the layers that are left.
    ///
    /// # Errors
    /// [`ModelError::UnknownLayer`] for a layer that the model lacks, and for the first one, which nothing is below.
    pub fn without_attention(&self, dropped: &[LayerId]) -> Result<Self, ModelError> {
        let count = self.layers().len();
        if let Some(&layer) = dropped.iter().find(|layer| layer.0 == 0 || layer.0 >= count) {
            return Err(ModelError::UnknownLayer { layer: layer.0, layers: count });
        }
        let mut layers = Vec::<(LayerId, DecoderLayer)>::new();
        for (place, layer) in (0..).map(LayerId).zip(self.layers()) {
            match layers.last_mut().filter(|_| dropped.contains(&place)) {
                Some((_, below)) => {
                    let DecoderLayer { mlp_norm, mlp, post_mlp_norm, bare, .. } = layer.clone();
                    below.bare.push(BareLayer { mlp_norm, mlp, post_mlp_norm });
                    below.bare.extend(bare);
                }
                None => layers.push((place, layer.clone())),
            }
        }
        Ok(self.with_layers(layers))
    }
}

impl Attention {
    /// The same projections with the maps of [`Adapter`] in them.
    fn folded(&self, adapter: &Adapter) -> Self {
        let mut folded = self.clone();
        if let Some(turn) = &adapter.turn {
            folded.query = rows(&folded.query, |heads| turned(turn, heads), self.head_dim);
        }
        if let Some(mix) = &adapter.mix {
            folded.output = mixed(&folded.output, mix, self.head_dim);
        }
        if let Some(heads) = &adapter.heads {
            // What the slot's head s holds belongs to the layer's own head order[s].
            let order = inverse(heads);
            let reorder = |linear: &Linear| rows(linear, |rows| reordered(rows, &order), self.head_dim);
            folded.query = reorder(&folded.query);
            folded.key = reorder(&folded.key);
            folded.value = reorder(&folded.value);
            let columns = folded.output.weight().clone().transpose();
            let weight = rows(&Linear::new(columns), |rows| reordered(rows, &order), self.head_dim);
            let weight = Linear::new(weight.weight().clone().transpose());
            folded.output = with_bias(weight, folded.output.bias().cloned());
        }
        folded
    }
}

/// Applies a map of `[head, head_dim, in]` to a projection's weight, and to its bias as one more input column.
fn rows(linear: &Linear, map: impl Fn(Tensor<3>) -> Tensor<3>, head_dim: usize) -> Linear {
    let weight = linear.weight();
    let out = weight.dims()[0];
    let of = |columns: Tensor<2>| {
        let (width, dtype) = (columns.dims()[1], columns.dtype());
        map(columns.cast(DType::F32).reshape([out / head_dim, head_dim, width])).reshape([out, width]).cast(dtype)
    };
    let bias = linear.bias().map(|bias| of(bias.clone().reshape([out, 1])).reshape([out]));
    with_bias(Linear::new(of(weight.clone())), bias)
}

fn with_bias(linear: Linear, bias: Option<Tensor<1>>) -> Linear {
    match bias {
        Some(bias) => linear.with_bias(bias),
        None => linear,
    }
}

/// `conj(c) q` for every input column, `[head, head_dim, in]`.
fn turned(turn: &Turn, heads: Tensor<3>) -> Tensor<3> {
    let device = heads.device();
    let turn =
        Turn { real: turn.real.clone().to_device(&device), imaginary: turn.imaginary.clone().to_device(&device) };
    turn.apply(heads.swap_dims(1, 2).unsqueeze_dim::<4>(0)).squeeze_dim::<3>(0).swap_dims(1, 2)
}

/// Groups of heads in another order: group `g` of the result is group `order[g]` of `x`, `[head, head_dim, in]`.
fn reordered(x: Tensor<3>, order: &[usize]) -> Tensor<3> {
    let group = x.dims()[0] / order.len();
    Tensor::cat(order.iter().map(|&from| x.clone().slice_dim(0, from * group..(from + 1) * group)).collect(), 0)
}

/// The rows of `O^T` by the head whose output they take, `[kv_head, group, head_dim, hidden]`.
fn blocks(transposed: Tensor<2>, kv_heads: usize, head_dim: usize) -> Tensor<4> {
    let [width, hidden] = transposed.dims();
    transposed.reshape([kv_heads, width / head_dim / kv_heads, head_dim, hidden])
}

/// `W O^T` of maps head by head, `[heads * head_dim, hidden]`.
fn of_heads(weight: &Tensor<3>, blocks: Tensor<4>) -> Tensor<2> {
    let [kv_heads, group, head_dim, hidden] = blocks.dims();
    let weight = weight.clone().to_device(&blocks.device());
    product(weight.unsqueeze_dim::<4>(1), blocks).reshape([kv_heads * group * head_dim, hidden])
}

/// `(Z W + b) O^T + o = Z (W O^T) + (b O^T + o)`.
fn mixed(output: &Linear, mix: &Mix, head_dim: usize) -> Linear {
    let (dtype, device) = (output.weight().dtype(), output.weight().device());
    let transposed = output.weight().clone().cast(DType::F32).transpose();
    let hidden = transposed.dims()[1];
    let (weight, bias) = match mix {
        Mix::Full { weight, bias } => {
            let (weight, bias) = (weight.clone().to_device(&device), bias.clone().to_device(&device));
            (product(weight, transposed.clone()), product(bias.unsqueeze::<2>(), transposed))
        }
        Mix::LowRank { heads, left, right, bias } => {
            let (left, right) = (left.clone().to_device(&device), right.clone().to_device(&device));
            let bias = bias.clone().to_device(&device).unsqueeze::<2>();
            let by_head = of_heads(heads, blocks(transposed.clone(), heads.dims()[0], head_dim));
            (by_head + product(left, product(right, transposed.clone())), product(bias, transposed))
        }
        Mix::Heads { weight, bias } => {
            let kv_heads = weight.dims()[0];
            let blocks = blocks(transposed, kv_heads, head_dim);
            let bias = product(bias.clone().to_device(&device).reshape([kv_heads, 1, 1, head_dim]), blocks.clone());
            (of_heads(weight, blocks), bias.sum_dim(0).sum_dim(1).reshape([1, hidden]))
        }
    };
    let bias = bias.reshape([hidden]);
    let bias = match output.bias() {
        Some(own) => bias + own.clone().cast(DType::F32),
        None => bias,
    };
    Linear::new(weight.transpose().cast(dtype)).with_bias(bias.cast(dtype))
}
