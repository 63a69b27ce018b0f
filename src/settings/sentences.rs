//! The documentation of each key, taken from the doc comments in the source code, so that it is written only
//! once.

use std::collections::BTreeMap;
use std::sync::OnceLock;

/// The source files that declare settings.
const SOURCES: &[&str] = &[
    include_str!("../data/arith.rs"),
    include_str!("../data/reading/column_map.rs"),
    include_str!("../data/batching/encode.rs"),
    include_str!("../data/batching/packing.rs"),
    include_str!("../data/batching/turns.rs"),
    include_str!("../data/mixing/choice.rs"),
    include_str!("../data/mixing/mixture.rs"),
    include_str!("../data/mixing/pairs.rs"),
    include_str!("../data/mixing/share.rs"),
    include_str!("../data/chat/template.rs"),
    include_str!("../eval/evaluate.rs"),
    include_str!("../eval/math/kind.rs"),
    include_str!("../model/architecture.rs"),
    include_str!("../model/base_weights.rs"),
    include_str!("../model/config.rs"),
    include_str!("../model/generate/config.rs"),
    include_str!("../model/lora/config.rs"),
    include_str!("../model/objective.rs"),
    include_str!("../model/precision.rs"),
    include_str!("../model/rope.rs"),
    include_str!("../model/weights.rs"),
    include_str!("../ops/gated.rs"),
    include_str!("../ops/token_loss.rs"),
    include_str!("../recipe/config.rs"),
    include_str!("../recipe/pilots/config.rs"),
    include_str!("../study/arms.rs"),
    include_str!("../study/config.rs"),
    include_str!("../teacher/chat_config.rs"),
    include_str!("../teacher/config.rs"),
    include_str!("../teacher/local.rs"),
    include_str!("../teacher/reply.rs"),
    include_str!("../train/config.rs"),
];

/// Doc comments of fields and variants, by the type's name and the member's name, normalized by `plain`.
/// Types with the same name share their comments; each looks up only its own fields.
type Comments = BTreeMap<(String, String), String>;

/// Returns the doc comment of a field or variant.
pub(super) fn sentence(type_name: &str, member: &str) -> Option<String> {
    static COMMENTS: OnceLock<Comments> = OnceLock::new();
    let comments = COMMENTS.get_or_init(|| {
        let mut comments = Comments::new();
        SOURCES.iter().for_each(|source| read(source, &mut comments));
        comments
    });
    comments.get(&(type_name.to_owned(), plain(member))).cloned()
}

/// Returns the name that a serde attribute gives to the next item.
fn renamed(attribute: &str) -> Option<String> {
    let (_, name) = attribute.split_once("serde(rename = \"")?;
    Some(name.split_once('"')?.0.to_owned())
}

/// Makes `WarmupStableDecay` and `warmup_stable_decay` equal.
fn plain(name: &str) -> String {
    name.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

/// Reads the doc comments of all structs and enums in a source file formatted by rustfmt.
fn read(source: &str, comments: &mut Comments) {
    let mut type_name = None;
    let mut comment = String::new();
    let mut name_by_attribute = None;
    for line in source.lines() {
        let text = line.trim();
        if let Some(words) = text.strip_prefix("///") {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(words.trim());
            continue;
        }
        // Attributes, which may span several lines, stand between a comment and its item.
        let is_item = |c: char| c.is_alphabetic() || c == '_' || c == '}';
        if !text.starts_with(is_item) {
            if !text.starts_with("#[") {
                comment.clear();
            }
            name_by_attribute = renamed(text).or(name_by_attribute);
            continue;
        }
        let text = text.strip_prefix("pub ").unwrap_or(text);
        let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let name = name_by_attribute.take().unwrap_or(name);
        let declared = ["struct ", "enum "].iter().find_map(|word| text.strip_prefix(word));
        match (declared, &type_name) {
            (Some(declared), _) => {
                let name = declared.chars().take_while(|c| c.is_alphanumeric() || *c == '_');
                type_name = Some(name.collect::<String>());
            }
            (None, _) if line.starts_with('}') => type_name = None,
            (None, Some(type_name)) if line.starts_with("    ") && !comment.is_empty() => {
                let key = (type_name.clone(), plain(&name));
                comments.entry(key).or_insert_with(|| without_links(&comment));
            }
            _ => {}
        }
        comment.clear();
    }
}

/// Replaces links in a comment with their text.
fn without_links(comment: &str) -> String {
    let mut text = String::new();
    let mut rest = comment;
    while let Some((before, link)) = rest.split_once('[') {
        text.push_str(before);
        let Some((shown, after)) = link.split_once(']') else {
            text.push('[');
            rest = link;
            continue;
        };
        match after.strip_prefix('(').and_then(|target| target.split_once(')')) {
            Some((_, after)) => {
                text.push_str(shown);
                rest = after;
            }
            None if shown.starts_with('`') => {
                text.push_str(shown);
                rest = after;
            }
            None => {
                text.push('[');
                rest = link;
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_found_above_fields_and_variants_and_lose_their_links() {
        let source = "/// A type.\n#[derive(Debug)]\npub struct Given {\n    /// See [`x`](a::x), \
                      [`y`] and\n    /// `[1, 2]`.\n    #[serde(default)]\n    pub learning_rate: \
                      f64,\n    bare: usize,\n}\n\nimpl Given {\n    /// No field.\n    fn f() \
                      {}\n}\n\nenum Kind {\n    /// Stays.\n    WarmUp,\n}\n";
        let mut comments = Comments::new();
        read(source, &mut comments);
        let of = |a: &str, b: &str| comments.get(&(a.to_owned(), b.to_owned())).map(String::as_str);
        assert_eq!(of("Given", "learningrate"), Some("See `x`, `y` and `[1, 2]`."));
        assert_eq!(of("Kind", "warmup"), Some("Stays."));
        assert_eq!(comments.len(), 2);
    }
}
