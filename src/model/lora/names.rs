//! Modules by name or by pattern, and values by pattern, as settings and PEFT's files have them.

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;

/// Modules by their names, or by a regular expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleNames {
    /// Whole paths, or what paths end with after a dot: `model.layers.0.self_attn.q_proj`,
    /// `mlp.down_proj`, `q_proj`.
    List(Vec<String>),
    /// A regular expression, in Python's syntax, that matches the whole path.
    Pattern(String),
}

impl ModuleNames {
    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::List(names) if names.is_empty())
    }

    /// The names, where it is a list.
    pub fn list(&self) -> &[String] {
        match self {
            Self::List(names) => names,
            Self::Pattern(_) => &[],
        }
    }
}

impl Default for ModuleNames {
    /// None.
    fn default() -> Self {
        Self::List(vec![])
    }
}

impl fmt::Display for ModuleNames {
    /// `q_proj, k_proj`, or the regular expression.
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

/// By this name a reader of settings knows what takes a text or a list of texts.
pub(crate) const TEXT_OR_LIST: &str = "TextOrList";

impl<'de> Deserialize<'de> for ModuleNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = ModuleNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
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

/// Values for the modules whose paths end with a match of a regular expression. The first pattern that
/// matches counts, so they keep their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    /// None.
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
