//! What can be wrong with a model on disk. Every message is one line and ends with what to do.

use std::path::PathBuf;

use safetensors::SafeTensorError;
use thiserror::Error;

/// An error of a library below this one, kept as the source of ours.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a model, one of its tensors or its tokenizer could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The operating system refused to read a file.
    #[error("cannot read {}: {source}; check that it exists and may be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The path holds something other than a model this crate reads.
    #[error("{} is not a model: {why}; give a folder with safetensors or a .gguf file", path.display())]
    NotAModel {
        /// The file or folder.
        path: PathBuf,
        /// What was found instead.
        why: String,
    },
    /// A file of a sharded model is not there.
    #[error("{} is missing: {} says that it holds tensor {tensor:?}; fetch the missing file", shard.display(), index.display())]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The file that should lie beside it.
        shard: PathBuf,
        /// The first of its tensors.
        tensor: String,
    },
    /// A length or a count in the file points beyond its end.
    #[error("{} is cut short: {what} needs {needed} bytes, {left} are left; fetch the file again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part that does not fit.
        what: String,
        /// Bytes that the part takes.
        needed: u64,
        /// Bytes that are left for it.
        left: u64,
    },
    /// The file contradicts itself or its format.
    #[error("{} is broken: {place} {fault}; fetch the file again", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The part that is wrong.
        place: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A tensor's element type is not one of [`SourceDtype`](super::SourceDtype).
    #[error(
        "{}: tensor {tensor:?} is stored as {dtype}, which is not supported; use {}",
        path.display(), super::SourceDtype::SUPPORTED
    )]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type, as the file has it.
        dtype: String,
    },
    /// A tensor that the model needs is not there.
    #[error("{} has no tensor {name:?}; check that the file belongs to this model family", path.display())]
    MissingTensor {
        /// The tensor.
        name: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A tensor's shape is not what the model's configuration says.
    #[error(
        "{}: tensor {name:?} has shape {found:?}, expected {expected:?}; check that weights and configuration belong together",
        path.display()
    )]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape that the configuration asks for, row-major.
        expected: Vec<usize>,
        /// The shape in the file, row-major.
        found: Vec<usize>,
    },
    /// A tensor holds a value that no weight can have.
    #[error("{}: tensor {name:?} holds {value} at element {index}, expected finite numbers; fetch the file again", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Position of the first such value, row-major.
        index: usize,
        /// The value: NaN or an infinity.
        value: f32,
    },
    /// A metadata value is absent, or of another kind than the format says.
    #[error("{}: metadata {key:?} should be {expected}, found {found}; convert the model again", path.display())]
    BadMetadata {
        /// The file.
        path: PathBuf,
        /// The metadata key.
        key: String,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// The tokenizer is broken or of a kind that is not supported.
    #[error("{}: cannot use the tokenizer: {fault}", path.display())]
    BadTokenizer {
        /// The file that holds the tokenizer.
        path: PathBuf,
        /// What is wrong with it.
        fault: TokenizerFault,
    },
    /// The tokenizers library failed on a text or on ids.
    #[error("the tokenizer failed: {0}; check that tokenizer and text belong together")]
    Tokenize(#[source] BoxError),
}

/// What is wrong with a part of a model file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Fault {
    /// More bytes than the tensors take.
    #[error("has {found} bytes that belong to no tensor")]
    TrailingBytes {
        /// How many.
        found: u64,
    },
    /// A name stands in the file twice.
    #[error("stands there twice")]
    Duplicate,
    /// A text is not UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
    /// A name is longer than the format allows.
    #[error("has a name of {bytes} bytes, more than the format's {limit}")]
    NameTooLong {
        /// Bytes in the name.
        bytes: u64,
        /// Most bytes that are allowed.
        limit: u64,
    },
    /// A metadata value's kind is not one of the format's.
    #[error("has the unknown value kind {kind}")]
    UnknownKind {
        /// The number in the file.
        kind: u32,
    },
    /// A truth value is neither 0 nor 1.
    #[error("has the byte {byte} for a truth value")]
    NotABool {
        /// The byte in the file.
        byte: u8,
    },
    /// Arrays are nested too deeply.
    #[error("nests arrays more than {limit} deep")]
    TooDeep {
        /// The deepest nesting that is read.
        limit: usize,
    },
    /// The data alignment is not a power of two.
    #[error("is {found}, not a power of two")]
    BadAlignment {
        /// The number in the file.
        found: u32,
    },
    /// A tensor has more axes than the format allows.
    #[error("has {found} axes, more than the format's {limit}")]
    TooManyAxes {
        /// Axes in the file.
        found: u32,
        /// Most axes that are allowed.
        limit: u32,
    },
    /// A tensor's size does not fit into memory.
    #[error("has a size that overflows: {dims:?}")]
    SizeOverflow {
        /// The lengths of its axes.
        dims: Vec<u64>,
    },
    /// A tensor's rows do not consist of whole quantised blocks.
    #[error("has rows of {row} elements, not a multiple of its block of {block}")]
    PartialBlock {
        /// Elements in a row.
        row: u64,
        /// Elements in a block.
        block: u64,
    },
    /// A tensor does not start at a multiple of the alignment.
    #[error("starts at offset {offset}, not a multiple of {alignment}")]
    Unaligned {
        /// Offset from the start of the data.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// Two tensors lie on the same bytes.
    #[error("overlaps tensor {other:?}")]
    Overlap {
        /// The other tensor.
        other: String,
    },
    /// A tensor's bytes are not as many as its shape and type say.
    #[error("has {found} bytes where its shape and type take {expected}")]
    WrongSize {
        /// Bytes that shape and type take.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// An index names a shard by more than a plain file name.
    #[error("names a file outside the model's folder")]
    OutsideFolder,
    /// The safetensors header is wrong.
    #[error("is not valid: {0}")]
    Safetensors(#[source] SafeTensorError),
    /// A JSON file is wrong.
    #[error("is not valid JSON: {0}")]
    Json(#[source] serde_json::Error),
}

/// What is wrong with a tokenizer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerFault {
    /// A GGUF tokenizer of a kind that is not read.
    #[error(
        "its model is {model:?}; only \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece BPE) are read from GGUF, \
         take the model's tokenizer.json"
    )]
    UnsupportedModel {
        /// `tokenizer.ggml.model` in the file.
        model: String,
    },
    /// A GGUF pre-tokenizer whose splitting rule is not known here.
    #[error("its pre-tokenizer is {pre:?}; only {supported} are supported, take the model's tokenizer.json")]
    UnsupportedPre {
        /// `tokenizer.ggml.pre` in the file.
        pre: String,
        /// The names that are supported.
        supported: &'static str,
    },
    /// The lists of tokens and of their types differ in length.
    #[error("{tokens} tokens have {types} types; convert the model again")]
    TypesDiffer {
        /// Number of tokens.
        tokens: usize,
        /// Number of types.
        types: usize,
    },
    /// The lists of tokens and of their scores differ in length.
    #[error("{tokens} tokens have {scores} scores; convert the model again")]
    ScoresDiffer {
        /// Number of tokens.
        tokens: usize,
        /// Number of scores.
        scores: usize,
    },
    /// A setting of a SentencePiece tokenizer that is not supported.
    #[error("it has {what}, which is not supported; take the model's tokenizer.json")]
    SentencePiece {
        /// The setting.
        what: &'static str,
    },
    /// A token's id is beyond the model's vocabulary.
    #[error(
        "token {token:?} has the id {id}, expected less than the model's vocabulary of {vocab}; take the tokenizer that \
         belongs to the model"
    )]
    BeyondVocabulary {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the model's embedding.
        vocab: usize,
    },
    /// A token type that the format does not define.
    #[error("token {id} has the unknown type {kind}; convert the model again")]
    UnknownType {
        /// The token's id.
        id: usize,
        /// The number in the file.
        kind: i32,
    },
    /// Two ids have the same text.
    #[error("ids {first} and {second} are both {token:?}; convert the model again")]
    DuplicateToken {
        /// The text.
        token: String,
        /// The first id.
        first: u32,
        /// The second id.
        second: u32,
    },
    /// A merge rule names a token that is not in the vocabulary.
    #[error("merge {index} ({merge:?}) does not join two tokens into a third; fetch the file again")]
    BadMerge {
        /// Position in the list of merges.
        index: usize,
        /// The rule as it stands in the file.
        merge: String,
    },
    /// A special token's id is not in the vocabulary.
    #[error("the {role} id {id} is not in the vocabulary of {vocab}; check the model's configuration")]
    IdOutOfRange {
        /// What the token is for: BOS or EOS.
        role: &'static str,
        /// The id.
        id: u32,
        /// Number of tokens.
        vocab: usize,
    },
    /// A BOS token should be put before every text, and none is known.
    #[error("a BOS token should be added and none is named; give its id or turn add_bos_token off")]
    NoBos,
    /// The post-processor puts more around a text than one token before it.
    #[error("it turns \"a\" into {ids:?}; only one leading BOS token is supported")]
    Template {
        /// The ids that the text "a" becomes.
        ids: Vec<u32>,
    },
    /// A template of a text that names what is not there.
    #[error("its template names {name:?}, which it does not define")]
    Undefined {
        /// The name.
        name: String,
    },
    /// A BPE model that marks the tokens inside a word by a prefix.
    #[error("its continuing_subword_prefix {prefix:?} is not supported; use another tokenizer")]
    SubwordPrefix {
        /// The prefix in the file.
        prefix: String,
    },
    /// The tokenizers library refused the file.
    #[error("{0}; fetch the file again")]
    Library(#[source] BoxError),
    /// The file is not JSON.
    #[error("not valid JSON: {0}; fetch the file again")]
    Json(#[source] serde_json::Error),
}
