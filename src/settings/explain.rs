//! Documentation of every key.

use super::Settings;
use super::path::{KeyPath, key_text};
use super::schema::{Field, Kind, Schema, Table};
use super::sentences::sentence;
use toml::Value;

/// A settings key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key's path, such as `train.learning_rate`. `*` stands for an entry of a list.
    pub path: String,
    /// What the key does.
    pub about: String,
    /// The type of its value: `number`, `whole number`, `text`, `true or false`, `table`, a list, or a
    /// choice.
    pub kind: String,
    /// The choices, if the value is one of several.
    pub choices: Vec<Choice>,
    /// The value as TOML. `None` if the key has no value, and for tables.
    pub value: Option<String>,
    /// Whether the key is required.
    pub required: bool,
    /// Whether the key is a table or a list of tables. Its keys follow.
    pub is_table: bool,
}

/// A choice of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The choice, as written in TOML.
    pub name: String,
    /// What the choice means.
    pub about: String,
}

/// Returns the keys of settings, and their values in `all`.
pub(super) fn keys<T: Settings>(schema: &Schema, all: &toml::Table) -> Vec<Key> {
    let mut keys = vec![];
    if let Some(table) = schema.as_table() {
        below::<T>(table, &KeyPath::default(), Some(all), all, &mut keys);
    }
    keys
}

fn below<T: Settings>(
    table: &Table,
    at: &KeyPath,
    values: Option<&toml::Table>,
    all: &toml::Table,
    keys: &mut Vec<Key>,
) {
    for field in &table.fields {
        let at = at.with(field.name);
        let value = values.and_then(|values| values.get(field.name));
        keys.push(key(field, table, &at, value));
        match (&field.schema.kind, value) {
            (Kind::Table(inner), Some(Value::Table(value))) => {
                below::<T>(inner, &at, Some(value), all, keys);
            }
            (Kind::Table(inner), _) => {
                let values = filled::<T>(all, &at, &field.schema);
                below::<T>(inner, &at, values.as_ref(), all, keys);
            }
            (Kind::List(list), _) => {
                let Some(inner) = list.as_table() else { continue };
                let values = filled::<T>(all, &at, &field.schema);
                below::<T>(inner, &at.with("*"), values.as_ref(), all, keys);
            }
            _ => {}
        }
    }
}

fn key(field: &Field, table: &Table, at: &KeyPath, value: Option<&Value>) -> Key {
    let choices = match &field.schema.kind {
        Kind::Choice { type_name, variants } => variants
            .iter()
            .map(|variant| Choice {
                name: variant.shown(),
                about: sentence(type_name, variant.name).unwrap_or_default(),
            })
            .collect(),
        _ => vec![],
    };
    let is_table = field.schema.as_table().or(field.schema.as_tables()).is_some();
    Key {
        path: at.to_string(),
        about: sentence(table.type_name, field.name).unwrap_or_default(),
        kind: field.schema.noun(),
        choices,
        value: value.filter(|_| !is_table && !field.required).map(Value::to_string),
        required: field.required,
        is_table,
    }
}

/// Returns the values that a missing table or a new entry of a list has if only its required keys are given.
pub(super) fn filled<T: Settings>(
    all: &toml::Table,
    at: &KeyPath,
    schema: &Schema,
) -> Option<toml::Table> {
    let example = example(schema);
    let list = schema.as_tables().is_some();
    let mut all = Value::Table(all.clone());
    let mut here = &mut all;
    let (last, parents) = at.0.split_last()?;
    for step in parents {
        here = here.as_table_mut()?.get_mut(step)?;
    }
    here.as_table_mut()?.insert(last.clone(), example);
    let filled: T = all.try_into().ok()?;
    let filled = Value::Table(super::table_of(&filled).ok()?);
    let mut here = &filled;
    for step in &at.0 {
        here = here.get(step)?;
    }
    let here = if list { here.get(0)? } else { here };
    let mut table = here.as_table()?.clone();
    // Required keys have no value of their own.
    let known = schema.as_table().or(schema.as_tables())?;
    known.fields.iter().filter(|field| field.required).for_each(|field| {
        table.remove(field.name);
    });
    Some(table)
}

/// Returns an example value of this type.
fn example(schema: &Schema) -> Value {
    match &schema.kind {
        Kind::Any | Kind::Text | Kind::TextOrList => "".into(),
        Kind::TrueFalse => false.into(),
        Kind::Number => 0.0.into(),
        Kind::WholeNumber { least, .. } => (*least).max(0).into(),
        Kind::List(inner) => match inner.as_table() {
            Some(_) => Value::Array(vec![example(inner)]),
            None => Value::Array(vec![]),
        },
        Kind::Tuple(parts) => Value::Array(parts.iter().map(example).collect()),
        Kind::Map(_) => Value::Table(toml::Table::new()),
        Kind::Table(table) => {
            let required = table.fields.iter().filter(|field| field.required);
            let fields = required.map(|field| (field.name.to_owned(), example(&field.schema)));
            Value::Table(fields.collect())
        }
        Kind::Choice { variants, .. } => {
            let plain = variants.iter().find(|variant| variant.content.is_none());
            plain.map_or("", |variant| variant.name).into()
        }
    }
}

/// Returns a key without a value, with a placeholder: `steps = <whole number>`.
pub(super) fn without_value(field: &Field) -> String {
    format!("{} = <{}>", key_text(field.name), field.schema.noun())
}
