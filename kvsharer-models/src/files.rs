//! A model on disk (or a random one): its configuration is read at once, its weights when asked for.

use crate::attention::Attention;
use crate::decoder::{Decoder, DecoderLayer};
use crate::family::{Family, Format, Fused, HfConfig, Part, families};
use crate::import::{AddedPiece, GgufFile, ModelTokenizer, SafetensorsFolder, TensorSource, load_shaped};
use crate::linear::Linear;
use crate::mlp::Mlp;
use crate::norm::RmsNorm;
use crate::random::RandomWeights;
use crate::{DecoderConfig, ModelError, Placement};
use burn::tensor::{DType, Device, Tensor};
use kvsharer_core::{Fingerprint, LayerId, ModelShape, hex};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Configuration files are small; anything larger is not one.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Bytes of each tensor that go into a fingerprint.
const FINGERPRINT_BYTES: usize = 4096;

/// A model that can be planned for, and loaded.
pub struct ModelFiles {
    name: String,
    config: DecoderConfig,
    weights: Weights,
}

enum Weights {
    Gguf(Box<GgufFile>, &'static dyn Family),
    HuggingFace(Box<SafetensorsFolder>, &'static dyn Family),
    Random(RandomWeights),
}

impl ModelFiles {
    /// Opens a GGUF file.
    ///
    /// # Errors
    /// [`ModelError`] says what is wrong with the file.
    pub fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let file = GgufFile::open(path)?;
        let architecture = file.metadata().require::<&str>("general.architecture")?;
        let family = find(path, architecture, |family| family.gguf())?;
        let config = family.read_gguf(&file)?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into();
        Ok(Self { name, config, weights: Weights::Gguf(Box::new(file), family) })
    }

    /// Opens a Hugging Face folder: config.json beside model.safetensors or its shards.
    ///
    /// # Errors
    /// [`ModelError`] says what is wrong with the folder.
    pub fn open_folder(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let fields = read_json(&path)?;
        let config = HfConfig { path: &path, fields: &fields };
        let names = config.get("architectures").and_then(Value::as_array);
        let architecture = names.and_then(|names| names.first()).and_then(Value::as_str);
        let architecture = architecture.ok_or_else(|| config.problem("architectures", "a list of names"))?;
        let family = find(&path, architecture, |family| family.hugging_face())?;
        let config = family.read_hugging_face(&config)?;
        let weights = Weights::HuggingFace(Box::new(SafetensorsFolder::open(folder)?), family);
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into();
        Ok(Self { name, config, weights })
    }

    /// A model of random weights for speed and memory work; it has no tokenizer.
    pub fn random(name: &str, config: DecoderConfig, seed: u64) -> Self {
        Self { name: name.into(), config, weights: Weights::Random(RandomWeights { seed, on_host: false }) }
    }

    /// The same, with the same weights on every device: for small models.
    #[cfg(feature = "testing")]
    pub(crate) fn random_on_host(name: &str, config: DecoderConfig, seed: u64) -> Self {
        Self { name: name.into(), config, weights: Weights::Random(RandomWeights { seed, on_host: true }) }
    }

    /// The name it goes by in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives it another name for reports, such as the one it was asked for by.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// The folder of a Hugging Face model.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match &self.weights {
            Weights::HuggingFace(folder, _) => Some(folder.path()),
            _ => None,
        }
    }

    /// The file of a GGUF model.
    pub(crate) fn gguf(&self) -> Option<&GgufFile> {
        match &self.weights {
            Weights::Gguf(file, _) => Some(file),
            _ => None,
        }
    }

    /// The hyperparameters.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// What a cache plan needs to know.
    pub fn shape(&self) -> ModelShape {
        self.config.shape()
    }

    /// What identifies the model: its shape, and a hash over the names, shapes, types and first bytes of its tensors.
    ///
    /// # Errors
    /// [`ModelError`] if a tensor cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint, ModelError> {
        let mut hasher = Sha256::new();
        let source: Option<&dyn TensorSource> = match &self.weights {
            Weights::Gguf(file, _) => Some(&**file),
            Weights::HuggingFace(folder, _) => Some(&**folder),
            Weights::Random(random) => {
                hasher.update(format!("random {} {:?}", random.seed, self.config));
                None
            }
        };
        if let Some(source) = source {
            for name in source.names() {
                if let Some(info) = source.info(name) {
                    hasher.update(format!("{name} {:?} {}\n", info.shape, info.dtype));
                }
                let bytes = source.raw(name)?;
                hasher.update(&bytes[..bytes.len().min(FINGERPRINT_BYTES)]);
            }
        }
        let hash = hex(&hasher.finalize());
        let DecoderConfig { architecture, layers, heads, kv_heads, head_dim, .. } = self.config.clone();
        Ok(Fingerprint { architecture, layers, heads, kv_heads, head_dim, hash })
    }

    /// The tokenizer that comes with the model.
    ///
    /// # Errors
    /// [`ModelError::NoTokenizer`] for random weights and folders without tokenizer.json.
    pub fn tokenizer(&self) -> Result<ModelTokenizer, ModelError> {
        let tokenizer = match &self.weights {
            Weights::Gguf(file, _) => ModelTokenizer::from_gguf(file)?,
            Weights::HuggingFace(folder, _) => folder_tokenizer(folder.path(), &self.name)?,
            Weights::Random(_) => {
                return Err(ModelError::NoTokenizer {
                    name: self.name.clone(),
                    remedy: "random weights are for speed and memory only, take a real model for text",
                });
            }
        };
        tokenizer.check_fits(self.config.vocab)?;
        Ok(tokenizer)
    }

    /// Loads the weights, one tensor at a time, onto `device`, in one dtype or in [`Dtypes`].
    ///
    /// # Errors
    /// [`ModelError`] names a missing, misshapen or unsupported tensor.
    pub fn load(&self, device: &Device, dtypes: impl Into<Dtypes>) -> Result<Decoder, ModelError> {
        self.load_layers(&vec![device.clone(); self.config.layers], dtypes.into())
    }

    /// Loads the weights onto several devices, in the order of the placement. The layers of different devices are
    /// candidates for sharing only if `across`. (Random weights are drawn on each device by itself.)
    ///
    /// # Errors
    /// As [`load`](Self::load).
    ///
    /// # Panics
    /// If the placement is not of this model, or for another number of devices.
    pub fn load_placed(
        &self,
        placement: &Placement,
        devices: &[Device],
        across: bool,
        dtypes: impl Into<Dtypes>,
    ) -> Result<Decoder, ModelError> {
        assert_eq!(devices.len(), placement.devices(), "the placement is for another number of devices");
        let of = |layer| devices[placement.device(layer)].clone();
        let devices: Vec<Device> = self.shape().ids().map(of).collect();
        let apart = (!across).then(|| placement.clone());
        Ok(self.load_layers(&devices, dtypes.into())?.placed(&devices, apart))
    }

    /// One device a layer.
    fn load_layers(&self, devices: &[Device], dtypes: Dtypes) -> Result<Decoder, ModelError> {
        let config = &self.config;
        let on = |device| Loader { files: self, device, dtypes };
        let (first, last) = (&devices[0], &devices[devices.len() - 1]);
        if let Weights::Random(random) = &self.weights {
            let mut begun: Vec<&Device> = Vec::new();
            for device in devices {
                if !begun.contains(&device) {
                    random.start(device);
                    begun.push(device);
                }
            }
        }
        let layer = |l: usize| -> Result<DecoderLayer, ModelError> {
            let loader = on(&devices[l]);
            let linear = |weight, bias: Option<Part>| -> Result<Linear, ModelError> {
                let linear = Linear::new(loader.weight(weight)?);
                Ok(match bias {
                    Some(bias) => linear.with_bias(loader.tensor::<1>(bias)?),
                    None => linear,
                })
            };
            let norm = |part| loader.norm(part);
            let norm_if = |there: bool, part| there.then(|| norm(part)).transpose();
            let (qkv, mlp) = (config.qkv_bias, config.mlp_bias);
            Ok(DecoderLayer {
                bare: Vec::new(),
                attention_norm: norm(Part::AttentionNorm(l))?,
                attention: Attention {
                    query: linear(Part::Query(l), qkv.then_some(Part::QueryBias(l)))?,
                    key: linear(Part::Key(l), qkv.then_some(Part::KeyBias(l)))?,
                    value: linear(Part::Value(l), qkv.then_some(Part::ValueBias(l)))?,
                    output: linear(Part::Output(l), config.output_bias.then_some(Part::OutputBias(l)))?,
                    query_norm: norm_if(config.qk_norm, Part::QueryNorm(l))?,
                    key_norm: norm_if(config.qk_norm, Part::KeyNorm(l))?,
                    score_scale: config.score_scale * config.rope_of(LayerId(l)).score_scale(),
                    head_dim: config.head_dim,
                },
                post_attention_norm: norm_if(config.post_norms, Part::PostAttentionNorm(l))?,
                mlp_norm: norm(Part::MlpNorm(l))?,
                mlp: Mlp {
                    gate: linear(Part::Gate(l), mlp.then_some(Part::GateBias(l)))?,
                    up: linear(Part::Up(l), mlp.then_some(Part::UpBias(l)))?,
                    down: linear(Part::Down(l), mlp.then_some(Part::DownBias(l)))?,
                    activation: config.activation,
                },
                post_mlp_norm: norm_if(config.post_norms, Part::PostMlpNorm(l))?,
            })
        };
        let embedding = on(first).weight(Part::Embedding)?;
        let layers = (0..config.layers).map(layer).collect::<Result<Vec<_>, _>>()?;
        let final_norm = on(last).norm(Part::FinalNorm)?;
        let head = match config.tied_head {
            true if first == last => None,
            true => Some(embedding.clone().to_device(last)),
            false => Some(on(last).weight(Part::Head)?),
        };
        Ok(Decoder::new(config.clone(), embedding, layers, final_norm, head).computing_in(dtypes.compute))
    }
}

/// In what a model computes, and in what its matrices are kept: where decoding waits for memory, matrices of half the
/// size take half the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dtypes {
    /// Of activations, norms, biases and, unless chosen otherwise, caches.
    pub compute: DType,
    /// Of the embedding, the head and the projections.
    pub weights: DType,
}

impl From<DType> for Dtypes {
    fn from(dtype: DType) -> Self {
        Self { compute: dtype, weights: dtype }
    }
}

struct Loader<'a> {
    files: &'a ModelFiles,
    device: &'a Device,
    dtypes: Dtypes,
}

impl Loader<'_> {
    fn tensor<const D: usize>(&self, part: Part) -> Result<Tensor<D>, ModelError> {
        self.tensor_as(part, self.dtypes.compute)
    }

    /// A matrix.
    fn weight(&self, part: Part) -> Result<Tensor<2>, ModelError> {
        self.tensor_as(part, self.dtypes.weights)
    }

    /// A norm, whose weight may stay in f32.
    fn norm(&self, part: Part) -> Result<RmsNorm, ModelError> {
        let config = &self.files.config;
        let dtype = if config.full_norms { DType::F32 } else { self.dtypes.compute };
        Ok(RmsNorm::new(self.tensor_as::<1>(part, dtype)?, config.norm_eps))
    }

    fn tensor_as<const D: usize>(&self, part: Part, dtype: DType) -> Result<Tensor<D>, ModelError> {
        let config = &self.files.config;
        let shape = part.shape(config);
        let (source, format, family): (&dyn TensorSource, _, _) = match &self.files.weights {
            Weights::Random(random) => return Ok(random.tensor(part, config, self.device, dtype)),
            Weights::Gguf(file, family) => (&**file, Format::Gguf, family),
            Weights::HuggingFace(folder, family) => (&**folder, Format::HuggingFace, family),
        };
        let fused = family.fused(format, part, config);
        let mut stored = shape.clone();
        if let Some(Fused { groups, block, .. }) = fused {
            stored[0] = groups * block * config.head_dim;
        }
        let data = load_shaped(source, &family.tensor_name(format, part), &stored)?;
        let tensor = Tensor::<D>::from_data(data, (self.device, dtype));
        let tensor = match fused {
            Some(fused) => apart(tensor, &fused, &shape, config.head_dim),
            None => tensor,
        };
        let tensor = if family.interleaved(format, part) { half_split(tensor, config.head_dim) } else { tensor };
        Ok(if family.less_one(format, part) { tensor + 1.0 } else { tensor })
    }
}

/// Rows `(head, channel pair, half)` to `(head, half, channel pair)`.
fn half_split<const D: usize>(tensor: Tensor<D>, head_dim: usize) -> Tensor<D> {
    let shape = tensor.dims();
    let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
    let pairs = tensor.reshape([rows / head_dim, head_dim / 2, 2, columns]);
    pairs.swap_dims(1, 2).reshape(shape)
}

/// The rows of one part of a tensor that holds several, brought to `shape`.
fn apart<const D: usize>(tensor: Tensor<D>, fused: &Fused, shape: &[usize], head_dim: usize) -> Tensor<D> {
    let columns = shape[1..].iter().product::<usize>();
    let groups = tensor.reshape([fused.groups, fused.block * head_dim, columns]);
    let rows = groups.slice_dim(1, fused.take.start * head_dim..fused.take.end * head_dim);
    rows.reshape::<D, _>(<[usize; D]>::try_from(shape).unwrap_or([0; D]))
}

fn find(
    path: &Path,
    architecture: &str,
    names: fn(&'static dyn Family) -> &'static [&'static str],
) -> Result<&'static dyn Family, ModelError> {
    let family = families().iter().copied().find(|family| names(*family).contains(&architecture));
    family.ok_or_else(|| {
        let supported: Vec<&str> = families().iter().flat_map(|family| names(*family)).copied().collect();
        ModelError::UnknownArchitecture {
            path: path.into(),
            architecture: architecture.into(),
            supported: supported.join(", "),
        }
    })
}

pub(crate) fn read_json(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let io = |source| ModelError::Io { path: path.into(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    let problem = |problem: String| ModelError::ConfigField { path: path.into(), field: "{}".into(), problem };
    if bytes > MAX_CONFIG_BYTES {
        return Err(problem(format!("has {bytes} bytes, at most {MAX_CONFIG_BYTES} are read")));
    }
    let text = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&text).map_err(|error| problem(format!("is no JSON object ({error})")))
}

/// tokenizer.json, or else tokenizer.model, with the special tokens of generation_config.json, or else config.json.
fn folder_tokenizer(folder: &Path, name: &str) -> Result<ModelTokenizer, ModelError> {
    let (path, pieces) = (folder.join("tokenizer.json"), folder.join("tokenizer.model"));
    let own = folder.join("tokenizer_config.json");
    let own = if own.is_file() { read_json(&own)? } else { Map::new() };
    let tokenizer = if path.is_file() {
        ModelTokenizer::from_file(&path)?
    } else if pieces.is_file() {
        ModelTokenizer::from_sentencepiece(&pieces, &added_pieces(&own))?
    } else {
        let remedy = "put its tokenizer.json or tokenizer.model into the folder";
        return Err(ModelError::NoTokenizer { name: name.into(), remedy });
    };
    let mut settings = read_json(&folder.join("config.json"))?;
    let generation = folder.join("generation_config.json");
    if generation.is_file() {
        // It goes before config.json, setting by setting.
        settings.extend(read_json(&generation)?.into_iter().filter(|(_, value)| !value.is_null()));
    }
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let eos = match settings.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    };
    let adds = own.get("add_bos_token").and_then(Value::as_bool).unwrap_or(tokenizer.adds_bos());
    let bos = settings.get("bos_token_id").and_then(id).or(tokenizer.bos());
    Ok(tokenizer.with_special(bos, eos, adds)?)
}

/// The tokens that tokenizer_config.json has beside a tokenizer.model.
fn added_pieces(config: &Map<String, Value>) -> Vec<AddedPiece> {
    let entries = config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten();
    let piece = |(id, token): (&String, &Value)| {
        let text = token.get("content")?.as_str()?.to_owned();
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        Some(AddedPiece { id: id.parse().ok()?, text, special })
    };
    entries.filter_map(piece).collect()
}
