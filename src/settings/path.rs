//! Paths of keys, such as `train.learning_rate` and `data.sources.0.path`.

use std::fmt;

/// The names on the way from the root of the settings to a key; an entry of a list is its number.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyPath(pub(super) Vec<String>);

impl KeyPath {
    /// The path of a key in the table that this is the path of.
    pub(super) fn with(&self, step: impl Into<String>) -> Self {
        let mut steps = self.0.clone();
        steps.push(step.into());
        Self(steps)
    }

    /// The path from which another leads on to this one.
    pub(super) fn join(&self, path: &str) -> Self {
        let steps = path.split('.').map(str::to_owned);
        Self(self.0.iter().cloned().chain(steps).collect())
    }

    /// A path as errors name it: `data.sources[0].path` and `data.sources.0.path` are the same.
    pub(super) fn of_error(key: &str) -> Self {
        let plain = key.replace('[', ".").replace(']', "");
        Self(plain.split('.').filter(|step| !step.is_empty()).map(str::to_owned).collect())
    }

    /// The table or list that holds the key; `None` at the root.
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

/// A key as TOML has it: in quotes where it is not made of letters, digits, `_` and `-`.
pub(super) fn key_text(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-*".contains(c);
    match !key.is_empty() && key.chars().all(is_bare) {
        true => key.to_owned(),
        false => toml::Value::from(key).to_string(),
    }
}
