//! Settings as TOML that shows also what is not set.

use super::explain::{filled, without_value};
use super::path::{KeyPath, key_text};
use super::schema::{Field, Kind, Schema, Table};
use super::sentences::sentence;
use super::{Settings, table_of};
use crate::error::Result;
use toml::Value;

/// Widest line of an explanation, in characters.
const WIDTH: usize = 100;

/// Settings as TOML. Keys that have no value stand there as comments that say what they take, such as
/// `# steps = <whole number>`; with `explained` there is a comment above each key that says what it
/// is for. [`Layers`](super::Layers) reads it back to equal settings.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) where a value cannot be written as TOML.
pub fn to_toml<T: Settings>(settings: &T, explained: bool) -> Result<String> {
    let schema = Schema::of::<T>()?;
    let all = table_of(settings)?;
    let mut printer = Printer { all: &all, explained, text: String::new() };
    if let Some(table) = schema.as_table() {
        printer.table::<T>(table, &KeyPath::default(), Some(&all), State::default());
    }
    Ok(printer.text)
}

/// What holds for a table and all in it.
#[derive(Clone, Copy, Default)]
struct State {
    /// It has no value: it is a comment.
    is_unset: bool,
    /// It shows only what is given.
    is_partial: bool,
}

struct Printer<'a> {
    all: &'a toml::Table,
    explained: bool,
    text: String,
}

impl Printer<'_> {
    /// The keys of a table: first those with values, as TOML wants it, then tables.
    fn table<T: Settings>(
        &mut self,
        table: &Table,
        at: &KeyPath,
        values: Option<&toml::Table>,
        state: State,
    ) {
        let state = State { is_partial: state.is_partial || table.is_partial, ..state };
        let is_section =
            |field: &&Field| field.schema.as_table().or(field.schema.as_tables()).is_some();
        let value_of = |field: &Field| values.and_then(|values| values.get(field.name));
        for field in table.fields.iter().filter(|field| !is_section(field)) {
            match value_of(field) {
                Some(value) => {
                    self.explain(table, field, state);
                    let line = format!("{} = {value}", key_text(field.name));
                    self.lines(&line, state.is_unset);
                }
                None if state.is_partial => {}
                None => {
                    self.explain(table, field, state);
                    self.lines(&without_value(field), true);
                }
            }
        }
        // Nothing that a value holds is left out.
        for (key, value) in values.into_iter().flatten() {
            if !table.fields.iter().any(|field| field.name == key) {
                self.lines(&format!("{} = {value}", key_text(key)), state.is_unset);
            }
        }
        for field in table.fields.iter().filter(is_section) {
            self.section::<T>(table, field, &at.with(field.name), value_of(field), state);
        }
    }

    /// A table, or a list of tables.
    fn section<T: Settings>(
        &mut self,
        table: &Table,
        field: &Field,
        at: &KeyPath,
        value: Option<&Value>,
        state: State,
    ) {
        match (&field.schema.kind, value) {
            // Where only what is given is shown, an empty table is nothing.
            (Kind::Table(inner), Some(Value::Table(values)))
                if !(values.is_empty() && (state.is_partial || inner.is_partial)) =>
            {
                self.header(table, field, &format!("[{at}]"), state);
                self.table::<T>(inner, at, Some(values), state);
            }
            (Kind::List(list), Some(Value::Array(entries))) if !entries.is_empty() => {
                let Some(inner) = list.as_table() else { return };
                for entry in entries {
                    self.header(table, field, &format!("[[{at}]]"), state);
                    self.table::<T>(inner, at, entry.as_table(), state);
                }
            }
            (kind, _) if !state.is_partial => {
                let (inner, header) = match kind {
                    Kind::Table(inner) => (inner, format!("[{at}]")),
                    Kind::List(list) => match list.as_table() {
                        Some(inner) => (inner, format!("[[{at}]]")),
                        None => return,
                    },
                    _ => return,
                };
                let unset = State { is_unset: true, ..state };
                let values = filled::<T>(self.all, at, &field.schema);
                self.header(table, field, &header, unset);
                self.table::<T>(inner, at, values.as_ref(), unset);
            }
            _ => {}
        }
    }

    fn header(&mut self, table: &Table, field: &Field, header: &str, state: State) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.explain(table, field, state);
        self.lines(header, state.is_unset);
    }

    /// What a key is for.
    fn explain(&mut self, table: &Table, field: &Field, state: State) {
        if !self.explained || state.is_partial {
            return;
        }
        let Some(sentence) = sentence(table.type_name, field.name) else { return };
        let mut line = String::from("#");
        for word in sentence.split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > WIDTH {
                self.text.push_str(&line);
                self.text.push('\n');
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        self.text.push_str(&line);
        self.text.push('\n');
    }

    fn lines(&mut self, lines: &str, is_comment: bool) {
        for line in lines.split('\n') {
            self.text.push_str(if is_comment { "# " } else { "" });
            self.text.push_str(line);
            self.text.push('\n');
        }
    }
}
