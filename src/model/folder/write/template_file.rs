//! Writes a folder's chat template to both places that readers use: a separate file for newer readers, and
//! `tokenizer_config.json` for older readers and other programs.

use super::super::CHAT_TEMPLATE;
use crate::error::{Error, Result};
use crate::files::read_if_there;
use serde_json::Value;
use std::ops::Range;
use std::path::Path;

const SETTINGS: &str = "tokenizer_config.json";
/// Old location of the template of vision-language models.
const OLD_FILE: &str = "chat_template.json";
const KEY: &str = "chat_template";

/// Writes a template to both places: `new`, or else the one that the folder has.
///
/// # Errors
/// [`Error::Io`]; [`Error::Model`] if a file is a Git LFS pointer or a web page.
pub(super) fn settle(folder: &Path, new: Option<&str>) -> Result<()> {
    let path = folder.join(SETTINGS);
    let text = read_if_there(&path)?.unwrap_or_default();
    let settings: Value = serde_json::from_str(&text).unwrap_or_default();
    let file = read_if_there(&folder.join(CHAT_TEMPLATE))?;
    let Some(template) = new.or(file.as_deref()).or(settings[KEY].as_str()) else { return Ok(()) };
    let write = |path: &Path, text: &str| {
        std::fs::write(path, text).map_err(|e| Error::io("write", path, e))
    };
    if file.as_deref() != Some(template) {
        write(&folder.join(CHAT_TEMPLATE), template)?;
    }
    if new.is_some() {
        crate::files::remove_file(&folder.join(OLD_FILE))?;
    }
    // A list of named templates stays, unless a new template replaces it.
    let stays =
        settings[KEY].as_str() == Some(template) || settings[KEY].is_array() && new.is_none();
    match with_template(&text, template) {
        Some(text) if !stays => write(&path, &text),
        _ => Ok(()),
    }
}

/// Returns the settings with a template. The rest of the text stays unchanged, because it may have numbers
/// that do not fit into machine types.
fn with_template(text: &str, template: &str) -> Option<String> {
    let value = Value::from(template).to_string();
    let new = match value_at(text, KEY) {
        Some(range) => format!("{}{value}{}", &text[..range.start], &text[range.end..]),
        None => {
            let end = text.rfind('}')?;
            let before = text[..end].trim_end();
            let comma = if before.ends_with('{') { "" } else { "," };
            format!("{before}{comma}\n  \"{KEY}\": {value}\n{}", &text[end..])
        }
    };
    let read: Value = serde_json::from_str(&new).ok()?;
    (read[KEY].as_str() == Some(template)).then_some(new)
}

/// Returns the range of the value of a key of the outermost object in JSON text.
fn value_at(text: &str, key: &str) -> Option<Range<usize>> {
    let quoted = format!("\"{key}\"");
    let (mut depth, mut at, mut found) = (0usize, 0, None);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'"' => {
                at += 1;
                while *bytes.get(at)? != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                let is_key = text[at + 1..].trim_start().starts_with(':');
                if depth == 1 && is_key && text.get(start..=at)? == quoted {
                    let colon = at + 1 + text[at + 1..].find(':')?;
                    let value = &text[colon + 1..];
                    found = Some(colon + 1 + value.len() - value.trim_start().len());
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                if depth == 1
                    && let Some(begins) = found
                {
                    return Some(begins..text[..at].trim_end().len());
                }
                depth = depth.checked_sub(1)?;
            }
            b',' if depth == 1 => {
                if let Some(begins) = found {
                    return Some(begins..text[..at].trim_end().len());
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUGE: &str = "1000000000000000019884624838656";

    #[test]
    fn a_template_is_added_or_replaced_and_all_else_stays() {
        let new = "{{ \"a\" }}\n";
        for (text, expected) in [
            ("{}".to_owned(), "{\n  \"chat_template\": NEW\n}".to_owned()),
            (
                format!("{{\n  \"x\": {{\"chat_template\": 1}},\n  \"max\": {HUGE}\n}}\n"),
                format!(
                    "{{\n  \"x\": {{\"chat_template\": 1}},\n  \"max\": {HUGE},\n  \"chat_template\": \
                     NEW\n}}\n"
                ),
            ),
            (
                format!("{{\"chat_template\" : \"old \\\"}},\", \"max\": {HUGE}}}"),
                format!("{{\"chat_template\" : NEW, \"max\": {HUGE}}}"),
            ),
            (
                "{\"a\": \"chat_template\", \"chat_template\": [{\"name\": \"x\"}] }".to_owned(),
                "{\"a\": \"chat_template\", \"chat_template\": NEW }".to_owned(),
            ),
        ] {
            let value = Value::from(new).to_string();
            assert_eq!(with_template(&text, new).unwrap(), expected.replace("NEW", &value));
        }
        for broken in ["", "[]", "{", "\"}\"", "{\"a\": \"}"] {
            assert_eq!(with_template(broken, new), None, "{broken}");
        }
    }

    #[test]
    fn both_places_have_the_same_template() {
        let folder = tempfile::tempdir().unwrap();
        let [settings, file] = [SETTINGS, CHAT_TEMPLATE].map(|name| folder.path().join(name));
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let is_in_both = |template: &str| {
            let value: Value = serde_json::from_str(&read(&settings)).unwrap();
            read(&file) == template && value[KEY] == template
        };
        std::fs::write(&settings, "{\"a\": 1}").unwrap();
        settle(folder.path(), None).unwrap();
        assert_eq!(read(&settings), "{\"a\": 1}", "there is no template");
        std::fs::write(&file, "one").unwrap();
        settle(folder.path(), None).unwrap();
        assert!(is_in_both("one"));
        std::fs::remove_file(&file).unwrap();
        settle(folder.path(), None).unwrap();
        assert!(is_in_both("one"));
        std::fs::write(folder.path().join(OLD_FILE), "{}").unwrap();
        settle(folder.path(), Some("two")).unwrap();
        assert!(is_in_both("two") && !folder.path().join(OLD_FILE).exists());
        std::fs::write(&settings, "{\"chat_template\": [{\"name\": \"x\", \"template\": \"y\"}]}")
            .unwrap();
        settle(folder.path(), None).unwrap();
        assert!(read(&settings).contains("\"name\": \"x\""));
    }
}
