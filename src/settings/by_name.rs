//! Lists of named entries, written as tables by name: `[data.sources.long]` is the entry of `data.sources`
//! whose `name` is `long`.

use super::lay_over;
use super::path::KeyPath;
use super::schema::{Kind, Schema, Table};
use toml::Value;

/// Returns whether the entries of a list have a name.
pub(super) fn has_names(entry: &Schema) -> bool {
    entry.as_table().is_some_and(|table| {
        table.fields.iter().any(|field| field.name == "name" && field.schema.kind == Kind::Text)
    })
}

/// Returns the name of an entry.
pub(super) fn name_of(entry: &Value) -> Option<&str> {
    entry.get("name")?.as_str()
}

/// Replaces tables by name with lists, merged into entries of the same name in `given`. Returns the keys that
/// moved, with their new paths.
pub(super) fn listed(
    table: &mut toml::Table,
    given: Option<&toml::Table>,
    known: &Table,
    at: &KeyPath,
) -> Vec<(KeyPath, KeyPath)> {
    let mut moved = vec![];
    for field in &known.fields {
        let at = at.with(field.name);
        let before = given.and_then(|given| given.get(field.name));
        match (table.get_mut(field.name), &field.schema.kind) {
            (Some(Value::Table(inner)), Kind::Table(known)) => {
                let before = before.and_then(Value::as_table);
                moved.extend(listed(inner, before, known, &at));
            }
            (Some(value), Kind::List(entry)) if has_names(entry) => {
                let Some(known) = entry.as_table() else { continue };
                let is_by_name = |value: &Value| {
                    value.as_table().is_some_and(|table| {
                        !table.is_empty() && table.values().all(Value::is_table)
                    })
                };
                if !is_by_name(value) {
                    continue;
                }
                let before = before.and_then(Value::as_array).cloned().unwrap_or_default();
                if let Value::Table(by_name) = std::mem::replace(value, Value::Array(before))
                    && let Value::Array(entries) = value
                {
                    for (name, entry) in by_name {
                        let index = laid_over(entries, &name, entry, known);
                        moved.push((at.with(name), at.with(index.to_string())));
                    }
                }
            }
            _ => {}
        }
    }
    moved
}

/// Merges an entry into the one of the same name, or adds it. Returns its index.
fn laid_over(entries: &mut Vec<Value>, name: &str, entry: Value, known: &Table) -> usize {
    let Value::Table(mut entry) = entry else { return entries.len() };
    // An explicit `name` takes precedence over the table's name.
    entry.entry("name").or_insert_with(|| name.into());
    let same = |value: &Value| value.get("name") == entry.get("name");
    let index = entries.iter().position(same).unwrap_or(entries.len());
    match entries.get_mut(index) {
        Some(Value::Table(before)) => lay_over(before, entry, known),
        _ => entries.push(Value::Table(entry)),
    }
    index
}
