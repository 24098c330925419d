//! Models and files of data sets, from the cache or from the hub.

use super::client::Client;
use super::download::Download;
use super::folder::{RepositoryFolder, is_complete};
use super::select::{INDEX, needed, shards};
use super::{HubError, HubReference, HubSettings, RepositoryKind};
use std::path::PathBuf;

/// What happens during a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubProgress<'a> {
    /// A file begins, or goes on after its first bytes.
    Begins {
        /// Its name.
        file: &'a str,
        /// Its bytes, if the hub says.
        size: Option<u64>,
        /// Bytes that are there already.
        have: u64,
    },
    /// So many bytes more.
    Bytes(u64),
    /// The file is complete and checked.
    Done,
}

/// The hub, as the environment describes it.
#[derive(Clone, Debug)]
pub struct Hub {
    settings: HubSettings,
}

impl Hub {
    /// A hub.
    pub fn new(settings: HubSettings) -> Self {
        Self { settings }
    }

    /// The hub of the environment.
    ///
    /// # Errors
    /// [`HubError::BadSetting`].
    pub fn from_env() -> Result<Self, HubError> {
        Ok(Self::new(HubSettings::from_env()?))
    }

    /// What a reference means: the folder of a model with the files that are needed of it, or its one file.
    ///
    /// A revision that may move is looked up each time; where the hub cannot be reached, what it meant last is taken,
    /// with a warning. A commit that is in the cache needs no network.
    ///
    /// # Errors
    /// [`HubError`] says what happened and what to do. What was downloaded stays, unless it is damaged.
    pub fn fetch(
        &self,
        reference: &HubReference,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<PathBuf, HubError> {
        let folder = RepositoryFolder::new(&self.settings, reference);
        let here = |commit: &str| {
            let snapshot = folder.snapshot(commit);
            match &reference.file {
                Some(file) => Some(snapshot.join(file)).filter(|path| path.exists()),
                None => Some(snapshot).filter(|snapshot| is_complete(snapshot)),
            }
        };
        let cached = folder.commit().and_then(|commit| here(&commit));
        if self.settings.offline {
            let offline = || HubError::Offline { reference: reference.to_string(), cache: self.settings.cache.clone() };
            return cached.ok_or_else(offline);
        }
        if let Some(path) = cached.clone().filter(|_| reference.is_pinned()) {
            return Ok(path);
        }
        let client = Client::new(&self.settings);
        let listing = match (client.listing(reference), cached) {
            (Err(error @ HubError::Unreachable { .. }), Some(path)) => {
                tracing::warn!("{error}; taking {reference} as it was when it was last fetched");
                return Ok(path);
            }
            (listing, _) => listing?,
        };
        let path = match here(&listing.sha) {
            Some(path) => path,
            None => {
                let (settings, commit) = (&self.settings, listing.sha.as_str());
                let download = Download { settings, client: &client, folder: &folder, reference, commit };
                fetch_all(&download, &listing.names(), progress)?
            }
        };
        folder.remember(&listing.sha)?;
        Ok(path)
    }
}

fn fetch_all(
    download: &Download<'_>,
    names: &[String],
    progress: &mut dyn FnMut(HubProgress<'_>),
) -> Result<PathBuf, HubError> {
    let snapshot = download.folder.snapshot(download.commit);
    let reference = HubReference { file: None, ..download.reference.clone() };
    let no_file = |file: &str, hint| HubError::NoFile { reference: reference.to_string(), file: file.into(), hint };
    if let Some(file) = &download.reference.file {
        if !names.contains(file) {
            return Err(no_file(file, choices(names)));
        }
        download.file(file, progress)?;
        return Ok(snapshot.join(file));
    }
    if reference.kind == RepositoryKind::Dataset {
        return Err(HubError::WhichFile { reference: reference.to_string(), choices: choices(names) });
    }
    let needed = needed(&reference, names)?;
    for file in &needed {
        download.file(file, progress)?;
    }
    if needed.last().is_some_and(|weights| weights == INDEX) {
        let path = snapshot.join(INDEX);
        let index = std::fs::read(&path).map_err(|source| HubError::Io { path: path.clone(), source })?;
        let shards = shards(&index).ok_or_else(|| HubError::BadAnswer {
            endpoint: download.settings.endpoint.clone(),
            what: format!("{reference}/{INDEX}"),
            problem: "no index of shards".into(),
        })?;
        if let Some(missing) = shards.iter().find(|shard| !names.contains(shard)) {
            return Err(no_file(missing, format!(", which its {INDEX} names: the repository is incomplete")));
        }
        for shard in &shards {
            download.file(shard, progress)?;
        }
    }
    Ok(snapshot)
}

/// Some of the files that could have been meant.
fn choices(names: &[String]) -> String {
    let data = ["jsonl", "json", "csv", "txt", "gguf"];
    let data = names.iter().filter(|name| name.rsplit_once('.').is_some_and(|(_, ending)| data.contains(&ending)));
    let some: Vec<&str> = data.map(String::as_str).take(8).collect();
    if some.is_empty() { String::new() } else { format!(": there are {}", some.join(", ")) }
}
