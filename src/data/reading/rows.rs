//! The rows of a file: JSONL, a JSON array, CSV, TSV, or (feature `parquet`) Parquet. Training data,
//! benchmarks, answers, prompts, and problems are all read here and differ only in how they use a row.
//!
//! A file is read once, sequentially, one row at a time. Memory holds only what is built from the rows, not
//! their text. JSON can also come from a pipe.

use std::fs::File;
use std::io::{self, BufRead, ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::csv;
use super::describe::described;
use super::json_array::{ArrayItems, Broken, Spot, may_hold_others};
use super::left_out::Unusable;
use super::lenient_json::{Repairs, parse};
use super::messages::{is_conversation, is_parts};
use super::open::{open, text_of, unreadable, unreadable_at};
use super::row_at::{FileColumn, RowAt, Unit};
use super::unpacked::{Packing, format_of_name};
use crate::error::{Error, Place, Result};
use crate::files::is_lfs_pointer;

/// Maximum size of a line of JSONL and of a record in a JSON array. It is far larger than any trace and
/// limits how much memory a wrong file can use.
pub(super) const MAX_RECORD_BYTES: usize = 64 << 20;

const PARQUET_MAGIC: &[u8] = b"PAR1";

/// Receives the rows of a file in order.
#[cfg_attr(not(feature = "parquet"), expect(dead_code, reason = "Parquet names its columns"))]
pub(crate) trait RowSink {
    /// Returns whether a top-level column may be used. Others are not decoded in Parquet files.
    fn wants(&self, column: &str) -> bool;

    /// Receives the columns of a file that declares them, before its first row.
    fn columns(&mut self, columns: Vec<FileColumn>);

    /// Receives a row.
    ///
    /// # Errors
    /// An error that ends the reading.
    fn row(&mut self, at: RowAt<'_>, row: Map<String, Value>) -> Result<()>;

    /// Receives an unreadable row.
    fn unusable(&mut self, unusable: Unusable);

    /// Starts the next of several files, whose rows are counted from 1 again.
    fn next_file(&mut self) {}

    /// Returns whether the current file is not the first.
    fn is_later_file(&self) -> bool {
        false
    }
}

/// Other content of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowsRead {
    /// Blank lines of a JSONL file.
    pub(crate) blank_lines: usize,
    /// Lone surrogate escapes, read as U+FFFD.
    pub(crate) surrogates: usize,
    /// If the only row has a list of objects, its key and their number.
    list: Option<(String, usize)>,
}

impl RowsRead {
    /// Returns the result of using the rows. If that failed and the only row has a list of records, the error
    /// says so.
    pub(crate) fn explain<T>(&self, path: &Path, result: Result<T>) -> Result<T> {
        match (&result, &self.list) {
            (Err(_), Some((key, count))) => Err(list_within(path, key, *count)),
            _ => result,
        }
    }

    fn add(&mut self, repairs: Repairs) {
        self.surrogates += repairs.surrogates;
    }
}

/// Reads the rows of several files in sequence.
///
/// # Errors
/// See [`read_rows`].
pub(crate) fn read_files(files: &[PathBuf], sink: &mut dyn RowSink) -> Result<RowsRead> {
    let mut all = RowsRead::default();
    let (mut has_rows, mut empty) = (false, None);
    for (index, path) in files.iter().enumerate() {
        if index > 0 {
            sink.next_file();
        }
        let RowsRead { blank_lines, surrogates, list } = match read_rows(path, sink) {
            // Some files of a dataset may be empty, but not all.
            Err(error) if files.len() > 1 && is_no_records(&error, path) => {
                empty.get_or_insert(error);
                continue;
            }
            read => read?,
        };
        has_rows = true;
        all.blank_lines += blank_lines;
        all.surrogates += surrogates;
        all.list = all.list.or(list);
    }
    match empty.filter(|_| !has_rows) {
        Some(error) => Err(error),
        None => Ok(all),
    }
}

/// Returns whether an error is that of a file without records.
fn is_no_records(error: &Error, path: &Path) -> bool {
    error.to_string() == no_records(path).to_string()
}

/// Reads the rows of a file.
///
/// The format is detected by content: `PAR1` starts a Parquet file, `[` a JSON array, and `{` JSONL. Other
/// files with the extension `.jsonl` or `.ndjson` are JSONL as well. `.csv` and `.tsv` files are tables with
/// a header. All formats but Parquet may be compressed with gzip or Zstandard, which is also detected by
/// content. Byte order marks, CRLF, and blank lines are allowed. NaN and infinities are read as null,
/// integers that fit no 64-bit type as text.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] if the file as a whole cannot be read; errors of `sink`.
pub(crate) fn read_rows(path: &Path, sink: &mut dyn RowSink) -> Result<RowsRead> {
    let (file, head) = open(path)?;
    let format = format_of_name(path);
    let is_packed = Packing::named(path).is_some() || Packing::of(&head).is_some();
    if head.starts_with(PARQUET_MAGIC)
        || format == "parquet" && !is_packed && !is_lfs_pointer(&head)
    {
        return read_parquet(file, &head, path, sink);
    }
    let mut reader = text_of(path, file, head)?;
    if let Some(delimiter) = csv::delimiter(&format)
        && !begins_json(&mut reader).map_err(|source| unreadable(path, source))?
    {
        return csv::read(reader, path, delimiter, sink);
    }
    let Some(start) = skip_blank(&mut reader).map_err(|source| unreadable(path, source))? else {
        return Err(no_records(path));
    };
    match start.first {
        b'[' => read_array(reader, path, &start, sink),
        first if first == b'{' || format == "jsonl" || format == "ndjson" => {
            read_lines(reader, path, &start, sink)
        }
        first => Err(Error::data(
            Place::line(path, start.blank_lines + 1),
            format!(
                "the text begins with {:?}, expected {{ (JSONL) or [ (a JSON array)",
                char::from(first)
            ),
            "Convert the file to JSONL with one {\"problem\": \"...\", \"solution\": \"...\"} on \
             each line, or to Parquet; CSV and TSV files need the extension .csv or .tsv",
        )),
    }
}

/// Returns the error for a file without records.
pub(super) fn no_records(path: &Path) -> Error {
    Error::data(
        Place::file(path),
        "the file has no records",
        "Check that it is the right file and that it is complete",
    )
}

#[cfg(feature = "parquet")]
fn read_parquet(file: File, head: &[u8], path: &Path, sink: &mut dyn RowSink) -> Result<RowsRead> {
    if head.is_empty() {
        return Err(no_records(path));
    }
    if !head.starts_with(PARQUET_MAGIC) {
        return Err(Error::data(
            Place::file(path),
            "the file does not begin with PAR1, as Parquet files do",
            "Rename it to .jsonl or .json if it is JSONL or a JSON array, or download it again",
        ));
    }
    super::parquet::read(file, path, sink)?;
    Ok(RowsRead::default())
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(_: File, _: &[u8], path: &Path, _: &mut dyn RowSink) -> Result<RowsRead> {
    Err(Error::data(
        Place::file(path),
        "this build does not read Parquet files",
        "Use a build with the feature `parquet`, or convert the file to JSONL",
    ))
}

/// The white space before the first other byte.
struct Start {
    first: u8,
    blank_lines: usize,
    /// White space before `first` on its line, in bytes.
    indent: usize,
}

/// Consumes leading white space. `None` at the end of the file.
fn skip_blank(reader: &mut impl BufRead) -> io::Result<Option<Start>> {
    let (mut blank_lines, mut indent) = (0, 0);
    loop {
        let buffer = match reader.fill_buf() {
            Ok([]) => return Ok(None),
            Ok(buffer) => buffer,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let first = buffer.iter().position(|byte| !byte.is_ascii_whitespace());
        let blank = first.unwrap_or(buffer.len());
        for &byte in &buffer[..blank] {
            if byte == b'\n' {
                blank_lines += 1;
                indent = 0;
            } else {
                indent += 1;
            }
        }
        let first = first.map(|at| buffer[at]);
        reader.consume(blank);
        if let Some(first) = first {
            return Ok(Some(Start { first, blank_lines, indent }));
        }
    }
}

/// Returns whether the first non-blank byte in the buffer begins an object or list. Consumes nothing.
fn begins_json(reader: &mut impl BufRead) -> io::Result<bool> {
    let first = reader.fill_buf()?.iter().find(|byte| !byte.is_ascii_whitespace());
    Ok(matches!(first, Some(b'{' | b'[')))
}

/// Passes a value to the sink: an object is a row, anything else is unusable.
pub(super) fn hand_over(sink: &mut dyn RowSink, at: RowAt<'_>, value: Value) -> Result<()> {
    if u32::try_from(at.number).is_err() {
        return Err(at.error("too many records for one file", "Split the file"));
    }
    match value {
        Value::Object(row) => sink.row(at, row),
        other => {
            let what = format!("found {}, expected a record as a JSON object", described(&other));
            let hint = "Write each record as {\"problem\": \"...\", \"solution\": \"...\"}";
            sink.unusable(Unusable::new("not a JSON object", at.error(what, hint)));
            Ok(())
        }
    }
}

/// Reads JSONL: one object on each line.
fn read_lines(
    mut reader: impl BufRead,
    path: &Path,
    start: &Start,
    sink: &mut dyn RowSink,
) -> Result<RowsRead> {
    let mut read = RowsRead { blank_lines: start.blank_lines, ..RowsRead::default() };
    let mut number = start.blank_lines;
    let mut indent = start.indent;
    let mut line = Vec::new();
    let mut is_first = true;
    // The first row, until it is known not to be the only one.
    let mut held: Option<(usize, Value)> = None;
    loop {
        line.clear();
        // One byte more than allowed, which may be the line break.
        let limit = MAX_RECORD_BYTES as u64 + 1;
        let bytes = reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut line)
            .map_err(|source| unreadable_at(path, number + 1, source))?;
        if bytes == 0 {
            if let Some((number, value)) = held {
                let list = value.as_object().and_then(list_of_records);
                read.list = list.map(|(key, count)| (key.to_owned(), count));
                hand_over(sink, RowAt { path, number, unit: Unit::Line }, value)?;
            }
            return Ok(read);
        }
        number += 1;
        let at = RowAt { path, number, unit: Unit::Line };
        if line.len() > MAX_RECORD_BYTES && !line.ends_with(b"\n") {
            return Err(at.error(
                "the line is longer than 64 MiB",
                "Write one record per line, and remove what is not a reasoning trace",
            ));
        }
        if line.trim_ascii().is_empty() {
            read.blank_lines += 1;
            continue;
        }
        if let Some((number, value)) = held.take() {
            hand_over(sink, RowAt { path, number, unit: Unit::Line }, value)?;
        }
        match line_value(&line, indent, at) {
            Ok((value, repairs)) => {
                read.add(repairs);
                match is_first {
                    true => held = Some((number, value)),
                    false => hand_over(sink, at, value)?,
                }
            }
            Err(unusable) => {
                if is_first && let Some(error) = one_object(path) {
                    return Err(error);
                }
                sink.unusable(unusable);
            }
        }
        (indent, is_first) = (0, false);
    }
}

/// Parses the value on a line.
fn line_value(line: &[u8], indent: usize, at: RowAt<'_>) -> Result<(Value, Repairs), Unusable> {
    // The line break must not count as an error position.
    let line = line.trim_ascii_end();
    if let Err(error) = std::str::from_utf8(line) {
        let byte = indent + error.valid_up_to() + 1;
        let what = format!("byte {byte} of the line is not UTF-8");
        return Err(Unusable::new("not UTF-8", at.error(what, "Save the file as UTF-8")));
    }
    parse(line).map_err(|error| {
        let hint = if error.is_eof() {
            "Write one complete object per line: the file may be truncated here, or an object may \
             span several lines, which only a JSON array allows"
        } else if line.get(error.column().saturating_sub(1)..) == Some(b",") {
            "Remove the comma at the end of the line: JSONL has none between records"
        } else {
            hint_for(&bare(&error))
        };
        let column = indent + error.column();
        let what = match bare(&error) {
            bare if bare == IN_STRING => format!("the line ends inside a string (column {column})"),
            bare => format!("broken JSON at column {column}: {bare}"),
        };
        Unusable::new("not JSON", at.error(what, hint))
    })
}

/// The message of serde_json for a text that ends before its closing quote.
const IN_STRING: &str = "EOF while parsing a string";

/// Returns the hint for a syntax error.
fn hint_for(bare: &str) -> &'static str {
    if bare.starts_with("recursion limit") {
        "Remove the record: nesting is limited to 127 levels, far more than a reasoning trace needs"
    } else if bare.starts_with("trailing comma") {
        "Remove the comma before the closing bracket, or write the file again with a JSON library"
    } else {
        "Correct the record, or write the file again with a JSON library"
    }
}

/// Returns the error's message without the position that serde_json adds.
fn bare(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// Reads a JSON array of objects, one by one.
fn read_array(
    reader: impl BufRead,
    path: &Path,
    start: &Start,
    sink: &mut dyn RowSink,
) -> Result<RowsRead> {
    let mut read = RowsRead::default();
    let opening = Spot { line: start.blank_lines + 1, column: start.indent + 1 };
    let mut items = ArrayItems::new(reader, opening, MAX_RECORD_BYTES);
    let (mut item, mut number) = (vec![], 0);
    loop {
        let record = number + 1;
        let at = RowAt { path, number: record, unit: Unit::Item };
        let place = || Place::line(path, record);
        let spot = |spot: Spot| {
            let Spot { line, column } = spot;
            format!("line {line}, column {column} of the file, in record {record} of the list")
        };
        let broken = |at: Spot, what: &str, hint: &str| {
            Error::data(place(), format!("broken JSON at {}: {what}", spot(at)), hint)
        };
        let begins = match items.next(&mut item) {
            Ok(Some(begins)) => begins,
            Ok(None) if number == 0 => return Err(no_records(path)),
            Ok(None) => return Ok(read),
            Err(Broken::Io(error)) => return Err(unreadable_at(path, record, error)),
            Err(Broken::TooLong) => {
                return Err(Error::data(
                    place(),
                    format!("record {record} of the list is longer than 64 MiB"),
                    "Remove what is not a reasoning trace, or check that the file is complete",
                ));
            }
            Err(Broken::Syntax(at, what)) => return Err(broken(at, what, hint_for(what))),
            Err(Broken::Ended(at)) => {
                let hint = "Check that the file is complete: the list has no end";
                return Err(broken(at, "EOF while parsing a list", hint));
            }
            Err(Broken::TooDeep(at)) => {
                let what = "recursion limit exceeded";
                return Err(broken(at, what, hint_for(what)));
            }
        };
        number += 1;
        if let Err(error) = std::str::from_utf8(&item) {
            let before = &item[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
            let what = format!("a text is not UTF-8 at {}", spot(begins.within(line, column)));
            let error = Error::data(place(), what, "Save the file as UTF-8");
            sink.unusable(Unusable::new("not UTF-8", error));
            continue;
        }
        match parse(&item) {
            Ok((value, repairs)) => {
                read.add(repairs);
                hand_over(sink, at, value)?;
            }
            Err(error) => {
                let holds_others = may_hold_others(&item);
                let error = item_error(&item, &error, begins, at, holds_others);
                if holds_others {
                    return Err(error);
                }
                sink.unusable(Unusable::new("not JSON", error));
            }
        }
    }
}

/// Returns the error for an invalid item of an array. The item begins at `begins`. `holds_others` says that
/// it may have swallowed other items.
fn item_error(
    item: &[u8],
    error: &serde_json::Error,
    begins: Spot,
    at: RowAt<'_>,
    holds_others: bool,
) -> Error {
    let bare = bare(error);
    // The error that serde_json gives for a line break inside a string.
    let ends_in_string = error.column() == 0 && bare.starts_with("control character");
    let hint = if holds_others {
        "Write the file again with a JSON library: a quote in a string lacks its backslash, or a \
         string has no end, so the records after it cannot be separated"
    } else if ends_in_string {
        "Write the file again with a JSON library: line breaks in strings must be written as \\n"
    } else {
        hint_for(&bare)
    };
    let record = at.number;
    let what = if ends_in_string {
        let line = error.line().saturating_sub(1);
        let Spot { line, column } = begins.within(line, line_end(item, line));
        format!("line {line} of the file ends inside a string (column {column})")
    } else {
        let Spot { line, column } = begins.within(error.line(), error.column());
        format!("broken JSON at line {line}, column {column} of the file")
    };
    let what = match ends_in_string {
        true => format!("{what}, in record {record} of the list"),
        false => format!("{what}, in record {record} of the list: {bare}"),
    };
    Error::data(Place::line(at.path, record), what, hint)
}

/// Returns the column after the last byte of a line, both counted from 1.
fn line_end(text: &[u8], line: usize) -> usize {
    let line = text.split(|byte| *byte == b'\n').nth(line.saturating_sub(1));
    line.map_or(1, |line| line.strip_suffix(b"\r").unwrap_or(line).len() + 1)
}

/// Returns the error for a file that is one object across several lines with its records in a list.
fn one_object(path: &Path) -> Option<Error> {
    // A pipe cannot be read twice.
    if !std::fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let (file, head) = open(path).ok()?;
    let mut text = vec![];
    let reader = text_of(path, file, head).ok()?;
    reader.take(MAX_RECORD_BYTES as u64 + 1).read_to_end(&mut text).ok()?;
    if text.len() > MAX_RECORD_BYTES {
        return None;
    }
    let (value, _) = parse(&text).ok()?;
    let (key, count) = list_of_records(value.as_object()?)?;
    Some(list_within(path, key, count))
}

/// Returns the key of an object with a list of objects, and their number.
fn list_of_records(object: &Map<String, Value>) -> Option<(&str, usize)> {
    object.iter().find_map(|(key, value)| {
        let list = value.as_array()?;
        let objects = !list.is_empty() && list.iter().all(Value::is_object);
        // Conversations and the parts of messages are not records.
        let is_record = objects && !is_conversation(list) && !is_parts(list);
        is_record.then_some((key.as_str(), list.len()))
    })
}

fn list_within(path: &Path, key: &str, count: usize) -> Error {
    Error::data(
        Place::file(path),
        format!("the file is one object whose key `{key}` has a list of {count} records"),
        format!(
            "Write only the list to a file, for example with: jq '.[\"{key}\"]' FILE > records.json"
        ),
    )
}
