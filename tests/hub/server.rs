//! A small hub in this process, with the API that the client needs.

use super::store::{Store, push_answer};
use mixdistill::hub::HubOptions;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

pub const FIRST: &str = "1111111111111111111111111111111111111111";
pub const SECOND: &str = "2222222222222222222222222222222222222222";
pub const TOKEN: &str = "hf_not_a_real_token";

/// How the server answers for one file.
#[derive(Clone, Default)]
pub enum Manner {
    #[default]
    Whole,
    /// The connection ends after half of the file, this many times.
    Cut(usize),
    /// As `Cut`, always, and no length was announced.
    CutUnannounced,
    /// HEAD is fine, GET is an error page.
    ErrorPage,
    /// Access is refused with this status.
    Refused(u16),
    /// The file is elsewhere: at this address.
    Elsewhere(String),
    /// The file is at another path of the hub, as after a renaming.
    Moved,
    /// The answer is of another commit.
    OtherCommit,
    /// The file is in Xet's storage, by this hash.
    Xet(String),
}

#[derive(Clone, Default)]
pub struct State {
    /// Commits by revision.
    pub revisions: BTreeMap<String, String>,
    /// Files by commit and name.
    pub files: BTreeMap<(String, String), (Vec<u8>, Manner)>,
    /// The status of every answer of the API, if it is an error.
    pub api_error: Option<(u16, &'static str)>,
    /// Method, path and token of all requests.
    pub requests: Vec<String>,
    /// What is pushed.
    pub store: Store,
}

/// A request that has come whole.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// The key that it shows.
    pub token: Option<&'a str>,
    /// The bytes that are asked for, the last one included.
    pub range: Option<[usize; 2]>,
    pub body: &'a [u8],
    /// This server's address.
    pub address: &'a str,
}

/// A hub in threads of its own; it is unreachable once it is dropped.
pub struct Server {
    pub address: String,
    pub state: Arc<Mutex<State>>,
    pub ended: Arc<AtomicBool>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address.trim_start_matches("http://"));
    }
}

impl Server {
    pub fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let mut state = State::default();
        state.revisions.insert("main".into(), FIRST.into());
        let (state, ended) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let server = Self { address: address.clone(), state: state.clone(), ended: ended.clone() };
        server.commit(FIRST, files);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (state, address) = (state.clone(), address.clone());
                std::thread::spawn(move || serve(&stream.unwrap(), &state, &address));
            }
        });
        server
    }

    pub fn commit(&self, commit: &str, files: &[(&str, &[u8])]) {
        let mut state = self.state.lock().unwrap();
        state.revisions.insert("main".into(), commit.into());
        state.revisions.insert(commit.into(), commit.into());
        for (name, content) in files {
            let key = (commit.to_owned(), (*name).to_owned());
            state.files.insert(key, (content.to_vec(), Manner::Whole));
        }
    }

    pub fn manner(&self, file: &str, manner: Manner) {
        let mut state = self.state.lock().unwrap();
        state.files.get_mut(&(FIRST.to_owned(), file.to_owned())).unwrap().1 = manner;
    }

    pub fn fail(&self, status: u16, code: &'static str) {
        self.state.lock().unwrap().api_error = Some((status, code));
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    pub fn hub(&self, cache: &TempDir) -> HubOptions {
        HubOptions {
            endpoint: Some(self.address.clone()),
            cache: Some(cache.path().to_owned()),
            token: Some(TOKEN.into()),
            offline: false,
            settings_only: false,
        }
    }
}

/// One request, one answer, end of connection.
pub fn serve(mut stream: &TcpStream, state: &Mutex<State>, address: &str) {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let Some(first) = line().filter(|line| !line.is_empty()) else { return };
    let mut headers = BTreeMap::new();
    while let Some(line) = line().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let header = |name: &str| headers.get(name).map(String::as_str);
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let path = target.split('?').next().unwrap();
    let path = &path.replace("%20", " ").replace("%3D", "=");
    let token = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let range = header("range").and_then(|range| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some([start.parse().ok()?, end.parse().ok()?])
    });
    let shown = if token.is_some() { " +token" } else { "" };
    let request = Request { method, path, token, range, body: &body, address };
    let mut state = state.lock().unwrap();
    state.requests.push(format!("{method} {path}{shown}"));
    let answer = match push_answer(&mut state.store, &request) {
        Some(answer) => answer,
        None => respond(&mut state, method, path),
    };
    drop(state);
    let _ = stream.write_all(&answer);
}

pub fn reply(status: u16, headers: &[(&str, &str)], body: &[u8], is_head: bool) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} Something\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "Content-Length") {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        if !value.is_empty() {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    if !is_head {
        bytes.extend_from_slice(body);
    }
    bytes
}

/// What the hub says to a request.
pub fn respond(state: &mut State, method: &str, path: &str) -> Vec<u8> {
    let is_head = method == "HEAD";
    let of_model = path.strip_prefix("/api/models/some/model/revision/");
    let of_data = path.strip_prefix("/api/datasets/some/data/revision/");
    if let Some(revision) = of_model.or(of_data) {
        let revision = revision.replace("%2F", "/");
        return match (state.api_error, state.revisions.get(&revision)) {
            (Some((status, code)), _) => {
                let message = "Said by the hub. See https://hub.test/page?key=secret";
                let headers = [("X-Error-Code", code), ("X-Error-Message", message)];
                reply(status, &headers, b"{}", is_head)
            }
            (_, Some(commit)) => {
                let files = state.files.keys().filter(|(of, _)| of == commit);
                let files: Vec<_> =
                    files.map(|(_, name)| serde_json::json!({ "rfilename": name })).collect();
                let files = if of_data.is_some() { files } else { vec![] };
                let body = serde_json::json!({ "_id": "1", "id": "x/y", "sha": commit, "siblings": files });
                let body = body.to_string();
                reply(200, &[("Content-Type", "application/json")], body.as_bytes(), is_head)
            }
            _ => reply(404, &[("X-Error-Code", "RevisionNotFound")], b"{}", is_head),
        };
    }
    let moved = path.strip_prefix("/moved/");
    let stored = path.strip_prefix("/stored/");
    let rest = moved.or(stored).or(path.strip_prefix("/some/model/resolve/"));
    let rest = rest.or(path.strip_prefix("/datasets/some/data/resolve/")).unwrap_or("");
    let (commit, name) = rest.split_once('/').unwrap_or(("", ""));
    let Some((content, manner)) = state.files.get_mut(&(commit.to_owned(), name.to_owned())) else {
        let headers = [("X-Error-Code", "EntryNotFound"), ("X-Repo-Commit", commit)];
        return reply(404, &headers, b"Entry not found", is_head);
    };
    let etag =
        format!("\"{}-{:x}\"", content.len(), content.iter().map(|b| *b as u64).sum::<u64>());
    let good = [("ETag", etag.as_str()), ("X-Repo-Commit", commit)];
    let half = content.len() / 2;
    match manner {
        Manner::Cut(times) if !is_head && *times > 0 => {
            *times -= 1;
            let mut bytes = reply(200, &good, content, false);
            bytes.truncate(bytes.len() - half);
            bytes
        }
        Manner::CutUnannounced if !is_head => {
            reply(200, &[good[0], good[1], ("Content-Length", "")], &content[..half], false)
        }
        Manner::ErrorPage if !is_head => {
            reply(403, &[], b"<html>Request has expired</html>", false)
        }
        Manner::Refused(status) => {
            let message = "Access to model some/model is restricted.";
            reply(
                *status,
                &[("X-Error-Code", "GatedRepo"), ("X-Error-Message", message)],
                b"",
                true,
            )
        }
        Manner::Elsewhere(address) if stored.is_none() => {
            let size = content.len().to_string();
            let to = format!("{address}/stored/{commit}/{name}?Signature=secret");
            let linked = [("X-Linked-Etag", etag.as_str()), ("X-Linked-Size", size.as_str())];
            let headers =
                [("ETag", "\"pointer\""), good[1], linked[0], linked[1], ("Location", &to)];
            reply(302, &headers, b"Found", is_head)
        }
        Manner::Moved if moved.is_none() => {
            let to = format!("/moved/{commit}/{name}");
            reply(307, &[("Location", &to)], b"Moved", is_head)
        }
        Manner::Xet(hash) if is_head => {
            let size = content.len().to_string();
            let linked = [("X-Linked-Etag", etag.as_str()), ("X-Linked-Size", size.as_str())];
            let headers = [good[0], good[1], linked[0], linked[1], ("X-Xet-Hash", hash.as_str())];
            reply(200, &headers, content, true)
        }
        Manner::Xet(_) => reply(403, &[], b"only through Xet", false),
        Manner::OtherCommit => reply(200, &[good[0], ("X-Repo-Commit", SECOND)], content, is_head),
        _ => reply(200, &good, content, is_head),
    }
}
