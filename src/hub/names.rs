//! Names of owners, repositories, revisions, and files on the Hub. None of them can escape a folder.

use std::fmt;

/// The default revision.
pub(super) const MAIN: &str = "main";

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RepoId {
    pub owner: String,
    pub name: String,
    /// A branch, a tag, or a commit.
    pub revision: String,
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.owner, self.name, self.revision)
    }
}

impl RepoId {
    /// Validates the parts. The error says which one is invalid.
    pub fn new(owner: &str, name: &str, revision: &str) -> Result<Self, String> {
        let (what, part) = match (is_name(owner), is_name(name), is_revision(revision)) {
            (true, true, true) => {
                let [owner, name, revision] = [owner, name, revision].map(str::to_owned);
                return Ok(Self { owner, name, revision });
            }
            (false, ..) => ("owner", owner),
            (_, false, _) => ("repository name", name),
            _ => ("revision", revision),
        };
        Err(format!("`{}` is not a valid {what} on the Hub", part.escape_debug()))
    }
}

/// Returns whether a name has only letters, digits, `.`, `_`, and `-`, and does not escape a folder.
pub(super) fn is_word(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text.bytes().all(is_plain) && !text.contains("..")
}

/// Returns the Hub's own rule for owners and names. The cache's folders depend on it.
pub(super) fn is_name(text: &str) -> bool {
    let edge = ['.', '-'];
    is_word(text)
        && text.len() <= 96
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("--")
}

pub(super) fn is_revision(text: &str) -> bool {
    text.split('/').all(|part| is_word(part) && !part.starts_with('.'))
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns a path in a repository that is valid in a folder on any system.
pub(super) fn is_file(text: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(' ');
    let is_bad = |c: char| c.is_control() || "\\:<>|\"".contains(c);
    text.len() <= 1024 && text.split('/').all(is_part) && !text.contains(is_bad)
}
