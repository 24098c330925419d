//! One file, whole and checked, or an error and what was downloaded so far.

use super::client::{Client, Promise, backoff, is_transport};
use super::folder::{RepositoryFolder, create_parent};
use super::verify::EtagKind;
use super::{HubError, HubProgress, HubReference, HubSettings};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// Breaks of a connection without a byte in between before it is given up.
const FRUITLESS: u32 = 4;

pub(super) struct Download<'a> {
    pub(super) settings: &'a HubSettings,
    pub(super) client: &'a Client<'a>,
    pub(super) folder: &'a RepositoryFolder,
    pub(super) reference: &'a HubReference,
    pub(super) commit: &'a str,
}

impl Download<'_> {
    /// Brings a file into the snapshot, if it is not there.
    pub(super) fn file(&self, file: &str, progress: &mut dyn FnMut(HubProgress<'_>)) -> Result<(), HubError> {
        if self.folder.snapshot(self.commit).join(file).exists() {
            return Ok(());
        }
        let promise = self.client.promise(self.reference, self.commit, file)?;
        let blob = self.folder.blob(&promise.etag);
        if !blob.exists() {
            let lock = self.folder.lock(&promise.etag);
            let _lock = locked(&lock).map_err(|source| HubError::Io { path: lock, source })?;
            // Another process may have been faster.
            if !blob.exists() {
                self.blob(file, &promise, &blob, progress)?;
            }
        }
        self.folder.link(&promise.etag, self.commit, file)
    }

    fn blob(
        &self,
        file: &str,
        promise: &Promise,
        blob: &Path,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<(), HubError> {
        let part = blob.with_file_name(format!("{}.incomplete", promise.etag));
        let io = |source| HubError::Io { path: part.clone(), source };
        create_parent(&part)?;
        let mut again = std::fs::metadata(&part).is_ok_and(|part| part.len() > 0);
        loop {
            self.fill(file, promise, &part, progress)?;
            match self.check(file, promise, &part)? {
                None => break,
                Some(damaged) => {
                    std::fs::remove_file(&part).map_err(io)?;
                    // What an earlier run left behind may be what is wrong.
                    if !std::mem::take(&mut again) {
                        return Err(damaged);
                    }
                    tracing::warn!("{damaged}; downloading it from its beginning");
                }
            }
        }
        std::fs::rename(&part, blob).map_err(io)?;
        progress(HubProgress::Done);
        Ok(())
    }

    /// Appends to what is there until the file is as long as it should be.
    fn fill(
        &self,
        file: &str,
        promise: &Promise,
        part: &Path,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<(), HubError> {
        let io = |source| HubError::Io { path: part.into(), source };
        let mut out = OpenOptions::new().append(true).create(true).open(part).map_err(io)?;
        let mut fruitless = 0;
        loop {
            let mut have = out.metadata().map_err(io)?.len();
            if promise.size.is_some_and(|size| have > size) || promise.size.is_none() {
                // Without a size nothing tells whether a part is a whole.
                out.set_len(0).map_err(io)?;
                have = 0;
            }
            progress(HubProgress::Begins { file, size: promise.size, have });
            if promise.size == Some(have) {
                return out.sync_all().map_err(io);
            }
            let answer = self.client.open(self.reference, self.commit, file, have)?;
            if answer.status() != 206 && have > 0 {
                // The server begins anew, or says that there is nothing behind what is there.
                out.set_len(0).map_err(io)?;
                have = 0;
                progress(HubProgress::Begins { file, size: promise.size, have });
            }
            let copied = match answer.status().as_u16() {
                416 => Ok(()),
                _ => copy(answer.into_body().into_reader(), &mut out, progress),
            };
            let now = out.metadata().map_err(io)?.len();
            match copied {
                Ok(()) if promise.size.is_none() => return out.sync_all().map_err(io),
                Err(error) if !is_transport(&error) => return Err(io(error)),
                _ if promise.size.is_some_and(|size| now >= size) => {}
                broken => {
                    fruitless = if now > have { 0 } else { fruitless + 1 };
                    if fruitless == FRUITLESS {
                        let source = broken.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                        let size = promise.size.unwrap_or(0);
                        return Err(HubError::Cut { file: file.into(), have: now, size, source });
                    }
                    std::thread::sleep(backoff(fruitless));
                }
            }
        }
    }

    /// What is wrong with a file of the right length, if anything is.
    fn check(&self, file: &str, promise: &Promise, part: &Path) -> Result<Option<HubError>, HubError> {
        let io = |source| HubError::Io { path: part.into(), source };
        let kind = EtagKind::of(&promise.etag);
        let found = kind.hash(part).map_err(io)?;
        if found.is_none() {
            tracing::warn!("{file}: {} gives no hash to check it by", self.settings.endpoint);
        }
        let damaged = |found| HubError::Damaged {
            file: file.into(),
            endpoint: self.settings.endpoint.clone(),
            what: kind.name(),
            found,
            expected: promise.etag.clone(),
        };
        Ok(found.filter(|found| !found.eq_ignore_ascii_case(&promise.etag)).map(damaged))
    }
}

/// Copies until the end, telling how far it is.
fn copy(mut from: impl Read, to: &mut File, progress: &mut dyn FnMut(HubProgress<'_>)) -> io::Result<()> {
    let mut block = vec![0; 256 << 10];
    loop {
        match from.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                to.write_all(&block[..read])?;
                progress(HubProgress::Bytes(read as u64));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits for the right to write a file, which ends with the handle.
fn locked(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    if file.try_lock().is_err() {
        tracing::info!("another process downloads the same file: waiting for it");
        file.lock()?;
    }
    Ok(file)
}
