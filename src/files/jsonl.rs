//! Append-only JSONL files that survive a killed process. An incomplete last line is detected by its missing
//! line break, ignored when reading, and cut off before the next append.

use crate::error::{Error, Place, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Maximum length of a line in bytes. It allows for the largest answer of a server with every byte escaped.
const LONGEST_LINE: u64 = 128 << 20;
/// How many seconds of lines may be lost if the machine crashes.
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// A line of the file.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "teacher"), allow(dead_code, reason = "teachers' responses need places"))]
pub(crate) struct Line<'a> {
    /// The bytes of the line, without the line break.
    pub bytes: &'a [u8],
    /// The line number, counted from 1.
    pub number: usize,
    /// The line's byte offset in the file.
    pub start: u64,
    /// The byte offset of the next line.
    pub end: u64,
    /// Size of the file in bytes.
    pub of: u64,
}

impl Line<'_> {
    /// Parses the line as a value.
    ///
    /// # Errors
    /// The error of serde.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(self.bytes)
    }
}

/// Reads the complete lines of a file and skips blank ones. Returns the number of bytes in complete lines,
/// and of those after them.
fn read_lines(
    path: &Path,
    file: &File,
    each: &mut dyn FnMut(Line<'_>) -> Result<()>,
) -> Result<[u64; 2]> {
    let read = |e| Error::io("read", path, e);
    let of = file.metadata().map_err(read)?.len();
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let (mut start, mut number, mut line) = (0, 0, vec![]);
    loop {
        line.clear();
        let bytes =
            reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(read)?;
        number += 1;
        if line.last() != Some(&b'\n') {
            if bytes as u64 == LONGEST_LINE {
                let what = "the line is longer than 128 MiB";
                return Err(Error::data(Place::line(path, number), what, "Remove the line"));
            }
            return Ok([start, bytes as u64]);
        }
        let end = start + bytes as u64;
        let bytes = &line[..line.len() - 1];
        if !bytes.trim_ascii().is_empty() {
            each(Line { bytes, number, start, end, of })?;
        }
        start = end;
    }
}

/// How to treat a last line without a line break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastLine {
    /// The file is appended to, so a crash cut the line off. It is ignored.
    MayBeTorn,
    /// The file is written completely, so the line counts.
    Counts,
}

/// Reads the values of a JSONL file.
///
/// # Errors
/// [`Error::Io`], also if the file does not exist; [`Error::Data`] with `hint` for a line that cannot be
/// parsed.
pub(crate) fn read_values<T: DeserializeOwned>(
    path: &Path,
    last: LastLine,
    hint: &str,
) -> Result<Vec<T>> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut values = vec![];
    let wrong = |number: usize, error: serde_json::Error| {
        Error::data(Place::line(path, number), error.to_string(), hint)
    };
    let mut lines = 0;
    let [whole, torn] = read_lines(path, &file, &mut |line| {
        lines = line.number;
        values.push(line.parse().map_err(|e| wrong(line.number, e))?);
        Ok(())
    })?;
    if torn > 0 && last == LastLine::Counts {
        let mut line = vec![];
        let mut file = &file;
        let read =
            file.seek(SeekFrom::Start(whole)).and_then(|_| file.take(torn).read_to_end(&mut line));
        read.map_err(|e| Error::io("read", path, e))?;
        if !line.trim_ascii().is_empty() {
            values.push(serde_json::from_slice(&line).map_err(|e| wrong(lines + 1, e))?);
        }
    }
    Ok(values)
}

/// A JSONL file that a process appends to and that a later process continues.
#[derive(Debug)]
pub(crate) struct JsonlLog {
    path: PathBuf,
    /// Opened at the first write, or when a line is read again.
    file: Option<File>,
    /// Bytes in complete lines.
    whole: u64,
    /// Bytes after them.
    torn: u64,
    /// Whether a partial line could not be removed after a failed write.
    is_broken: bool,
    synced: Instant,
}

impl JsonlLog {
    /// Reads the lines that earlier processes appended, if any. Creates and changes no file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] for a line that is too long; errors of `each`.
    pub(crate) fn open(path: &Path, each: &mut dyn FnMut(Line<'_>) -> Result<()>) -> Result<Self> {
        let [whole, torn] = match File::open(path) {
            Ok(file) => read_lines(path, &file, each)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => [0, 0],
            Err(e) => return Err(Error::io("read", path, e)),
        };
        Ok(Self::at(path, None, [whole, torn]))
    }

    /// Creates a new file.
    ///
    /// # Errors
    /// [`Error::Io`], also if the file exists.
    pub(crate) fn create_new(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|e| Error::io("create", path, e))?;
        Ok(Self::at(path, Some(file), [0, 0]))
    }

    fn at(path: &Path, file: Option<File>, [whole, torn]: [u64; 2]) -> Self {
        let (path, synced) = (path.to_owned(), Instant::now());
        Self { path, file, whole, torn, is_broken: false, synced }
    }

    /// Returns the number of bytes of an incomplete last line.
    #[cfg(feature = "teacher")]
    pub(crate) fn torn(&self) -> u64 {
        self.torn
    }

    /// Refuses a file with only an incomplete line, which may not be a log at all.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub(crate) fn refuse_without_whole_line(&self) -> Result<()> {
        if self.whole > 0 || self.torn == 0 {
            return Ok(());
        }
        let hint = "Remove the file if it comes from an evaluation that was killed early";
        Err(Error::data(Place::file(&self.path), "it has no complete line", hint))
    }

    /// Removes an incomplete last line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn cut_torn(&mut self) -> Result<()> {
        if self.torn > 0 {
            let (path, whole) = (self.path.clone(), self.whole);
            let cut = self.file()?.set_len(whole);
            cut.map_err(|e| Error::io("write", path, e))?;
            self.torn = 0;
        }
        Ok(())
    }

    /// Returns the file, created if necessary.
    fn file(&mut self) -> Result<&mut File> {
        if self.file.is_none() {
            // Not opened in append mode, in which some systems cannot truncate it.
            let options = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&self.path);
            self.file = Some(options.map_err(|e| Error::io("open", &self.path, e))?);
        }
        let gone = || Error::io("open", &self.path, std::io::ErrorKind::NotFound.into());
        self.file.as_mut().ok_or_else(gone)
    }

    /// Appends one line per value, all of them or none. Returns the offset of the first.
    ///
    /// # Errors
    /// [`Error::Io`]; a partial write is undone.
    pub(crate) fn append<T: Serialize>(&mut self, values: &[T]) -> Result<u64> {
        let path = self.path.clone();
        let failed = |e| Error::io("write", &path, e);
        let mut lines = vec![];
        for value in values {
            serde_json::to_writer(&mut lines, value).map_err(|e| failed(e.into()))?;
            lines.push(b'\n');
        }
        if lines.is_empty() {
            return Ok(self.whole);
        }
        if self.is_broken {
            return Err(failed(std::io::Error::other("an earlier line could not be written")));
        }
        self.cut_torn()?;
        let file = self.file()?;
        let start = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if let Err(error) = file.write_all(&lines) {
            // On a full disk, this frees the partially written bytes.
            self.is_broken = file.set_len(start).is_err();
            return Err(failed(error));
        }
        self.whole = start + lines.len() as u64;
        if self.synced.elapsed() > SYNC_EVERY {
            self.sync()?;
        }
        Ok(start)
    }

    /// Returns the bytes of the line at this offset, including its line break.
    ///
    /// # Errors
    /// [`Error::Io`].
    #[cfg(feature = "teacher")]
    pub(crate) fn line_at(&mut self, place: u64) -> Result<Vec<u8>> {
        let path = self.path.clone();
        let read = |e| Error::io("read", &path, e);
        let file = self.file()?;
        file.seek(SeekFrom::Start(place)).map_err(read)?;
        let mut line = vec![];
        let mut reader = BufReader::with_capacity(1 << 16, file);
        reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(read)?;
        Ok(line)
    }

    /// Flushes the file to disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn sync(&mut self) -> Result<()> {
        if let Some(file) = &self.file {
            file.sync_data().map_err(|e| Error::io("flush", &self.path, e))?;
        }
        self.synced = Instant::now();
        Ok(())
    }

    /// Returns the file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the path still refers to the open file. True if the file was not opened yet.
    pub(crate) fn is_in_place(&self) -> bool {
        let Some(file) = &self.file else { return true };
        let Ok(there) = std::fs::metadata(&self.path) else { return false };
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let same =
                |own: std::fs::Metadata| (own.dev(), own.ino()) == (there.dev(), there.ino());
            file.metadata().is_ok_and(same)
        }
        #[cfg(not(unix))]
        {
            let _ = file;
            there.is_file()
        }
    }

    /// Closes the file and opens the path again, so that the next line goes to whatever file is there now.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        (self.file, self.is_broken) = (None, false);
        self.file().map(drop)
    }
}
