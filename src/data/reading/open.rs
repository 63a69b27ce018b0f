//! Opens data files as text, decompressed and without a byte order mark.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;

use super::unpacked::{Damaged, Packing};
use crate::error::{Error, Place, Result};
use crate::files::{is_lfs_pointer, is_web_page};

const BOM: &[u8] = b"\xEF\xBB\xBF";
/// Bytes that identify a format. The signature of a tar archive is the last of them.
const HEAD_BYTES: u64 = 512;

/// Opens a file and reads its beginning. Errors for common reasons include a suggested fix.
pub(super) fn open(path: &Path) -> Result<(File, Vec<u8>)> {
    let mut file = File::open(path).map_err(|source| unreadable(path, source))?;
    // Some systems can open a directory and fail only at the first read.
    let metadata = file.metadata().map_err(|source| unreadable(path, source))?;
    if metadata.is_dir() {
        return Err(unreadable(path, ErrorKind::IsADirectory.into()));
    }
    let head = head_of(&mut file).map_err(|source| unreadable(path, source))?;
    Ok((file, head))
}

fn head_of(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = vec![];
    reader.take(HEAD_BYTES).read_to_end(&mut head)?;
    Ok(head)
}

/// Returns the decompressed text of a file without a byte order mark. `head` is its beginning, which was read
/// already.
pub(super) fn text_of(path: &Path, file: File, head: Vec<u8>) -> Result<Box<dyn BufRead>> {
    let packing = Packing::of(&head);
    let begin = |head: Vec<u8>, rest: Box<dyn Read>| -> Result<Box<dyn BufRead>> {
        reject_encoded(&head, packing, path)?;
        let skipped = if head.starts_with(BOM) { BOM.len() } else { 0 };
        let mut head = Cursor::new(head);
        head.set_position(skipped as u64);
        Ok(Box::new(BufReader::with_capacity(1 << 16, head.chain(rest))))
    };
    match packing {
        None => {
            reject_encoded(&head, None, path)?;
            if let Some(named) = Packing::named(path).filter(|_| is_binary(&head)) {
                let name = named.name();
                return Err(Error::data(
                    Place::file(path),
                    format!("its name says {name}, but its content does not"),
                    "Download or copy the file again",
                ));
            }
            begin(head, Box::new(file))
        }
        Some(packing) => {
            let mut text = packing.unpack(Cursor::new(head).chain(file));
            let head = head_of(&mut text).map_err(|source| unreadable_at(path, 1, source))?;
            begin(head, Box::new(text))
        }
    }
}

/// Returns whether a file with this beginning is not text.
fn is_binary(head: &[u8]) -> bool {
    let cut_off = |error: std::str::Utf8Error| error.error_len().is_none();
    head.contains(&0) || !std::str::from_utf8(head).map_or_else(cut_off, |_| true)
}

/// Returns [`Error::Io`] with a suggested fix and the kind of the original error, or [`Error::Data`] for
/// compressed data that cannot be decompressed.
pub(super) fn unreadable(path: &Path, source: io::Error) -> Error {
    unreadable_in(Place::file(path), source)
}

/// Like [`unreadable`], at a line or record.
pub(super) fn unreadable_at(path: &Path, line: usize, source: io::Error) -> Error {
    unreadable_in(Place::line(path, line), source)
}

fn unreadable_in(place: Place, source: io::Error) -> Error {
    let text = match source.kind() {
        ErrorKind::NotFound => {
            "there is no such file. Check the path; relative paths start in the current directory"
        }
        ErrorKind::IsADirectory => "it is a directory. Give the path of a file",
        ErrorKind::PermissionDenied => "permission denied. Make the file readable, or copy it",
        _ => {
            let damaged = source.get_ref().and_then(|error| error.downcast_ref::<Damaged>());
            return match damaged {
                Some(Damaged { what, hint }) => Error::data(place, what, *hint),
                None => Error::io("read", place.path, source),
            };
        }
    };
    Error::io("read", place.path, io::Error::new(source.kind(), text))
}

/// Refuses files that are text only after decoding, or that stand in for another file, since JSON errors
/// about them would be confusing. `unpacked` is the compression that was already decoded.
fn reject_encoded(head: &[u8], unpacked: Option<Packing>, path: &Path) -> Result<()> {
    const UNPACK: &str = "Unpack it first";
    let (what, hint) = match head {
        head if Packing::of(head).is_some() => ("the file is compressed twice", UNPACK),
        [b'P', b'A', b'R', b'1', ..] if unpacked.is_some() => {
            ("the file is a compressed Parquet file", "Decompress it with gunzip or zstd -d")
        }
        [b'P', b'K', 3, 4, ..] => ("the file is a ZIP archive", UNPACK),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => ("the file is compressed with bzip2", UNPACK),
        [0xFD, b'7', b'z', b'X', b'Z', ..] => ("the file is compressed with xz", UNPACK),
        [0x04, 0x22, 0x4D, 0x18, ..] => ("the file is compressed with LZ4", UNPACK),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => {
            ("the file is UTF-16 text, expected UTF-8", "Save it as UTF-8")
        }
        head if head.get(257..262) == Some(b"ustar") => ("the file is a tar archive", UNPACK),
        head if is_lfs_pointer(head) => (
            "the file is a Git LFS pointer, not the file itself",
            "Run `git lfs pull`, or download the file again",
        ),
        head if is_web_page(head) => (
            "the file is a web page",
            "Download the file itself, whose URL differs from the page's",
        ),
        _ => return Ok(()),
    };
    Err(Error::data(Place::file(path), what, hint))
}

/// Reads the whole text of a file of at most `most` bytes.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for a file that is too long, not text, or cannot be decompressed.
pub(super) fn whole_text(path: &Path, most: usize) -> Result<String> {
    let (file, head) = open(path)?;
    let mut text = vec![];
    let reader = text_of(path, file, head)?;
    reader
        .take(most as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|source| unreadable(path, source))?;
    if text.len() > most {
        let what = format!("its text is longer than {} MiB", most >> 20);
        return Err(Error::data(Place::file(path), what, "Split the file, or write it as JSONL"));
    }
    String::from_utf8(text).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Error::data(Place::line(path, line), "the text is not UTF-8", "Save the file as UTF-8")
    })
}
