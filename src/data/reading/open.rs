//! Opens files of rows, and gives their text: unpacked, without a byte order mark.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;

use super::unpacked::{Damaged, Packing};
use crate::error::{Error, Place, Result};
use crate::files::{is_lfs_pointer, is_web_page};

const BOM: &[u8] = b"\xEF\xBB\xBF";
/// Bytes by which a format is known; the mark of a tar archive is the last of them.
const HEAD_BYTES: u64 = 512;

/// Opens a file, and reads its beginning; the usual reasons why that fails come with what to do.
pub(super) fn open(path: &Path) -> Result<(File, Vec<u8>)> {
    let mut file = File::open(path).map_err(|source| unreadable(path, source))?;
    // Some systems open a directory and fail on the first read only.
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

/// The text of a file that begins with `head`, which was read from it: unpacked, without a byte order
/// mark.
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
                    format!("its name says {name}, and it does not begin as such a file does"),
                    "Fetch or copy the file again",
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

/// Whether a beginning is none of a text.
fn is_binary(head: &[u8]) -> bool {
    let cut_off = |error: std::str::Utf8Error| error.error_len().is_none();
    head.contains(&0) || !std::str::from_utf8(head).map_or_else(cut_off, |_| true)
}

/// [`Error::Io`] whose text says what to do, the kind of the error being kept; [`Error::Data`] for
/// compressed data that cannot be unpacked.
pub(super) fn unreadable(path: &Path, source: io::Error) -> Error {
    unreadable_in(Place::file(path), source)
}

/// The same where a line or record was read.
pub(super) fn unreadable_at(path: &Path, line: usize, source: io::Error) -> Error {
    unreadable_in(Place::line(path, line), source)
}

fn unreadable_in(place: Place, source: io::Error) -> Error {
    let text = match source.kind() {
        ErrorKind::NotFound => {
            "there is no such file. Check the path: a relative one starts in the current directory"
        }
        ErrorKind::IsADirectory => "it is a directory. Name one file, or each file in it",
        ErrorKind::PermissionDenied => {
            "permission denied. Give yourself the right to read it, or copy it"
        }
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

/// Files that are text only after decoding, or that stand for another; as JSON they would give a
/// baffling error. `unpacked` says what the text was compressed with.
fn reject_encoded(head: &[u8], unpacked: Option<Packing>, path: &Path) -> Result<()> {
    const UNPACK: &str = "Unpack it first";
    let (what, hint) = match head {
        head if Packing::of(head).is_some() => ("the file is compressed twice", UNPACK),
        [b'P', b'A', b'R', b'1', ..] if unpacked.is_some() => {
            ("the file is a compressed Parquet file", "Unpack it first: gunzip, or zstd -d")
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
            "the file is a Git LFS pointer and not the file itself",
            "Fetch it with `git lfs pull`, or download it again",
        ),
        head if is_web_page(head) => {
            ("the file is a web page", "Download the file itself: the page's address differs")
        }
        _ => return Ok(()),
    };
    Err(Error::data(Place::file(path), what, hint))
}

/// All text of a file of at most `most` bytes.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for one that is longer, is no text, or cannot be unpacked.
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
