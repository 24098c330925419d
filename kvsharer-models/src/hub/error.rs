//! Errors of the hub. No message carries a token or a signed address.

use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Why a model or a file of the hub is not there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// A text that names nothing on the hub.
    #[error("`{text}`: {problem}: write hf:ORG/NAME, hf:ORG/NAME@REVISION, or hf:ORG/NAME/FILE")]
    BadReference {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An environment variable that cannot be meant.
    #[error("{name}: {problem}")]
    BadSetting {
        /// The variable.
        name: &'static str,
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// No network is to be used, and the files are not in the cache.
    #[error("{reference} is not in {}, and HF_HUB_OFFLINE is set: unset it to download", cache.display())]
    Offline {
        /// What was asked for.
        reference: String,
        /// The cache.
        cache: PathBuf,
    },
    /// A hub that cannot be reached.
    #[error("{endpoint} cannot be reached ({source}): check the network, or set HF_ENDPOINT to a mirror")]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A repository that does not exist, or is not shown.
    #[error("there is no {reference} at {endpoint}, or it is private: check the name and the revision{remedy}")]
    NoRepository {
        /// What was asked for.
        reference: String,
        /// The hub.
        endpoint: String,
        /// What else to do.
        remedy: &'static str,
    },
    /// A file that a repository does not have.
    #[error("{reference} has no file {file}{hint}")]
    NoFile {
        /// The repository.
        reference: String,
        /// The file.
        file: String,
        /// Files that it has, or what to do.
        hint: String,
    },
    /// A data set without a choice among its files.
    #[error("{reference} has many files: name one as hf:ORG/NAME/FILE{choices}")]
    WhichFile {
        /// The data set.
        reference: String,
        /// Some of its files.
        choices: String,
    },
    /// A repository that is only for some.
    #[error("{endpoint} refuses {reference} (status {status}): {remedy}")]
    Denied {
        /// What was asked for.
        reference: String,
        /// The hub.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// What to do.
        remedy: String,
    },
    /// Too many requests.
    #[error("{endpoint} takes no more requests for {} s: try again then{remedy}", wait.as_secs())]
    TooManyRequests {
        /// The hub.
        endpoint: String,
        /// For how long.
        wait: Duration,
        /// What else to do.
        remedy: &'static str,
    },
    /// A status that means nothing here.
    #[error("{endpoint} answers {what} with status {status}: try again later")]
    Status {
        /// The hub.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
    },
    /// An answer that is not the hub's.
    #[error("{endpoint} answers {what} with {problem}: it is no hub, or a broken one")]
    BadAnswer {
        /// The hub.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// A connection that breaks again and again.
    #[error("the connection broke at {have} of {size} bytes of {file} ({source}): run it again to go on from there")]
    Cut {
        /// The file.
        file: String,
        /// Bytes that are there.
        have: u64,
        /// Bytes of the file; 0 if the hub did not say.
        size: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// Bytes that are not the file's.
    #[error(
        "{file} is not what {endpoint} promises: {what} is {found}, expected {expected}; it was removed, try again"
    )]
    Damaged {
        /// The file.
        file: String,
        /// The hub.
        endpoint: String,
        /// `its size` or the kind of its hash.
        what: &'static str,
        /// What came.
        found: String,
        /// What was promised.
        expected: String,
    },
    /// A repository without weights that can be read.
    #[error("{reference} has no safetensors weights{hint}")]
    NoWeights {
        /// The repository.
        reference: String,
        /// What it has instead.
        hint: String,
    },
    /// A file of the cache that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
