//! The tree of keys of a settings type, and the type of each value.

use super::Settings;
use super::record::record;
use crate::error::{Error, Result};
use std::any::TypeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The tree of keys of a settings type.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    pub(super) kind: Kind,
    pub(super) optional: bool,
}

/// The type of a key's value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Any,
    TrueFalse,
    Number,
    WholeNumber {
        least: i64,
        most: i64,
    },
    Text,
    /// A text or a list of texts.
    TextOrList,
    List(Box<Schema>),
    /// A list of a fixed length.
    Tuple(Vec<Schema>),
    /// Values by user-defined names.
    Map(Box<Schema>),
    Table(Table),
    Choice {
        type_name: &'static str,
        variants: Vec<Variant>,
    },
}

/// The keys of a struct.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Table {
    pub(super) type_name: &'static str,
    pub(super) fields: Vec<Field>,
    /// Whether paths in `other_names` start here.
    pub(super) is_root: bool,
    /// Whether the table has only given values, without defaults.
    pub(super) is_partial: bool,
    /// Names that other programs use for a key, with the key's path from here.
    pub(super) other_names: &'static [(&'static str, &'static str)],
    /// Removed keys that files may still have, with the reason.
    pub(super) retired: Vec<(&'static str, &'static str)>,
}

/// A key of a table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) schema: Schema,
    /// Whether the field has no default.
    pub(super) required: bool,
}

/// One of several choices.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Variant {
    pub(super) name: &'static str,
    /// The variant's content, as in `{ linear = ... }`.
    pub(super) content: Option<Schema>,
}

impl Schema {
    /// Returns the schema of a settings type. It is computed once and cached.
    ///
    /// # Errors
    /// [`Error::Config`] if the schema cannot be determined, which is a bug of the type.
    pub fn of<T: Settings>() -> Result<Arc<Self>> {
        type Known = Mutex<HashMap<TypeId, Arc<Schema>>>;
        static KNOWN: OnceLock<Known> = OnceLock::new();
        let known = KNOWN.get_or_init(Known::default);
        let id = TypeId::of::<T>();
        if let Some(schema) = known.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(schema.clone());
        }
        let defect = |what: String| Error::config("settings", what, super::DEFECT);
        let mut schema = record::<T>().map_err(defect)?;
        if let Kind::Table(table) = &mut schema.kind {
            (table.is_root, table.other_names) = (true, T::OTHER_NAMES);
        }
        for (path, why) in T::RETIRED {
            let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
            match schema.at_mut(parent).map(|schema| &mut schema.kind) {
                Some(Kind::Table(table)) => table.retired.push((name, why)),
                _ => return Err(defect(format!("there is no table {parent}"))),
            }
        }
        for (path, inner) in T::inner()? {
            let place = schema.at_mut(path).ok_or_else(|| defect(format!("there is no {path}")))?;
            place.kind = inner.kind.clone();
            if let Kind::Table(table) = &mut place.kind {
                table.is_partial = true;
            }
        }
        let schema = Arc::new(schema);
        known.lock().unwrap_or_else(PoisonError::into_inner).insert(id, schema.clone());
        Ok(schema)
    }

    /// Returns the schema at a path. `*` stands for an entry of a list or map.
    fn at_mut(&mut self, path: &str) -> Option<&mut Self> {
        let mut here = self;
        for step in path.split('.').filter(|step| !step.is_empty()) {
            here = match &mut here.kind {
                Kind::Table(table) => {
                    &mut table.fields.iter_mut().find(|field| field.name == step)?.schema
                }
                Kind::List(inner) | Kind::Map(inner) if step == "*" => inner,
                _ => return None,
            };
        }
        Some(here)
    }

    /// Returns the table, if the value is one.
    pub(super) fn as_table(&self) -> Option<&Table> {
        match &self.kind {
            Kind::Table(table) => Some(table),
            _ => None,
        }
    }

    /// Returns the table of each entry, if the value is a list of tables.
    pub(super) fn as_tables(&self) -> Option<&Table> {
        match &self.kind {
            Kind::List(inner) => inner.as_table(),
            _ => None,
        }
    }

    /// Returns the type in words, as a noun without an article.
    pub(super) fn noun(&self) -> String {
        match &self.kind {
            Kind::Any => "any value".into(),
            Kind::TrueFalse => "true or false".into(),
            Kind::Number => "number".into(),
            Kind::WholeNumber { .. } => "whole number".into(),
            Kind::Text => "text".into(),
            Kind::TextOrList => "text or list of texts".into(),
            Kind::List(inner) => format!("list of {}", inner.plural()),
            Kind::Tuple(parts) => match parts.first() {
                Some(first) => format!("list of {} {}", parts.len(), first.plural()),
                None => "empty list".into(),
            },
            Kind::Map(inner) => format!("table of {} by name", inner.plural()),
            Kind::Table(_) => "table".into(),
            Kind::Choice { variants, .. } => {
                format!(
                    "one of {}",
                    variants.iter().map(Variant::shown).collect::<Vec<_>>().join(", ")
                )
            }
        }
    }

    fn plural(&self) -> String {
        match &self.kind {
            Kind::Any => "values".into(),
            Kind::TrueFalse | Kind::Choice { .. } => format!("values, each {}", self.noun()),
            Kind::List(_) | Kind::Tuple(_) => format!("lists, each a {}", self.noun()),
            Kind::Map(_) => format!("tables, each a {}", self.noun()),
            _ => format!("{}s", self.noun()),
        }
    }

    /// Returns the hint for a value of another type.
    pub(super) fn advice(&self) -> String {
        match &self.kind {
            Kind::Any | Kind::TrueFalse => format!("Give {}", self.noun()),
            Kind::Text => "Give text, in quotes".into(),
            Kind::TextOrList => {
                "Give text, in quotes, or a list of texts, in square brackets".into()
            }
            Kind::WholeNumber { least: 0, most: i64::MAX } => {
                "Give a whole number, 0 or more".into()
            }
            Kind::WholeNumber { least, most } if *least > i64::MIN || *most < i64::MAX => {
                format!("Give a whole number from {least} to {most}")
            }
            Kind::List(_) | Kind::Tuple(_) => {
                format!("Give a {}, in square brackets", self.noun())
            }
            Kind::Choice { variants, .. } => {
                let shown: Vec<String> = variants.iter().map(Variant::shown).collect();
                format!("Give {}", listed(&shown, "or"))
            }
            Kind::Table(table) => {
                let names: Vec<&str> = table.fields.iter().map(|field| field.name).collect();
                format!("Give a table with the settings {}", names.join(", "))
            }
            Kind::Number | Kind::WholeNumber { .. } | Kind::Map(_) => {
                format!("Give a {}", self.noun())
            }
        }
    }
}

impl Variant {
    /// Returns the variant, as written in TOML.
    pub(super) fn shown(&self) -> String {
        match &self.content {
            None => format!("\"{}\"", self.name),
            Some(content) => match content.as_table() {
                None => format!("{{ {} = <{}> }}", self.name, content.noun()),
                Some(table) => {
                    let part =
                        |field: &Field| format!("{} = <{}>", field.name, field.schema.noun());
                    let parts: Vec<String> = table.fields.iter().map(part).collect();
                    format!("{{ {} = {{ {} }} }}", self.name, parts.join(", "))
                }
            },
        }
    }
}

/// Joins names as `a`, `a or b`, `a, b or c`.
pub(super) fn listed(names: &[String], word: &str) -> String {
    match names {
        [] => String::new(),
        [name] => name.clone(),
        [names @ .., last] => format!("{} {word} {last}", names.join(", ")),
    }
}
