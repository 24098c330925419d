//! The environment variables of Hugging Face's programs.

use super::HubError;
use std::env::{var, var_os};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where the hub is, where its files are kept, and who asks.
///
/// As `huggingface_hub` reads them: HF_ENDPOINT; HF_HUB_CACHE, or else HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub,
/// ~/.cache/huggingface/hub; HF_TOKEN, or else the file HF_TOKEN_PATH or HF_HOME/token; HF_HUB_OFFLINE.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// The folder of all repositories.
    pub cache: PathBuf,
    /// Whether the network must not be used.
    pub offline: bool,
    pub(super) token: Option<Token>,
}

/// A secret.
#[derive(Clone)]
pub(super) struct Token(pub(super) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl HubSettings {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`HubError::BadSetting`] names a variable that cannot be meant.
    pub fn from_env() -> Result<Self, HubError> {
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(HubError::BadSetting { name: "HF_ENDPOINT", problem: "is no http:// or https:// address" });
        }
        let home = home()?;
        let cache = path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub"));
        let offline =
            set("HF_HUB_OFFLINE").is_some_and(|on| ["1", "on", "yes", "true"].contains(&on.to_lowercase().as_str()));
        Ok(Self { endpoint: endpoint.trim_end_matches('/').into(), cache, offline, token: token(&home)? })
    }
}

fn home() -> Result<PathBuf, HubError> {
    let cache = || path("XDG_CACHE_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache")));
    path("HF_HOME").or_else(|| Some(cache()?.join("huggingface"))).ok_or(HubError::BadSetting {
        name: "HF_HOME",
        problem: "is not set, and no home folder is known on this system: set it to a folder",
    })
}

fn token(home: &Path) -> Result<Option<Token>, HubError> {
    let file = || std::fs::read_to_string(path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"))).ok();
    let Some(token) = set("HF_TOKEN").or_else(file) else {
        return Ok(None);
    };
    match token.trim() {
        "" => Ok(None),
        token if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(Token(token.into()))),
        _ => Err(HubError::BadSetting { name: "HF_TOKEN", problem: "has characters that no token has: log in again" }),
    }
}

fn set(name: &str) -> Option<String> {
    var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn path(name: &str) -> Option<PathBuf> {
    var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
