//! The rows of a file: JSONL, a JSON array, CSV, TSV, or (feature `parquet`) Parquet. Training data,
//! benchmarks, answers, prompts and problems are all read here, and differ in what they make of a row.
//!
//! A file is read once, front to back, one row at a time, so that what is held in memory is what is
//! made of the rows and not the text around them; JSON may also come from a pipe.

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

/// The longest line of JSONL and the longest record of a JSON array; far above any trace, and a
/// bound on what a wrong file can make this reader allocate.
pub(super) const MAX_RECORD_BYTES: usize = 64 << 20;

const PARQUET_MAGIC: &[u8] = b"PAR1";

/// Takes the rows of a file in their order.
#[cfg_attr(not(feature = "parquet"), expect(dead_code, reason = "Parquet names its columns"))]
pub(crate) trait RowSink {
    /// Whether a top-level column can matter: of a Parquet file the others are not decoded.
    fn wants(&self, column: &str) -> bool;

    /// The columns of a file that names them, before its first row.
    fn columns(&mut self, columns: Vec<FileColumn>);

    /// A row.
    ///
    /// # Errors
    /// What ends the reading.
    fn row(&mut self, at: RowAt<'_>, row: Map<String, Value>) -> Result<()>;

    /// A row that cannot be read.
    fn unusable(&mut self, unusable: Unusable);

    /// The next of several files begins, whose rows are counted from 1 again.
    fn next_file(&mut self) {}

    /// Whether a file that is read is one after the first.
    fn is_later_file(&self) -> bool {
        false
    }
}

/// What else there was in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowsRead {
    /// Lines of a JSONL file that hold nothing but white space.
    pub(crate) blank_lines: usize,
    /// Escapes of half a character, read as U+FFFD.
    pub(crate) surrogates: usize,
    /// Where the only row holds a list of objects: its key, and their number.
    list: Option<(String, usize)>,
}

impl RowsRead {
    /// What was made of the rows of a file; where nothing could be, and the only row holds a list of
    /// records, that is said.
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

/// Reads the rows of several files, one after the other.
///
/// # Errors
/// As [`read_rows`].
pub(crate) fn read_files(files: &[PathBuf], sink: &mut dyn RowSink) -> Result<RowsRead> {
    let mut all = RowsRead::default();
    let (mut has_rows, mut empty) = (false, None);
    for (index, path) in files.iter().enumerate() {
        if index > 0 {
            sink.next_file();
        }
        let RowsRead { blank_lines, surrogates, list } = match read_rows(path, sink) {
            // Parts of a dataset may be empty, as long as not all are.
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

/// Whether an error is that of a file without a single record.
fn is_no_records(error: &Error, path: &Path) -> bool {
    error.to_string() == no_records(path).to_string()
}

/// Reads the rows of a file.
///
/// The format is known by the content: `PAR1` begins a Parquet file, `[` a JSON array and anything
/// else in a `.jsonl` or `.ndjson` file, or `{` in any file, JSONL; `.csv` and `.tsv` files are tables
/// with a header. All but Parquet may be compressed with gzip or Zstandard, which the content says too.
/// A byte order mark, CRLF line ends and blank lines are fine. NaN and infinities are read as null,
/// integers that no machine number holds as their text.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] where the file as a whole cannot be read; what `sink` gives.
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
             each line, or to Parquet; CSV and TSV are known by the endings .csv and .tsv",
        )),
    }
}

/// The error for a file without a single record.
pub(super) fn no_records(path: &Path) -> Error {
    Error::data(
        Place::file(path),
        "the file holds no records",
        "Check that it is the right file and that it was written to its end",
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
            "If it is JSONL or a JSON array, name it .jsonl or .json; otherwise fetch it again",
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

/// What stands before the first byte that is not white space.
struct Start {
    first: u8,
    blank_lines: usize,
    /// White space before `first` on its own line, in bytes.
    indent: usize,
}

/// Consumes leading white space; `None` at the end of the file.
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

/// Whether the first byte that is not white space begins an object or a list, as far as the buffer shows;
/// nothing is consumed.
fn begins_json(reader: &mut impl BufRead) -> io::Result<bool> {
    let first = reader.fill_buf()?.iter().find(|byte| !byte.is_ascii_whitespace());
    Ok(matches!(first, Some(b'{' | b'[')))
}

/// Hands one value over: an object is a row, anything else is none.
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

/// JSONL: one object on each line.
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
        // One byte more than allowed, which may be the line's end.
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
                "Write one record on each line; leave out what is not a reasoning trace",
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

/// The value on a line.
fn line_value(line: &[u8], indent: usize, at: RowAt<'_>) -> Result<(Value, Repairs), Unusable> {
    // Where the line ends is no place of an error.
    let line = line.trim_ascii_end();
    if let Err(error) = std::str::from_utf8(line) {
        let byte = indent + error.valid_up_to() + 1;
        let what = format!("byte {byte} of the line is not UTF-8");
        return Err(Unusable::new("not UTF-8", at.error(what, "Save the file as UTF-8")));
    }
    parse(line).map_err(|error| {
        let hint = if error.is_eof() {
            "Each line holds one whole object: the file may be cut off here, or one object is \
             spread over several lines, which is fine in a JSON array only"
        } else if line.get(error.column().saturating_sub(1)..) == Some(b",") {
            "The line ends with a comma: JSONL has none between its records"
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

/// What serde_json says where a text ends before its closing quote.
const IN_STRING: &str = "EOF while parsing a string";

/// What to do about a syntax error.
fn hint_for(bare: &str) -> &'static str {
    if bare.starts_with("recursion limit") {
        "Lists and objects can be nested 127 deep; such a record is hardly a reasoning trace"
    } else if bare.starts_with("trailing comma") {
        "JSON allows no comma before a closing bracket: remove it, or write the file again with a \
         JSON library"
    } else {
        "Correct the record, or write the file again with a JSON library"
    }
}

/// The error's message without the place that serde_json adds.
fn bare(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// A JSON array of objects, taken one by one.
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
                    "Leave out what is not a reasoning trace, or check that the file is not cut off",
                ));
            }
            Err(Broken::Syntax(at, what)) => return Err(broken(at, what, hint_for(what))),
            Err(Broken::Ended(at)) => {
                let hint = "The list has no end: the file may be cut off";
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

/// The error for an item of an array that is no JSON. The item begins at `begins`; `holds_others` says
/// that it may have swallowed others.
fn item_error(
    item: &[u8],
    error: &serde_json::Error,
    begins: Spot,
    at: RowAt<'_>,
    holds_others: bool,
) -> Error {
    let bare = bare(error);
    // Where serde_json stumbles over the line break in a text that has no end on its line.
    let ends_in_string = error.column() == 0 && bare.starts_with("control character");
    let hint = if holds_others {
        "A quote within a text lacks its backslash, or a text has no end, so that the records behind \
         it cannot be told apart: write the file again with a JSON library"
    } else if ends_in_string {
        "A text goes on over a line break only as \\n: write the file again with a JSON library"
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

/// The column behind the last byte of a line, both counted from 1.
fn line_end(text: &[u8], line: usize) -> usize {
    let line = text.split(|byte| *byte == b'\n').nth(line.saturating_sub(1));
    line.map_or(1, |line| line.strip_suffix(b"\r").unwrap_or(line).len() + 1)
}

/// The error for a file that is one object over several lines with its list of records under a key.
fn one_object(path: &Path) -> Option<Error> {
    // A pipe cannot be read a second time.
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

/// The key of an object that holds a list of objects, and their number.
fn list_of_records(object: &Map<String, Value>) -> Option<(&str, usize)> {
    object.iter().find_map(|(key, value)| {
        let list = value.as_array()?;
        let objects = !list.is_empty() && list.iter().all(Value::is_object);
        // A conversation, or the parts of a message, are no records.
        let is_record = objects && !is_conversation(list) && !is_parts(list);
        is_record.then_some((key.as_str(), list.len()))
    })
}

fn list_within(path: &Path, key: &str, count: usize) -> Error {
    Error::data(
        Place::file(path),
        format!("the file is one object; its key `{key}` holds a list of {count} records"),
        format!(
            "Write the list alone to a file, for example with: jq '.[\"{key}\"]' FILE > records.json"
        ),
    )
}
