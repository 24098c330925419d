//! The published on-disk forms: JSON lines, JSON, CSV, text, folders of files.

use super::{Fault, Place, Row, TaskError};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::str::Utf8Error;
use std::sync::Arc;

/// Rows in order of the file; a bad one does not hide those after it.
pub(super) type Rows = Vec<Result<Row, TaskError>>;

/// How a benchmark lies on disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    /// The files that a path stands for.
    pub(super) files: fn(&Path) -> Result<Vec<PathBuf>, TaskError>,
    /// The rows of one of them.
    pub(super) rows: fn(&Path) -> Result<Rows, TaskError>,
    /// A second file that those rows are read from.
    pub(super) beside: fn(&Path) -> Option<PathBuf>,
    /// Where the items for examples are, if not told: given the path of the items.
    pub(super) dev: fn(&Path) -> Option<PathBuf>,
}

impl Reader {
    /// One file.
    pub(super) const fn file(rows: fn(&Path) -> Result<Rows, TaskError>) -> Self {
        Self { files: |path| Ok(vec![path.into()]), rows, beside: |_| None, dev: |_| None }
    }

    /// All rows of all files, one after the other.
    pub(super) fn read(&self, path: &Path) -> Result<Rows, TaskError> {
        let rows: Vec<Rows> = (self.files)(path)?.iter().map(|file| (self.rows)(file)).collect::<Result<_, _>>()?;
        Ok(rows.into_iter().flatten().collect())
    }
}

/// One JSON object a line; blank lines are skipped. A file that is one JSON list is taken as its elements.
pub(super) fn json_lines(path: &Path) -> Result<Rows, TaskError> {
    let bytes = bytes(path)?;
    if bytes.trim_ascii_start().starts_with(b"[")
        && let Ok(Value::Array(list)) = serde_json::from_slice(&bytes)
    {
        let shared = shared(path);
        let lines = lines_of_elements(&bytes, None);
        let rows = list.into_iter().zip(lines).map(|(value, line)| object(Place::new(&shared, line), value));
        return Ok(rows.collect());
    }
    let parse = |(place, text): (Place, &str)| match serde_json::from_str(text) {
        Ok(value) => object(place, value),
        Err(error) => Err(bad(&place, Fault::Json(error.to_string()))),
    };
    Ok(lines_of(path, &bytes).map(|line| parse(line?)).collect())
}

/// The elements of a list that is a whole file, or the field `key` of one; a file that has no such list is one bad row.
pub(super) fn json_list(path: &Path, key: Option<&str>) -> Result<Rows, TaskError> {
    let row = match whole_json(path) {
        Ok(row) => row,
        Err(error) => return Ok(vec![Err(error)]),
    };
    let list = match key {
        Some(key) => row.list(key).map(<[Value]>::to_vec),
        None => row.value.as_array().cloned().ok_or_else(|| not(&row.value, "a list")),
    };
    let list = match list {
        Ok(list) => list,
        Err(fault) => return Ok(vec![Err(bad(&row.place, fault))]),
    };
    let lines = lines_of_elements(&bytes(path)?, key);
    let shared = shared(path);
    let places = lines.into_iter().map(|line| Place::new(&shared, line)).chain(std::iter::repeat(row.place));
    Ok(list.into_iter().zip(places).map(|(value, place)| Ok(Row { place, value, subset: None })).collect())
}

/// The whole file as one JSON value, at line 1.
pub(super) fn whole_json(path: &Path) -> Result<Row, TaskError> {
    let bytes = bytes(path)?;
    let place = |line| Place::new(&shared(path), line);
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Row { place: place(1), value, subset: None }),
        Err(_) if std::str::from_utf8(&bytes).is_err() => Err(bad(&place(1), Fault::Utf8)),
        Err(error) => Err(bad(&place(error.line().max(1)), Fault::Json(error.to_string()))),
    }
}

/// The non-blank lines of a text file, each a row with the one field `key`.
pub(super) fn text_lines(path: &Path, key: &str) -> Result<Rows, TaskError> {
    let bytes = bytes(path)?;
    let row = |(place, text): (Place, &str)| Row { place, value: field(key, text), subset: None };
    Ok(lines_of(path, &bytes).map(|line| line.map(row)).collect())
}

/// A whole text, with line breaks as Python reads them.
pub(super) fn whole_text(path: &Path) -> Result<String, TaskError> {
    let text = String::from_utf8(bytes(path)?);
    text.map(|text| unix(&text)).map_err(|_| bad(&Place::new(&shared(path), 1), Fault::Utf8))
}

/// CSV records as objects with these fields, with quotes as RFC 4180 has them. All records must have all columns.
pub(super) fn csv(path: &Path, columns: &[&str]) -> Result<Rows, TaskError> {
    let bytes = bytes(path)?;
    let path = shared(path);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&bytes[..]);
    let mut rows: Rows = Vec::new();
    let mut record = csv::ByteRecord::new();
    loop {
        let start = usize::try_from(reader.position().byte()).unwrap_or(0);
        match reader.read_byte_record(&mut record) {
            Ok(false) => return Ok(rows),
            Ok(true) => {}
            Err(error) => {
                let line = reader.position().line();
                rows.push(Err(bad(&csv_place(&path, line), Fault::Csv(error.to_string()))));
                return Ok(rows);
            }
        }
        let end = usize::try_from(reader.position().byte()).unwrap_or(usize::MAX).min(bytes.len());
        let raw = &bytes[start.min(end)..end];
        // Blank lines before a record count as part of it.
        let blank = raw.iter().take_while(|&&byte| byte == b'\n' || byte == b'\r');
        let blank = blank.filter(|&&byte| byte == b'\n').count() as u64;
        let place = csv_place(&path, record.position().map_or(1, csv::Position::line) + blank);
        let texts = record.iter().map(|field| std::str::from_utf8(field).map(|text| Value::from(unix(text))));
        let fields = columns.iter().zip(texts).map(|(name, text)| Ok(((*name).to_owned(), text?)));
        let fields: Result<Map<String, Value>, Utf8Error> = fields.collect();
        rows.push(match fields {
            _ if end == bytes.len() && ends_in_quotes(raw) => {
                Err(bad(&place, Fault::Csv("a quote is never closed".into())))
            }
            _ if record.len() != columns.len() => {
                let what = format!("{} columns, expected {}", record.len(), columns.len());
                Err(bad(&place, Fault::Csv(what)))
            }
            Err(_) => Err(bad(&place, Fault::Utf8)),
            Ok(fields) => Ok(Row { place, value: fields.into(), subset: None }),
        });
    }
}

fn csv_place(path: &Arc<Path>, line: u64) -> Place {
    Place::new(path, usize::try_from(line).unwrap_or(usize::MAX))
}

/// Whether a record is inside quotes where it ends: the CSV reader takes the end of a file for the end of a field.
fn ends_in_quotes(record: &[u8]) -> bool {
    enum At {
        Start,
        Plain,
        Quoted,
        Closed,
    }
    let end = record.iter().fold(At::Start, |at, byte| match (at, byte) {
        (At::Quoted, b'"') => At::Closed,
        (At::Quoted, _) | (At::Start | At::Closed, b'"') => At::Quoted,
        (_, b',' | b'\n' | b'\r') => At::Start,
        _ => At::Plain,
    });
    matches!(end, At::Quoted)
}

/// `path` itself, or the files of the folder whose name ends so, in order of their names.
pub(super) fn files(path: &Path, ending: &str) -> Result<Vec<PathBuf>, TaskError> {
    let io = |source| TaskError::Io { path: path.into(), source };
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // `._name` is what some systems leave beside `name` in an archive.
        if name.ends_with(ending) && !name.starts_with('.') {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The folder `part` of `path`, if it has one; else `path`.
pub(super) fn part_of(path: &Path, part: &str) -> PathBuf {
    let inner = path.join(part);
    if inner.is_dir() { inner } else { path.into() }
}

pub(super) fn bad(place: &Place, fault: Fault) -> TaskError {
    TaskError::BadItem { place: place.clone(), fault }
}

/// An object with one field.
pub(super) fn field(key: &str, text: &str) -> Value {
    Value::Object([(key.to_owned(), Value::from(text))].into_iter().collect())
}

pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, TaskError> {
    let bytes = std::fs::read(path).map_err(|source| TaskError::Io { path: path.into(), source })?;
    Ok(bytes.strip_prefix(b"\xef\xbb\xbf").map(<[u8]>::to_vec).unwrap_or(bytes))
}

fn object(place: Place, value: Value) -> Result<Row, TaskError> {
    if value.is_object() { Ok(Row { place, value, subset: None }) } else { Err(bad(&place, not(&value, "an object"))) }
}

fn not(value: &Value, expected: &'static str) -> Fault {
    super::row::wrong_type("the item", expected, value)
}

pub(super) fn shared(path: &Path) -> Arc<Path> {
    Arc::from(path)
}

fn unix(text: &str) -> String {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text.into() }
}

fn lines_of<'a>(path: &Path, bytes: &'a [u8]) -> impl Iterator<Item = Result<(Place, &'a str), TaskError>> {
    let path = shared(path);
    let lines = bytes.split(|&byte| byte == b'\n').zip(1..);
    let filled = lines.filter(|(line, _)| !line.trim_ascii().is_empty());
    filled.map(move |(line, number)| {
        let place = Place::new(&path, number);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match std::str::from_utf8(line) {
            Ok(text) => Ok((place, text)),
            Err(_) => Err(bad(&place, Fault::Utf8)),
        }
    })
}

/// The lines where the elements of a list begin, in JSON that has been parsed: the whole file is the list, or an object
/// with it in its field `key`.
fn lines_of_elements(json: &[u8], key: Option<&str>) -> Vec<usize> {
    let mut lines = Vec::new();
    let (mut depth, mut line) = (0_usize, 1);
    // Start of an open string; the string before the current byte, at this depth; depth of the list's elements.
    let (mut open, mut last, mut list): (Option<usize>, &[u8], Option<usize>) = (None, b"", None);
    let (mut escaped, mut awaits) = (false, false);
    for (index, &byte) in json.iter().enumerate() {
        line += usize::from(byte == b'\n');
        if let Some(start) = open {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => (open, last) = (None, json.get(start + 1..index).unwrap_or_default()),
                _ => {}
            }
            continue;
        }
        if awaits && !byte.is_ascii_whitespace() {
            awaits = false;
            if byte != b']' {
                lines.push(line);
            }
        }
        match byte {
            b'"' => open = Some(index),
            b'[' | b'{' => {
                let wanted = match key {
                    None => depth == 0,
                    Some(key) => depth == 1 && last == key.as_bytes(),
                };
                depth += 1;
                if byte == b'[' && wanted && list.is_none() {
                    (list, awaits) = (Some(depth), true);
                }
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                if list.is_some_and(|list| depth < list) {
                    return lines;
                }
            }
            b',' => awaits = list == Some(depth),
            _ => {}
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tempfile::TempDir;

    fn read(bytes: &[u8], read: impl Fn(&Path) -> Result<Rows, TaskError>) -> Vec<(usize, Result<Value, String>)> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        let row = |row: Result<Row, TaskError>| match row {
            Ok(row) => (row.place.line(), Ok(row.value)),
            Err(TaskError::BadItem { place, fault }) => (place.line(), Err(fault.to_string())),
            Err(error) => panic!("{error}"),
        };
        read(&path).unwrap().into_iter().map(row).collect()
    }

    #[test]
    fn json_lines_know_their_lines_and_what_is_wrong() {
        let rows = read(b"\xef\xbb\xbf{\"a\":1}\r\n\n[1]\n{\"a\"\n{\"a\":\"\xff\"}\n{\"a\":2}", json_lines);
        assert_eq!(rows[0], (1, Ok(json!({"a": 1}))));
        assert_eq!(rows[1], (3, Err("`the item` is [1], expected an object".into())));
        assert!(rows[2].0 == 4 && rows[2].1.as_ref().unwrap_err().contains("is no JSON"), "{rows:?}");
        assert_eq!(rows[3], (5, Err("is no UTF-8 text".into())));
        assert_eq!(rows[4], (6, Ok(json!({"a": 2}))));
        assert_eq!(rows.len(), 5);
    }

    #[test]
    fn a_file_that_is_a_list_is_taken_as_its_elements() {
        let rows = read(b"\n[{\"a\": \"],\\\"[\"},\n\n {\"b\": [1,\n2]}, 3]", json_lines);
        assert_eq!(rows[0], (2, Ok(json!({"a": "],\"["}))));
        assert_eq!(rows[1], (4, Ok(json!({"b": [1, 2]}))));
        assert_eq!(rows[2], (5, Err("`the item` is 3, expected an object".into())));
    }

    #[test]
    fn lists_inside_an_object_know_their_lines() {
        let file = b"{\"x\": [[\n1], {\"of\": [7]}], \"of\": [\n1,\n[2,\n3]], \"y\": [4]}";
        assert_eq!(read(file, |path| json_list(path, Some("of"))), [(3, Ok(json!(1))), (4, Ok(json!([2, 3])))]);
        let message = "`the item` is {\"of\":[1]}, expected a list".to_owned();
        assert_eq!(read(b"{\"of\": [1]}", |path| json_list(path, None)), [(1, Err(message))]);
        assert_eq!(read(b"{}", |path| json_list(path, Some("of"))), [(1, Err("has no `of`".into()))]);
        assert_eq!(read(b"[ ]", |path| json_list(path, None)), []);
    }

    #[test]
    fn deep_json_is_refused() {
        let rows = read(&b"[".repeat(100_000), json_lines);
        assert!(rows[0].1.as_ref().unwrap_err().contains("recursion limit"), "{rows:?}");
    }

    #[test]
    fn csv_keeps_quotes_line_breaks_and_line_numbers() {
        let rows = read(b"\xef\xbb\xbfa,\"b \"\"c\"\"\r\nd, \"\r\n\r\ne,5\" f\r\n", |path| csv(path, &["x", "y"]));
        assert_eq!(rows, [(1, Ok(json!({"x": "a", "y": "b \"c\"\nd, "}))), (4, Ok(json!({"x": "e", "y": "5\" f"})))]);
    }

    #[test]
    fn csv_refuses_wrong_columns_bytes_and_open_quotes() {
        let columns = (1, Err("is no CSV record (3 columns, expected 2)".into()));
        assert_eq!(
            read(b"a,b,c\nd,e\n", |path| csv(path, &["x", "y"])),
            [columns, (2, Ok(json!({"x": "d", "y": "e"})))]
        );
        assert_eq!(read(b"a,\xff\n", |path| csv(path, &["x", "y"])), [(1, Err("is no UTF-8 text".into()))]);
        let open = "is no CSV record (a quote is never closed)".to_owned();
        assert_eq!(read(b"a,b\nc,\"d\ne,f\n", |path| csv(path, &["x", "y"]))[1], (2, Err(open)));
        assert_eq!(read(b"a,5\"", |path| csv(path, &["x", "y"])), [(1, Ok(json!({"x": "a", "y": "5\""})))]);
        assert_eq!(read(b"a,\"b\"\"\"", |path| csv(path, &["x", "y"])), [(1, Ok(json!({"x": "a", "y": "b\""})))]);
    }

    #[test]
    fn text_lines_are_fields() {
        let rows = read(b"one \r\n\ntwo", |path| text_lines(path, "text"));
        assert_eq!(rows, [(1, Ok(json!({"text": "one "}))), (3, Ok(json!({"text": "two"})))]);
    }

    #[test]
    fn a_folder_gives_its_own_files_in_order() {
        let folder = TempDir::new().unwrap();
        for name in ["b.csv", "a.csv", "._a.csv", "c.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("dev")).unwrap();
        std::fs::write(folder.path().join("dev/d.csv"), "").unwrap();
        let names = |files: Vec<PathBuf>| -> Vec<String> {
            files.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect()
        };
        assert_eq!(names(files(folder.path(), ".csv").unwrap()), ["a.csv", "b.csv"]);
        assert_eq!(part_of(folder.path(), "dev"), folder.path().join("dev"));
        assert_eq!(part_of(folder.path(), "test"), folder.path());
    }
}
