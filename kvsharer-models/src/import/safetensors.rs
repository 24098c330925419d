//! Folders of safetensors files, as Hugging Face stores models: one file, or shards with an index.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};

use kvsharer_core::read_at_most;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::mmap::MappedFile;
use super::source::missing;
use super::{Fault, ImportError, SourceDtype, TensorBytes, TensorInfo, TensorSource};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const INDEX_END: &str = ".safetensors.index.json";

/// The largest index known, of a model with 91,991 tensors, has 9 MB.
const MOST_INDEX: u64 = 100 << 20;

/// The tensors of a safetensors file, or of all shards that an index names.
///
/// Only the shard read last is mapped, so that the pages of a large model do not all stay in this process.
#[derive(Debug)]
pub struct SafetensorsFolder {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Located>,
    /// The shard read last.
    open: Mutex<Option<(usize, Arc<MappedFile>)>>,
}

/// A file, and its size when its header was checked.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: usize,
}

/// A tensor and its bytes' place.
#[derive(Debug)]
struct Located {
    info: TensorInfo,
    shard: usize,
    bytes: Range<usize>,
}

/// The part of an index that is read: the shard of each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsFolder {
    /// Opens a folder with `model.safetensors` or `model.safetensors.index.json`, or one such
    /// file. All headers are checked against the files' sizes; no values are read.
    ///
    /// # Errors
    ///
    /// [`ImportError::Io`], [`ImportError::NotAModel`] for a folder without these files,
    /// [`ImportError::Truncated`] or [`ImportError::Broken`] for wrong headers and for an index
    /// that names a file outside the folder, [`ImportError::MissingTensor`] where index and shard
    /// disagree.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ImportError> {
        let path = path.as_ref();
        let mut folder =
            Self { path: path.to_owned(), shards: Vec::new(), tensors: BTreeMap::new(), open: Mutex::default() };
        let file = if path.is_dir() { find(path)? } else { path.to_owned() };
        if file.to_string_lossy().ends_with(INDEX_END) {
            folder.add_index(&file)?;
        } else {
            folder.tensors = folder.add_shard(&file)?;
        }
        Ok(folder)
    }

    /// Opens every shard of an index, and takes from each the tensors that the index says.
    fn add_index(&mut self, index: &Path) -> Result<(), ImportError> {
        let mut opened = BTreeMap::new();
        for (name, shard) in read_index(index)? {
            let (tensors, file) = match opened.entry(shard) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let file = beside(index, entry.key())?;
                    if !file.exists() {
                        return Err(ImportError::MissingShard { index: index.to_owned(), shard: file, tensor: name });
                    }
                    entry.insert((self.add_shard(&file)?, file))
                }
            };
            let tensor = tensors.remove(&name).ok_or_else(|| missing(&name, file))?;
            self.tensors.insert(name, tensor);
        }
        Ok(())
    }

    /// Maps a file and reads its header.
    fn add_shard(&mut self, path: &Path) -> Result<BTreeMap<String, Located>, ImportError> {
        let file = MappedFile::open(path)?;
        let tensors = read_header(&file, self.shards.len())?;
        self.shards.push(Shard { path: path.to_owned(), bytes: file.len() });
        Ok(tensors)
    }

    /// Maps a shard, unless it is the one read last.
    fn shard(&self, index: usize) -> Result<Arc<MappedFile>, ImportError> {
        // A poisoned lock only means that a panic elsewhere interrupted a change; the value is replaced as a whole.
        let mut open = self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((last, file)) = &*open
            && *last == index
        {
            return Ok(file.clone());
        }
        // The other one goes first: never two of them.
        *open = None;
        let shard = &self.shards[index];
        let file = Arc::new(MappedFile::open(&shard.path)?);
        if file.len() != shard.bytes {
            let (path, expected, found) = (shard.path.clone(), shard.bytes as u64, file.len() as u64);
            let place = "the file, changed since its header was read,".to_owned();
            return Err(ImportError::Broken { path, place, fault: Fault::WrongSize { expected, found } });
        }
        *open = Some((index, file.clone()));
        Ok(file)
    }
}

impl TensorSource for SafetensorsFolder {
    fn path(&self) -> &Path {
        &self.path
    }

    fn file_of(&self, name: &str) -> &Path {
        self.tensors.get(name).map_or(&self.path, |tensor| &self.shards[tensor.shard].path)
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|tensor| &tensor.info)
    }

    fn raw(&self, name: &str) -> Result<TensorBytes<'_>, ImportError> {
        let tensor = self.tensors.get(name).ok_or_else(|| missing(name, &self.path))?;
        Ok(TensorBytes::mapped(self.shard(tensor.shard)?, tensor.bytes.clone()))
    }
}

/// The file to start from in a folder. Like `transformers`, one whole file is preferred.
fn find(folder: &Path) -> Result<PathBuf, ImportError> {
    let files = [SINGLE, INDEX].map(|name| folder.join(name));
    let found = files.into_iter().find(|file| file.is_file());
    found.ok_or_else(|| ImportError::NotAModel {
        path: folder.to_owned(),
        why: format!("it holds neither {SINGLE} nor {INDEX}"),
    })
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ImportError> {
    let text = read_at_most(path, MOST_INDEX).map_err(|source| ImportError::Io { path: path.to_owned(), source })?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| broken(path, "the index", Fault::Json(error)))?;
    Ok(index.weight_map)
}

/// The path of a shard, which must lie in the index's own folder.
fn beside(index: &Path, shard: &str) -> Result<PathBuf, ImportError> {
    let mut parts = Path::new(shard).components();
    // The text must be that one part, without separators behind it.
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) if name == shard => Ok(index.with_file_name(name)),
        _ => Err(broken(index, &format!("shard {shard:?}"), Fault::OutsideFolder)),
    }
}

/// Reads a file's table of tensors. The library checks that the header's length lies within the
/// file, that the tensors cover the rest of it in order, without gaps or overlaps, and that each
/// one's bytes are as many as its shape and type say.
fn read_header(file: &MappedFile, shard: usize) -> Result<BTreeMap<String, Located>, ImportError> {
    check_length(file)?;
    let (header, metadata) = SafeTensors::read_metadata(file)
        .map_err(|error| broken(file.path(), "its header", Fault::Safetensors(error)))?;
    let data = 8 + header;
    let locate = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (start, end) = info.data_offsets;
        let tensor = Located {
            info: TensorInfo { shape: info.shape.clone(), dtype: dtype(info.dtype) },
            shard,
            bytes: data + start..data + end,
        };
        (name, tensor)
    };
    Ok(metadata.tensors().into_iter().map(locate).collect())
}

/// Tells a file that was cut from one that is wrong; the library calls both invalid.
fn check_length(file: &MappedFile) -> Result<(), ImportError> {
    let header = file.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let (needed, left) = (8u64.saturating_add(header), file.len() as u64);
    if needed > left || left < 8 {
        return Err(ImportError::Truncated {
            path: file.path().to_owned(),
            what: "the header".to_owned(),
            needed,
            left,
        });
    }
    Ok(())
}

fn dtype(dtype: Dtype) -> SourceDtype {
    match dtype {
        Dtype::F32 => SourceDtype::F32,
        Dtype::F16 => SourceDtype::F16,
        Dtype::BF16 => SourceDtype::BF16,
        other => SourceDtype::Other(other.to_string()),
    }
}

fn broken(path: &Path, place: &str, fault: Fault) -> ImportError {
    ImportError::Broken { path: path.to_owned(), place: place.to_owned(), fault }
}
