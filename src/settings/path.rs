//! Paths of keys, such as `train.learning_rate` and `data.sources.0.path`.

use std::fmt;

/// The names from the root of the settings to a key. An entry of a list is its index.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyPath(pub(super) Vec<String>);

impl KeyPath {
    /// Returns the path of a key in the table at this path.
    pub(super) fn with(&self, step: impl Into<String>) -> Self {
        let mut steps = self.0.clone();
        steps.push(step.into());
        Self(steps)
    }

    /// Appends a dotted path to this one.
    pub(super) fn join(&self, path: &str) -> Self {
        let steps = path.split('.').map(str::to_owned);
        Self(self.0.iter().cloned().chain(steps).collect())
    }

    /// Parses a path as written in errors: `data.sources[0].path` and `data.sources.0.path` are the same.
    pub(super) fn of_error(key: &str) -> Self {
        let plain = key.replace('[', ".").replace(']', "");
        Self(plain.split('.').filter(|step| !step.is_empty()).map(str::to_owned).collect())
    }

    /// Returns the table or list that holds the key; `None` at the root.
    pub(super) fn parent(&self) -> Option<Self> {
        let (_, parent) = self.0.split_last()?;
        Some(Self(parent.to_vec()))
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            f.write_str(&key_text(step))?;
        }
        Ok(())
    }
}

/// Returns a key as written in TOML: quoted unless it consists of letters, digits, `_`, and `-`.
pub(super) fn key_text(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-*".contains(c);
    match !key.is_empty() && key.chars().all(is_bare) {
        true => key.to_owned(),
        false => toml::Value::from(key).to_string(),
    }
}
