//! JSON in the format of Python's `json.dumps`, as chat templates expect from `tojson`.

use super::arguments::bind;
use super::text::{Text, as_float, as_integer, bounded, failed, float_repr};
use minijinja::Error;
use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};

/// Maximum nesting of lists and maps, similar to Python's own limit.
const DEEPEST: usize = 990;

/// Implements `tojson` as defined by transformers: Python's `json.dumps`, with `ensure_ascii` off by default.
pub(in crate::data::chat) fn to_json(
    value: &Value,
    arguments: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let given = bind("tojson", &arguments.into_values(), names)?;
    let [ensure_ascii, indent, separators, sort_keys] = given;
    let ensure_ascii = ensure_ascii.is_some_and(|value| value.is_true());
    let sort_keys = sort_keys.is_some_and(|value| value.is_true());
    let indent = read_indent(indent)?;
    let separators = separators.filter(|value| !value.is_none());
    let [item, key] = match separators {
        Some(pair) => read_separators(&pair)?,
        None if indent.is_some() => [",".into(), ": ".into()],
        None => [", ".into(), ": ".into()],
    };
    bounded(value)?;
    let mut json = Json { text: Text::default(), ensure_ascii, sort_keys, indent, item, key };
    json.value(value, 0)?;
    Ok(Value::from(json.text.into_string()))
}

/// Parses the indentation of a level: a number of spaces, or text.
fn read_indent(indent: Option<Value>) -> Result<Option<String>, Error> {
    const WIDEST: i128 = 64;
    let Some(indent) = indent.filter(|indent| !indent.is_none()) else { return Ok(None) };
    if let Some(text) = indent.as_str() {
        return match i128::try_from(text.len()) {
            Ok(length) if length <= WIDEST => Ok(Some(text.to_owned())),
            _ => Err(failed("indent is too long")),
        };
    }
    match as_integer(&indent) {
        Some(width) if width > WIDEST => Err(failed(format!("indent is {width}"))),
        Some(width) => Ok(Some(" ".repeat(usize::try_from(width).unwrap_or(0)))),
        None => Err(failed("indent is neither a number nor a text")),
    }
}

/// Parses the separators between items, and between key and value.
fn read_separators(pair: &Value) -> Result<[String; 2], Error> {
    let wrong = || failed("separators is not a pair of texts, such as (',', ':')");
    if pair.kind() == ValueKind::String || pair.len() != Some(2) {
        return Err(wrong());
    }
    let parts: Vec<String> =
        pair.try_iter()?.filter_map(|part| part.as_str().map(str::to_owned)).collect();
    parts.try_into().map_err(|_| wrong())
}

/// A JSON writer.
struct Json {
    text: Text,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(failed("tojson: lists and maps are nested too deeply"));
        }
        match value.kind() {
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.items(["[", "]"], &items, depth, |json, item| json.value(item, depth + 1))
            }
            ValueKind::Map => {
                let mut fields: Vec<(String, Value)> = value
                    .try_iter()?
                    .map(|key| Ok((key_text(&key)?, value.get_item(&key)?)))
                    .collect::<Result<_, Error>>()?;
                if self.sort_keys {
                    fields.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.items(["{", "}"], &fields, depth, |json, (key, value)| {
                    json.string(key)?;
                    let between = json.key.clone();
                    json.text.push(&between)?;
                    json.value(value, depth + 1)
                })
            }
            _ => {
                let scalar = scalar(value)?;
                self.text.push(&scalar)
            }
        }
    }

    fn items<T>(
        &mut self,
        [open, close]: [&str; 2],
        items: &[T],
        depth: usize,
        mut write: impl FnMut(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.text.push(open)?;
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                let between = self.item.clone();
                self.text.push(&between)?;
            }
            self.line(depth + 1)?;
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth)?;
        }
        self.text.push(close)
    }

    /// Starts a new line, if output is indented.
    fn line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = self.indent.clone() else { return Ok(()) };
        self.text.push("\n")?;
        (0..depth).try_for_each(|_| self.text.push(&indent))
    }

    fn string(&mut self, string: &str) -> Result<(), Error> {
        self.text.push("\"")?;
        let mut buffer = [0; 4];
        for c in string.chars() {
            match c {
                '"' => self.text.push("\\\"")?,
                '\\' => self.text.push("\\\\")?,
                '\n' => self.text.push("\\n")?,
                '\r' => self.text.push("\\r")?,
                '\t' => self.text.push("\\t")?,
                '\u{8}' => self.text.push("\\b")?,
                '\u{c}' => self.text.push("\\f")?,
                c if c < ' ' || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.text.push(&format!("\\u{unit:04x}"))?;
                    }
                }
                c => self.text.push(c.encode_utf8(&mut buffer))?,
            }
        }
        self.text.push("\"")
    }
}

/// Formats a scalar value other than text.
fn scalar(value: &Value) -> Result<String, Error> {
    if let Some(number) = as_float(value) {
        // Same as Python, although this is not JSON.
        return Ok(match number {
            number if number.is_nan() => "NaN".into(),
            f64::INFINITY => "Infinity".into(),
            f64::NEG_INFINITY => "-Infinity".into(),
            number => float_repr(number),
        });
    }
    match value.kind() {
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if value.is_true() { "true".into() } else { "false".into() }),
        ValueKind::Number => Ok(value.to_string()),
        ValueKind::Undefined => Err(failed("an undefined value is not JSON")),
        kind => Err(failed(format!("a value of type {kind} is not JSON"))),
    }
}

/// Converts a key to text, like `json.dumps`.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => scalar(key),
    }
}
