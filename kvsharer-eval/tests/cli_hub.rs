//! `hf:ORG/NAME` against a server in this process: what is asked, what is kept, and what is told when it fails.
#![cfg(unix)]

mod hub_server;
mod support;

use hub_server::{COMMIT, HubServer, TOKEN};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{Run, files, fixture, folder, program, tiny};
use tempfile::TempDir;

const SHARD: &str = "model-00001-of-00002.safetensors";

/// A model in two shards, with files that are not needed.
fn model() -> HubServer {
    let mut served = vec![("org/tiny/README.md".to_owned(), b"# tiny".to_vec())];
    for (name, content) in files(&fixture("tiny_llama_untied")) {
        served.push((format!("org/tiny/{}", name.display()), content));
    }
    served.push(("org/tiny/pytorch_model.bin".into(), vec![0; 9]));
    served.push(("org/tiny/tokenizer_config.json".into(), b"{\"bos_token\": \"<s>\"}".to_vec()));
    HubServer::new(served)
}

struct World {
    hub: HubServer,
    home: TempDir,
}

impl World {
    fn new(hub: HubServer) -> Self {
        Self { hub, home: folder() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program();
        for name in [
            "HF_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "http_proxy",
            "HTTP_PROXY",
            "ALL_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command.args(args).current_dir(self.home.path()).env("HF_HOME", self.home.path().join("hf"));
        command.env("HF_ENDPOINT", self.hub.endpoint());
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        self.command(args).output().expect("the program starts").into()
    }

    fn fetch(&self) -> Run {
        self.run(&["fetch", "hf:org/tiny"])
    }

    fn repository(&self) -> PathBuf {
        self.home.path().join("hf/hub/models--org--tiny")
    }

    fn blobs(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.repository().join("blobs")) else { return Vec::new() };
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
    }

    /// Asserts that the model is there as it was served, and nothing unfinished.
    #[track_caller]
    fn is_whole(&self) {
        let snapshot = self.repository().join("snapshots").join(COMMIT);
        for (name, content) in files(&fixture("tiny_llama_untied")) {
            assert!(std::fs::read(snapshot.join(&name)).is_ok_and(|found| found == content), "{}", name.display());
            assert!(snapshot.join(&name).is_symlink());
        }
        assert!(self.blobs().iter().all(|blob| !blob.contains('.')), "{:?}", self.blobs());
        assert_eq!(std::fs::read_to_string(self.repository().join("refs/main")).expect("a ref"), COMMIT);
    }

    fn shards_asked(&self) -> usize {
        self.hub.requests().iter().filter(|request| request.starts_with("GET /cdn/")).count()
    }
}

#[test]
fn only_what_is_needed_is_fetched_and_only_once() {
    let world = World::new(model());
    let path = world.fetch().succeeds().stdout;
    assert!(Path::new(path.trim()).join(SHARD).exists(), "{path}");
    world.is_whole();
    assert!(!Path::new(path.trim()).join("README.md").exists());
    assert!(Path::new(path.trim()).join("tokenizer_config.json").exists());
    assert_eq!(world.shards_asked(), 2);
    // Every command takes the name; the revision alone is looked up again.
    let plan = world.run(&["plan", "-m", "hf:org/tiny", "--json"]).json();
    assert_eq!(plan["model"], "hf:org/tiny");
    assert_eq!(world.hub.requests(), ["GET /api/models/org/tiny/revision/main"]);
    // A commit is the same for ever.
    world.run(&["fetch", &format!("hf:org/tiny@{COMMIT}")]).succeeds();
    assert!(world.hub.requests().is_empty());
    world.run(&["fetch", "hf:org/tiny@v1/x"]).succeeds();
    assert_eq!(world.hub.requests(), ["GET /api/models/org/tiny/revision/v1%2Fx"]);
}

#[test]
fn offline_and_without_a_network_the_cache_serves() {
    let world = World::new(model());
    let offline = |world: &World| {
        Run::from(world.command(&["fetch", "hf:org/tiny"]).env("HF_HUB_OFFLINE", "1").output().expect("it starts"))
    };
    offline(&world).fails(1, "HF_HUB_OFFLINE is set");
    assert!(world.hub.requests().is_empty());
    let nowhere = |world: &World| {
        Run::from(
            world
                .command(&["fetch", "hf:org/tiny"])
                .env("HF_ENDPOINT", "http://127.0.0.1:9")
                .output()
                .expect("it starts"),
        )
    };
    nowhere(&world).fails(1, "http://127.0.0.1:9 cannot be reached");
    world.fetch().succeeds();
    world.hub.requests();
    let path = offline(&world).succeeds().stdout;
    assert_eq!(nowhere(&world).stdout, path);
    assert!(world.hub.requests().is_empty());
}

#[test]
fn a_cut_connection_is_gone_on_from() {
    let world = World::new(model());
    world.hub.state().cuts = (3, 1000);
    world.fetch().succeeds();
    world.is_whole();
    let ranges: Vec<String> = world
        .hub
        .state()
        .log
        .iter()
        .filter_map(|(_, path, headers)| headers.get("range").filter(|_| path.starts_with("/cdn/")).cloned())
        .collect();
    assert_eq!(ranges[0], "bytes=1000-");
}

#[test]
fn a_connection_that_breaks_for_good_leaves_what_came_for_the_next_run() {
    let world = World::new(model());
    world.hub.state().cuts = (usize::MAX, 0);
    world.fetch().fails(1, "run it again to go on");
    assert!(!world.repository().join("refs").exists());
    // A part of the file, as a killed run leaves it.
    let content = &world.hub.state().files[&format!("org/tiny/{SHARD}")].clone();
    let hash = kvsharer_core::hex(&<sha2::Sha256 as sha2::Digest>::digest(content));
    let part = world.repository().join("blobs").join(format!("{hash}.incomplete"));
    std::fs::write(&part, &content[..777]).expect("a writable folder");
    world.hub.state().cuts = (0, 0);
    world.hub.requests();
    world.fetch().succeeds();
    world.is_whole();
    world.fetch().succeeds();
    // Longer than the file: it cannot be a part of it.
    for (ranges, part_content) in
        [(false, vec![7; content.len() + 5]), (false, vec![7; 99]), (true, content[..99].to_vec())]
    {
        std::fs::remove_dir_all(world.repository()).expect("it was there");
        std::fs::create_dir_all(world.repository().join("blobs")).expect("a writable folder");
        std::fs::write(&part, part_content).expect("a writable folder");
        world.hub.state().no_ranges = ranges;
        world.fetch().succeeds();
        world.is_whole();
    }
}

#[test]
fn damaged_files_are_removed_and_told() {
    let world = World::new(model());
    world.hub.state().corrupt = true;
    world.fetch().fails(1, "its Git hash");
    assert!(world.blobs().is_empty(), "{:?}", world.blobs());
    // The small files are good, the weights are not.
    world.hub.state().corrupt = false;
    world.hub.state().cuts = (usize::MAX, 0);
    world.fetch().fails(1, "run it again");
    world.hub.state().cuts = (0, 0);
    world.hub.state().corrupt = true;
    let run = world.fetch().fails(1, "its SHA-256");
    assert!(run.stderr.contains("safetensors is not what http://127.0.0.1"), "{}", run.stderr);
    assert!(world.blobs().iter().all(|blob| blob.len() == 40), "{:?}", world.blobs());
    world.hub.state().corrupt = false;
    world.fetch().succeeds();
    world.is_whole();
}

#[test]
fn what_is_not_there_is_named() {
    let world = World::new(model());
    world.run(&["fetch", "hf:org/none"]).fails(1, "there is no hf:org/none at http://127.0.0.1");
    world.run(&["fetch", "hf:org/tiny@v9"]).fails(1, "there is no hf:org/tiny@v9");
    world.run(&["fetch", "hf:org/tiny/q4.gguf"]).fails(1, "has no file q4.gguf: there are");
    let mut state = world.hub.state();
    let shard = state.files.remove(&format!("org/tiny/{SHARD}"));
    drop(state);
    world.fetch().fails(1, "which its model.safetensors.index.json names");
    let config = world.hub.state().files.remove("org/tiny/config.json");
    world.fetch().fails(1, "no file config.json");
    assert!(shard.is_some() && config.is_some());
    for text in ["hf:tiny", "hf:org/../tiny", "hf:org/tiny@"] {
        world.run(&["fetch", text]).fails(2, "write hf:ORG/NAME");
        world.run(&["plan", "-m", text]).fails(2, "write hf:ORG/NAME");
    }
    Run::from(world.command(&["fetch", "hf:org/tiny"]).env("HF_ENDPOINT", "mirror").output().expect("it starts"))
        .fails(2, "HF_ENDPOINT: is no http");
}

#[test]
fn private_and_gated_repositories_ask_for_a_token_and_never_show_it() {
    let world = World::new(model());
    world.hub.state().private = true;
    world.fetch().fails(1, "set HF_TOKEN");
    let with = |token: &str| {
        let mut command = world.command(&["fetch", "hf:org/tiny"]);
        Run::from(command.env("HF_TOKEN", token).env("KVSHARER_LOG", "trace").output().expect("it starts"))
    };
    let wrong = with("hf_wrongSecret");
    assert!(wrong.stderr.contains("is not valid") && !wrong.stderr.contains("wrongSecret"), "{}", wrong.stderr);
    assert_eq!(with("a b").code, Some(2));
    world.hub.requests();
    let right = with(TOKEN);
    assert_eq!(right.code, Some(0), "{}", right.stderr);
    assert!(!right.stderr.contains(TOKEN) && !right.stderr.contains("secretSignature"), "{}", right.stderr);
    world.is_whole();
    // The storage is another host, and does not get the token.
    for (_, path, headers) in &world.hub.state().log {
        assert_eq!(headers.contains_key("authorization"), !path.starts_with("/cdn/"), "{path}");
    }
    // The token of the last login.
    std::fs::remove_dir_all(world.repository()).expect("it was there");
    std::fs::write(world.home.path().join("hf/token"), format!("{TOKEN}\n")).expect("a writable folder");
    world.fetch().succeeds();
    world.hub.state().gated = true;
    std::fs::remove_dir_all(world.repository()).expect("it was there");
    world.fetch().fails(1, "accept its conditions at http://127.0.0.1");
}

#[test]
fn a_busy_hub_is_waited_for_but_not_for_long() {
    let world = World::new(model());
    world.hub.state().busy = (2, 0);
    world.hub.state().down = 1;
    world.fetch().succeeds();
    world.is_whole();
    std::fs::remove_dir_all(world.repository()).expect("it was there");
    world.hub.state().busy = (1, 3600);
    world.hub.requests();
    world.fetch().fails(1, "no more requests for 3600 s");
    assert_eq!(world.hub.requests().len(), 1);
    world.hub.state().busy = (0, 0);
    world.hub.state().down = usize::MAX;
    world.fetch().fails(1, "status 503");
}

#[test]
fn processes_that_fetch_the_same_model_do_not_spoil_it() {
    let world = World::new(model());
    world.hub.state().cuts = (2, 5000);
    let start = || world.command(&["fetch", "hf:org/tiny"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let running: Vec<_> = (0..4).map(|_| start().expect("the program starts")).collect();
    for child in running {
        Run::from(child.wait_with_output().expect("it ends")).succeeds();
    }
    world.is_whole();
    // Two shards, and the two that were cut.
    assert_eq!(world.shards_asked(), 4);
}

#[test]
fn one_gguf_file_is_a_model() {
    let world = World::new(HubServer::new([
        ("org/tiny/tiny.gguf".to_owned(), std::fs::read(tiny()).expect("the fixture")),
        ("org/tiny/other.gguf".to_owned(), vec![1; 4]),
    ]));
    world.fetch().fails(1, "choose one, such as hf:org/tiny/other.gguf");
    let result = world.run(&["generate", "-m", "hf:org/tiny/tiny.gguf", "-p", "hello", "-n", "2", "--json"]).json();
    assert_eq!(result["model"], "hf:org/tiny/tiny.gguf");
}

#[test]
fn a_task_may_be_a_file_of_a_data_set() {
    let text = "The world is a hello in the other world, and the others sing of it. ".repeat(4);
    let world = World::new(HubServer::new([
        ("datasets/org/texts/data/a b.txt".to_owned(), text.clone().into_bytes()),
        ("datasets/org/texts/data/other.csv".to_owned(), b"x".to_vec()),
    ]));
    // The server knows addresses as they are sent.
    let mut state = world.hub.state();
    state.files.insert("datasets/org/texts/data/a%20b.txt".into(), text.clone().into_bytes());
    drop(state);
    let eval = |task: &str| world.run(&["eval", "-m", &tiny(), "--window", "32", "--json", "--task", task]);
    let hosted = eval("perplexity=hf:org/texts/data/a b.txt@main").json();
    let path = support::write(world.home.path(), "a.txt", &text);
    let local = eval(&format!("perplexity={path}")).json();
    assert_eq!(hosted["results"][0]["metrics"], local["results"][0]["metrics"]);
    assert!(world.home.path().join("hf/hub/datasets--org--texts").is_dir());
    eval("perplexity=hf:org/texts").fails(1, "name one as hf:ORG/NAME/FILE: there are data/a");
    eval("perplexity=hf:org/texts/none.txt").fails(1, "has no file none.txt: there are");
    eval("perplexity=hf:texts").fails(2, "write hf:ORG/NAME");
}
