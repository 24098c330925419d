//! Helpers of the command line tests: run the program, judge how it ended, look at what it left behind.
//!
//! No test reaches the network: the cache folder is one that does not exist, and PATH holds no pip.
// Every test file is a crate of its own and uses a part of this.
#![allow(dead_code, clippy::print_stdout)] // skipped checks say why

pub(crate) mod disk;
pub(crate) mod timeless;

use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// An ended program.
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program, isolated from the user's cache folder and from pip.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvsharer"));
    let nowhere = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nowhere");
    command.env("KVSHARER_HOME", &nowhere).env("PATH", &nowhere).env_remove("KVSHARER_LOG").stdin(Stdio::null());
    command
}

/// Runs the program with `args` in `folder`.
pub(crate) fn run<A: AsRef<OsStr>>(folder: &Path, args: &[A]) -> Run {
    program().args(args).current_dir(folder).output().expect("the program starts").into()
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
        }
    }
}

impl Run {
    /// Asserts success without an error line.
    #[track_caller]
    pub(crate) fn succeeds(self) -> Self {
        assert_eq!(self.code, Some(0), "stderr: {}", self.stderr);
        assert!(!self.stderr.contains("error") && !self.stderr.contains("panicked"), "stderr: {}", self.stderr);
        self
    }

    /// The only JSON document of stdout, after success.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let run = self.succeeds();
        serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error} in {}", run.stdout))
    }

    /// Asserts the exit code, an empty stdout, and exactly one error line, which contains `expected`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, expected: &str) -> Self {
        assert_eq!(self.stdout, "", "a failed run printed a result");
        self.fails_after_output(code, expected)
    }

    /// As [`fails`](Self::fails) for runs that may have printed something before.
    #[track_caller]
    pub(crate) fn fails_after_output(self, code: i32, expected: &str) -> Self {
        let stderr = &self.stderr;
        assert_eq!(self.code, Some(code), "stderr: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert!(stderr.contains(expected), "expected `{expected}` in: {stderr}");
        let progress =
            |line: &&str| !["loading ", "fetching ", "warning: "].iter().any(|start| line.starts_with(start));
        let lines: Vec<&str> = stderr.lines().filter(progress).collect();
        assert!(lines.first().is_some_and(|line| line.starts_with("error: ")), "{stderr}");
        assert_eq!(lines.iter().filter(|line| line.starts_with("error")).count(), 1, "{stderr}");
        // Only clap explains wrong usage over several lines.
        let by_clap = code == 2 && stderr.contains("For more information, try '--help'");
        assert!(lines.len() == 1 || by_clap, "more than one line: {stderr}");
        self
    }
}

/// A fresh folder.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// A fixture of kvsharer-models.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kvsharer-models/tests/fixtures").join(name)
}

/// The model of most tests: two layers of Llama and a byte-level tokenizer.
pub(crate) fn tiny() -> String {
    fixture("tiny.gguf").to_str().expect("a UTF-8 path").to_owned()
}

/// All files under `folder` with their content, named relative to it.
pub(crate) fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else {
                let name = entry.strip_prefix(folder).expect("a path below").to_owned();
                found.insert(name, std::fs::read(&entry).expect("a file"));
            }
        }
    }
    found
}

/// Writes a file and gives its path as text.
pub(crate) fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).expect("a writable folder");
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// A strategy in which layer 1 of [`tiny`] reads the cache of layer 0; gives its path.
pub(crate) fn strategy(folder: &Path) -> String {
    let path = folder.join("shared.json").to_str().expect("a UTF-8 path").to_owned();
    run(folder, &["search", "-m", &tiny(), "--share", "1", "--threshold", "-1", "-o", &path]).succeeds();
    path
}

/// The text whose perplexity tests measure.
pub(crate) const TEXT: &str = "The world is a hello in the other world, and the others sing of it.\n\
    A second line says hello again, 2024 times: café, 😀 and the end.\n";

/// The names of an object's fields, sorted.
pub(crate) fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// Asserts that an object has all `expected` fields; more may be added at any time.
#[track_caller]
pub(crate) fn assert_has(value: &Value, expected: &[&str]) {
    let keys = keys(value);
    for field in expected {
        assert!(keys.contains(field), "no field `{field}` among {keys:?}");
    }
}
