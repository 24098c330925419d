//! Rotary encodings as configurations spell them.

use super::HfConfig;
use super::base::Keys;
use crate::import::{GgufFile, TensorSource, load_shaped};
use crate::{ModelError, RopeConfig, RopeScaling};
use serde_json::Value;

/// `rope_theta` and `rope_scaling`, which transformers 5 joined in `rope_parameters`.
pub(super) fn read_hugging_face(config: &HfConfig<'_>, max_positions: usize) -> Result<RopeConfig, ModelError> {
    for field in ["rope_parameters", "rope_scaling"] {
        if let Some(rope) = config.get(field) {
            return read_object(config, field, rope, 10_000.0, max_positions);
        }
    }
    Ok(RopeConfig::new(config.number_or("rope_theta", 10_000.0)?))
}

/// One such object; `theta` is the base if neither it nor the file names one.
pub(super) fn read_object(
    config: &HfConfig<'_>,
    field: &str,
    rope: &Value,
    theta: f64,
    max_positions: usize,
) -> Result<RopeConfig, ModelError> {
    let inner = |key: &str| rope.get(key).filter(|value| !value.is_null());
    let path = |key: &str| format!("{field}.{key}");
    let wrong = |key: &str, expected: &str| {
        let found = inner(key).map_or_else(|| "is missing".into(), |value| format!("is {value}"));
        let problem = format!("{found}, expected {expected}");
        ModelError::ConfigField { path: config.path.into(), field: path(key), problem }
    };
    let number = |key: &str| inner(key).and_then(Value::as_f64).ok_or_else(|| wrong(key, "a number"));
    let number_or = |key: &str, default: f64| inner(key).map_or(Ok(default), |_| number(key));
    let size_or = |key: &str, default: usize| match inner(key) {
        None => Ok(default),
        Some(value) => value.as_u64().map(|size| size as usize).ok_or_else(|| wrong(key, "a whole number")),
    };
    let unsupported = |key: &str, remedy: &str| ModelError::UnsupportedConfig {
        path: config.path.into(),
        field: path(key),
        found: inner(key).map_or_else(|| "null".into(), Value::to_string),
        remedy: remedy.into(),
    };
    if number_or("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(unsupported("partial_rotary_factor", ": only rotary encodings of whole heads are"));
    }
    let theta = number_or("rope_theta", config.number_or("rope_theta", theta)?)?;
    let original = size_or(
        "original_max_position_embeddings",
        config.size_or("original_max_position_embeddings", max_positions)?,
    )?;
    let kind = if inner("rope_type").is_some() { "rope_type" } else { "type" };
    let scaling = match inner(kind).and_then(Value::as_str) {
        None | Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear { factor: number("factor")? },
        // transformers goes by the longest text of the model here.
        Some("dynamic") => RopeScaling::Dynamic { factor: number("factor")?, original: max_positions },
        Some("llama3") => RopeScaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original,
        },
        Some("yarn") => {
            let factor = match inner("factor") {
                None => max_positions as f64 / original.max(1) as f64,
                Some(_) => number("factor")?,
            };
            let scale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
            let weights = (number_or("mscale", 0.0)?, number_or("mscale_all_dim", 0.0)?);
            let usual =
                if weights.0 != 0.0 && weights.1 != 0.0 { scale(weights.0) / scale(weights.1) } else { scale(1.0) };
            RopeScaling::Yarn {
                factor,
                original,
                beta_fast: number_or("beta_fast", 32.0)?,
                beta_slow: number_or("beta_slow", 1.0)?,
                truncate: inner("truncate").and_then(Value::as_bool).unwrap_or(true),
                attention: number_or("attention_factor", usual)?,
            }
        }
        Some(_) => return Err(unsupported(kind, ": default, linear, dynamic, llama3 and yarn are")),
    };
    Ok(RopeConfig { theta, scaling })
}

/// `ARCH.rope.*`, and the tensor of divisors that Llama 3.1 and later carry.
pub(super) fn read_gguf(
    keys: &Keys<'_>,
    file: &GgufFile,
    head_dim: usize,
    max_positions: usize,
) -> Result<RopeConfig, ModelError> {
    const DIVISORS: &str = "rope_freqs.weight";
    let turned = keys.size_or("rope.dimension_count", head_dim)?;
    if turned != head_dim {
        let remedy = ": only rotary encodings of whole heads are";
        return Err(keys.unsupported("rope.dimension_count", &turned.to_string(), remedy));
    }
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let factor = keys.number("rope.scaling.factor")?;
    let kind = keys.name("rope.scaling.type");
    let scaling = match keys.metadata.get::<&str>(&kind)? {
        None | Some("none") => match keys.number("rope.scale_linear")? {
            None => RopeScaling::Default,
            Some(factor) => RopeScaling::Linear { factor },
        },
        Some("linear") => RopeScaling::Linear { factor: factor.unwrap_or(1.0) },
        Some("yarn") => {
            let factor = factor.unwrap_or(1.0);
            // llama.cpp takes this factor on top of the one that follows from the stretch.
            let own = keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
            RopeScaling::Yarn {
                factor,
                original: keys.size_or("rope.scaling.original_context_length", max_positions)?,
                beta_fast: keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                truncate: true,
                attention: own * (1.0 + 0.1 * factor.max(1.0).ln()),
            }
        }
        Some(found) => return Err(keys.unsupported("rope.scaling.type", found, ": none, linear and yarn are")),
    };
    if file.info(DIVISORS).is_none() {
        return Ok(RopeConfig { theta, scaling });
    }
    if scaling != RopeScaling::Default {
        return Err(keys.unsupported("rope.scaling.type", "scaling beside rope_freqs.weight", ": either of them is"));
    }
    let divisors = load_shaped(file, DIVISORS, &[head_dim / 2])?;
    let by_pair = divisors.try_into_vec_as::<f32>().map_err(|error| ModelError::Device(error.to_string()))?;
    Ok(RopeConfig { theta, scaling: RopeScaling::Divisors { by_pair } })
}
