//! Settings stored beside the results that were created with them.

use super::write_text;
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Maximum characters of a value in a message.
const SHOWN: usize = 80;
/// Maximum number of differences in a message.
const MOST: usize = 6;

/// Describes the settings in which two runs differ.
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

/// Returns a value, shortened, since a chat template can have thousands of characters.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Refuses to add answers to those created with other settings, which the file at `path` records. Writes the
/// file if it does not exist. `older` migrates settings of earlier versions.
///
/// # Errors
/// [`Error::RunDirectory`] with the differences and `hint`; [`Error::Io`].
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

/// Refuses settings that differ from the stored ones.
///
/// # Errors
/// [`Error::RunDirectory`] with the differences and `hint`.
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
        what: format!("it was created with other settings: {}", changes.join(", ")),
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
