//! CSV and TSV: a header with column names, followed by rows with the same number of fields. A quoted field
//! may contain line breaks, delimiters, and doubled quotes. All values are text.

use std::io::BufRead;
use std::path::Path;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use serde_json::{Map, Value};

use super::describe::shortened;
use super::left_out::Unusable;
use super::open::unreadable_at;
use super::row_at::{RowAt, Unit};
use super::rows::{MAX_RECORD_BYTES, RowSink, RowsRead, hand_over, no_records};
use crate::error::{Error, Place, Result};

const QUOTING: &str = "Write the file again with a CSV library: fields with quotes, delimiters, or line breaks must \
     be quoted, and quotes inside them doubled";

/// Returns the delimiter of a format, by file extension. `None` for other formats.
pub(super) fn delimiter(format: &str) -> Option<u8> {
    match format {
        "csv" => Some(b','),
        "tsv" | "tab" => Some(b'\t'),
        _ => None,
    }
}

/// Reads a table with a header.
pub(super) fn read(
    reader: impl BufRead,
    path: &Path,
    delimiter: u8,
    sink: &mut dyn RowSink,
) -> Result<RowsRead> {
    let mut table = Table::new(reader, path, delimiter);
    let names = table.header()?;
    let mut read = RowsRead::default();
    let mut is_empty = true;
    while table.next()? {
        let record = &table.record;
        if names.len() > 1 && record.raw.trim_ascii().is_empty() && record.fields == 1 {
            table.blank_lines += 1;
            continue;
        }
        is_empty = false;
        let at = RowAt { path, number: record.line, unit: Unit::Line };
        match table.row(&names, at)? {
            Ok(row) => hand_over(sink, at, Value::Object(row))?,
            Err(unusable) => sink.unusable(unusable),
        }
    }
    if is_empty {
        return Err(no_records(path));
    }
    read.blank_lines = table.blank_lines;
    Ok(read)
}

/// A row as read from the file.
#[derive(Default)]
struct Record {
    /// Its bytes in the file, without preceding line breaks.
    raw: Vec<u8>,
    /// Its concatenated fields, followed by leftovers of earlier rows.
    texts: Vec<u8>,
    /// The end of each field, followed by leftovers as well.
    ends: Vec<usize>,
    /// The number of fields.
    fields: usize,
    /// The line where it begins, counted from 1.
    line: usize,
}

impl Record {
    fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(&self.ends[..self.fields]).map(|(start, end)| &self.texts[start..*end])
    }

    /// Returns the line where it ends.
    fn last_line(&self) -> usize {
        self.line + self.raw.trim_ascii_end().iter().filter(|byte| **byte == b'\n').count()
    }

    /// Returns whether the fields, written in the format, give the bytes that were read. They do not if a
    /// quote inside a field is not doubled, or if text follows a quoted field: the parser accepts such rows
    /// and drops quotes.
    fn is_faithful(&self, delimiter: u8) -> bool {
        let mut rest = self.raw.as_slice();
        let last = self.fields.saturating_sub(1);
        for (index, field) in self.fields().enumerate() {
            let after = match rest.strip_prefix(b"\"") {
                Some(quoted) => without_quoted(quoted, field),
                None => rest.strip_prefix(field),
            };
            let Some(after) = after else { return false };
            rest = match after.split_first() {
                Some((byte, after)) if index < last && *byte == delimiter => after,
                _ if index == last => after,
                _ => return false,
            };
        }
        matches!(rest, b"" | b"\n" | b"\r" | b"\r\n")
    }
}

/// Returns the bytes after a quoted field. `rest` starts after the opening quote.
fn without_quoted<'a>(mut rest: &'a [u8], field: &[u8]) -> Option<&'a [u8]> {
    let mut pieces = field.split(|byte| *byte == b'"');
    rest = rest.strip_prefix(pieces.next()?)?;
    for piece in pieces {
        rest = rest.strip_prefix(b"\"\"")?.strip_prefix(piece)?;
    }
    rest.strip_prefix(b"\"")
}

/// The rows of a table.
struct Table<'a, R> {
    reader: R,
    path: &'a Path,
    delimiter: u8,
    parser: Reader,
    record: Record,
    /// The next line to read.
    line: usize,
    blank_lines: usize,
}

impl<'a, R: BufRead> Table<'a, R> {
    fn new(reader: R, path: &'a Path, delimiter: u8) -> Self {
        Self {
            reader,
            path,
            delimiter,
            parser: ReaderBuilder::new().delimiter(delimiter).build(),
            record: Record::default(),
            line: 1,
            blank_lines: 0,
        }
    }

    /// Reads the next row into `record`. `false` at the end.
    fn next(&mut self) -> Result<bool> {
        let after_return = self.record.raw.ends_with(b"\r");
        let record = &mut self.record;
        record.raw.clear();
        let (mut written, mut ended) = (0, 0);
        let is_row = loop {
            let input = match self.reader.fill_buf() {
                Ok(input) => input,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable_at(self.path, self.line, error)),
            };
            let is_ended = input.is_empty();
            if is_ended && record.raw.iter().all(|byte| matches!(byte, b'\n' | b'\r')) {
                break false;
            }
            // Terminate a last row without a line break. Inside quotes, the line break is text.
            let input = if is_ended { b"\n" } else { input };
            let (texts, ends) = (&mut record.texts, &mut record.ends);
            let (result, read, bytes, fields_ended) =
                self.parser.read_record(input, &mut texts[written..], &mut ends[ended..]);
            if !is_ended {
                record.raw.extend_from_slice(&input[..read]);
                self.reader.consume(read);
            } else if read > 0 && matches!(result, ReadRecordResult::InputEmpty) {
                let what = "a quoted field that begins in this row has no end";
                return Err(Error::data(Place::line(self.path, self.line), what, QUOTING));
            }
            (written, ended) = (written + bytes, ended + fields_ended);
            if record.raw.len() > MAX_RECORD_BYTES || ended > MAX_FIELDS {
                let what = "the row is longer than 64 MiB, or has more than 65536 fields";
                let hint = "Check that quoted fields have an end, and remove what is not a reasoning trace";
                return Err(Error::data(Place::line(self.path, self.line), what, hint));
            }
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => texts.resize(2 * texts.len().max(1 << 10), 0),
                ReadRecordResult::OutputEndsFull => ends.resize(2 * ends.len().max(8), 0),
                ReadRecordResult::Record => break true,
                ReadRecordResult::End => break false,
            }
        };
        let raw = &mut record.raw;
        let before = raw.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
        let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
        let blank = lines(&raw[..before]);
        (record.line, record.fields) = (self.line + blank, ended);
        self.line += lines(raw);
        self.blank_lines += blank.saturating_sub(usize::from(after_return));
        raw.drain(..before);
        Ok(is_row)
    }

    /// Reads the names of the columns.
    fn header(&mut self) -> Result<Vec<String>> {
        if !self.next()? {
            return Err(no_records(self.path));
        }
        let record = &self.record;
        let error = |what: String, hint: &str| {
            Error::data(Place::line(self.path, record.line), format!("the header: {what}"), hint)
        };
        if !record.is_faithful(self.delimiter) {
            return Err(error("its quotes are malformed".to_owned(), QUOTING));
        }
        let mut names: Vec<String> = Vec::with_capacity(record.fields);
        for field in record.fields() {
            let Ok(name) = std::str::from_utf8(field) else {
                return Err(error("a name is not UTF-8".to_owned(), "Save the file as UTF-8"));
            };
            let name = name.trim();
            if names.iter().any(|other| other == name) {
                let what = match name {
                    "" => "two columns have no name".to_owned(),
                    name => format!("the name `{}` occurs twice", shortened(name)),
                };
                return Err(error(what, "Give each column its own name, and remove empty columns"));
            }
            names.push(name.to_owned());
        }
        if let [name] = &names[..]
            && name.contains([';', '\t', ',', '|'])
        {
            let what = format!("it is one column, `{}`", shortened(name));
            let hint = "Write the file again with commas between the fields (.csv) or tabs (.tsv)";
            return Err(error(what, hint));
        }
        Ok(names)
    }

    /// Returns the current row, by the names of its columns.
    ///
    /// # Errors
    /// If its quotes are malformed across several lines, so that it may contain other rows.
    fn row(&self, names: &[String], at: RowAt<'_>) -> Result<Result<Map<String, Value>, Unusable>> {
        let record = &self.record;
        let last = record.last_line();
        let lines = match last == record.line {
            true => String::new(),
            false => format!(" (lines {} to {last})", record.line),
        };
        let unusable = |reason: &str, what: String, hint: &str| {
            Ok(Err(Unusable::new(reason, at.error(format!("{what}{lines}"), hint))))
        };
        if !record.is_faithful(self.delimiter) {
            let what = "a quote inside a field is not doubled, or text follows a quoted field";
            if last > record.line {
                let what = format!("{what}{lines}, so the rows after it cannot be separated");
                return Err(at.error(what, QUOTING));
            }
            return unusable("malformed quotes", what.to_owned(), QUOTING);
        }
        let (fields, columns) = (record.fields, names.len());
        if fields != columns {
            let what = format!("the row has {fields} fields, but the header has {columns}");
            return unusable("wrong number of fields", what, QUOTING);
        }
        let mut row = Map::with_capacity(columns);
        for (name, field) in names.iter().zip(record.fields()) {
            match std::str::from_utf8(field) {
                Ok(text) => row.insert(name.clone(), text.into()),
                Err(error) => {
                    let byte = error.valid_up_to() + 1;
                    let name = shortened(name);
                    let what = format!("byte {byte} of column `{name}` is not UTF-8");
                    return unusable("not UTF-8", what, "Save the file as UTF-8");
                }
            };
        }
        Ok(Ok(row))
    }
}

/// Maximum number of fields in a row.
const MAX_FIELDS: usize = 1 << 16;
