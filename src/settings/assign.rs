//! Assignments to single keys: `train.learning_rate=1e-4`.

use super::by_name::has_names;
use super::check::{self, Problem};
use super::path::KeyPath;
use super::schema::{Kind, Schema, Table};
use toml::Value;

/// The destination of a value, and its type.
pub(super) struct Target<'s> {
    pub(super) path: KeyPath,
    pub(super) schema: &'s Schema,
    /// Names of list entries that are created along the path.
    pub(super) names: Vec<(KeyPath, String)>,
}

/// Splits a dotted path into names. Names that contain a dot are quoted.
pub(super) fn steps(path: &str) -> Result<Vec<String>, Problem> {
    let problem = || Problem {
        path: KeyPath(vec![path.trim().to_owned()]),
        what: "it is not the path of a setting".into(),
        hint: "Separate names with dots, and quote names that contain a dot".into(),
    };
    let mut table: toml::Table = match path.contains(['\n', '\r', '=']) {
        true => return Err(problem()),
        false => format!("{path} = 0").parse().map_err(|_| problem())?,
    };
    let mut steps = vec![];
    while let Some((step, value)) = std::mem::take(&mut table).into_iter().next() {
        steps.push(step);
        if let Value::Table(inner) = value {
            table = inner;
        }
    }
    Ok(steps)
}

/// Finds the setting at a path; `now` are the present settings. An entry of a list is its index or its name.
/// The index after the last one is a new entry.
pub(super) fn target<'s>(
    schema: &'s Schema,
    steps: &[String],
    now: &toml::Table,
) -> Result<Target<'s>, Problem> {
    let empty = Table::default();
    let start = KeyPath::default();
    let mut root = (schema.as_table().unwrap_or(&empty), start.clone());
    let mut target = Target { path: start, schema, names: vec![] };
    let mut now = Some(Now::Table(now));
    for step in steps {
        let mut step = step.clone();
        let at = &target.path;
        let next = match &target.schema.kind {
            Kind::Table(table) => {
                if table.is_root {
                    root = (table, at.clone());
                }
                // Flags are written with hyphens.
                let plain = step.replace('-', "_");
                let field = table.fields.iter().find(|field| field.name == plain);
                let root = (root.0, &root.1);
                let field = field.ok_or_else(|| check::unknown(&step, table, at, root))?;
                step = plain;
                &field.schema
            }
            Kind::Map(inner) => inner,
            Kind::Any => target.schema,
            Kind::List(inner) => {
                let entries = now.as_ref().map_or(&[][..], Now::entries);
                step = entry(&step, inner, entries, &mut target)?;
                inner
            }
            Kind::Tuple(parts) => {
                let part = step.parse().ok().and_then(|index: usize| parts.get(index));
                part.ok_or_else(|| no_entry(&step, at, parts.len()))?
            }
            Kind::Choice { variants, .. } => {
                let variant = variants.iter().find(|variant| variant.name == step);
                let content = variant.and_then(|variant| variant.content.as_ref());
                content.ok_or_else(|| Problem {
                    path: at.with(&step),
                    what: "there is no such choice with settings of its own".into(),
                    hint: target.schema.advice(),
                })?
            }
            _ => {
                return Err(Problem {
                    path: at.with(&step),
                    what: format!("there is no such setting: `{at}` is a {}", target.schema.noun()),
                    hint: target.schema.advice(),
                });
            }
        };
        now = now.and_then(|now| now.get(&step));
        target.path = target.path.with(step);
        target.schema = next;
    }
    Ok(target)
}

/// A present value.
enum Now<'n> {
    Table(&'n toml::Table),
    Value(&'n Value),
}

impl<'n> Now<'n> {
    fn get(&self, step: &str) -> Option<Self> {
        let value = match self {
            Self::Table(table) => table.get(step),
            Self::Value(Value::Table(table)) => table.get(step),
            Self::Value(Value::Array(values)) => values.get(step.parse::<usize>().ok()?),
            Self::Value(_) => None,
        };
        value.map(Self::Value)
    }

    fn entries(&self) -> &'n [Value] {
        match self {
            Self::Value(Value::Array(values)) => values,
            _ => &[],
        }
    }
}

/// Returns the index of an entry that is selected by its index or name.
fn entry(
    step: &str,
    inner: &Schema,
    entries: &[Value],
    target: &mut Target<'_>,
) -> Result<String, Problem> {
    if let Ok(index) = step.parse::<usize>() {
        return match index <= entries.len() {
            true => Ok(index.to_string()),
            false => Err(no_entry(step, &target.path, entries.len())),
        };
    }
    if !has_names(inner) {
        return Err(no_entry(step, &target.path, entries.len()));
    }
    let has_name = |value: &Value| value.get("name").and_then(Value::as_str) == Some(step);
    let index = entries.iter().position(has_name).unwrap_or_else(|| {
        let path = target.path.with(entries.len().to_string()).with("name");
        target.names.push((path, step.to_owned()));
        entries.len()
    });
    Ok(index.to_string())
}

fn no_entry(step: &str, at: &KeyPath, entries: usize) -> Problem {
    Problem {
        path: at.with(step),
        what: format!("there is no such entry; `{at}` has {entries}"),
        hint: "Number entries from 0".into(),
    }
}

/// Parses a text as a value of this type. `None` for a text that unsets the key.
pub(super) fn value(text: &str, schema: &Schema) -> Option<Value> {
    let trimmed = text.trim();
    if trimmed.is_empty() && (schema.optional || schema.kind != Kind::Text) {
        return None;
    }
    let parsed = trimmed.parse::<Value>().ok();
    let as_text = || Value::String(text.to_owned());
    Some(match (&schema.kind, parsed) {
        (Kind::Text | Kind::Choice { .. }, Some(Value::String(text))) => Value::String(text),
        (Kind::Text, _) => as_text(),
        (Kind::TextOrList, Some(Value::String(text))) => Value::String(text),
        (Kind::TextOrList, Some(Value::Array(values))) => Value::Array(values),
        // `a,b` and `a` are lists. Text with other characters is a single text.
        (Kind::TextOrList, _) => match trimmed.split(',').all(is_name) {
            true => Value::Array(trimmed.split(',').map(|name| name.trim().into()).collect()),
            false => as_text(),
        },
        (Kind::Choice { .. }, Some(Value::Table(table))) => Value::Table(table),
        (Kind::Choice { .. }, _) => Value::String(trimmed.to_owned()),
        (Kind::Number, None) => match trimmed.parse::<f64>() {
            Ok(number) => Value::Float(number),
            Err(_) => as_text(),
        },
        (Kind::List(_) | Kind::Tuple(_), Some(Value::Array(values))) => Value::Array(values),
        (Kind::List(_), Some(Value::String(text))) => Value::Array(vec![text.into()]),
        // `a,b` is a list, and so is `a`.
        (Kind::List(inner), _) if is_plain(inner) => {
            Value::Array(trimmed.split(',').map(|part| part_of_list(part, inner)).collect())
        }
        (Kind::Tuple(parts), _) if parts.iter().all(is_plain) => {
            let parts = trimmed.split(',').zip(parts.iter().cycle());
            Value::Array(parts.map(|(part, schema)| part_of_list(part, schema)).collect())
        }
        (_, Some(value)) => value,
        (_, None) => as_text(),
    })
}

/// Returns whether a text consists of names separated by dots.
fn is_name(text: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let parts = text.trim().split('.');
    parts.into_iter().all(|part| !part.is_empty() && part.chars().all(is_part))
}

fn part_of_list(text: &str, schema: &Schema) -> Value {
    value(text.trim(), schema).unwrap_or_else(|| "".into())
}

fn is_plain(schema: &Schema) -> bool {
    matches!(
        schema.kind,
        Kind::Text
            | Kind::Number
            | Kind::WholeNumber { .. }
            | Kind::TrueFalse
            | Kind::Choice { .. }
    )
}

/// Inserts a value at a path. A list that is not given yet starts from the present one in `now`. A table by
/// names starts empty, since its entries belong together.
pub(super) fn insert(
    here: &mut Value,
    schema: &Schema,
    now: Option<&Value>,
    steps: &[String],
    value: Value,
) {
    let Some((step, rest)) = steps.split_first() else {
        *here = value;
        return;
    };
    let is_list = matches!(schema.kind, Kind::List(_) | Kind::Tuple(_));
    if !(if is_list { here.is_array() } else { here.is_table() }) {
        *here = match now {
            Some(now) if is_list && now.is_array() => now.clone(),
            _ if is_list => Value::Array(vec![]),
            _ => Value::Table(toml::Table::new()),
        };
    }
    let any = Schema { kind: Kind::Any, optional: false };
    let inner = match &schema.kind {
        Kind::Table(table) => {
            table.fields.iter().find(|field| field.name == step).map(|field| &field.schema)
        }
        Kind::Map(inner) | Kind::List(inner) => Some(&**inner),
        Kind::Tuple(parts) => step.parse().ok().and_then(|index: usize| parts.get(index)),
        Kind::Choice { variants, .. } => variants
            .iter()
            .find(|variant| variant.name == step)
            .and_then(|variant| variant.content.as_ref()),
        _ => None,
    };
    let inner = inner.unwrap_or(&any);
    let nothing = Value::Boolean(false);
    match here {
        Value::Table(table) => {
            if matches!(schema.kind, Kind::Choice { .. }) {
                table.retain(|key, _| key == step);
            }
            let now = now.and_then(|now| now.get(step));
            insert(table.entry(step).or_insert(nothing), inner, now, rest, value);
        }
        Value::Array(values) => {
            let Ok(index) = step.parse::<usize>() else { return };
            let now = now.and_then(|now| now.get(index));
            if index == values.len() {
                values.push(nothing);
            }
            if let Some(entry) = values.get_mut(index) {
                insert(entry, inner, now, rest, value);
            }
        }
        _ => {}
    }
}

/// Removes the value at a path.
pub(super) fn remove(table: &mut toml::Table, path: &KeyPath) {
    let Some((last, parents)) = path.0.split_last() else { return };
    let Some((first, rest)) = parents.split_first() else {
        table.remove(last);
        return;
    };
    let mut here = table.get_mut(first);
    for step in rest {
        here = match here {
            Some(Value::Table(table)) => table.get_mut(step),
            Some(Value::Array(values)) => {
                step.parse().ok().and_then(|index: usize| values.get_mut(index))
            }
            _ => None,
        };
    }
    if let Some(Value::Table(table)) = here {
        table.remove(last);
    }
}
