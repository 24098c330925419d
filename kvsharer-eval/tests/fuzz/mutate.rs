//! Ways to break a file: bytes, numbers and lengths of binary formats, words and lines of texts, fields of JSON.

use crate::json::{self, JsonChange};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::ops::Range;

/// One way to break a file; what does not apply changes nothing.
#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Flip {
        at: Index,
        bits: u8,
    },
    Truncate {
        at: Index,
    },
    Remove {
        at: Index,
        bytes: usize,
    },
    Insert {
        at: Index,
        bytes: Vec<u8>,
    },
    /// Copies a piece to another place.
    Splice {
        from: Index,
        bytes: usize,
        to: Index,
    },
    /// Overwrites what may be a count, a kind or a dimension, at any place.
    Number {
        at: Index,
        number: u64,
        bytes: usize,
    },
    /// Overwrites a number of 64 bits that may be a length: one that is no greater than the file.
    Length {
        of: Index,
        number: u64,
    },
    /// Another number in the place of one that is written in digits.
    Digits {
        of: Index,
        text: &'static str,
    },
    /// A word in the place of another: from the file, or a strange one.
    Word {
        of: Index,
        by: Result<Index, &'static str>,
    },
    Line {
        of: Index,
        change: LineChange,
    },
    Json {
        document: Index,
        node: Index,
        change: JsonChange,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum LineChange {
    Remove,
    Double,
    SwapWithNext,
}

/// Any of them.
pub(crate) fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    let piece = || prop_oneof![1..9_usize, 1..300_usize];
    let change = select(vec![LineChange::Remove, LineChange::Double, LineChange::SwapWithNext]);
    let word = prop_oneof![at().prop_map(Ok), select(WORDS).prop_map(Err)];
    prop_oneof![
        1 => (at(), 1_u8..).prop_map(|(at, bits)| Mutation::Flip { at, bits }),
        1 => at().prop_map(|at| Mutation::Truncate { at }),
        1 => (at(), piece()).prop_map(|(at, bytes)| Mutation::Remove { at, bytes }),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Mutation::Insert { at, bytes }),
        1 => (at(), piece(), at()).prop_map(|(from, bytes, to)| Mutation::Splice { from, bytes, to }),
        2 => (at(), number(), select(&[1_usize, 4, 8][..]))
            .prop_map(|(at, number, bytes)| Mutation::Number { at, number, bytes }),
        2 => (at(), number()).prop_map(|(of, number)| Mutation::Length { of, number }),
        3 => (at(), select(NUMBERS)).prop_map(|(of, text)| Mutation::Digits { of, text }),
        3 => (at(), word).prop_map(|(of, by)| Mutation::Word { of, by }),
        1 => (at(), change).prop_map(|(of, change)| Mutation::Line { of, change }),
        9 => (at(), at(), json::change())
            .prop_map(|(document, node, change)| Mutation::Json { document, node, change }),
    ]
}

/// Small numbers, and all that overflows somewhere.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..300, (0_u32..64).prop_map(|bit| 1 << bit), Just(u64::MAX), Just(u64::MAX / 8 + 1), any::<u64>()]
}

const NUMBERS: &[&str] = &[
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "0.5",
    "-0.0",
    "1e-400",
    "1e308",
    "1e400",
    "nan",
    "inf",
    "4294967296",
    "100%",
    "0%",
    "1..9",
    "1/2/3",
    "9007199254740993",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999",
];

pub(crate) const WORDS: &[&str] = &[
    "",
    "null",
    "true",
    "a",
    "../../x",
    "/dev/zero",
    "\u{0}",
    "é",
    "😀",
    "\u{feff}",
    "\u{202e}",
    "'",
    "\"",
    "\\",
    "{",
    "}",
    "[[x]]",
    "=",
    ":",
    ",",
    "%",
    "{{",
    "}}",
    "{%",
    "\n",
    "\r",
    "\t",
    "0x10",
    "range(99999999)",
    "x * 99999999",
];

impl Mutation {
    /// Breaks `file`.
    pub(crate) fn apply(&self, file: &mut Vec<u8>) {
        let length = file.len();
        let place = |at: &Index| at.index(length + 1);
        let piece = |at: &Index, bytes: usize| place(at)..(place(at) + bytes).min(length);
        match self {
            // Most of what can go wrong in a binary file stands in its first bytes.
            Self::Flip { at, bits } => {
                let at = near_start(at, length);
                file.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bits);
            }
            Self::Truncate { at } => file.truncate(place(at)),
            Self::Remove { at, bytes } => drop(file.drain(piece(at, *bytes))),
            Self::Insert { at, bytes } => drop(file.splice(place(at)..place(at), bytes.iter().copied())),
            Self::Splice { from, bytes, to } => {
                let copy = file[piece(from, *bytes)].to_vec();
                file.splice(place(to)..place(to), copy);
            }
            Self::Number { at, number, bytes } => {
                overwrite(file, near_start(at, length), &number.to_le_bytes()[..*bytes])
            }
            Self::Length { of, number } => {
                let value = |at: &usize| u64::from_le_bytes(file[*at..at + 8].try_into().expect("8 bytes"));
                let lengths: Vec<usize> = (0..length.min(4096).saturating_sub(7))
                    .filter(|at| (1..=length as u64).contains(&value(at)))
                    .collect();
                if !lengths.is_empty() {
                    overwrite(file, *of.get(&lengths), &number.to_le_bytes());
                }
            }
            Self::Digits { of, text } => {
                replace(file, of, text.as_bytes(), |byte| byte.is_ascii_digit() || byte == b'.')
            }
            Self::Word { of, by } => {
                let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
                let text = match by {
                    Err(text) => text.as_bytes().to_vec(),
                    Ok(index) => nth_run(file, index, is_word).map_or(Vec::new(), |run| file[run].to_vec()),
                };
                replace(file, of, &text, is_word);
            }
            Self::Line { of, change } => {
                let mut lines: Vec<&[u8]> = file.split_inclusive(|&byte| byte == b'\n').collect();
                if lines.is_empty() {
                    return;
                }
                let (at, next) = (of.index(lines.len()), (of.index(lines.len()) + 1) % lines.len());
                match change {
                    LineChange::Remove => _ = lines.remove(at),
                    LineChange::Double => lines.insert(at, lines[at]),
                    LineChange::SwapWithNext => lines.swap(at, next),
                }
                *file = lines.concat();
            }
            Self::Json { document, node, change } => {
                if let Some((place, mut value)) = json::document(file, document) {
                    change.apply(&mut value, node);
                    let text = json::text(&value);
                    let prefixed = place.start == 8;
                    file.splice(place, text.bytes());
                    if prefixed {
                        overwrite(file, 0, &(text.len() as u64).to_le_bytes());
                    }
                } else {
                    Self::Word { of: *node, by: Ok(*document) }.apply(file);
                }
            }
        }
    }
}

fn near_start(at: &Index, length: usize) -> usize {
    at.index(if at.index(2) == 0 { length } else { length.min(2048) }.max(1))
}

fn overwrite(file: &mut [u8], at: usize, bytes: &[u8]) {
    file.iter_mut().skip(at).zip(bytes).for_each(|(byte, new)| *byte = *new);
}

/// A run of bytes that are alike, the `of`-th.
fn nth_run(file: &[u8], of: &Index, is: impl Fn(u8) -> bool) -> Option<Range<usize>> {
    let starts = |at: &usize| is(file[*at]) && (*at == 0 || !is(file[at - 1]));
    let runs: Vec<usize> = (0..file.len()).filter(starts).collect();
    let start = *(!runs.is_empty()).then(|| of.get(&runs))?;
    Some(start..start + file[start..].iter().take_while(|&&byte| is(byte)).count())
}

fn replace(file: &mut Vec<u8>, of: &Index, text: &[u8], is: impl Fn(u8) -> bool) {
    if let Some(run) = nth_run(file, of, is) {
        file.splice(run, text.iter().copied());
    }
}
