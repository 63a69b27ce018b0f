//! All responses, one per line, with the hashes of their requests. The file is append-only, so a killed
//! process loses nothing and the next one repeats no request. Memory holds only the hashes and the
//! positions of the lines.

use super::Response;
use crate::context::{Context, Task};
use crate::error::{Error, Place, Result};
use crate::files::JsonlLog;
use crate::text::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Identifies a request: the SHA-256 of the teacher's role and of everything that the answer depends on.
pub(super) type RequestHash = [u8; 32];

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line {
    /// Hash of the request, in hexadecimal.
    pub request: String,
    /// The teacher's role, `long` or `short`.
    pub teacher: String,
    /// The model that answered.
    pub model: String,
    /// Where the model runs: a URL or a folder.
    pub place: String,
    /// The problem's id in its file.
    pub id: String,
    /// The prompt.
    pub prompt: String,
    /// Wall time of the request in seconds.
    pub seconds: f64,
    /// The response.
    #[serde(flatten)]
    pub response: Response,
}

/// The file of responses.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    inner: Mutex<Inner>,
    /// Number of bytes of an incomplete line that was removed.
    pub torn: u64,
}

#[derive(Debug)]
struct Inner {
    log: JsonlLog,
    places: HashMap<RequestHash, u64>,
}

/// Returns the hash of a request.
pub(super) fn request_hash(role: &str, request: &serde_json::Value) -> RequestHash {
    // Canonical, so that the order of an object's keys does not matter.
    let mut hash = Sha256::new();
    hash.update(role.as_bytes());
    hash.update([0]);
    hash.update(canonical(request).as_bytes());
    hash.finalize().into()
}

/// Returns JSON with sorted keys.
fn canonical(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            let fields: Vec<String> = keys
                .iter()
                .map(|key| format!("{}:{}", Value::String((*key).clone()), canonical(&map[*key])))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(list) => {
            format!("[{}]", list.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

pub(super) fn to_hex(hash: &RequestHash) -> String {
    hex(hash)
}

pub(super) fn from_hex(text: &str) -> Option<RequestHash> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(hash)
}

impl Store {
    /// Opens or creates a store. Removes an incomplete last line.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Stopped`]; [`Error::Data`] for a line that is not a response. The file is
    /// then unchanged.
    pub(super) fn open(path: &Path, context: &Context<'_>) -> Result<Self> {
        /// The field that identifies a line. The rest is only checked to be JSON.
        #[derive(Deserialize)]
        struct Known {
            request: String,
        }
        let mut places = HashMap::new();
        let mut progress = context.task(Task::ReadResponses, 0);
        let mut log = JsonlLog::open(path, &mut |line| {
            let failed = |what: String| {
                let hint = "Fix or remove the line; its question is then asked again";
                Error::data(Place::line(path, line.number), what, hint)
            };
            let known: Known =
                line.parse().map_err(|error| failed(format!("it is not a response: {error}")))?;
            let hash = from_hex(&known.request)
                .ok_or_else(|| failed("its `request` is not a SHA-256 hash".into()))?;
            places.entry(hash).or_insert(line.start);
            progress.update_of(line.end, line.of)
        })?;
        let torn = log.torn();
        log.cut_torn()?;
        // From here on, the file exists and marks the directory.
        log.reopen()?;
        let inner = Mutex::new(Inner { log, places });
        Ok(Self { path: path.to_owned(), inner, torn })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of responses.
    pub(super) fn len(&self) -> usize {
        self.inner().places.len()
    }

    /// Returns whether the store has a response to a request.
    pub(super) fn holds(&self, request: &RequestHash) -> bool {
        self.inner().places.contains_key(request)
    }

    /// Returns the response to a request, if there is one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] if the file was changed meanwhile.
    pub(super) fn get(&self, request: &RequestHash) -> Result<Option<Line>> {
        let mut inner = self.inner();
        let Some(place) = inner.places.get(request).copied() else { return Ok(None) };
        let line: Line = serde_json::from_slice(&inner.log.line_at(place)?).map_err(|error| {
            let hint = "Fix or remove the line; its question is then asked again";
            let what = format!("the line at byte {place} is not a response: {error}");
            Error::data(Place::file(&self.path), what, hint)
        })?;
        if from_hex(&line.request).as_ref() != Some(request) {
            let what = format!("the line at byte {place} has changed");
            return Err(Error::data(Place::file(&self.path), what, "Run the command again"));
        }
        Ok(Some(line))
    }

    /// Appends a response.
    ///
    /// # Errors
    /// [`Error::Io`]; a partly written line is removed.
    pub(super) fn put(&self, request: &RequestHash, mut line: Line) -> Result<()> {
        line.request = to_hex(request);
        let mut inner = self.inner();
        let place = inner.log.append(&[line])?;
        inner.places.insert(*request, place);
        Ok(())
    }

    /// Syncs the file to disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn flush(&self) -> Result<()> {
        self.inner().log.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::teacher::TeacherSample;
    use serde_json::json;

    fn line(content: &str) -> Line {
        let samples = vec![TeacherSample { content: content.into(), ..TeacherSample::default() }];
        Line {
            request: String::new(),
            teacher: "long".into(),
            model: "m".into(),
            place: "p".into(),
            id: "1".into(),
            prompt: "?".into(),
            seconds: 0.5,
            response: Response { samples, prompt_tokens: Some(3), completion_tokens: None },
        }
    }

    #[test]
    fn responses_are_found_again_and_a_torn_line_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("responses.jsonl");
        let open = || Store::open(&path, &Context::default());
        let hashes: Vec<RequestHash> =
            (0..3).map(|i| request_hash("long", &json!({ "seed": i }))).collect();
        let store = open().unwrap();
        for (i, hash) in hashes.iter().enumerate() {
            assert!(store.get(hash).unwrap().is_none());
            store.put(hash, line(&format!("answer\n{i}"))).unwrap();
        }
        let found = |store: &Store, i: usize| {
            store.get(&hashes[i]).unwrap().map(|line| line.response.samples[0].content.clone())
        };
        assert_eq!(found(&store, 1).as_deref(), Some("answer\n1"));
        let text = std::fs::read(&path).unwrap();
        let second = text.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for end in second..text.len() {
            std::fs::write(&path, &text[..end]).unwrap();
            let store = open().unwrap();
            let whole = text[..end].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(store.len(), whole);
            assert_eq!(store.torn == 0, text[..end].last() == Some(&b'\n'));
            // Appended at the right place.
            store.put(&hashes[2], line("new")).unwrap();
            assert_eq!(found(&open().unwrap(), 2).as_deref(), Some("new"));
        }
        std::fs::write(&path, "{\"request\": \"00\"}\n").unwrap();
        let error = open().unwrap_err().to_string();
        assert!(error.contains(":1") && error.contains("SHA-256"), "{error}");
        std::fs::write(&path, "nonsense\nmore\n").unwrap();
        assert!(open().is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "nonsense\nmore\n");
    }

    #[test]
    fn a_hash_is_of_role_and_content() {
        let hash = |role, value| request_hash(role, &value);
        let one = hash("long", json!({ "a": 1, "b": { "c": 2, "d": [3] } }));
        assert_eq!(one, hash("long", json!({ "b": { "d": [3], "c": 2 }, "a": 1 })));
        assert_ne!(one, hash("short", json!({ "a": 1, "b": { "c": 2, "d": [3] } })));
        assert_ne!(one, hash("long", json!({ "a": 1, "b": { "c": 2, "d": [4] } })));
        assert_eq!(from_hex(&to_hex(&one)), Some(one));
    }
}
