//! The head of a GGUF file: magic number, version, metadata and the table of tensors.
//!
//! Nothing in it is believed: counts and lengths are held against the bytes that are left before
//! memory is taken for them, and every tensor must lie inside the file, on bytes of its own.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::path::Path;

use super::super::{Fault, ImportError, SourceDtype, TensorInfo};
use super::cursor::Cursor;
use super::metadata::{Metadata, Stored};
use super::value::{Kind, Value};

const MAGIC: &[u8] = b"GGUF";
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u32 = 32;
const MOST_AXES: u32 = 4;

/// Fewest bytes of a metadata entry: the key's length, the kind and a value of one byte.
const LEAST_ENTRY: u64 = 8 + 4 + 1;
/// Fewest bytes of a tensor's description: the name's length, no axes, type and offset.
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;

/// What a GGUF file's head says.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) entries: BTreeMap<String, Stored>,
    pub(super) tensors: BTreeMap<String, Located>,
}

/// A tensor and its bytes' place in the file.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) info: TensorInfo,
    pub(super) bytes: Range<usize>,
}

impl Header {
    /// Parses the head of the file whose bytes these are.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ImportError> {
        let mut cursor = Cursor::new(path, bytes);
        let (tensor_count, entry_count) = read_start(&mut cursor, path)?;
        let entries = read_entries(&mut cursor, entry_count)?;
        let metadata = Metadata { path, bytes, entries: &entries };
        let mut table = Table { alignment: alignment(metadata, &cursor)?, tensors: BTreeMap::new() };
        cursor.check_left(tensor_count, LEAST_TENSOR, "the table of tensors")?;
        for _ in 0..tensor_count {
            table.read_tensor(&mut cursor)?;
        }
        let tensors = table.locate(&cursor, bytes.len() as u64)?;
        Ok(Self { entries, tensors })
    }
}

/// Reads up to the numbers of tensors and of metadata entries.
fn read_start(cursor: &mut Cursor<'_>, path: &Path) -> Result<(u64, u64), ImportError> {
    let not_a_model = |why| ImportError::NotAModel { path: path.to_owned(), why };
    let magic = cursor.take(4, "the magic number")?;
    if magic != MAGIC {
        let magic = magic.escape_ascii();
        return Err(not_a_model(format!("it starts with \"{magic}\", not with \"GGUF\"")));
    }
    match cursor.u32("the version")? {
        2 | 3 => {}
        // A number whose lower half is empty is a small number with its bytes reversed.
        version if version & 0xffff == 0 => {
            return Err(not_a_model("it is a big-endian GGUF file, only little-endian ones are read".to_owned()));
        }
        version => {
            return Err(not_a_model(format!("it is GGUF version {version}, only versions 2 and 3 are read")));
        }
    }
    Ok((cursor.u64("the number of tensors")?, cursor.u64("the number of metadata entries")?))
}

fn read_entries(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Stored>, ImportError> {
    cursor.check_left(count, LEAST_ENTRY, "the metadata")?;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.name("a metadata key")?;
        let what = format!("metadata {key:?}");
        let kind = Kind::read(cursor, &what)?;
        let at = cursor.at();
        // Read for the checks only: values stay in the file.
        Value::read(cursor, kind, &what)?;
        if entries.insert(key.to_owned(), Stored { kind, at }).is_some() {
            return Err(cursor.broken(&what, Fault::Duplicate));
        }
    }
    Ok(entries)
}

fn alignment(metadata: Metadata<'_>, cursor: &Cursor<'_>) -> Result<u64, ImportError> {
    let found = metadata.get(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !found.is_power_of_two() {
        return Err(cursor.broken("general.alignment", Fault::BadAlignment { found }));
    }
    Ok(found.into())
}

/// The table of tensors while it is read: byte ranges are relative to the start of the data.
struct Table {
    alignment: u64,
    tensors: BTreeMap<String, (TensorInfo, Range<u64>)>,
}

impl Table {
    fn read_tensor(&mut self, cursor: &mut Cursor<'_>) -> Result<(), ImportError> {
        let name = cursor.name("a tensor's name")?;
        let what = format!("tensor {name:?}");
        let axes = cursor.u32(&what)?;
        if axes > MOST_AXES {
            let limit = MOST_AXES;
            return Err(cursor.broken(&what, Fault::TooManyAxes { found: axes, limit }));
        }
        let dims: Vec<u64> = (0..axes).map(|_| cursor.u64(&what)).collect::<Result<_, _>>()?;
        let dtype = dtype(cursor.u32(&what)?).map_err(|dtype| ImportError::UnsupportedDtype {
            path: cursor.path().to_owned(),
            tensor: name.to_owned(),
            dtype,
        })?;
        let offset = cursor.u64(&what)?;
        let alignment = self.alignment;
        if !offset.is_multiple_of(alignment) {
            return Err(cursor.broken(&what, Fault::Unaligned { offset, alignment }));
        }
        let (info, bytes) = measure(&dims, dtype).map_err(|fault| cursor.broken(&what, fault))?;
        let end = offset.checked_add(bytes).ok_or_else(|| cursor.broken(&what, Fault::SizeOverflow { dims }))?;
        match self.tensors.entry(name.to_owned()) {
            Entry::Vacant(entry) => entry.insert((info, offset..end)),
            Entry::Occupied(_) => return Err(cursor.broken(&what, Fault::Duplicate)),
        };
        Ok(())
    }

    /// Places the tensors in the file. The data starts at the next multiple of the alignment
    /// behind the header, where `cursor` stands.
    fn locate(self, cursor: &Cursor<'_>, file_bytes: u64) -> Result<BTreeMap<String, Located>, ImportError> {
        let start = (cursor.at() as u64).next_multiple_of(self.alignment);
        self.check_overlaps(cursor)?;
        self.check_end(cursor, start, file_bytes)?;
        let place = |(name, (info, range)): (String, (TensorInfo, Range<u64>))| {
            if start.checked_add(range.end).is_none_or(|end| end > file_bytes) {
                return Err(ImportError::Truncated {
                    path: cursor.path().to_owned(),
                    what: format!("tensor {name:?}"),
                    needed: range.end - range.start,
                    left: file_bytes.saturating_sub(start.saturating_add(range.start)),
                });
            }
            // Inside the file, and so inside the memory that it is mapped to.
            let bytes = (start + range.start) as usize..(start + range.end) as usize;
            Ok((name, Located { info, bytes }))
        };
        self.tensors.into_iter().map(place).collect()
    }

    /// Bytes behind the last tensor and its padding belong to tensors that the table does not tell of; then the data
    /// also starts elsewhere than it seems to.
    fn check_end(&self, cursor: &Cursor<'_>, start: u64, file_bytes: u64) -> Result<(), ImportError> {
        let end = self.tensors.values().map(|(_, range)| range.end).max().unwrap_or(0);
        let end = end.checked_next_multiple_of(self.alignment).and_then(|end| start.checked_add(end));
        match end.and_then(|end| file_bytes.checked_sub(end)) {
            Some(found) if found > 0 => Err(cursor.broken("the end", Fault::TrailingBytes { found })),
            _ => Ok(()),
        }
    }

    fn check_overlaps(&self, cursor: &Cursor<'_>) -> Result<(), ImportError> {
        let mut order: Vec<_> = self.tensors.iter().collect();
        order.sort_by_key(|(_, (_, range))| (range.start, range.end));
        for pair in order.windows(2) {
            let [(before, (_, first)), (after, (_, second))] = pair else {
                continue;
            };
            if second.start < first.end {
                let other = (*before).clone();
                return Err(cursor.broken(&format!("tensor {after:?}"), Fault::Overlap { other }));
            }
        }
        Ok(())
    }
}

/// Turns GGUF's dimensions, fastest axis first, into a row-major shape, and counts the bytes.
fn measure(dims: &[u64], dtype: SourceDtype) -> Result<(TensorInfo, u64), Fault> {
    let overflow = || Fault::SizeOverflow { dims: dims.to_vec() };
    let turned = dims.iter().rev().map(|&dim| usize::try_from(dim));
    let shape: Vec<usize> = turned.collect::<Result<_, _>>().map_err(|_| overflow())?;
    // Blocks never span rows: each row starts with a new one.
    let (row, block) = (dims.first().copied().unwrap_or(1), dtype.block().map_or(1, |(elements, _)| elements as u64));
    if !row.is_multiple_of(block) {
        return Err(Fault::PartialBlock { row, block });
    }
    let info = TensorInfo { shape, dtype };
    let bytes = info.byte_count().ok_or_else(overflow)?;
    Ok((info, bytes as u64))
}

/// The type that a number stands for; in the error, what the number is called.
fn dtype(number: u32) -> Result<SourceDtype, String> {
    let name = match number {
        0 => return Ok(SourceDtype::F32),
        1 => return Ok(SourceDtype::F16),
        2 => return Ok(SourceDtype::Q4_0),
        3 => return Ok(SourceDtype::Q4_1),
        8 => return Ok(SourceDtype::Q8_0),
        12 => return Ok(SourceDtype::Q4_K),
        14 => return Ok(SourceDtype::Q6_K),
        30 => return Ok(SourceDtype::BF16),
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        15 => "Q8_K",
        16..=23 | 29 => "an IQ type",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => "an unknown type",
    };
    Err(format!("{name} (GGUF type {number})"))
}
