//! model.safetensors of a decoder: one tensor is copied at a time, when its turn to be written comes.

use super::ExportError;
use super::config::Layout;
use crate::family::{Format, Part};
use crate::linear::Linear;
use crate::norm::RmsNorm;
use crate::{Decoder, DecoderLayer, ModelError};
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::tensor::{Dtype, View, serialize_to_file};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

/// A weight of the model.
enum Weight<'a> {
    Matrix(&'a Tensor<2>),
    Vector(&'a Tensor<1>),
    /// A bias that the family has and this layer has not.
    Zeros,
}

/// A tensor to be written, read off its device only then.
struct Piece<'a> {
    weight: Weight<'a>,
    shape: Vec<usize>,
    less_one: bool,
    dtype: DType,
    /// The first failure, which a view cannot give back.
    failed: &'a Mutex<Option<ModelError>>,
}

/// Writes all weights under the names of the layout's family.
pub(super) fn write(model: &Decoder, layout: &Layout, path: &Path) -> Result<(), ExportError> {
    let failed = Mutex::new(None);
    let pieces = parts(model, layout).into_iter().map(|(part, weight)| {
        let piece = Piece {
            weight,
            shape: part.shape(&layout.config),
            less_one: layout.family.less_one(Format::HuggingFace, part),
            dtype: model.dtype(),
            failed: &failed,
        };
        (layout.family.tensor_name(Format::HuggingFace, part), piece)
    });
    // transformers reads folders only if they say so.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = serialize_to_file(pieces, Some(metadata), path);
    match failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(error) => Err(error.into()),
        None => written.map_err(|source| ExportError::Safetensors { path: path.into(), source }),
    }
}

/// All weights of the folder.
fn parts<'a>(model: &'a Decoder, layout: &Layout) -> Vec<(Part, Weight<'a>)> {
    let mut parts = vec![
        (Part::Embedding, Weight::Matrix(model.embedding())),
        (Part::FinalNorm, Weight::Vector(model.last_norm().weight())),
    ];
    if !layout.config.tied_head {
        parts.push((Part::Head, Weight::Matrix(model.head().weight())));
    }
    for (index, layer) in model.layers().iter().enumerate() {
        layer_parts(index, layer, layout, &mut parts);
    }
    parts
}

fn layer_parts<'a>(l: usize, layer: &'a DecoderLayer, layout: &Layout, parts: &mut Vec<(Part, Weight<'a>)>) {
    let (config, attention, mlp) = (&layout.config, &layer.attention, &layer.mlp);
    let linears: [(Part, Part, bool, &Linear); 7] = [
        (Part::Query(l), Part::QueryBias(l), config.qkv_bias, &attention.query),
        (Part::Key(l), Part::KeyBias(l), config.qkv_bias, &attention.key),
        (Part::Value(l), Part::ValueBias(l), config.qkv_bias, &attention.value),
        (Part::Output(l), Part::OutputBias(l), config.output_bias, &attention.output),
        (Part::Gate(l), Part::GateBias(l), config.mlp_bias, &mlp.gate),
        (Part::Up(l), Part::UpBias(l), config.mlp_bias, &mlp.up),
        (Part::Down(l), Part::DownBias(l), config.mlp_bias, &mlp.down),
    ];
    for (weight, bias, biased, linear) in linears {
        parts.push((weight, Weight::Matrix(linear.weight())));
        if biased {
            parts.push((bias, linear.bias().map_or(Weight::Zeros, Weight::Vector)));
        }
    }
    let norms: [(Part, Option<&RmsNorm>); 6] = [
        (Part::AttentionNorm(l), Some(&layer.attention_norm)),
        (Part::QueryNorm(l), attention.query_norm.as_ref()),
        (Part::KeyNorm(l), attention.key_norm.as_ref()),
        (Part::PostAttentionNorm(l), layer.post_attention_norm.as_ref()),
        (Part::MlpNorm(l), Some(&layer.mlp_norm)),
        (Part::PostMlpNorm(l), layer.post_mlp_norm.as_ref()),
    ];
    parts.extend(norms.into_iter().filter_map(|(part, norm)| Some((part, Weight::Vector(norm?.weight())))));
}

impl Piece<'_> {
    fn values(&self) -> Result<TensorData, ModelError> {
        // A norm that is stored less 1 is rounded after the subtraction, which gives back what was read.
        let data = match &self.weight {
            Weight::Matrix(tensor) => (*tensor).clone().cast(self.dtype).try_into_data(),
            Weight::Vector(tensor) if self.less_one => {
                ((*tensor).clone().cast(DType::F32) - 1.0).cast(self.dtype).try_into_data()
            }
            Weight::Vector(tensor) => (*tensor).clone().cast(self.dtype).try_into_data(),
            Weight::Zeros => return Ok(TensorData::zeros::<f32, _>(self.shape.clone()).convert_dtype(self.dtype)),
        };
        data.map_err(|error| ModelError::Device(error.to_string()))
    }
}

impl View for Piece<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.values() {
            Ok(data) => Cow::Owned(data.as_bytes().to_vec()),
            Err(error) => {
                let mut failed = self.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                failed.get_or_insert(error);
                Cow::Owned(vec![0; self.data_len()])
            }
        }
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}
