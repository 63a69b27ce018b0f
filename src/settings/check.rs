//! Checks given settings against the schema.

use super::by_name::{has_names, name_of};
use super::nearest;
use super::path::KeyPath;
use super::schema::{Kind, Schema, Table};
use toml::Value;

/// A problem with one key.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) path: KeyPath,
    pub(super) what: String,
    pub(super) hint: String,
}

/// The table at which paths of the settings start.
type Root<'s> = (&'s Table, &'s KeyPath);

/// Returns all problems with the given values of a table.
pub(super) fn problems(value: &toml::Table, schema: &Schema) -> Vec<Problem> {
    let mut found = vec![];
    if let Some(table) = schema.as_table() {
        let at = KeyPath::default();
        check_table(value, table, &at, (table, &at), &mut found);
    }
    found
}

/// Returns all required keys that are missing.
pub(super) fn missing(value: &toml::Table, schema: &Schema) -> Vec<Problem> {
    let mut found = vec![];
    if let Some(table) = schema.as_table() {
        missing_in(value, table, &KeyPath::default(), &mut found);
    }
    found
}

fn missing_in(value: &toml::Table, table: &Table, at: &KeyPath, found: &mut Vec<Problem>) {
    // The other values come from elsewhere.
    if table.is_partial {
        return;
    }
    for field in &table.fields {
        let path = at.with(field.name);
        match (value.get(field.name), &field.schema.kind) {
            (None, _) if field.required => found.push(Problem {
                path,
                what: "it is missing".into(),
                hint: field.schema.advice(),
            }),
            (Some(Value::Table(value)), Kind::Table(table)) => {
                missing_in(value, table, &path, found);
            }
            (Some(Value::Array(values)), Kind::List(inner)) => {
                let Some(table) = inner.as_table() else { continue };
                for (index, value) in values.iter().enumerate() {
                    if let Value::Table(entry) = value {
                        let before = found.len();
                        missing_in(entry, table, &path.with(index.to_string()), found);
                        found[before..].iter_mut().for_each(|problem| {
                            problem.what.push_str(&of_entry(value, values, &path));
                        });
                    }
                }
            }
            _ => {}
        }
    }
}

/// Names the incomplete entry of a list, and the other entries, if they have names.
fn of_entry(entry: &Value, entries: &[Value], list: &KeyPath) -> String {
    let Some(name) = name_of(entry) else { return String::new() };
    let others = entries.iter().filter(|other| *other != entry).filter_map(name_of);
    let others: Vec<String> = others.map(|name| format!("`{name}`")).collect();
    match others.is_empty() {
        true => format!(" in the entry `{name}`, the only one of `{list}`"),
        false => format!(" in the entry `{name}`; `{list}` also has {}", others.join(", ")),
    }
}

fn check_table(
    value: &toml::Table,
    table: &Table,
    at: &KeyPath,
    root: Root<'_>,
    found: &mut Vec<Problem>,
) {
    let root = if table.is_root { (table, at) } else { root };
    for (key, value) in value {
        let path = at.with(key);
        match table.fields.iter().find(|field| field.name == key) {
            Some(field) => check(value, &field.schema, &path, root, found),
            None => found.push(unknown(key, table, at, root)),
        }
    }
}

/// Returns the problem of an unknown key.
pub(super) fn unknown(key: &str, table: &Table, at: &KeyPath, root: Root<'_>) -> Problem {
    let retired = table.retired.iter().find(|(name, _)| *name == key);
    let (what, hint) = match retired {
        Some((_, why)) => ("this setting was removed".into(), format!("Remove it: {why}")),
        None => ("there is no such setting".into(), nearest::advice(key, (table, at), root)),
    };
    Problem { path: at.with(key), what, hint }
}

fn check(value: &Value, schema: &Schema, at: &KeyPath, root: Root<'_>, found: &mut Vec<Problem>) {
    match (&schema.kind, value) {
        (Kind::Any, _)
        | (Kind::TrueFalse, Value::Boolean(_))
        | (Kind::Number, Value::Float(_) | Value::Integer(_))
        | (Kind::Text | Kind::TextOrList, Value::String(_)) => {}
        (Kind::TextOrList, Value::Array(values)) => {
            let text = Schema { kind: Kind::Text, optional: false };
            for (index, value) in values.iter().enumerate() {
                check(value, &text, &at.with(index.to_string()), root, found);
            }
        }
        (Kind::WholeNumber { least, most }, Value::Integer(number))
            if (least..=most).contains(&number) => {}
        (Kind::List(inner), Value::Array(values)) => {
            for (index, value) in values.iter().enumerate() {
                check(value, inner, &at.with(index.to_string()), root, found);
            }
        }
        (Kind::Tuple(parts), Value::Array(values)) if values.len() == parts.len() => {
            for (index, (value, part)) in values.iter().zip(parts).enumerate() {
                check(value, part, &at.with(index.to_string()), root, found);
            }
        }
        (Kind::Map(inner), Value::Table(values)) => {
            for (name, value) in values {
                check(value, inner, &at.with(name), root, found);
            }
        }
        (Kind::Table(table), Value::Table(values)) => {
            check_table(values, table, at, root, found);
        }
        // A choice with content may have a short form.
        (Kind::Choice { variants, .. }, Value::String(name))
            if variants.iter().any(|variant| variant.name == name) => {}
        (Kind::Choice { variants, .. }, Value::Table(values)) if values.len() == 1 => {
            let one = values.iter().next();
            let content = one.and_then(|(name, value)| {
                let variant = variants.iter().find(|variant| variant.name == name)?;
                Some((name, value, variant.content.as_ref()?))
            });
            match content {
                Some((name, value, content)) => {
                    check(value, content, &at.with(name), root, found);
                }
                None => found.push(wrong(value, schema, at, root)),
            }
        }
        _ => found.push(wrong(value, schema, at, root)),
    }
}

/// Returns the problem of a value that a key does not accept.
pub(super) fn wrong(value: &Value, schema: &Schema, at: &KeyPath, root: Root<'_>) -> Problem {
    let hint = match (&schema.kind, value) {
        (Kind::Table(_), Value::Table(_)) => None,
        (Kind::List(entry), Value::Table(_)) if has_names(entry) => {
            Some(format!("Write each entry as [[{at}]] with a name, or as [{at}.NAME]"))
        }
        (Kind::Table(_), _) => at.0.last().and_then(|key| nearest::other_name(key, root.0, root.1)),
        _ => None,
    };
    let hint = hint.unwrap_or_else(|| schema.advice());
    Problem { path: at.clone(), what: format!("it is {}", described(value)), hint }
}

/// Returns a value for a message.
fn described(value: &Value) -> String {
    /// Longer ones are shortened.
    const LONGEST: usize = 60;
    let text = match value {
        Value::Table(_) => return "a table".into(),
        Value::Array(values) if values.is_empty() => return "an empty list".into(),
        // Always on one line.
        Value::String(text) => format!("{text:?}"),
        value => value.to_string(),
    };
    let text: String = match text.chars().count() > LONGEST {
        true => text.chars().take(LONGEST).chain("...".chars()).collect(),
        false => text,
    };
    match value {
        Value::Array(_) => format!("the list {text}"),
        Value::String(_) => format!("the text {text}"),
        Value::Datetime(_) => format!("the date {text}"),
        _ => text,
    }
}
