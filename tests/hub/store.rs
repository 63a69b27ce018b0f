//! The part of the server that receives pushes: repositories, commits, and Xet's storage of large
//! files.

use super::server::{Request, TOKEN, reply};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How big files are taken.
#[derive(Clone, Default, PartialEq)]
pub enum Transfer {
    #[default]
    Xet,
    /// The hub offers none that the client speaks.
    Basic,
    /// The storage fails.
    Broken,
}

/// A file that Xet's storage can put together again.
#[derive(Clone, Default)]
pub struct XetFile {
    /// Xorb, bytes, and chunks from and to.
    pub terms: Vec<(String, u32, [u32; 2])>,
}

/// What is pushed, and what the hub thinks of it.
#[derive(Clone, Default)]
pub struct Store {
    /// Repositories, with whether they are private.
    pub repositories: BTreeMap<String, bool>,
    /// Files that a repository has had before.
    pub siblings: Vec<String>,
    /// Bodies of requests that make a repository.
    pub created: Vec<Value>,
    /// Branches beside `main`.
    pub branches: Vec<String>,
    /// The lines of each commit, with its branch.
    pub commits: Vec<(String, Vec<Value>)>,
    pub xorbs: BTreeMap<String, Vec<u8>>,
    pub xet_files: BTreeMap<String, XetFile>,
    pub transfer: Transfer,
    /// A status and a message for commits.
    pub commit_error: Option<(u16, String)>,
    /// Time that a commit takes.
    pub slow: Option<std::time::Duration>,
}

fn json_reply(status: u16, value: &Value) -> Vec<u8> {
    let body = value.to_string();
    reply(status, &[("Content-Type", "application/json")], body.as_bytes(), false)
}

fn hash_text(bytes: &[u8]) -> String {
    let word = |word: &[u8]| u64::from_le_bytes(word.try_into().unwrap());
    bytes.chunks(8).map(|bytes| format!("{:016x}", word(bytes))).collect()
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Store {
    /// Takes the files that a shard describes: its first section, of entries of 48 bytes.
    fn take_shard(&mut self, shard: &[u8]) {
        let mut at = 48;
        while at + 48 <= shard.len() && shard[at..at + 32] != [0xFF; 32] {
            let (flags, entries) = (number(shard, at + 32), number(shard, at + 36) as usize);
            let file = hash_text(&shard[at..at + 32]);
            at += 48;
            let entry = |at: usize| {
                let chunks = [number(shard, at + 40), number(shard, at + 44)];
                (hash_text(&shard[at..at + 32]), number(shard, at + 36), chunks)
            };
            let terms = (0..entries).map(|index| entry(at + 48 * index)).collect();
            self.xet_files.insert(file, XetFile { terms });
            // Verification and metadata follow where the flags say so.
            let verified = if flags >> 31 == 1 { entries } else { 0 };
            let described = usize::from(flags >> 30 & 1 == 1);
            at += 48 * (entries + verified + described);
        }
    }

    /// The bytes of so many chunks at the beginning of a xorb, headers included.
    fn chunk_bytes(&self, xorb: &str, chunks: u32) -> usize {
        let xorb = &self.xorbs[xorb];
        (0..chunks).fold(0, |at, _| {
            let length = u32::from_le_bytes([xorb[at + 1], xorb[at + 2], xorb[at + 3], 0]);
            at + 8 + length as usize
        })
    }

    fn reconstruction(&self, file: &str, address: &str) -> Option<Value> {
        let file = self.xet_files.get(file)?;
        let mut fetch = serde_json::Map::new();
        let mut terms = vec![];
        for (xorb, length, [start, end]) in &file.terms {
            let range = json!({ "start": start, "end": end });
            terms.push(json!({ "hash": xorb, "unpacked_length": length, "range": range }));
            let [from, to] = [*start, *end].map(|chunks| self.chunk_bytes(xorb, chunks));
            let entry = json!({
                "range": range,
                "url": format!("{address}/xorb-data/{xorb}"),
                "url_range": { "start": from, "end": to - 1 },
            });
            fetch.entry(xorb.clone()).or_insert(json!([])).as_array_mut().unwrap().push(entry);
        }
        Some(json!({ "offset_into_first_range": 0, "terms": terms, "fetch_info": fetch }))
    }

    fn xet_answer(&mut self, request: &Request<'_>) -> Option<Vec<u8>> {
        let Request { method, path, body, .. } = *request;
        if self.transfer == Transfer::Broken && path.starts_with("/v1/xorbs/") {
            return Some(json_reply(400, &json!({ "error": "no room" })));
        }
        let last = path.rsplit('/').next().unwrap_or_default();
        Some(match (method, path) {
            ("POST", path) if path.starts_with("/v1/xorbs/") => {
                self.xorbs.insert(last.to_owned(), body.to_vec());
                json_reply(200, &json!({ "was_inserted": true }))
            }
            ("POST", "/v1/shards") => {
                self.take_shard(body);
                json_reply(200, &json!({ "result": 1 }))
            }
            ("GET", path) if path.starts_with("/v1/reconstructions/") => {
                match self.reconstruction(last, request.address) {
                    Some(found) => json_reply(200, &found),
                    None => json_reply(404, &json!({})),
                }
            }
            ("GET", path) if path.starts_with("/xorb-data/") => {
                let [from, to] = request.range?;
                reply(206, &[], &self.xorbs[last][from..=to], false)
            }
            ("POST", "/v1/telemetry") => json_reply(200, &json!({})),
            // Newer ways, which the client then does without.
            _ if path.starts_with("/v1/") || path.starts_with("/v2/") => {
                json_reply(404, &json!({}))
            }
            _ => return None,
        })
    }

    fn commit(&mut self, branch: &str, body: &[u8]) -> Vec<u8> {
        if let Some((status, message)) = &self.commit_error {
            return json_reply(*status, &json!({ "error": message }));
        }
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
        self.commits.push((branch.to_owned(), lines));
        let oid = format!("{:040x}", self.commits.len());
        json_reply(200, &json!({ "success": true, "commitOid": oid, "commitUrl": "elsewhere" }))
    }
}

/// The answer to a request that is part of a push.
pub fn push_answer(store: &mut Store, request: &Request<'_>) -> Option<Vec<u8>> {
    let Request { method, path, body, token, .. } = *request;
    if let Some(answer) = store.xet_answer(request) {
        return Some(answer);
    }
    let is_known = token == Some(TOKEN);
    if path == "/api/whoami-v2" {
        return Some(match is_known {
            true => json_reply(200, &json!({ "name": "me", "type": "user" })),
            false => json_reply(401, &json!({ "error": "Invalid credentials" })),
        });
    }
    let json_body = || serde_json::from_slice::<Value>(body).unwrap();
    if path == "/api/repos/create" {
        let made = json_body();
        let (owner, name) = (made["organization"].as_str()?, made["name"].as_str()?);
        if owner != "me" {
            let error = "You don't have the rights to create a model under the namespace";
            return Some(json_reply(403, &json!({ "error": error })));
        }
        let id = format!("{owner}/{name}");
        store.repositories.insert(id.clone(), made["private"] == true);
        store.created.push(made);
        return Some(json_reply(200, &json!({ "url": format!("{}/{id}", request.address) })));
    }
    if let Some(rest) = path.strip_suffix(".git/info/lfs/objects/batch") {
        assert!(store.repositories.contains_key(rest.trim_start_matches('/')));
        let transfer = if store.transfer == Transfer::Basic { "basic" } else { "xet" };
        return Some(json_reply(200, &json!({ "transfer": transfer, "objects": [] })));
    }
    let rest = path
        .strip_prefix("/api/models/")
        .filter(|rest| !rest.starts_with("some/model/revision/"))?;
    let mut parts = rest.splitn(3, '/');
    let (owner, name, rest) = (parts.next()?, parts.next()?, parts.next().unwrap_or(""));
    let Some(private) = store.repositories.get(&format!("{owner}/{name}")).copied() else {
        return Some(reply(404, &[("X-Error-Code", "RepoNotFound")], b"{}", false));
    };
    let (what, branch) = rest.split_once('/').unwrap_or((rest, ""));
    Some(match (method, what) {
        ("GET", "") => {
            let files: Vec<Value> =
                store.siblings.iter().map(|name| json!({ "rfilename": name })).collect();
            json_reply(
                200,
                &json!({ "_id": "1", "id": "x/y", "private": private, "siblings": files }),
            )
        }
        ("GET", "revision") if store.branches.iter().any(|known| known == branch) => {
            json_reply(200, &json!({}))
        }
        ("GET", "revision") => json_reply(404, &json!({})),
        ("POST", "branch") => {
            store.branches.push(branch.to_owned());
            json_reply(200, &json!({}))
        }
        ("POST", "preupload") => {
            let body = json_body();
            let files = body["files"].as_array().unwrap().iter().map(|file| {
                let name = file["path"].as_str().unwrap();
                let is_big = name.ends_with(".safetensors") || name.ends_with(".gguf");
                let mode = if is_big { "lfs" } else { "regular" };
                json!({ "path": name, "uploadMode": mode, "shouldIgnore": false })
            });
            json_reply(200, &json!({ "files": files.collect::<Vec<_>>() }))
        }
        ("GET", "xet-write-token" | "xet-read-token") => json_reply(
            200,
            &json!({ "accessToken": "xet-key", "casUrl": request.address, "exp": 4_000_000_000u64 }),
        ),
        ("POST", "commit") => {
            if let Some(time) = store.slow {
                std::thread::sleep(time);
            }
            store.commit(branch, body)
        }
        _ => return None,
    })
}
