//! JSON in the form of Python's `json.dumps`, as chat templates expect it of `tojson`.

use super::chat::bounded;
use minijinja::ErrorKind;
use minijinja::value::{Kwargs, Value};
use serde::Serialize;
use serde_json::ser::Formatter;
use std::io;

/// `tojson` as transformers defines it: Python's `json.dumps` without escapes.
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let failed = |what: String| minijinja::Error::new(ErrorKind::InvalidOperation, what);
    const WIDEST: usize = 64;
    let indent = match options.get::<Option<usize>>("indent")? {
        Some(indent) if indent > WIDEST => return Err(failed(format!("indent is {indent}"))),
        indent => indent,
    };
    // Neither changes anything here: text is never escaped, and the separators are Python's own.
    let _ = options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    bounded(value)?;
    if value.is_undefined() {
        return Err(failed("an undefined value is not JSON".into()));
    }
    let mut text = vec![];
    let formatter = PythonJson { indent, depth: 0, empty: true };
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    value.serialize(&mut serializer).map_err(|e| failed(e.to_string()))?;
    String::from_utf8(text).map(Value::from).map_err(|e| failed(e.to_string()))
}

/// The layout of Python's `json.dumps`: `, ` and `: `, or lines when indented.
struct PythonJson {
    indent: Option<usize>,
    depth: usize,
    /// Whether the innermost list or map has nothing in it yet.
    empty: bool,
}

impl PythonJson {
    fn open<W: ?Sized + io::Write>(&mut self, out: &mut W, sign: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        out.write_all(sign)
    }

    fn close<W: ?Sized + io::Write>(&mut self, out: &mut W, sign: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.indent.is_some() && !self.empty {
            self.line(out)?;
        }
        self.empty = false;
        out.write_all(sign)
    }

    fn item<W: ?Sized + io::Write>(&self, out: &mut W, first: bool) -> io::Result<()> {
        match (first, self.indent) {
            (true, None) => Ok(()),
            (false, None) => out.write_all(b", "),
            (first, Some(_)) => {
                out.write_all(if first { b"" } else { b"," })?;
                self.line(out)
            }
        }
    }

    fn line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        let indent = self.indent.unwrap_or(0);
        out.write_all(b"\n")?;
        (0..indent * self.depth).try_for_each(|_| out.write_all(b" "))
    }
}

impl Formatter for PythonJson {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
