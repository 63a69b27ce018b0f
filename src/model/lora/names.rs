//! Modules by name or pattern, and values by pattern, as in settings and PEFT's files.

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;

/// Modules, by names or by a regular expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleNames {
    /// Paths or suffixes of paths after a dot: `model.layers.0.self_attn.q_proj`, `mlp.down_proj`, `q_proj`.
    List(Vec<String>),
    /// A regular expression in Python's syntax that matches the whole path.
    Pattern(String),
}

impl ModuleNames {
    /// Returns whether the list is empty.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::List(names) if names.is_empty())
    }

    /// Returns the names, which are empty for a pattern.
    pub fn list(&self) -> &[String] {
        match self {
            Self::List(names) => names,
            Self::Pattern(_) => &[],
        }
    }
}

impl Default for ModuleNames {
    /// Defaults to none.
    fn default() -> Self {
        Self::List(vec![])
    }
}

impl fmt::Display for ModuleNames {
    /// Formats as `q_proj, k_proj` or as the regular expression.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(names) => f.write_str(&names.join(", ")),
            Self::Pattern(pattern) => f.write_str(pattern),
        }
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for ModuleNames {
    fn from(names: [S; N]) -> Self {
        Self::List(names.map(Into::into).to_vec())
    }
}

impl From<Vec<String>> for ModuleNames {
    fn from(names: Vec<String>) -> Self {
        Self::List(names)
    }
}

impl From<&str> for ModuleNames {
    fn from(pattern: &str) -> Self {
        Self::Pattern(pattern.to_owned())
    }
}

impl Serialize for ModuleNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::List(names) => names.serialize(serializer),
            Self::Pattern(pattern) => serializer.serialize_str(pattern),
        }
    }
}

/// The type name by which settings recognize values that are a string or a list of strings.
pub(crate) const TEXT_OR_LIST: &str = "TextOrList";

impl<'de> Deserialize<'de> for ModuleNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = ModuleNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                deserializer: D,
            ) -> Result<ModuleNames, D::Error> {
                deserializer.deserialize_any(self)
            }

            fn visit_str<E>(self, pattern: &str) -> Result<ModuleNames, E> {
                Ok(pattern.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<ModuleNames, A::Error> {
                let mut list = vec![];
                while let Some(name) = names.next_element()? {
                    list.push(name);
                }
                Ok(ModuleNames::List(list))
            }
        }
        deserializer.deserialize_newtype_struct(TEXT_OR_LIST, Names)
    }
}

/// Values for modules, by regular expressions that match the end of their paths. The first match applies, so
/// the order is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    /// Defaults to none.
    fn default() -> Self {
        Self(vec![])
    }
}

impl<S: Into<String>, T, const N: usize> From<[(S, T); N]> for Patterns<T> {
    fn from(patterns: [(S, T); N]) -> Self {
        Self(patterns.into_iter().map(|(pattern, value)| (pattern.into(), value)).collect())
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (pattern, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of values by pattern")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Patterns<T>, A::Error> {
                let mut entries = vec![];
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Patterns(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}
