//! File systems that are full or read-only, where this user may mount some.
// Every test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A file system of 64 KiB, gone with this value.
pub(crate) struct Disk(TempDir);

impl Disk {
    /// Filled up behind the files `old`. `None` where mounting is not permitted, which is told.
    pub(crate) fn full(old: &[(&str, &[u8])]) -> Option<Self> {
        let disk = Self::new(old)?;
        let mut piece = 64 << 10;
        while piece > 0 {
            let mut file = File::options().append(true).create(true).open(disk.filler()).expect("a file");
            while file.write_all(&vec![0; piece]).is_ok() {}
            piece /= 2;
        }
        Some(disk)
    }

    /// Nothing can be written beside the files `old`. `None` where mounting is not permitted, which is told.
    pub(crate) fn read_only(old: &[(&str, &[u8])]) -> Option<Self> {
        let disk = Self::new(old)?;
        mount(&["-o", "remount,ro"], disk.path()).then_some(disk)
    }

    fn new(old: &[(&str, &[u8])]) -> Option<Self> {
        let disk = super::folder();
        if !mount(&["-t", "tmpfs", "-o", "size=64k", "tmpfs"], disk.path()) {
            println!("skipped: this user may not mount a file system");
            return None;
        }
        let disk = Self(disk);
        for (name, content) in old {
            super::write(disk.path(), name, content);
        }
        Some(disk)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Makes room.
    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.filler()).expect("it was there");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).output();
    }
}

fn mount(options: &[&str], at: &Path) -> bool {
    Command::new("mount").args(options).arg(at).output().is_ok_and(|mount| mount.status.success())
}
