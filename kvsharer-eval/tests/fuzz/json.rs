//! Ways to break JSON: values, fields and how deep they stand.

use crate::mutate::WORDS;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;
use std::ops::Range;

/// What happens to a value or a field.
#[derive(Clone, Debug)]
pub(crate) enum JsonChange {
    Replace(Value),
    /// Takes another node's value.
    Copy(Index),
    Remove,
    /// The field stands twice, the second time with this value.
    Double(Value),
    Rename(&'static str),
    /// Inside so many lists.
    Nest(usize),
}

/// Any change.
pub(crate) fn change() -> impl Strategy<Value = JsonChange> {
    let value = || select(VALUES).prop_map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
    prop_oneof![
        3 => value().prop_map(JsonChange::Replace),
        1 => any::<Index>().prop_map(JsonChange::Copy),
        2 => Just(JsonChange::Remove),
        1 => value().prop_map(JsonChange::Double),
        1 => select(WORDS).prop_map(JsonChange::Rename),
        1 => prop_oneof![1..4_usize, 100..300_usize].prop_map(JsonChange::Nest),
    ]
}

const VALUES: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1",
    "2",
    "3",
    "0.5",
    "-0.0",
    "1e-300",
    "1e300",
    "255",
    "65536",
    "16777216",
    "4294967295",
    "4294967296",
    "1099511627776",
    "9223372036854775807",
    "18446744073709551615",
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[\"a\",\"b\"]",
    "[0,1]",
    "{\"0\":0}",
    "{\"a\":{\"a\":[]}}",
    "\"\"",
    "\" \"",
    "\"_\"",
    "\"-\"",
    "\"A\"",
    "\"1\"",
    "\"a  b\"",
    "\"_ _\"",
    "\"{A}\"",
    "\"İß\"",
    "\"\\u0000\"",
    "\"= a =\"",
    "\"\\n\"",
    "\"../x\"",
    "\"/\"",
    "\"\\ud83d\\ude00\"",
];

/// A JSON document in a file: the whole file, the header of a safetensors file, or a line.
pub(crate) fn document(file: &[u8], which: &Index) -> Option<(Range<usize>, Value)> {
    let parsed = |place: Range<usize>| Some((place.clone(), serde_json::from_slice(file.get(place)?).ok()?));
    let header = || {
        let length = u64::from_le_bytes(file.get(..8)?.try_into().ok()?);
        parsed(8..usize::try_from(length).ok()?.checked_add(8)?)
    };
    let line = || {
        let mut start = 0;
        let lines: Vec<Range<usize>> = file
            .split_inclusive(|&byte| byte == b'\n')
            .map(|line| {
                start += line.len();
                start - line.len()..start
            })
            .collect();
        parsed((!lines.is_empty()).then(|| which.get(&lines))?.clone())
    };
    parsed(0..file.len()).or_else(header).or_else(line)
}

/// The JSON pointers of all values, from the outside in.
fn pointers(value: &Value, own: String, found: &mut Vec<String>) {
    found.push(own.clone());
    match value {
        Value::Array(list) => {
            (0..).zip(list).for_each(|(item, value): (usize, _)| pointers(value, format!("{own}/{item}"), found));
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                pointers(value, format!("{own}/{}", name.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        _ => {}
    }
}

/// Marks a field that gets the name of another when it is written: an object in memory has no field twice.
const TWICE: &str = "\u{1}twice:";
const TWICE_WRITTEN: &str = "\"\\u0001twice:";

/// The document as it is written.
pub(crate) fn text(value: &Value) -> String {
    value.to_string().replace(TWICE_WRITTEN, "\"")
}

impl JsonChange {
    /// Changes a value of a document, any one.
    pub(crate) fn apply(&self, value: &mut Value, node: &Index) {
        let mut all = Vec::new();
        pointers(value, String::new(), &mut all);
        let pointer = &all[node.index(all.len())];
        let copied = match self {
            Self::Copy(from) => value.pointer(&all[from.index(all.len())]).cloned(),
            _ => None,
        };
        let Some(found) = value.pointer_mut(pointer) else { return };
        match self {
            Self::Replace(new) => *found = new.clone(),
            Self::Copy(_) => *found = copied.unwrap_or_default(),
            Self::Nest(times) => (0..*times).for_each(|_| *found = Value::Array(vec![found.take()])),
            Self::Remove | Self::Double(_) | Self::Rename(_) => {
                let Some((parent, name)) = pointer.rsplit_once('/') else { return };
                let name = name.replace("~1", "/").replace("~0", "~");
                match (value.pointer_mut(parent), name.parse::<usize>()) {
                    (Some(Value::Object(fields)), _) => self.field(fields, &name),
                    (Some(Value::Array(list)), Ok(item)) => match self {
                        Self::Double(_) => list.insert(item, list[item].clone()),
                        _ => _ = list.remove(item),
                    },
                    _ => {}
                }
            }
        }
    }

    fn field(&self, fields: &mut serde_json::Map<String, Value>, name: &str) {
        match self {
            Self::Double(new) => _ = fields.insert(format!("{TWICE}{name}"), new.clone()),
            Self::Rename(new) => {
                let value = fields.remove(name).unwrap_or_default();
                fields.insert((*new).into(), value);
            }
            _ => _ = fields.remove(name),
        }
    }
}
