//! Requests to the hub, and what its answers mean.

use super::reference::{is_commit, is_path};
use super::{HubError, HubReference, HubSettings, RepositoryKind};
use serde::Deserialize;
use std::io;
use std::time::Duration;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, Error, RequestBuilder};

/// The longest wait that is sat out when the hub asks for one.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Attempts of a request that fails for reasons that may pass.
const ATTEMPTS: u32 = 4;

/// The largest listing of a repository.
const MAX_LISTING: u64 = 64 << 20;

pub(super) struct Client<'a> {
    settings: &'a HubSettings,
    agent: Agent,
}

/// The files of a commit.
#[derive(Deserialize)]
pub(super) struct Listing {
    pub(super) sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    pub(super) fn names(&self) -> Vec<String> {
        self.siblings.iter().map(|sibling| sibling.rfilename.clone()).filter(|name| is_path(name)).collect()
    }
}

/// What the hub promises about a file.
pub(super) struct Promise {
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a HubSettings) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Large files lie on other hosts, which have no business with the token.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .max_redirects_will_error(false)
            .user_agent(concat!("kvsharer/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_per_read(Some(Duration::from_secs(30)));
        Self { settings, agent: config.build().new_agent() }
    }

    /// The commit of the reference's revision and its files.
    pub(super) fn listing(&self, reference: &HubReference) -> Result<Listing, HubError> {
        let kind = match reference.kind {
            RepositoryKind::Model => "models",
            RepositoryKind::Dataset => "datasets",
        };
        let revision = encode(&reference.revision, false);
        let repository = HubReference { file: None, ..reference.clone() };
        let url = format!("{}/api/{kind}/{}/revision/{revision}", self.settings.endpoint, reference.repository);
        let mut answer = self.ask(&repository, || self.signed(self.agent.get(&url)).call())?;
        let text = answer.body_mut().with_config().limit(MAX_LISTING).read_to_string();
        let text = text.map_err(|error| self.unreachable(error))?;
        let listing: Option<Listing> = serde_json::from_str(&text).ok();
        let listing = listing.filter(|listing| is_commit(&listing.sha));
        listing.ok_or_else(|| self.bad_answer(&repository, "a listing without a commit".into()))
    }

    /// Etag and size of a file of a commit, without the file.
    pub(super) fn promise(&self, reference: &HubReference, commit: &str, file: &str) -> Result<Promise, HubError> {
        let mut url = self.file_url(reference, commit, file);
        let named = HubReference { file: Some(file.into()), ..reference.clone() };
        // Only redirects on the hub itself are followed: the storage knows less about the file than the hub.
        for _ in 0..5 {
            let answer = self.ask(&named, || {
                let request = self.agent.head(&url).config().max_redirects(0).build();
                self.signed(request).header("accept-encoding", "identity").call()
            })?;
            let headers = answer.headers();
            let linked = header(headers, "x-linked-etag");
            let location =
                header(headers, "location").filter(|place| place.starts_with('/') && !place.starts_with("//"));
            if let (Some(place), None, true) = (location, linked, answer.status().is_redirection()) {
                url = format!("{}{place}", origin(&self.settings.endpoint));
                continue;
            }
            let etag = linked.or_else(|| header(headers, "etag")).map(|etag| etag.trim_start_matches("W/"));
            let etag = etag.map(|etag| etag.trim_matches('"')).filter(|etag| is_etag(etag));
            let etag = etag.ok_or_else(|| self.bad_answer(&named, "no etag to check the file by".into()))?;
            let plain = (!answer.status().is_redirection()).then(|| header(headers, "content-length")).flatten();
            let size = header(headers, "x-linked-size").or(plain).and_then(|size| size.parse().ok());
            return Ok(Promise { etag: etag.into(), size });
        }
        Err(self.bad_answer(&named, "one redirect after another".into()))
    }

    /// A file's bytes from `from` on; the answer's status tells whether it begins there (206) or anew (200).
    pub(super) fn open(
        &self,
        reference: &HubReference,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<Response<Body>, HubError> {
        let url = self.file_url(reference, commit, file);
        let named = HubReference { file: Some(file.into()), ..reference.clone() };
        self.ask(&named, || {
            let mut request = self.signed(self.agent.get(&url)).header("accept-encoding", "identity");
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            request.call()
        })
    }

    fn file_url(&self, reference: &HubReference, commit: &str, file: &str) -> String {
        let kind = match reference.kind {
            RepositoryKind::Model => "",
            RepositoryKind::Dataset => "datasets/",
        };
        let file = encode(file, true);
        format!("{}/{kind}{}/resolve/{commit}/{file}", self.settings.endpoint, reference.repository)
    }

    /// Asks until there is an answer that waiting would not change.
    fn ask(
        &self,
        reference: &HubReference,
        request: impl Fn() -> Result<Response<Body>, Error>,
    ) -> Result<Response<Body>, HubError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (error, wait) = match request() {
                Ok(answer) => match self.judge(reference, &answer) {
                    None => return Ok(answer),
                    Some(HubError::TooManyRequests { endpoint, wait, remedy }) => {
                        (HubError::TooManyRequests { endpoint, wait, remedy }, Some(wait))
                    }
                    Some(error @ HubError::Status { status: 500.., .. }) => (error, Some(backoff(attempt))),
                    Some(error) => (error, None),
                },
                Err(error) => (self.unreachable(error), Some(backoff(attempt))),
            };
            match wait.filter(|wait| attempt < ATTEMPTS && *wait <= LONGEST_WAIT) {
                None => return Err(error),
                Some(wait) => {
                    tracing::info!("{error}; asking again in {wait:?}");
                    std::thread::sleep(wait);
                }
            }
        }
    }

    fn judge(&self, reference: &HubReference, answer: &Response<Body>) -> Option<HubError> {
        let status = answer.status().as_u16();
        let endpoint = self.settings.endpoint.clone();
        let code = header(answer.headers(), "x-error-code").unwrap_or_default();
        let anonymous = self.settings.token.is_none();
        let repository = HubReference { file: None, ..reference.clone() };
        let denied = |remedy: String| HubError::Denied {
            reference: repository.to_string(),
            endpoint: endpoint.clone(),
            status,
            remedy,
        };
        let page = format!("{endpoint}/{}", reference.repository);
        Some(match status {
            // 416: what is there already is all, or too much.
            200..=399 | 416 => return None,
            401 | 403 if code == "GatedRepo" => {
                denied(format!("accept its conditions at {page}, and set HF_TOKEN to a token of that account"))
            }
            401 if anonymous => denied("it is private or does not exist: check the name, or set HF_TOKEN".into()),
            401 => denied("the token (HF_TOKEN, or that of the last login) is not valid: log in again".into()),
            403 => denied("the token does not allow it: take one that may read this repository".into()),
            404 if code == "EntryNotFound" || (reference.file.is_some() && code.is_empty()) => HubError::NoFile {
                reference: repository.to_string(),
                file: reference.file.clone().unwrap_or_default(),
                hint: String::new(),
            },
            404 => HubError::NoRepository {
                reference: repository.to_string(),
                endpoint: endpoint.clone(),
                remedy: if anonymous { ", or set HF_TOKEN" } else { "" },
            },
            429 => {
                let seconds = header(answer.headers(), "retry-after").and_then(|wait| wait.parse().ok()).unwrap_or(5);
                let remedy = if anonymous { ", or set HF_TOKEN, which is allowed more" } else { "" };
                HubError::TooManyRequests { endpoint, wait: Duration::from_secs(seconds), remedy }
            }
            status => HubError::Status { endpoint, what: reference.to_string(), status },
        })
    }

    fn signed(&self, request: RequestBuilder<WithoutBody>) -> RequestBuilder<WithoutBody> {
        match &self.settings.token {
            Some(token) => request.header("authorization", format!("Bearer {}", token.0)),
            None => request,
        }
    }

    fn unreachable(&self, error: Error) -> HubError {
        HubError::Unreachable { endpoint: self.settings.endpoint.clone(), source: error.into_io() }
    }

    fn bad_answer(&self, reference: &HubReference, problem: String) -> HubError {
        HubError::BadAnswer { endpoint: self.settings.endpoint.clone(), what: reference.to_string(), problem }
    }
}

/// Nothing at first, then longer and longer.
pub(super) fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(if attempt <= 1 { 0 } else { 125 << attempt.min(5) })
}

/// An error of the transport while a body is read.
pub(super) fn is_transport(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::StorageFull
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether an etag can be a file's name.
fn is_etag(etag: &str) -> bool {
    let plain = etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    plain && !etag.is_empty() && etag.len() <= 128 && !etag.starts_with('.')
}

/// Scheme and host of an address.
fn origin(endpoint: &str) -> &str {
    let host = endpoint.find("://").map_or(0, |at| at + 3);
    endpoint[host..].find('/').map_or(endpoint, |end| &endpoint[..host + end])
}

/// Percent-encodes a part of an address.
fn encode(text: &str, keep_slashes: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'-' | b'_' | b'.' | b'~' => encoded.push(byte.into()),
            byte if byte.is_ascii_alphanumeric() || (byte == b'/' && keep_slashes) => encoded.push(byte.into()),
            byte => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}
