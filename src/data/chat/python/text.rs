//! Text representations of values, as in Python and with a size limit.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::{self, Write};

/// Maximum size of the text that one function produces, in bytes.
pub(in crate::data::chat) const LARGEST: usize = 1 << 26;

/// Maximum number of parts of a value, counted recursively, for converting it to text.
pub(in crate::data::chat) const MOST_PARTS: usize = 1 << 20;

/// Creates a template error.
pub(in crate::data::chat) fn failed(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// A text with a maximum size of [`LARGEST`].
#[derive(Default)]
pub(in crate::data::chat) struct Text {
    text: String,
    /// Bytes produced so far, including discarded ones.
    spent: usize,
}

impl Text {
    /// Appends text.
    pub(in crate::data::chat) fn push(&mut self, part: &str) -> Result<(), Error> {
        if self.text.len() + part.len() > LARGEST {
            return Err(failed("it produces too much text"));
        }
        self.text.push_str(part);
        Ok(())
    }

    /// Appends a character `count` times.
    pub(in crate::data::chat) fn pad(&mut self, fill: char, count: usize) -> Result<(), Error> {
        if count > LARGEST {
            return Err(failed("it produces too much text"));
        }
        let mut buffer = [0; 4];
        let fill = fill.encode_utf8(&mut buffer);
        (0..count).try_for_each(|_| self.push(fill))
    }

    /// Returns the text.
    pub(in crate::data::chat) fn into_string(self) -> String {
        self.text
    }

    /// Counts a text of which only a part may be used, since producing many of them takes time.
    pub(in crate::data::chat) fn spend(&mut self, part: String) -> Result<String, Error> {
        self.spent += part.len();
        if self.spent > LARGEST {
            return Err(failed("it produces too much text"));
        }
        Ok(part)
    }
}

impl Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.push(part).map_err(|_| fmt::Error)
    }
}

/// Refuses values with too many parts to convert to text.
pub(in crate::data::chat) fn bounded(value: &Value) -> Result<(), Error> {
    let mut left = MOST_PARTS;
    let mut open = vec![value.clone()];
    while let Some(value) = open.pop() {
        if left == 0 {
            return Err(Error::new(ErrorKind::OutOfFuel, "a value has too many parts"));
        }
        left -= 1;
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
            continue;
        }
        if let Ok(items) = value.try_iter() {
            for item in items.take(left) {
                if value.kind() == ValueKind::Map {
                    open.extend(value.get_item(&item));
                }
                open.push(item);
            }
        }
    }
    Ok(())
}

/// Returns Python's `str` of a value. Empty for an undefined value, as in Jinja.
pub(in crate::data::chat) fn python_str(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.to_string()),
        ValueKind::Undefined => Ok(String::new()),
        _ => python_repr(value),
    }
}

/// Returns Python's `repr` of a value.
pub(in crate::data::chat) fn python_repr(value: &Value) -> Result<String, Error> {
    bounded(value)?;
    let mut text = Text::default();
    add_repr(&mut text, value)?;
    Ok(text.into_string())
}

/// Appends the `repr` of a value, including nested lists and maps.
fn add_repr(text: &mut Text, value: &Value) -> Result<(), Error> {
    if let Some(number) = as_float(value) {
        return text.push(&float_repr(number));
    }
    match value.kind() {
        ValueKind::Undefined => text.push("Undefined"),
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() { ("(", ")") } else { ("[", "]") };
            text.push(open)?;
            for (index, item) in value.try_iter()?.enumerate() {
                text.push(if index > 0 { ", " } else { "" })?;
                add_repr(text, &item)?;
            }
            // A tuple with one element has a comma to distinguish it from parentheses.
            text.push(if value.is_tuple() && value.len() == Some(1) { "," } else { "" })?;
            text.push(close)
        }
        ValueKind::Map => {
            text.push("{")?;
            for (index, key) in value.try_iter()?.enumerate() {
                text.push(if index > 0 { ", " } else { "" })?;
                add_repr(text, &key)?;
                text.push(": ")?;
                add_repr(text, &value.get_item(&key)?)?;
            }
            text.push("}")
        }
        _ => write!(text, "{value:?}").map_err(|_| failed("it produces too much text")),
    }
}

/// Returns a float.
pub(in crate::data::chat) fn as_float(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    is_float.then(|| f64::try_from(value.clone()).ok()).flatten()
}

/// Returns an integer, or a boolean as an integer.
pub(in crate::data::chat) fn as_integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// Returns Python's `repr` of a float: the fewest digits that restore it, with an exponent if it is very
/// large or very small.
pub(in crate::data::chat) fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number == 0.0 || (-4..16).contains(&exponent) {
        let mut text = number.to_string();
        if !text.contains('.') {
            text.push_str(".0");
        }
        return text;
    }
    with_exponent(digits, exponent)
}

/// Formats digits and an exponent as in C, with a sign and at least two digits.
pub(in crate::data::chat) fn with_exponent(digits: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}
