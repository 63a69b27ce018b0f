//! Layered settings: defaults, then TOML files, then single values.
//!
//! [`Layers`] collects them and gives the finished settings. The keys, their types, and their documentation
//! come from the structs themselves, so every key can be set, checked, and explained ([`Key`], [`to_toml`]).
//!
//! ```
//! use mixdistill::recipe::RunConfig;
//! use mixdistill::settings::Layers;
//!
//! # fn main() -> mixdistill::Result<()> {
//! let mut layers = Layers::<RunConfig>::new()?;
//! layers.text("[train]\nepochs = 2\n")?;
//! layers.set("train.learning_rate=1e-4")?;
//! layers.set("data.sources.long.path=long.jsonl")?;
//! let config = layers.settings()?;
//! assert_eq!((config.train.epochs, config.train.learning_rate), (2.0, 1e-4));
//! assert_eq!(config.data.sources[0].name, "long");
//!
//! let error = layers.set("learning_rat=1e-4").unwrap_err().to_string();
//! assert!(error.contains("Did you mean `train.learning_rate`?"), "{error}");
//! # Ok(())
//! # }
//! ```

mod assign;
mod by_name;
mod check;
mod explain;
mod nearest;
mod path;
mod places;
mod print;
mod record;
mod schema;
mod sentences;

pub use explain::{Choice, Key};
pub use print::to_toml;
pub use schema::Schema;

use crate::error::{Error, Place, Problems, Result};
use check::{Problem, missing, problems};
use path::KeyPath;
use places::Places;
use schema::{Kind, Table};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use toml::Value;

/// The hint of an internal error.
const DEFECT: &str = "This is a bug in mixdistill; please report it";

/// A type of settings.
///
/// Its keys are found through `Deserialize`: every key of the type and of the types within it can be set,
/// checked, and explained. The names of structs are those that `Deserialize` reports.
pub trait Settings: Serialize + DeserializeOwned + 'static {
    /// Names that other programs use for a key, with the key's path.
    const OTHER_NAMES: &'static [(&'static str, &'static str)] = &[];

    /// Paths of removed keys that files may still have. They are ignored for the given reason.
    const RETIRED: &'static [(&'static str, &'static str)] = &[];

    /// Returns the default settings, which may depend on the given ones.
    ///
    /// # Errors
    /// [`Error::Config`] if they cannot be serialized as TOML.
    fn defaults(given: &toml::Table) -> Result<toml::Table>;

    /// Tables that contain settings of another type, by path. `*` in a path stands for an entry of a list.
    ///
    /// # Errors
    /// See [`Schema::of`].
    fn inner() -> Result<Vec<(&'static str, Arc<Schema>)>> {
        Ok(vec![])
    }

    /// Fills in values that follow from others.
    fn complete(&mut self) {}
}

/// Converts a value to a table, for [`Settings::defaults`].
///
/// # Errors
/// [`Error::Config`] if they cannot be serialized as TOML.
pub fn table_of(settings: &impl Serialize) -> Result<toml::Table> {
    toml::Table::try_from(settings).map_err(|e| Error::config("settings", e.to_string(), DEFECT))
}

/// Settings built from layers. Later layers override earlier ones, and all override the defaults.
#[derive(Clone, Debug)]
pub struct Layers<T> {
    schema: Arc<Schema>,
    given: toml::Table,
    /// Keys whose default or given value was removed.
    unset: Vec<KeyPath>,
    places: Places,
    notices: Vec<String>,
    settings: PhantomData<fn() -> T>,
}

impl<T: Settings> Layers<T> {
    /// Creates layers with the defaults only.
    ///
    /// # Errors
    /// See [`Schema::of`].
    pub fn new() -> Result<Self> {
        Ok(Self {
            schema: Schema::of::<T>()?,
            given: toml::Table::new(),
            unset: vec![],
            places: Places::default(),
            notices: vec![],
            settings: PhantomData,
        })
    }

    /// Adds a TOML file. Lists whose entries have a `name` can be written as tables by name
    /// (`[data.sources.long]`), which are merged into existing entries of the same name.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] with the line for invalid TOML; [`Error::Config`] with the line for an
    /// unknown key or a value of the wrong type; [`Error::Several`] for several of these.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        self.toml(&text, Some(path))
    }

    /// Adds TOML text.
    ///
    /// # Errors
    /// See [`Layers::file`].
    pub fn text(&mut self, text: &str) -> Result<()> {
        self.toml(text, None)
    }

    fn toml(&mut self, text: &str, path: Option<&Path>) -> Result<()> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            let line = e.span().map_or(1, |span| places::line(text, span.start));
            let place = Place::line(path.unwrap_or(Path::new("settings")), line);
            Error::data(place, e.message(), "Write settings as TOML, with text in quotes")
        })?;
        self.add(table, &Places::of(text, path))
    }

    /// Adds a table.
    ///
    /// # Errors
    /// See [`Layers::file`], without line numbers.
    pub fn table(&mut self, table: &toml::Table) -> Result<()> {
        self.add(table.clone(), &Places::default())
    }

    fn add(&mut self, mut table: toml::Table, places: &Places) -> Result<()> {
        if let Some(known) = self.schema.as_table() {
            for (path, why) in drop_retired(&mut table, known, &KeyPath::default()) {
                let place = places.before(&path);
                self.notices.push(format!("{place}setting `{path}` is ignored: {why}"));
            }
        }
        let mut places = places.clone();
        if let Some(known) = self.schema.as_table() {
            let root = KeyPath::default();
            let moved = by_name::listed(&mut table, Some(&self.given), known, &root);
            places.moved(&moved);
        }
        let places = &places;
        let found = problems(&table, &self.schema).into_iter();
        found.map(|problem| error(problem, places)).collect::<Problems>().check()?;
        if let Some(known) = self.schema.as_table() {
            self.unset.retain(|path| !holds(&table, path));
            lay_over(&mut self.given, table, known);
        }
        self.places.add(places);
        Ok(())
    }

    /// Sets one key: `train.learning_rate=1e-4`, `data.sources.0.path=long.jsonl`.
    ///
    /// An entry of a list is selected by its index, from 0, or by its `name`. The index after the last one,
    /// or a new name, adds an entry. Values are written as in TOML, but text needs no quotes, and a list of
    /// single values no brackets (`a,b`). An empty value unsets an optional key: `train.steps=`.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown key, with the nearest known one, and for a value that the key does
    /// not accept.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let Some((path, text)) = assignment.split_once('=') else {
            let hint = "Write it as key=value, such as train.steps=100";
            return Err(Error::config(assignment.trim(), "it has no `=`", hint));
        };
        let steps = checked(assign::steps(path))?;
        let schema = self.schema.clone();
        let now = self.all()?;
        let target = checked(assign::target(&schema, &steps, &now))?;
        match assign::value(text, target.schema) {
            Some(value) => self.put(target, value, now),
            None if target.schema.optional => {
                assign::remove(&mut self.given, &target.path);
                self.places.forget(&target.path);
                self.unset.push(target.path);
                Ok(())
            }
            None => {
                let (path, hint) = (target.path, target.schema.advice());
                checked(Err(Problem { path, what: "it has no value".into(), hint }))
            }
        }
    }

    /// Sets one key to a value.
    ///
    /// # Errors
    /// See [`Layers::set`].
    pub fn set_value(&mut self, path: &str, value: impl Into<Value>) -> Result<()> {
        let steps = checked(assign::steps(path))?;
        let schema = self.schema.clone();
        let now = self.all()?;
        let target = checked(assign::target(&schema, &steps, &now))?;
        self.put(target, value.into(), now)
    }

    fn put(&mut self, target: assign::Target<'_>, value: Value, now: toml::Table) -> Result<()> {
        let mut given = Value::Table(self.given.clone());
        let now = Value::Table(now);
        for (path, name) in target.names {
            assign::insert(&mut given, &self.schema, Some(&now), &path.0, name.into());
        }
        assign::insert(&mut given, &self.schema, Some(&now), &target.path.0, value);
        let Value::Table(given) = given else { return Ok(()) };
        // Earlier values are valid, so only the new one can be invalid.
        let found = problems(&given, &self.schema).into_iter();
        found.map(|problem| error(problem, &Places::default())).collect::<Problems>().check()?;
        self.given = given;
        self.places.forget(&target.path);
        self.unset.retain(|path| !target.path.0.starts_with(&path.0));
        Ok(())
    }

    /// Returns the given settings, without the defaults.
    pub fn given(&self) -> &toml::Table {
        &self.given
    }

    /// Notices for the user, such as ignored keys.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Builds the settings. Their values have the right types; whether they work together is checked by the
    /// type's `validate`.
    ///
    /// # Errors
    /// [`Error::Config`] for missing or unreadable values.
    pub fn settings(&self) -> Result<T> {
        let all = self.all()?;
        let missing = missing(&all, &self.schema).into_iter();
        missing.map(|problem| self.within(problem)).collect::<Problems>().check()?;
        let read = Value::Table(all).try_into::<T>();
        let mut settings = read.map_err(|e| {
            Error::config("settings", e.message().to_owned(), "Fix the value, or remove it")
        })?;
        settings.complete();
        Ok(settings)
    }

    /// Returns all keys, with their documentation, type, and value in these layers.
    ///
    /// # Errors
    /// See [`Settings::defaults`].
    pub fn keys(&self) -> Result<Vec<Key>> {
        // Includes derived values, unless a required one is missing.
        let all = match self.settings() {
            Ok(settings) => table_of(&settings)?,
            Err(_) => self.all()?,
        };
        Ok(explain::keys::<T>(&self.schema, &all))
    }

    /// Adds the file and line of the value to an error of settings that came from these layers.
    pub fn locate(&self, error: Error) -> Error {
        match error {
            Error::Config { key, what, hint } => {
                let place = self.places.before(&KeyPath::of_error(&key));
                Error::Config { key, what: format!("{place}{what}"), hint }
            }
            Error::Several(errors) => {
                Error::Several(errors.into_iter().map(|error| self.locate(error)).collect())
            }
            error => error,
        }
    }

    /// Returns the defaults, overridden by the given values.
    fn all(&self) -> Result<toml::Table> {
        let mut all = T::defaults(&self.given)?;
        if let Some(known) = self.schema.as_table() {
            lay_over(&mut all, self.given.clone(), known);
        }
        self.unset.iter().for_each(|path| assign::remove(&mut all, path));
        Ok(all)
    }

    /// Converts a problem to an error with the location of its key, or of the nearest table around it.
    fn within(&self, problem: Problem) -> Error {
        let mut path = Some(problem.path.clone());
        let place = std::iter::from_fn(|| {
            let here = path.take()?;
            path = here.parent();
            Some(self.places.before(&here))
        });
        let place = place.into_iter().find(|place| !place.is_empty()).unwrap_or_default();
        let Problem { path, what, hint } = problem;
        Error::config(path.to_string(), format!("{place}{what}"), hint)
    }
}

/// Converts the result of a single value, which has no location in a file.
fn checked<R>(result: Result<R, Problem>) -> Result<R> {
    result.map_err(|problem| error(problem, &Places::default()))
}

fn error(problem: Problem, places: &Places) -> Error {
    let Problem { path, what, hint } = problem;
    let place = places.before(&path);
    Error::config(path.to_string(), format!("{place}{what}"), hint)
}

/// Returns whether a table has a value at this path.
fn holds(table: &toml::Table, path: &KeyPath) -> bool {
    let Some((first, rest)) = path.0.split_first() else { return true };
    let mut here = table.get(first);
    for step in rest {
        here = match here {
            Some(Value::Table(table)) => table.get(step),
            Some(Value::Array(values)) => {
                step.parse().ok().and_then(|index: usize| values.get(index))
            }
            _ => None,
        };
    }
    here.is_some()
}

/// Merges the keys of `over` into `base`, table by table. Lists, and values that belong together, such as the
/// weights of a mixture, are replaced as a whole.
fn lay_over(base: &mut toml::Table, over: toml::Table, known: &Table) {
    for (key, value) in over {
        let field = known.fields.iter().find(|field| field.name == key);
        match (base.get_mut(&key), value, field.map(|field| &field.schema.kind)) {
            (Some(Value::Table(base)), Value::Table(over), Some(Kind::Table(known))) => {
                lay_over(base, over, known);
            }
            (_, value, _) => {
                base.insert(key, value);
            }
        }
    }
}

/// Removes retired keys, and returns them with the reasons.
fn drop_retired(
    table: &mut toml::Table,
    known: &Table,
    at: &KeyPath,
) -> Vec<(KeyPath, &'static str)> {
    let mut dropped = vec![];
    for (name, why) in &known.retired {
        if table.remove(*name).is_some() {
            dropped.push((at.with(*name), *why));
        }
    }
    for field in &known.fields {
        let at = at.with(field.name);
        match (table.get_mut(field.name), &field.schema.kind) {
            (Some(Value::Table(table)), Kind::Table(known)) => {
                dropped.extend(drop_retired(table, known, &at));
            }
            (Some(Value::Array(values)), Kind::List(inner)) => {
                let Some(known) = inner.as_table() else { continue };
                for (index, value) in values.iter_mut().enumerate() {
                    if let Value::Table(table) = value {
                        dropped.extend(drop_retired(table, known, &at.with(index.to_string())));
                    }
                }
            }
            _ => {}
        }
    }
    dropped
}
