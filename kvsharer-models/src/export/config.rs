//! config.json of a decoder, and the family whose names its tensors take.

use super::ExportError;
use crate::family::{Family, families};
use crate::{Activation, Decoder, DecoderConfig, RopeConfig, RopeScaling};
use burn::tensor::DType;
use serde_json::{Map, Value, json};

/// How a decoder is written.
pub(super) struct Layout {
    pub(super) family: &'static dyn Family,
    /// The model's, with the biases that the folder has.
    pub(super) config: DecoderConfig,
    /// config.json.
    pub(super) fields: Map<String, Value>,
}

/// The layout of the family the model belongs to, or of one that is the same function and has a place for everything.
pub(super) fn layout(model: &Decoder) -> Result<Layout, ExportError> {
    if model.layers().len() != model.config().layers {
        return Err(ExportError::Dropped);
    }
    let config = with_biases(model);
    let (name, own) = match config.architecture.as_str() {
        "gemma3" => ("gemma3", gemma3(&config)?),
        "qwen3" if config.qkv_bias == config.output_bias => ("qwen3", qwen3(&config)?),
        "qwen2" if config.qkv_bias && !config.output_bias => ("qwen2", qwen(&config)?),
        _ if !config.windows.is_empty() => ("mistral", mistral(&config)?),
        "mistral" if !config.qkv_bias && !config.output_bias => ("mistral", json!({ "sliding_window": null })),
        _ => ("llama", json!({ "attention_bias": config.qkv_bias || config.output_bias, "mlp_bias": config.mlp_bias })),
    };
    // Biases that the family has on both or on neither; those that the model lacks are written as zeros.
    let attention = config.qkv_bias || config.output_bias;
    let config = match name {
        "llama" => DecoderConfig { qkv_bias: attention, output_bias: attention, ..config },
        _ => config,
    };
    check(&config, name)?;
    let family = families().iter().copied().find(|family| family.name() == name);
    let family = family.ok_or_else(|| no_place(&format!("family {name}"), ""))?;
    let mut fields = common(&config, model.dtype())?;
    fields.insert("architectures".into(), json!(family.hugging_face()));
    fields.insert("model_type".into(), json!(if name == "gemma3" { "gemma3_text" } else { name }));
    fields.extend(own.as_object().cloned().unwrap_or_default());
    Ok(Layout { family, config, fields })
}

/// The configuration with the biases that the model has in memory: folding adds some to single layers.
fn with_biases(model: &Decoder) -> DecoderConfig {
    let any = |has: fn(&crate::DecoderLayer) -> bool| model.layers().iter().any(has);
    DecoderConfig {
        qkv_bias: any(|layer| layer.attention.query.bias().is_some()),
        output_bias: any(|layer| layer.attention.output.bias().is_some()),
        ..model.config().clone()
    }
}

/// What only some families have.
fn check(config: &DecoderConfig, name: &str) -> Result<(), ExportError> {
    let not = |what: &str| Err(no_place(&format!("{what} in a {name} model"), ""));
    let gemma = name == "gemma3";
    if (config.post_norms || config.full_norms || config.local_rope.is_some() || config.embedding_scale != 1.0)
        && !gemma
    {
        return not("a norm, an encoding or a scale of Gemma");
    }
    if config.qk_norm != (gemma || name == "qwen3") {
        return not("a norm of queries and keys");
    }
    if config.score_scale != 1.0 && !gemma {
        return not("a scale of the scores");
    }
    if config.mlp_bias && name != "llama" {
        return not("a bias of the MLP");
    }
    Ok(())
}

fn common(config: &DecoderConfig, dtype: DType) -> Result<Map<String, Value>, ExportError> {
    let dtype = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        other => return Err(ExportError::Dtype(format!("{other:?}"))),
    };
    let activation = match config.activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    let fields = json!({
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": activation,
        "rms_norm_eps": short(config.norm_eps),
        "rope_theta": config.rope.theta,
        "rope_scaling": scaling(&config.rope, config.max_positions)?,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_head,
        "torch_dtype": dtype,
        "use_cache": true,
    });
    Ok(fields.as_object().cloned().unwrap_or_default())
}

/// GGUF has numbers in f32: 1e-5 is not to become 9.999999747378752e-6, which is the same f32.
fn short(number: f64) -> f64 {
    let single = number as f32;
    match f64::from(single) == number {
        true => single.to_string().parse().unwrap_or(number),
        false => number,
    }
}

/// `rope_scaling` as transformers has spelt it since version 4.43.
fn scaling(rope: &RopeConfig, max_positions: usize) -> Result<Value, ExportError> {
    Ok(match &rope.scaling {
        RopeScaling::Default => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Dynamic { original, .. } if *original != max_positions => {
            return Err(no_place(&format!("dynamic rope scaling from {original} tokens on"), ""));
        }
        RopeScaling::Dynamic { factor, .. } => json!({ "rope_type": "dynamic", "factor": factor }),
        RopeScaling::Llama3 { factor, low, high, original } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }),
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, attention } => json!({
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
            "beta_fast": beta_fast, "beta_slow": beta_slow, "truncate": truncate, "attention_factor": attention,
        }),
        RopeScaling::Divisors { by_pair } => divisors(rope.theta, by_pair, max_positions)?,
    })
}

/// Divisors of a GGUF file are the `llama3` scaling of Llama 3.1 (factor 8) or 3.2 (factor 32), if they equal it.
fn divisors(theta: f64, by_pair: &[f32], max_positions: usize) -> Result<Value, ExportError> {
    let head_dim = 2 * by_pair.len();
    let own = RopeConfig { theta, scaling: RopeScaling::Divisors { by_pair: by_pair.to_vec() } };
    for factor in [8.0, 32.0] {
        let stretch = RopeScaling::Llama3 { factor, low: 1.0, high: 4.0, original: 8192 };
        let known = RopeConfig { theta, scaling: stretch };
        let mut pairs = known.frequencies(head_dim, 0).into_iter().zip(own.frequencies(head_dim, 0));
        if pairs.all(|(known, own)| (known - own).abs() <= 1e-5 * known) {
            return scaling(&known, max_positions);
        }
    }
    Err(no_place("a divisor for each rotary frequency (rope_freqs.weight)", ": export from the model's own folder"))
}

/// The one window of some layers, and which layers have it.
fn window(config: &DecoderConfig) -> Result<(usize, Vec<&'static str>), ExportError> {
    let mut sizes = config.windows.iter().flatten();
    let first = *sizes.next().unwrap_or(&config.max_positions);
    if sizes.any(|&size| size != first) {
        return Err(no_place("sliding windows of different sizes", ""));
    }
    let kind = |layer| if config.window(layer).is_some() { "sliding_attention" } else { "full_attention" };
    Ok((first, (0..config.layers).map(|layer| kind(layer.into())).collect()))
}

fn mistral(config: &DecoderConfig) -> Result<Value, ExportError> {
    let (size, _) = window(config)?;
    if config.windows.contains(&None) || config.qkv_bias || config.output_bias {
        let what = "a sliding window beside a bias of the output projection, or in some layers only,";
        return Err(no_place(what, ": search with --fit none"));
    }
    Ok(json!({ "sliding_window": size }))
}

fn qwen(config: &DecoderConfig) -> Result<Value, ExportError> {
    if config.windows.is_empty() {
        return Ok(json!({ "use_sliding_window": false, "sliding_window": null, "max_window_layers": config.layers }));
    }
    let (size, layers) = window(config)?;
    let full = layers.iter().take_while(|kind| **kind == "full_attention").count();
    Ok(json!({
        "use_sliding_window": true, "sliding_window": size, "max_window_layers": full, "layer_types": layers,
    }))
}

fn qwen3(config: &DecoderConfig) -> Result<Value, ExportError> {
    let mut fields = qwen(config)?;
    fields["attention_bias"] = config.qkv_bias.into();
    Ok(fields)
}

fn gemma3(config: &DecoderConfig) -> Result<Value, ExportError> {
    let (size, layers) = window(config)?;
    let local = config.local_rope.as_ref().unwrap_or(&config.rope);
    if local.scaling != RopeScaling::Default {
        return Err(no_place("a stretched rotary encoding of the local layers", ""));
    }
    let scalar = config.head_dim as f64 / (config.score_scale * config.score_scale);
    // transformers wants a whole number, which it is in every model.
    let whole = (scalar - scalar.round()).abs() < 1e-6 * scalar;
    Ok(json!({
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": if whole { json!(scalar.round() as u64) } else { json!(scalar) },
        "attention_bias": config.qkv_bias || config.output_bias,
        "sliding_window": size,
        "layer_types": layers,
        "rope_local_base_freq": local.theta,
        "attn_logit_softcapping": null,
        "final_logit_softcapping": null,
    }))
}

fn no_place(what: &str, remedy: &'static str) -> ExportError {
    ExportError::NoPlace { what: what.into(), remedy }
}
