//! The file of fitted maps beside a strategy file: safetensors, named and hashed by the strategy.

use crate::{Adapter, LayerId, Mix, Strategy, Turn, hex, write_atomically};
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The largest file that is read.
const MAX_BYTES: u64 = 64 << 30;

/// Where a strategy's fitted maps are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterFile {
    /// Name of the file, in the strategy's folder.
    pub name: String,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

/// Why fitted maps cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdaptersError {
    /// The file cannot be read or written.
    #[error("{}: {source}; it holds the strategy's fitted maps and belongs beside it", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not the file that the strategy was saved with.
    #[error("{}: not the fitted maps this strategy was saved with (SHA-256 {found}, expected {expected})", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// The strategy's.
        expected: String,
    },
    /// A name that leads out of the strategy's folder.
    #[error("`{0}` is no plain file name for fitted maps")]
    Name(String),
    /// A file without what the strategy names, or with something else.
    #[error("{}: {what}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl Strategy {
    /// Writes the strategy to `path` and its fitted maps, if it has any, beside it; gives what was written.
    ///
    /// # Errors
    /// [`StrategyError`](crate::StrategyError) if a file cannot be written.
    pub fn save_with(&self, path: &Path, maps: &BTreeMap<String, Adapter>) -> Result<Self, crate::StrategyError> {
        if maps.is_empty() {
            self.save(path)?;
            return Ok(self.clone());
        }
        let mut file = path.with_extension("safetensors");
        let broken = |what: String| AdaptersError::Broken { path: file.clone(), what };
        let tensors = maps.iter().map(|(name, adapter)| parts(name, adapter)).collect::<Result<Vec<_>, _>>();
        let tensors: Vec<Part> = tensors.map_err(broken)?.concat();
        let views = tensors.iter().map(|(name, shape, dtype, bytes)| {
            TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(|error| broken(error.to_string()))?;
        let bytes = safetensors::serialize(views, None).map_err(|error| broken(error.to_string()))?;
        let sha256 = hex(&Sha256::digest(&bytes));
        // Whatever happens before the new strategy is there, an old one keeps its own maps.
        let old = Self::load(path).ok().and_then(|old| old.adapter_file);
        let taken = |old: &AdapterFile| old.sha256 != sha256 && Some(old.name.as_ref()) == file.file_name();
        if old.as_ref().is_some_and(taken) && file.exists() {
            file = path.with_extension(format!("{}.safetensors", &sha256[..8]));
        }
        write_atomically(&file, &bytes).map_err(|source| AdaptersError::Io { path: file.clone(), source })?;
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let file = AdapterFile { name, sha256 };
        let saved = Self { adapter_file: Some(file.clone()), ..self.clone() };
        saved.save(path)?;
        // A strategy from elsewhere may name any file; only one that is its own is removed with it.
        if let Some(old) = old.filter(|old| old.name != file.name && is_beside(path, &old.name)) {
            let _ = std::fs::remove_file(path.with_file_name(old.name));
        }
        Ok(saved)
    }

    /// Reads the fitted maps of a strategy that was loaded from `path`; none if it has none.
    ///
    /// # Errors
    /// [`AdaptersError`] if the file beside it is missing, another one, or broken.
    pub fn load_adapters(&self, path: &Path, device: &Device) -> Result<BTreeMap<LayerId, Adapter>, AdaptersError> {
        let Some(AdapterFile { name, sha256 }) = self.adapter_file.as_ref().filter(|_| !self.adapters.is_empty())
        else {
            return match self.adapters.keys().next() {
                None => Ok(BTreeMap::new()),
                Some(layer) => {
                    let what = format!("names fitted maps of layer {layer} but no file that holds them");
                    Err(AdaptersError::Broken { path: path.into(), what })
                }
            };
        };
        if Path::new(name).file_name().is_none_or(|plain| plain != name.as_str()) {
            return Err(AdaptersError::Name(name.clone()));
        }
        let file = path.with_file_name(name);
        let io = |source| AdaptersError::Io { path: file.clone(), source };
        let broken = |what: String| AdaptersError::Broken { path: file.clone(), what };
        let size = std::fs::metadata(&file).map_err(io)?.len();
        if size > MAX_BYTES {
            return Err(broken(format!("{size} bytes are too many for fitted maps")));
        }
        let bytes = std::fs::read(&file).map_err(io)?;
        let found = hex(&Sha256::digest(&bytes));
        if found != *sha256 {
            return Err(AdaptersError::Hash { path: file, found, expected: sha256.clone() });
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;
        let read = |(&layer, name): (&LayerId, &String)| {
            let adapter =
                adapter(&tensors, name, self, device).map_err(|what| broken(format!("layer {layer}: {what}")))?;
            Ok((layer, adapter))
        };
        self.adapters.iter().map(read).collect()
    }
}

/// Whether fitted maps of this name can be those of the strategy at `path`.
fn is_beside(path: &Path, name: &str) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let rest = name.strip_prefix(&*stem).and_then(|rest| rest.strip_suffix(".safetensors"));
    rest.is_some_and(|hash| hash.is_empty() || hash.len() == 9 && hash[1..].bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A tensor's name, shape, type and bytes.
type Part = (String, Vec<usize>, Dtype, Vec<u8>);

fn parts(name: &str, adapter: &Adapter) -> Result<Vec<Part>, String> {
    fn part<const D: usize>(name: String, tensor: &Tensor<D>) -> Result<Part, String> {
        let values = tensor.clone().try_into_vec_as::<f32>().map_err(|error| error.to_string())?;
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok((name, tensor.dims().to_vec(), Dtype::F32, bytes))
    }
    let mut parts = Vec::new();
    if let Some(heads) = &adapter.heads {
        let bytes = heads.iter().flat_map(|&head| (head as i64).to_le_bytes()).collect();
        parts.push((format!("{name}.heads"), vec![heads.len()], Dtype::I64, bytes));
    }
    if let Some(turn) = &adapter.turn {
        parts.push(part(format!("{name}.turn.real"), &turn.real)?);
        parts.push(part(format!("{name}.turn.imaginary"), &turn.imaginary)?);
    }
    match &adapter.mix {
        Some(Mix::Heads { weight, bias }) => {
            parts.push(part(format!("{name}.heads_mix.weight"), weight)?);
            parts.push(part(format!("{name}.heads_mix.bias"), bias)?);
        }
        Some(Mix::LowRank { heads, left, right, bias }) => {
            parts.push(part(format!("{name}.low_rank_mix.heads"), heads)?);
            parts.push(part(format!("{name}.low_rank_mix.left"), left)?);
            parts.push(part(format!("{name}.low_rank_mix.right"), right)?);
            parts.push(part(format!("{name}.low_rank_mix.bias"), bias)?);
        }
        Some(Mix::Full { weight, bias }) => {
            parts.push(part(format!("{name}.full_mix.weight"), weight)?);
            parts.push(part(format!("{name}.full_mix.bias"), bias)?);
        }
        None => {}
    }
    Ok(parts)
}

fn adapter(tensors: &SafeTensors<'_>, name: &str, strategy: &Strategy, device: &Device) -> Result<Adapter, String> {
    let model = &strategy.model;
    // Of a hostile file they may be anything; no tensor has a shape that saturates.
    let (dim, width) = (model.head_dim, model.heads.saturating_mul(model.head_dim));
    let heads = match tensors.tensor(&format!("{name}.heads")) {
        Err(_) => None,
        Ok(view) => {
            let wrong = || format!("{name}.heads is no permutation of {} heads", model.kv_heads);
            if view.dtype() != Dtype::I64 || view.shape() != [model.kv_heads] {
                return Err(wrong());
            }
            let heads = view.data().chunks_exact(8).map(|x| i64::from_le_bytes(x.try_into().unwrap_or_default()));
            let heads: Vec<usize> = heads.map(|head| usize::try_from(head).unwrap_or(usize::MAX)).collect();
            let mut sorted = heads.clone();
            sorted.sort_unstable();
            if sorted.into_iter().ne(0..model.kv_heads) {
                return Err(wrong());
            }
            Some(heads)
        }
    };
    let has = |part: &str| tensors.tensor(&format!("{name}.{part}")).is_ok();
    let turn = has("turn.real").then(|| -> Result<Turn, String> {
        let shape = [model.kv_heads, dim / 2];
        let of = |part: &str| tensor(tensors, &format!("{name}.turn.{part}"), shape, device);
        Ok(Turn { real: of("real")?, imaginary: of("imaginary")? })
    });
    let mix = if has("heads_mix.weight") {
        Some(Mix::Heads {
            weight: tensor(tensors, &format!("{name}.heads_mix.weight"), [model.kv_heads, dim, dim], device)?,
            bias: tensor(tensors, &format!("{name}.heads_mix.bias"), [model.kv_heads, dim], device)?,
        })
    } else if has("low_rank_mix.heads") {
        let part = |part: &str| format!("{name}.low_rank_mix.{part}");
        let rank = tensors.tensor(&part("right")).ok().and_then(|view| view.shape().first().copied()).unwrap_or(0);
        if rank == 0 {
            return Err(format!("{} is no matrix", part("right")));
        }
        Some(Mix::LowRank {
            heads: tensor(tensors, &part("heads"), [model.kv_heads, dim, dim], device)?,
            left: tensor(tensors, &part("left"), [width, rank], device)?,
            right: tensor(tensors, &part("right"), [rank, width], device)?,
            bias: tensor(tensors, &part("bias"), [width], device)?,
        })
    } else if has("full_mix.weight") {
        Some(Mix::Full {
            weight: tensor(tensors, &format!("{name}.full_mix.weight"), [width, width], device)?,
            bias: tensor(tensors, &format!("{name}.full_mix.bias"), [width], device)?,
        })
    } else {
        None
    };
    let adapter = Adapter { heads, turn: turn.transpose()?, mix };
    if adapter.heads.is_none() && adapter.turn.is_none() && adapter.mix.is_none() {
        return Err(format!("no tensor of {name}"));
    }
    Ok(adapter)
}

fn tensor<const D: usize>(
    tensors: &SafeTensors<'_>,
    name: &str,
    shape: [usize; D],
    device: &Device,
) -> Result<Tensor<D>, String> {
    let view = tensors.tensor(name).map_err(|error| format!("{name}: {error}"))?;
    if view.dtype() != Dtype::F32 || view.shape() != shape {
        return Err(format!("{name} is {:?} {:?}, expected F32 {shape:?}", view.dtype(), view.shape()));
    }
    let values = view.data().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap_or_default()));
    let values: Vec<f32> = values.collect();
    if values.iter().any(|value| !value.is_finite()) {
        return Err(format!("{name} has values that are not finite"));
    }
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}
