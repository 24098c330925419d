//! Metadata values. They stay in the file's bytes: strings and arrays are borrowed, and an array's
//! elements are read when they are asked for, so that a header takes no memory that a broken count
//! could blow up.

use std::fmt;

use super::super::{Fault, ImportError};
use super::cursor::Cursor;

/// How deep arrays of arrays may be nested; the format sets no limit, real files stop at 1.
const DEEPEST: usize = 4;

/// The kind of a value, by the number that the format gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Str = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Str,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// Reads the number of a kind.
    pub(super) fn read(cursor: &mut Cursor<'_>, what: &str) -> Result<Self, ImportError> {
        let kind = cursor.u32(what)?;
        let known = usize::try_from(kind).ok().and_then(|kind| Self::ALL.get(kind));
        known.copied().ok_or_else(|| cursor.broken(what, Fault::UnknownKind { kind }))
    }

    /// The fewest bytes that a value of this kind takes.
    fn least_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Str => 8,
            Self::Array => 4 + 8,
        }
    }
}

/// A metadata value.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    /// An integer of any width and sign.
    Int(i128),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Str(&'a str),
    /// A list of values of one kind.
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// Reads a value of a known kind and checks all that it contains.
    pub(super) fn read(cursor: &mut Cursor<'a>, kind: Kind, what: &str) -> Result<Self, ImportError> {
        Self::read_nested(cursor, kind, what, 0)
    }

    fn read_nested(cursor: &mut Cursor<'a>, kind: Kind, what: &str, depth: usize) -> Result<Self, ImportError> {
        Ok(match kind {
            Kind::U8 => Self::Int(u8::from_le_bytes(cursor.array(what)?).into()),
            Kind::I8 => Self::Int(i8::from_le_bytes(cursor.array(what)?).into()),
            Kind::U16 => Self::Int(u16::from_le_bytes(cursor.array(what)?).into()),
            Kind::I16 => Self::Int(i16::from_le_bytes(cursor.array(what)?).into()),
            Kind::U32 => Self::Int(u32::from_le_bytes(cursor.array(what)?).into()),
            Kind::I32 => Self::Int(i32::from_le_bytes(cursor.array(what)?).into()),
            Kind::U64 => Self::Int(u64::from_le_bytes(cursor.array(what)?).into()),
            Kind::I64 => Self::Int(i64::from_le_bytes(cursor.array(what)?).into()),
            Kind::F32 => Self::F32(f32::from_le_bytes(cursor.array(what)?)),
            Kind::F64 => Self::F64(f64::from_le_bytes(cursor.array(what)?)),
            Kind::Bool => match cursor.array(what)? {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                [byte] => return Err(cursor.broken(what, Fault::NotABool { byte })),
            },
            Kind::Str => Self::Str(cursor.str(what)?),
            Kind::Array => Self::Array(Array::read(cursor, what, depth + 1)?),
        })
    }
}

/// The kind and, but for arrays, the value: what a message says of it.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => write!(f, "the integer {value}"),
            Self::F32(value) => write!(f, "the float {value}"),
            Self::F64(value) => write!(f, "the float {value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Str(value) => write!(f, "the text {value:?}"),
            Self::Array(array) => write!(f, "a list of {} values of kind {:?}", array.len(), array.kind()),
        }
    }
}

/// A list of values of one kind.
#[derive(Debug, Clone)]
pub struct Array<'a> {
    kind: Kind,
    count: u64,
    depth: usize,
    /// Stands at the first element.
    elements: Cursor<'a>,
}

impl<'a> Array<'a> {
    fn read(cursor: &mut Cursor<'a>, what: &str, depth: usize) -> Result<Self, ImportError> {
        if depth > DEEPEST {
            return Err(cursor.broken(what, Fault::TooDeep { limit: DEEPEST }));
        }
        let kind = Kind::read(cursor, what)?;
        let count = cursor.u64(what)?;
        cursor.check_left(count, kind.least_bytes(), what)?;
        let array = Self { kind, count, depth, elements: cursor.clone() };
        for _ in 0..count {
            Value::read_nested(cursor, kind, what, depth)?;
        }
        Ok(array)
    }

    /// The kind of every element.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The number of elements, each of which lies in the file.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let Self { kind, depth, .. } = *self;
        let mut cursor = self.elements.clone();
        // Everything was read once when the file was opened, so that no element fails here.
        (0..self.count).map_while(move |_| Value::read_nested(&mut cursor, kind, "a list", depth).ok())
    }
}

/// A Rust type that a metadata value can be taken as.
pub trait FromValue<'a>: Sized {
    /// What the value should be, for messages.
    const EXPECTED: &'static str;

    /// The value as this type; `None` if it is of another kind or out of range.
    fn from_value(value: &Value<'a>) -> Option<Self>;
}

/// Implements [`FromValue`] for a type by one pattern.
macro_rules! from_value {
    ($type:ty, $expected:literal, $pattern:pat => $result:expr) => {
        impl<'a> FromValue<'a> for $type {
            const EXPECTED: &'static str = $expected;

            fn from_value(value: &Value<'a>) -> Option<Self> {
                match value {
                    $pattern => $result,
                    _ => None,
                }
            }
        }
    };
}

// Writers differ in the width they give an integer; any that fits is taken.
from_value!(u32, "an integer of 32 bits without sign", Value::Int(value) => (*value).try_into().ok());
from_value!(i32, "an integer of 32 bits", Value::Int(value) => (*value).try_into().ok());
from_value!(u64, "an integer of 64 bits without sign", Value::Int(value) => (*value).try_into().ok());
from_value!(i64, "an integer of 64 bits", Value::Int(value) => (*value).try_into().ok());
from_value!(usize, "an integer without sign", Value::Int(value) => (*value).try_into().ok());
from_value!(f32, "a 32-bit float", Value::F32(value) => Some(*value));
from_value!(bool, "true or false", Value::Bool(value) => Some(*value));
from_value!(&'a str, "a text", Value::Str(value) => Some(value));
from_value!(Vec<&'a str>, "a list of texts", Value::Array(array) => collect(array));
from_value!(Vec<u32>, "a list of integers of 32 bits without sign", Value::Array(array) => collect(array));
from_value!(Vec<i32>, "a list of integers of 32 bits", Value::Array(array) => collect(array));
from_value!(Vec<f32>, "a list of 32-bit floats", Value::Array(array) => collect(array));
from_value!(Vec<bool>, "a list of true or false", Value::Array(array) => collect(array));

fn collect<'a, T: FromValue<'a>>(array: &Array<'a>) -> Option<Vec<T>> {
    array.iter().map(|value| T::from_value(&value)).collect()
}
