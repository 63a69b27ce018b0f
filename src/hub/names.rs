//! Names on the hub: of owners, repositories, revisions and files, none of which climbs out of a folder.

use std::fmt;

/// The revision where none is named.
pub(super) const MAIN: &str = "main";

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RepoId {
    pub owner: String,
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.owner, self.name, self.revision)
    }
}

impl RepoId {
    /// Checks the parts; the error says which is none.
    pub fn new(owner: &str, name: &str, revision: &str) -> Result<Self, String> {
        let (what, part) = match (is_name(owner), is_name(name), is_revision(revision)) {
            (true, true, true) => {
                let [owner, name, revision] = [owner, name, revision].map(str::to_owned);
                return Ok(Self { owner, name, revision });
            }
            (false, ..) => ("an owner", owner),
            (_, false, _) => ("a name", name),
            _ => ("a revision", revision),
        };
        Err(format!("`{}` is not {what} on the hub", part.escape_debug()))
    }
}

/// Letters, digits, `.`, `_` and `-`, and nothing that climbs out of a folder.
pub(super) fn is_word(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text.bytes().all(is_plain) && !text.contains("..")
}

/// The hub's own rule for owners and names; the cache's folders need it too.
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

/// A file in a repository, which has the same name below a folder of any system.
pub(super) fn is_file(text: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(' ');
    let is_bad = |c: char| c.is_control() || "\\:<>|\"".contains(c);
    text.len() <= 1024 && text.split('/').all(is_part) && !text.contains(is_bad)
}
