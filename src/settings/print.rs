//! Settings as TOML, including unset keys.

use super::explain::{filled, without_value};
use super::path::{KeyPath, key_text};
use super::schema::{Field, Kind, Schema, Table};
use super::sentences::sentence;
use super::{Settings, table_of};
use crate::error::Result;
use toml::Value;

/// Maximum line length of an explanation, in characters.
const WIDTH: usize = 100;

/// Formats settings as TOML. Keys without a value are comments that show their type, such as
/// `# steps = <whole number>`. With `explained`, the documentation of each key is a comment above it.
/// [`Layers`](super::Layers) reads the text back to equal settings.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) if a value cannot be serialized as TOML.
pub fn to_toml<T: Settings>(settings: &T, explained: bool) -> Result<String> {
    let schema = Schema::of::<T>()?;
    let all = table_of(settings)?;
    let mut printer = Printer { all: &all, explained, text: String::new() };
    if let Some(table) = schema.as_table() {
        printer.table::<T>(table, &KeyPath::default(), Some(&all), State::default());
    }
    Ok(printer.text)
}

/// State that applies to a table and everything in it.
#[derive(Clone, Copy, Default)]
struct State {
    /// The table has no value and is printed as a comment.
    is_unset: bool,
    /// Only given values are shown.
    is_partial: bool,
}

struct Printer<'a> {
    all: &'a toml::Table,
    explained: bool,
    text: String,
}

impl Printer<'_> {
    /// Prints the keys of a table: values first, as TOML requires, then tables.
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
        // Keys that the schema does not know are printed as well.
        for (key, value) in values.into_iter().flatten() {
            if !table.fields.iter().any(|field| field.name == key) {
                self.lines(&format!("{} = {value}", key_text(key)), state.is_unset);
            }
        }
        for field in table.fields.iter().filter(is_section) {
            self.section::<T>(table, field, &at.with(field.name), value_of(field), state);
        }
    }

    /// Prints a table or a list of tables.
    fn section<T: Settings>(
        &mut self,
        table: &Table,
        field: &Field,
        at: &KeyPath,
        value: Option<&Value>,
        state: State,
    ) {
        match (&field.schema.kind, value) {
            // If only given values are shown, an empty table is not.
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

    /// Prints the documentation of a key.
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
