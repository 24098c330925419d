//! What cannot be: outputs on full and read-only disks, and two processes with one output. One error, and nothing is lost.
#![cfg(target_os = "linux")]

mod hub_server;
mod support;

use hub_server::HubServer;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;
use support::disk::Disk;
use support::{Run, TEXT, files, fixture, folder, program, run, tiny, write};

/// An experiment of one cell, written into `folder`; gives its path.
fn experiment(folder: &Path) -> String {
    let text = format!(
        "name = \"one\"\nmodels = [\"{}\"]\n[[task]]\ntask = \"perplexity\"\npath = \"builtin:demo\"\nwindow = 48\nlimit = 4\n",
        tiny()
    );
    write(folder, "one.toml", text)
}

/// Commands with an output called `output`, which may hold an older file.
fn commands(work: &Path, output: &str) -> Vec<Vec<String>> {
    let text = format!("perplexity={}", write(work, "text.txt", TEXT));
    let file = experiment(work);
    let shard = work.join("shard.jsonl");
    run(work, &["run", &file, "-o", shard.to_str().expect("UTF-8")]).succeeds();
    let tiny = tiny();
    let (file, shard) = (&*file, shard.to_str().expect("UTF-8"));
    [
        &["search", "-m", &tiny, "--share", "1", "-o", output][..],
        &["search", "-m", &tiny, "--share", "1", "--strategy-search", "greedy", "--fit", "full", "-o", output],
        &["eval", "-m", &tiny, "--task", &text, "-o", output],
        &["bench", "-m", &tiny, "--prompt", "4", "--generate", "2", "--repeats", "1", "-o", output],
        &["merge", shard, "-o", output],
        &["run", file, "-o", output],
    ]
    .map(|args| args.iter().map(|arg| (*arg).to_owned()).collect())
    .into()
}

#[test]
fn a_full_disk_fails_and_leaves_what_was_there() {
    let Some(disk) = Disk::full(&[("old.json", b"precious")]) else { return };
    let (work, before) = (folder(), files(disk.path()));
    for stem in ["old", "new"] {
        let commands = commands(work.path(), &format!("{stem}.json"));
        for args in commands.iter().filter(|args| args[0] != "run") {
            // A search may fail at its journal, which lies beside the output.
            run(disk.path(), args).fails_after_output(1, &format!("{stem}."));
            assert!(files(disk.path()) == before, "{args:?}: the disk holds {:?}", files(disk.path()).keys());
        }
    }
    // With room again, the same command works.
    disk.empty();
    run(disk.path(), &commands(work.path(), "new.json")[0]).succeeds();
}

#[test]
fn an_experiment_on_a_full_disk_leaves_no_half_line_and_goes_on_later() {
    let Some(disk) = Disk::full(&[]) else { return };
    let work = folder();
    let file = experiment(work.path());
    let ended = run(disk.path(), &["run", &file]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.ends_with("error: one.jsonl: No space left on device (os error 28)\n"), "{}", ended.stderr);
    assert_eq!(files(disk.path())[Path::new("one.jsonl")], b"");
    disk.empty();
    run(disk.path(), &["run", &file]).succeeds();
    assert_eq!(std::fs::read_to_string(disk.path().join("one.jsonl")).expect("results").lines().count(), 1);
}

#[test]
fn a_read_only_disk_fails_and_leaves_what_was_there() {
    let Some(disk) = Disk::read_only(&[("old.json", b"precious")]) else { return };
    let (work, before) = (folder(), files(disk.path()));
    for output in ["old.json", "new.json"] {
        for args in commands(work.path(), output) {
            run(disk.path(), &args).fails(1, "Read-only file system");
            assert!(files(disk.path()) == before, "{args:?}");
        }
    }
}

#[test]
fn a_hub_cache_on_a_full_or_read_only_disk_is_named_and_the_fetch_goes_on_later() {
    let served = files(&fixture("tiny_llama_untied"));
    let named = |(name, content): (std::path::PathBuf, Vec<u8>)| (format!("org/tiny/{}", name.display()), content);
    let hub = HubServer::new(served.into_iter().map(named));
    let fetch = |disk: &Disk| {
        let mut command = program();
        command.args(["fetch", "hf:org/tiny"]).env("HF_HOME", disk.path()).env("HF_ENDPOINT", hub.endpoint());
        ["HF_TOKEN", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY"].iter().for_each(|name| _ = command.env_remove(name));
        Run::from(command.output().expect("the program starts"))
    };
    if let Some(disk) = Disk::full(&[]) {
        fetch(&disk).fails(1, "No space left on device");
    }
    if let Some(disk) = Disk::read_only(&[]) {
        fetch(&disk).fails(1, "Read-only file system");
    }
}

fn started(folder: &Path, args: &[&str]) -> Child {
    let mut command = program();
    command.args(args).current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

/// The file of results is locked by the process that writes it; the lock of one that is gone is none.
#[test]
fn two_runs_of_one_experiment_do_not_spoil_it() {
    let work = folder();
    let file = experiment(work.path());
    let text = std::fs::read_to_string(&file).expect("a file").replace("limit = 4", "limit = 4\nchunk = 1");
    write(work.path(), "one.toml", text.replace("[[task]]", "seeds = [0, 1, 2, 3, 4, 5]\n[[task]]"));
    run(work.path(), &["run", &file, "-o", "whole.jsonl"]).succeeds();
    for attempt in 0..3 {
        // The first is killed, and leaves its lock to nobody.
        let mut first = started(work.path(), &["run", &file, "-o", "both.jsonl"]);
        std::thread::sleep(Duration::from_millis(20 * attempt));
        first.kill().expect("it can be killed");
        first.wait().expect("an end");
    }
    let both = [0, 1].map(|_| started(work.path(), &["run", &file, "-o", "both.jsonl"]));
    let ends = both.map(|child| Run::from(child.wait_with_output().expect("an end")));
    assert!(ends.iter().any(|run| run.code == Some(0)), "{}", ends[0].stderr);
    for run in ends.into_iter().filter(|run| run.code != Some(0)) {
        run.fails(1, "both.jsonl: another kvsharer is running this experiment into it: wait for it");
    }
    let lines = |name: &str| std::fs::read_to_string(work.path().join(name)).expect("results").lines().count();
    assert_eq!(lines("both.jsonl"), lines("whole.jsonl"));
}
