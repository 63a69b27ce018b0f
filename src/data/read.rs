//! Files of records: JSONL, JSON arrays and (feature `parquet`) Parquet.
//!
//! A file is read once, front to back, one record at a time, so that what is held in memory is the
//! records and not the text around them; JSON may also come from a pipe.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;

use serde::Deserializer as _;
use serde::de::{self, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use super::collect::{Collector, Unit, no_records};
use super::columns::ColumnMap;
use super::record::Records;
use crate::error::{Error, Place, Result};

/// The longest line of JSONL and the longest record of a JSON array; far above any trace, and a
/// bound on what a wrong file can make this reader allocate.
const MAX_RECORD_BYTES: usize = 64 << 20;

const BOM: &[u8] = b"\xEF\xBB\xBF";
const PARQUET_MAGIC: &[u8] = b"PAR1";

/// Reads the records of one file.
///
/// The format is known by the content: `PAR1` begins a Parquet file, `[` a JSON array and anything
/// else in a `.jsonl` or `.ndjson` file, or `{` in any file, JSONL. A byte order mark, CRLF line
/// ends and blank lines are fine.
///
/// The columns are chosen on the first record, by `columns` and by the usual names, and hold for
/// the whole file; [`Records::columns`] says which they are. Records whose problem or solution is
/// blank or null are left out and counted.
///
/// # Errors
///
/// [`Error::Io`] if the file cannot be opened or read; [`Error::Config`] if `columns` contradicts
/// itself; [`Error::Data`] with file, line and column for anything in the file that is not a
/// record: broken JSON, bytes that are not UTF-8, a line above 64 MiB, a column that is missing or
/// of another type than on the first record, a conversation of more than one exchange, and a file
/// without records.
///
/// # Panics
///
/// Not on any text. The `parquet` crate itself panics on some damaged files; that is caught and
/// returned as an error, after the process's panic hook has run, and cannot be caught in a build
/// with `panic = "abort"`, nor where such a file has it ask for more memory than there is.
pub fn read_records(path: impl AsRef<Path>, columns: &ColumnMap) -> Result<Records> {
    let path = path.as_ref();
    columns.check()?;
    let mut file = open(path)?;
    let mut head = Vec::new();
    file.by_ref()
        .take(PARQUET_MAGIC.len() as u64)
        .read_to_end(&mut head)
        .map_err(|source| unreadable(path, source))?;
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or("").to_lowercase();
    if head == PARQUET_MAGIC || extension == "parquet" {
        return read_parquet(file, &head, path, columns);
    }
    reject_encoded(&head, path)?;

    let text = head.strip_prefix(BOM).unwrap_or(&head).to_vec();
    let mut reader = BufReader::with_capacity(1 << 16, Cursor::new(text).chain(file));
    let Some(start) = skip_blank(&mut reader).map_err(|source| unreadable(path, source))? else {
        return Err(no_records(path));
    };
    match start.first {
        b'[' => {
            let mut collector = Collector::new(path, columns, Unit::Item);
            read_array(reader, &start, &mut collector)?;
            collector.finish()
        }
        first if first == b'{' || extension == "jsonl" || extension == "ndjson" => {
            let mut collector = Collector::new(path, columns, Unit::Line);
            read_lines(reader, &start, &mut collector)?;
            collector.finish()
        }
        first => Err(Error::data(
            Place::line(path, start.blank_lines + 1),
            format!(
                "the text begins with {:?}, expected {{ (JSONL) or [ (a JSON array)",
                char::from(first)
            ),
            "Convert the file to JSONL with one {\"problem\": \"...\", \"solution\": \"...\"} on \
             each line, or to Parquet",
        )),
    }
}

/// Opens a file; the usual reasons why that fails come with what to do.
fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|source| unreadable(path, source))?;
    // Some systems open a directory and fail on the first read only.
    let metadata = file.metadata().map_err(|source| unreadable(path, source))?;
    if metadata.is_dir() {
        return Err(unreadable(path, ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

/// [`Error::Io`] whose text says what to do; the kind of the error is kept.
fn unreadable(path: &Path, source: io::Error) -> Error {
    let text = match source.kind() {
        ErrorKind::NotFound => {
            "there is no such file. Check the path: a relative one starts in the current directory"
        }
        ErrorKind::IsADirectory => "it is a directory. Name one file, or each file in it",
        ErrorKind::PermissionDenied => {
            "permission denied. Give yourself the right to read it, or copy it"
        }
        _ => return Error::io("read", path, source),
    };
    Error::io("read", path, io::Error::new(source.kind(), text))
}

/// Files that are text only after decoding; as JSON they would give a baffling error.
fn reject_encoded(head: &[u8], path: &Path) -> Result<()> {
    let (what, hint) = match head {
        [0x1F, 0x8B, ..] => ("the file is compressed with gzip", "Unpack it first: gunzip -k"),
        [0x28, 0xB5, 0x2F, 0xFD] => {
            ("the file is compressed with Zstandard", "Unpack it first: zstd -d")
        }
        [b'P', b'K', 3, 4] => ("the file is a ZIP archive", "Unpack it first"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => {
            ("the file is UTF-16 text, expected UTF-8", "Save it as UTF-8")
        }
        _ => return Ok(()),
    };
    Err(Error::data(Place::file(path), what, hint))
}

#[cfg(feature = "parquet")]
fn read_parquet(file: File, head: &[u8], path: &Path, columns: &ColumnMap) -> Result<Records> {
    if head.is_empty() {
        return Err(no_records(path));
    }
    if head != PARQUET_MAGIC {
        return Err(Error::data(
            Place::file(path),
            "the file does not begin with PAR1, as Parquet files do",
            "If it is JSONL or a JSON array, name it .jsonl or .json; otherwise fetch it again",
        ));
    }
    super::parquet::read(file, path, columns)
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(_: File, _: &[u8], path: &Path, _: &ColumnMap) -> Result<Records> {
    Err(Error::data(
        Place::file(path),
        "this build does not read Parquet files",
        "Enable the Cargo feature: `--features parquet`, or convert the file \
         to JSONL",
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

/// JSONL: one object on each line.
fn read_lines(
    mut reader: impl BufRead,
    start: &Start,
    collector: &mut Collector<'_>,
) -> Result<()> {
    let path = collector.path();
    collector.blank_lines = start.blank_lines;
    let mut number = start.blank_lines;
    let mut indent = start.indent;
    let mut line = Vec::new();
    loop {
        line.clear();
        // One byte more than allowed, which may be the line's end.
        let limit = MAX_RECORD_BYTES as u64 + 1;
        let bytes = reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut line)
            .map_err(|source| unreadable(path, source))?;
        if bytes == 0 {
            return Ok(());
        }
        number += 1;
        let place = || Place::line(path, number);
        if line.len() > MAX_RECORD_BYTES && !line.ends_with(b"\n") {
            return Err(Error::data(
                place(),
                "the line is longer than 64 MiB",
                "Write one record on each line; leave out what is not a reasoning trace",
            ));
        }
        if line.trim_ascii().is_empty() {
            collector.blank_lines += 1;
            continue;
        }
        let text = std::str::from_utf8(&line).map_err(|error| {
            Error::data(
                place(),
                format!("byte {} of the line is not UTF-8", indent + error.valid_up_to() + 1),
                "Save the file as UTF-8",
            )
        })?;
        let value: Value = serde_json::from_str(text)
            .map_err(|error| broken_line(&error, &line, indent, place()))?;
        collector.push(number, &value)?;
        indent = 0;
    }
}

/// The error for a line that is not JSON.
fn broken_line(error: &serde_json::Error, line: &[u8], indent: usize, place: Place) -> Error {
    let at = error.column();
    let rest = at.checked_sub(1).and_then(|at| line.get(at..)).unwrap_or_default();
    let hint = if error.is_eof() {
        "Each line holds one whole object: the file may be cut off here, or one object is spread \
         over several lines, which is fine in a JSON array only"
    } else {
        hint_for(error, rest)
    };
    Error::data(place, format!("broken JSON at column {}: {}", indent + at, bare(error)), hint)
}

/// What to do about a syntax error, `rest` being the text from where it was found.
fn hint_for(error: &serde_json::Error, rest: &[u8]) -> &'static str {
    let bare = bare(error);
    if bare.starts_with("recursion limit") {
        "Lists and objects can be nested 127 deep; such a record is hardly a reasoning trace"
    } else if [&b"NaN"[..], b"Infinity", b"-Infinity"].iter().any(|word| rest.starts_with(word)) {
        "JSON has no NaN and no Infinity: write null"
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
fn read_array(reader: impl Read, start: &Start, collector: &mut Collector<'_>) -> Result<()> {
    let path = collector.path();
    let left = Cell::new(MAX_RECORD_BYTES);
    let mut json = serde_json::Deserializer::from_reader(Limited { reader, left: &left });
    let mut failure = None;
    let items = Items { collector: &mut *collector, left: &left, failure: &mut failure };
    let result = json.deserialize_seq(items).and_then(|()| json.end());
    if let Some(failure) = failure {
        return Err(failure);
    }
    let Err(error) = result else { return Ok(()) };
    let record = collector.read() + 1;
    let place = Place::line(path, record);
    if left.get() == 0 {
        return Err(Error::data(
            place,
            format!("record {record} of the list is longer than 64 MiB"),
            "Leave out what is not a reasoning trace, or check that the file is not cut off",
        ));
    }
    if error.classify() == Category::Io {
        return Err(unreadable(path, error.into()));
    }
    let line = start.blank_lines + error.line();
    let column = error.column() + if error.line() == 1 { start.indent } else { 0 };
    let spot = format!("line {line}, column {column} of the file, in record {record} of the list");
    let bare = bare(&error);
    if bare == "invalid unicode code point" {
        return Err(Error::data(
            place,
            format!("a text is not UTF-8 at {spot}"),
            "Save the file as UTF-8",
        ));
    }
    let hint = if error.is_eof() {
        "The list has no end: the file may be cut off"
    } else {
        hint_for(&error, &[])
    };
    Err(Error::data(place, format!("broken JSON at {spot}: {bare}"), hint))
}

/// Takes the items of a JSON array as they are parsed.
struct Items<'c, 'a> {
    collector: &'c mut Collector<'a>,
    left: &'c Cell<usize>,
    /// The collector's own error, which serde could carry as a text only.
    failure: &'c mut Option<Error>,
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(value) = list.next_element::<Value>()? {
            let number = self.collector.read() + 1;
            if let Err(error) = self.collector.push(number, &value) {
                *self.failure = Some(error);
                return Err(de::Error::custom("the record cannot be used"));
            }
            self.left.set(MAX_RECORD_BYTES);
        }
        Ok(())
    }
}

/// A reader that fails when one record takes more bytes than allowed.
struct Limited<'l, R> {
    reader: R,
    left: &'l Cell<usize>,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::other("record too long"));
        }
        let wanted = buffer.len().min(left);
        let bytes = self.reader.read(&mut buffer[..wanted])?;
        self.left.set(left - bytes);
        Ok(bytes)
    }
}
