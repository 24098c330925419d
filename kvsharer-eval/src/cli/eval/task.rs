//! Tasks as they are typed.

use clap::ValueEnum;
use kvsharer_eval::tasks::Protocol;
use std::path::PathBuf;
use std::str::FromStr;

/// `NAME=PATH`, or `NAME` where no file is needed.
#[derive(Clone)]
pub(super) struct TaskArg {
    pub(super) name: String,
    pub(super) path: Option<PathBuf>,
}

/// `NAME=PATH` of a file of examples.
#[derive(Clone)]
pub(super) struct DevArg {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum ProtocolArg {
    /// EleutherAI's lm-evaluation-harness
    LmEval,
    /// OpenCompass, its perplexity mode
    #[value(name = "opencompass")]
    OpenCompass,
}

impl ProtocolArg {
    pub(super) fn protocol(self) -> Protocol {
        match self {
            ProtocolArg::LmEval => Protocol::LmEval,
            ProtocolArg::OpenCompass => Protocol::OpenCompass,
        }
    }
}

impl FromStr for TaskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) if !path.is_empty() => (name, Some(path.into())),
            None if !text.is_empty() => (text, None),
            _ => return Err("expected NAME=PATH, such as perplexity=text.txt".into()),
        };
        kvsharer_eval::check_task(name, path.is_some()).map_err(|error| error.to_string())?;
        Ok(Self { name: name.into(), path })
    }
}

impl FromStr for DevArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !path.is_empty() => Ok(Self { name: name.into(), path: path.into() }),
            _ => Err("expected NAME=PATH, such as mmlu=data/dev".into()),
        }
    }
}
