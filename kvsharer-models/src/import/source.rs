//! What a file of weights offers, whatever its format: named tensors with a shape and a type.

use std::fmt;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use burn::tensor::TensorData;
use half::{bf16, f16};

use super::gguf::dequantize;
use super::mmap::MappedFile;
use super::{Fault, ImportError};

/// The type that a tensor's elements are stored in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(non_camel_case_types)]
#[non_exhaustive]
pub enum SourceDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats (IEEE 754 half precision).
    F16,
    /// The upper halves of 32-bit floats.
    BF16,
    /// GGUF: 32 signed bytes with one scale.
    Q8_0,
    /// GGUF: 32 4-bit numbers around 8 with one scale.
    Q4_0,
    /// GGUF: 32 4-bit numbers with one scale and one minimum.
    Q4_1,
    /// GGUF: 256 4-bit numbers in 8 groups with 6-bit scales and minimums.
    Q4_K,
    /// GGUF: 256 6-bit numbers in 16 groups with 8-bit scales.
    Q6_K,
    /// A type that cannot be loaded, by the name the format gives it. A file may hold such a
    /// tensor (a mask, a counter) as long as nobody asks for its values.
    Other(String),
}

impl SourceDtype {
    /// The names of all types that can be loaded, for messages.
    pub const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K or Q6_K";

    /// Elements and bytes of the smallest unit that is stored; `None` for [`Other`](Self::Other).
    pub fn block(&self) -> Option<(usize, usize)> {
        Some(match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (32, 2 + 32),
            Self::Q4_0 => (32, 2 + 16),
            Self::Q4_1 => (32, 2 + 2 + 16),
            Self::Q4_K => (256, 2 + 2 + 12 + 128),
            Self::Q6_K => (256, 128 + 64 + 16 + 2),
            Self::Other(_) => return None,
        })
    }
}

impl fmt::Display for SourceDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(name) => f.write_str(name),
            known => write!(f, "{known:?}"),
        }
    }
}

/// A tensor's description, without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Row-major as PyTorch has it, the fastest axis last: `[out, in]` for a linear layer.
    pub shape: Vec<usize>,
    /// The type in the file.
    pub dtype: SourceDtype,
}

impl TensorInfo {
    /// The bytes that shape and type take; `None` for a type that cannot be loaded, for a shape
    /// that is not made of whole blocks, and when the number overflows.
    pub fn byte_count(&self) -> Option<usize> {
        let (elements, bytes) = self.dtype.block()?;
        let count = self.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim))?;
        count.is_multiple_of(elements).then_some(count / elements)?.checked_mul(bytes)
    }
}

/// A tensor's bytes. They may hold their file open: drop them before the next tensor is read.
#[derive(Debug)]
pub struct TensorBytes<'a>(Bytes<'a>);

#[derive(Debug)]
enum Bytes<'a> {
    Borrowed(&'a [u8]),
    Mapped(Arc<MappedFile>, Range<usize>),
}

impl<'a> TensorBytes<'a> {
    /// Bytes that stay where they are.
    pub fn borrowed(bytes: &'a [u8]) -> Self {
        Self(Bytes::Borrowed(bytes))
    }

    /// Bytes of a file that is closed with the last of them; the range must lie in the file.
    pub(super) fn mapped(file: Arc<MappedFile>, range: Range<usize>) -> Self {
        Self(Bytes::Mapped(file, range))
    }
}

impl Deref for TensorBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Borrowed(bytes) => bytes,
            Bytes::Mapped(file, range) => &file[range.clone()],
        }
    }
}

/// A file or a folder of named tensors.
///
/// An implementer supplies the bytes; [`load`](Self::load) is the same for all.
pub trait TensorSource: Send + Sync {
    /// The file or folder, for messages.
    fn path(&self) -> &Path;

    /// The file that holds a tensor, for messages.
    fn file_of(&self, name: &str) -> &Path {
        let _ = name;
        self.path()
    }

    /// The names of all tensors, sorted.
    fn names(&self) -> Vec<&str>;

    /// A tensor's shape and type, or `None` if there is no such tensor.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// The tensor's bytes exactly as stored, e.g. for a fingerprint.
    ///
    /// # Errors
    ///
    /// [`ImportError::MissingTensor`] if there is no such tensor, [`ImportError::Io`] if its file cannot be opened.
    fn raw(&self, name: &str) -> Result<TensorBytes<'_>, ImportError>;

    /// The tensor's values: f32, f16 and bf16 as they are, quantised types as f32.
    ///
    /// # Shapes
    ///
    /// The result has the shape that [`info`](Self::info) gives.
    ///
    /// # Errors
    ///
    /// [`ImportError::MissingTensor`], [`ImportError::UnsupportedDtype`], [`ImportError::Broken`]
    /// if shape and bytes do not fit together, or [`ImportError::NotFinite`].
    fn load(&self, name: &str) -> Result<TensorData, ImportError> {
        let info = self.info(name).ok_or_else(|| missing(name, self.path()))?;
        let path = || self.file_of(name).to_owned();
        let unsupported =
            || ImportError::UnsupportedDtype { path: path(), tensor: name.to_owned(), dtype: info.dtype.to_string() };
        info.dtype.block().ok_or_else(unsupported)?;
        let bytes = &*self.raw(name)?;
        let expected = info.byte_count();
        if expected != Some(bytes.len()) {
            return Err(ImportError::Broken {
                path: path(),
                place: format!("tensor {name:?}"),
                fault: Fault::WrongSize {
                    expected: expected.map_or(u64::MAX, |n| n as u64),
                    found: bytes.len() as u64,
                },
            });
        }
        let shape = info.shape.clone();
        // Inside a model such a value would spread without a word.
        let finite = |broken: Option<(usize, f32)>| match broken {
            None => Ok(()),
            Some((index, value)) => Err(ImportError::NotFinite { path: path(), name: name.to_owned(), index, value }),
        };
        match &info.dtype {
            SourceDtype::F16 => {
                let values = numbers(bytes, f16::from_le_bytes);
                finite(first(&values, |v| !v.is_finite(), |v| v.to_f32()))?;
                Ok(TensorData::new(values, shape))
            }
            SourceDtype::BF16 => {
                let values = numbers(bytes, bf16::from_le_bytes);
                finite(first(&values, |v| !v.is_finite(), |v| v.to_f32()))?;
                Ok(TensorData::new(values, shape))
            }
            dtype => {
                let values = dequantize(dtype, bytes).ok_or_else(unsupported)?;
                finite(first(&values, |v| !v.is_finite(), |v| v))?;
                Ok(TensorData::new(values, shape))
            }
        }
    }
}

/// Loads a tensor whose shape is known beforehand.
///
/// # Errors
///
/// [`ImportError::WrongShape`] if the file has another shape, and the errors of
/// [`TensorSource::load`].
pub fn load_shaped(source: &dyn TensorSource, name: &str, shape: &[usize]) -> Result<TensorData, ImportError> {
    let info = source.info(name).ok_or_else(|| missing(name, source.path()))?;
    if info.shape != shape {
        return Err(ImportError::WrongShape {
            path: source.file_of(name).to_owned(),
            name: name.to_owned(),
            expected: shape.to_vec(),
            found: info.shape.clone(),
        });
    }
    source.load(name)
}

/// The error for a tensor that is not there.
pub(super) fn missing(name: &str, path: &Path) -> ImportError {
    ImportError::MissingTensor { name: name.to_owned(), path: path.to_owned() }
}

/// The first value that is `wrong`, and where it stands.
fn first<T: Copy>(values: &[T], wrong: fn(T) -> bool, number: fn(T) -> f32) -> Option<(usize, f32)> {
    values.iter().position(|&value| wrong(value)).map(|index| (index, number(values[index])))
}

/// Little-endian numbers of `N` bytes; bytes behind the last whole one are left out.
pub(super) fn numbers<const N: usize, T>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&number| from(number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::DType;

    /// One tensor "w" whose bytes may contradict its shape.
    struct One(TensorInfo, Vec<u8>);

    impl TensorSource for One {
        fn path(&self) -> &Path {
            Path::new("one")
        }
        fn names(&self) -> Vec<&str> {
            vec!["w"]
        }
        fn info(&self, name: &str) -> Option<&TensorInfo> {
            (name == "w").then_some(&self.0)
        }
        fn raw(&self, _: &str) -> Result<TensorBytes<'_>, ImportError> {
            Ok(TensorBytes::borrowed(&self.1))
        }
    }

    fn one(dtype: SourceDtype, shape: &[usize], bytes: &[u8]) -> One {
        let shape = shape.to_vec();
        One(TensorInfo { shape, dtype }, bytes.to_vec())
    }

    #[test]
    fn floats_keep_their_type_and_values() {
        let half = one(SourceDtype::F16, &[1, 2], &[0x00, 0x3c, 0x00, 0xc0]).load("w").unwrap();
        assert_eq!(half, TensorData::from([[f16::from_f32(1.0), f16::from_f32(-2.0)]]));
        let brain = one(SourceDtype::BF16, &[1], &[0x80, 0x3f]).load("w").unwrap();
        assert_eq!((brain.dtype(), brain.try_to_vec_as::<f32>().unwrap()), (DType::BF16, vec![1.0]));
        let full = one(SourceDtype::F32, &[1], &1.5f32.to_le_bytes()).load("w").unwrap();
        assert_eq!(full, TensorData::from([1.5f32]));
    }

    #[test]
    fn values_that_are_no_numbers_are_refused_with_their_place() {
        for (dtype, bytes, place) in [
            (SourceDtype::F32, [0, 0, 0, 0, 0, 0, 0xc0, 0x7f], 1),
            (SourceDtype::F16, [0, 0, 0, 0x7c, 0, 0, 0, 0], 1),
            (SourceDtype::BF16, [0, 0, 0, 0, 0, 0, 0x80, 0xff], 3),
        ] {
            let source = one(dtype.clone(), &[8 / dtype.block().unwrap().1], &bytes);
            let error = source.load("w").unwrap_err();
            assert!(matches!(error, ImportError::NotFinite { index, .. } if index == place), "{error}");
        }
    }

    #[test]
    fn bytes_must_match_the_shape() {
        for shape in [vec![], vec![2], vec![usize::MAX, 2]] {
            let source = one(SourceDtype::F32, &shape, &[0; 5]);
            assert!(matches!(source.load("w"), Err(ImportError::Broken { .. })), "{shape:?}");
        }
    }

    #[test]
    fn unsupported_types_and_absent_tensors_are_named() {
        let source = one(SourceDtype::Other("I8".to_owned()), &[1], &[0]);
        let message = source.load("w").unwrap_err().to_string();
        assert!(message.contains("\"w\"") && message.contains("I8"), "{message}");
        assert!(matches!(source.load("v"), Err(ImportError::MissingTensor { name, .. }) if name == "v"));
    }

    #[test]
    fn an_expected_shape_is_enforced() {
        let source = one(SourceDtype::F16, &[2, 1], &[0; 4]);
        assert!(load_shaped(&source, "w", &[2, 1]).is_ok());
        let error = load_shaped(&source, "w", &[1, 2]).unwrap_err();
        assert!(matches!(&error, ImportError::WrongShape { expected, found, .. }
            if *expected == [1, 2] && *found == [2, 1]));
        assert!(matches!(load_shaped(&source, "v", &[1]), Err(ImportError::MissingTensor { .. })));
    }
}
