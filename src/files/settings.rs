//! The settings that results were made with, beside the results.

use super::write_text;
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Most characters of a value that are told.
const SHOWN: usize = 80;
/// Most differences that are told.
const MOST: usize = 6;

/// The settings in which two runs differ, in words.
pub(crate) fn differences(then: &Value, now: &Value, path: &str) -> Vec<String> {
    match (then, now) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let null = Value::Null;
            keys.into_iter()
                .flat_map(|key| {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    differences(a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null), &path)
                })
                .collect()
        }
        _ if then == now => vec![],
        _ => vec![format!("{path} was {}, is {}", shown(then), shown(now))],
    }
}

/// A value, shortened: a chat template has thousands of characters.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Refuses to put answers beside those that were made with other settings, which a file says; where
/// there is none, it is written. `older` brings settings of earlier versions into today's form.
///
/// # Errors
/// [`Error::RunDirectory`] with what differs, and with `hint`; [`Error::Io`].
pub(crate) fn same_settings(
    path: &Path,
    settings: &Value,
    older: impl FnOnce(&mut Value) -> Result<()>,
    hint: &str,
) -> Result<()> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return write_text(path, &format!("{settings:#}\n"));
        }
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let mut then: Value = serde_json::from_str(&text).unwrap_or_default();
    older(&mut then)?;
    refuse_other(path, &then, settings, hint)
}

/// Refuses settings that differ from those that a file has.
///
/// # Errors
/// [`Error::RunDirectory`] with what differs, and with `hint`.
pub(super) fn refuse_other(path: &Path, then: &Value, settings: &Value, hint: &str) -> Result<()> {
    let mut changes = differences(then, settings, "");
    if changes.is_empty() {
        return Ok(());
    }
    if let Some(more) = changes.len().checked_sub(MOST).filter(|more| *more > 1) {
        changes.truncate(MOST);
        changes.push(format!("and {more} more"));
    }
    Err(Error::RunDirectory {
        path: path.to_owned(),
        what: format!("what is here was made with other settings: {}", changes.join(", ")),
        hint: hint.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_differs_is_named_and_shortened() {
        let then = json!({ "a": { "b": 1, "c": "x".repeat(500) }, "d": null });
        let now = json!({ "a": { "b": 2, "c": "y" } });
        let found = differences(&then, &now, "");
        assert_eq!(found[0], "a.b was 1, is 2");
        assert!(found[1].starts_with("a.c was \"xxx") && found[1].len() < 120, "{}", found[1]);
        assert_eq!(found.len(), 2, "what is not there is null");
    }

    #[test]
    fn other_settings_are_refused_and_the_first_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.json");
        let same = |settings: Value| same_settings(&path, &settings, |_| Ok(()), "Do this");
        same(json!({ "a": 1, "b": 2 })).unwrap();
        same(json!({ "b": 2, "a": 1 })).unwrap();
        let error = same(json!({ "a": 3, "b": 2 })).unwrap_err().to_string();
        assert!(error.contains("a was 1, is 3") && error.contains("Do this"), "{error}");
        same(json!({ "a": 1, "b": 2 })).unwrap();
        std::fs::write(&path, "no JSON").unwrap();
        assert!(same(json!({ "a": 1 })).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "no JSON");
    }
}
