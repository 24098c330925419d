//! A small server with the routes of the Hugging Face hub, which can fail in the ways that networks and hubs do.
// Every test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// The commit that every revision means.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The token of those who may read a private repository.
pub(crate) const TOKEN: &str = "hf_verySecretToken";

/// What the server has and does.
#[derive(Default)]
pub(crate) struct State {
    /// Files by `ORG/NAME/FILE`; of data sets by `datasets/ORG/NAME/FILE`.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Asks for [`TOKEN`].
    pub(crate) private: bool,
    /// Asks to accept conditions.
    pub(crate) gated: bool,
    /// Breaks the connection of so many large files after so many bytes.
    pub(crate) cuts: (usize, usize),
    /// Sends other bytes than it promises, of the right number.
    pub(crate) corrupt: bool,
    /// Sends whole files, whatever range is asked for.
    pub(crate) no_ranges: bool,
    /// Answers so many requests with status 429 and `Retry-After`.
    pub(crate) busy: (usize, u64),
    /// Answers so many requests with status 503.
    pub(crate) down: usize,
    /// All requests: method, path, headers with small names.
    pub(crate) log: Vec<(String, String, BTreeMap<String, String>)>,
}

/// A running server; it ends with the process.
pub(crate) struct HubServer {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes after which the connection breaks.
    cut: Option<usize>,
}

impl HubServer {
    /// Serves these files.
    pub(crate) fn new(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State { files: files.into_iter().collect(), ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || serve(stream, &state, port));
            }
        });
        Self { port, state }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no handler panics")
    }

    /// Forgets the requests so far; gives their methods and paths.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state().log.drain(..).map(|(method, path, _)| format!("{method} {path}")).collect()
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, port: u16) {
    let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let answer = {
        let mut state = state.lock().expect("no handler panics");
        state.log.push((method.clone(), path.clone(), headers.clone()));
        state.answer(&path, &headers, port)
    };
    let mut head = format!("HTTP/1.1 {}\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let _ = stream.write_all(format!("{head}Content-Length: {}\r\n\r\n", answer.body.len()).as_bytes());
    if method != "HEAD" {
        let end = answer.cut.map_or(answer.body.len(), |cut| cut.min(answer.body.len()));
        let _ = stream.write_all(&answer.body[..end]);
    }
}

impl State {
    fn answer(&mut self, path: &str, headers: &BTreeMap<String, String>, port: u16) -> Answer {
        let plain = |status, code: &str| Answer {
            status,
            headers: if code.is_empty() { vec![] } else { vec![("X-Error-Code", code.to_owned())] },
            body: b"{\"error\":\"no\"}".to_vec(),
            cut: None,
        };
        if self.busy.0 > 0 {
            self.busy.0 -= 1;
            let mut answer = plain("429 Too Many Requests", "");
            answer.headers.push(("Retry-After", self.busy.1.to_string()));
            return answer;
        }
        if self.down > 0 {
            self.down -= 1;
            return plain("503 Service Unavailable", "");
        }
        if let Some(hash) = path.strip_prefix("/cdn/").and_then(|path| path.split('?').next()) {
            return self.large(hash, headers);
        }
        let authorized = headers.get("authorization").is_some_and(|value| *value == format!("Bearer {TOKEN}"));
        if self.private && !authorized {
            return plain("401 Unauthorized", "RepoNotFound");
        }
        if self.gated {
            return plain("403 Forbidden", "GatedRepo");
        }
        if let Some((repository, revision)) = path.strip_prefix("/api/").and_then(|path| path.split_once("/revision/"))
        {
            let repository = repository.strip_prefix("models/").unwrap_or(repository).to_owned() + "/";
            let names: Vec<&str> = self.files.keys().filter_map(|file| file.strip_prefix(&repository)).collect();
            if names.is_empty() {
                return plain("404 Not Found", "RepoNotFound");
            }
            if !["main", "v1%2Fx", COMMIT].contains(&revision) {
                return plain("404 Not Found", "RevisionNotFound");
            }
            let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes();
            return Answer { status: "200 OK", headers: vec![], body, cut: None };
        }
        let file = path[1..].replace(&format!("/resolve/{COMMIT}/"), "/");
        let Some(content) = self.files.get(&file) else {
            return plain("404 Not Found", "EntryNotFound");
        };
        let commit = ("X-Repo-Commit", COMMIT.to_owned());
        if [".safetensors", ".gguf"].iter().any(|ending| file.ends_with(ending)) {
            let hash = kvsharer_core::hex(&Sha256::digest(content));
            // Another host, as large files have.
            let location = format!("http://localhost:{port}/cdn/{hash}?signature=secretSignature");
            let size = content.len().to_string();
            let headers =
                vec![commit, ("Location", location), ("X-Linked-Etag", format!("\"{hash}\"")), ("X-Linked-Size", size)];
            return Answer { status: "302 Found", headers, body: b"see there".to_vec(), cut: None };
        }
        let git = [format!("blob {}\0", content.len()).as_bytes(), content].concat();
        let etag = format!("\"{}\"", kvsharer_core::hex(&Sha1::digest(git)));
        Answer { status: "200 OK", headers: vec![commit, ("ETag", etag)], body: self.sent(content), cut: None }
    }

    fn large(&mut self, hash: &str, headers: &BTreeMap<String, String>) -> Answer {
        let content = self.files.values().find(|content| kvsharer_core::hex(&Sha256::digest(content)) == hash);
        let content = self.sent(content.expect("a hash that was given out"));
        let from = headers.get("range").filter(|_| !self.no_ranges);
        let from = from.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let cut = (self.cuts.0 > 0).then_some(self.cuts.1);
        self.cuts.0 = self.cuts.0.saturating_sub(1);
        match from {
            Some(from) if from >= content.len() => {
                Answer { status: "416 Range Not Satisfiable", headers: vec![], body: vec![], cut: None }
            }
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
                let headers = vec![("Content-Range", range)];
                Answer { status: "206 Partial Content", headers, body: content[from..].to_vec(), cut }
            }
            None => Answer { status: "200 OK", headers: vec![], body: content, cut },
        }
    }

    fn sent(&self, content: &[u8]) -> Vec<u8> {
        let mut content = content.to_vec();
        if self.corrupt
            && let Some(last) = content.last_mut()
        {
            *last ^= 1;
        }
        content
    }
}
