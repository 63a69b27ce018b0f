//! Streaming decompression: gzip with any number of members, and Zstandard with any number of frames. Memory
//! is limited to one window of the format, regardless of the length of the text.

use std::error::Error as StdError;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Maximum Zstandard window: that of `zstd --long`, and the most that `zstd` decompresses by default.
const LARGEST_WINDOW: u64 = 128 << 20;
const LARGE_WINDOW: &str = "a window";

/// A compression format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    /// Detects the format by the beginning of the file.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1F, 0x8B, ..] => Some(Self::Gzip),
            // A frame, or a skippable frame, which `pzstd` writes before each frame.
            [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Detects the format by the file extension.
    pub(super) fn named(path: &Path) -> Option<Self> {
        match lower_extension(path).as_str() {
            "gz" | "gzip" => Some(Self::Gzip),
            "zst" | "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "Zstandard",
        }
    }

    /// Decompresses `packed`.
    pub(super) fn unpack<R: Read>(self, packed: R) -> Unpacked<R> {
        let source = Source {
            reader: BufReader::with_capacity(1 << 16, packed),
            bytes: 0,
            is_starved: false,
            failed: None,
        };
        Unpacked { packing: self, member: Member::Between(source) }
    }
}

fn lower_extension(path: &Path) -> String {
    path.extension().and_then(OsStr::to_str).unwrap_or("").to_lowercase()
}

/// Returns the file extension in lower case, without that of a compression: `jsonl` for `a.jsonl.gz`.
pub(crate) fn format_of_name(path: &Path) -> String {
    match Packing::named(path) {
        Some(_) => lower_extension(Path::new(path.file_stem().unwrap_or_default())),
        None => lower_extension(path),
    }
}

/// Returns the file name without extensions: `gsm8k` for `gsm8k.jsonl.gz`.
pub(crate) fn stem_of_name(path: &Path) -> String {
    let stem = Path::new(path.file_stem().unwrap_or_default());
    let stem = match Packing::named(path) {
        Some(_) => stem.file_stem().unwrap_or_default(),
        None => stem.as_os_str(),
    };
    stem.to_string_lossy().into_owned()
}

/// Why a compressed file cannot be decompressed, inside the [`io::Error`] of a read.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(super) struct Damaged {
    pub(super) what: String,
    pub(super) hint: &'static str,
}

/// The compressed bytes, with a counter.
struct Source<R> {
    reader: BufReader<R>,
    bytes: u64,
    /// Whether bytes were requested past the end.
    is_starved: bool,
    /// The system's error, which decoders wrap in their own.
    failed: Option<io::Error>,
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while let Err(error) = self.reader.fill_buf() {
            if error.kind() != ErrorKind::Interrupted {
                let kind = error.kind();
                self.failed = Some(error);
                return Err(kind.into());
            }
        }
        self.is_starved |= self.reader.buffer().is_empty();
        Ok(self.reader.buffer())
    }

    fn consume(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.reader.consume(bytes);
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: Read> Source<R> {
    /// Returns whether the file ends here.
    fn is_at_end(&mut self) -> io::Result<bool> {
        let starved = self.is_starved;
        let is_at_end = self.fill_buf()?.is_empty();
        self.is_starved = starved;
        Ok(is_at_end)
    }
}

/// A member (gzip) or frame (Zstandard) of the file.
enum Member<R> {
    Between(Source<R>),
    Gzip(Box<GzDecoder<Source<R>>>),
    Zstd(Source<R>, Box<FrameDecoder>),
    /// The file has ended, or an error occurred.
    Ended,
}

/// The decompressed text of a file.
pub(super) struct Unpacked<R> {
    packing: Packing,
    member: Member<R>,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let read = match &mut self.member {
                Member::Ended => return Ok(0),
                Member::Between(_) => {
                    self.begin()?;
                    continue;
                }
                Member::Gzip(decoder) => {
                    decoder.read(buffer).map_err(|error| (error.to_string(), error.kind()))
                }
                Member::Zstd(source, decoder) => zstd_read(source, decoder, buffer)
                    .map_err(|error| (error.to_string(), ErrorKind::InvalidData)),
            };
            match read {
                Ok(0) => {
                    let source = match std::mem::replace(&mut self.member, Member::Ended) {
                        Member::Gzip(decoder) => decoder.into_inner(),
                        Member::Zstd(source, _) | Member::Between(source) => source,
                        Member::Ended => return Ok(0),
                    };
                    self.member = Member::Between(source);
                }
                Ok(read) => return Ok(read),
                Err((what, kind)) => return Err(self.damaged(&what, kind)),
            }
        }
    }
}

impl<R: Read> Unpacked<R> {
    /// Begins the next member, or ends.
    fn begin(&mut self) -> io::Result<()> {
        let Member::Between(mut source) = std::mem::replace(&mut self.member, Member::Ended) else {
            return Ok(());
        };
        let is_first = source.bytes == 0;
        if self.packing == Packing::Gzip && !is_first {
            // Skip zero padding, as `gzip` does.
            while source.fill_buf()?.first() == Some(&0) {
                source.consume(1);
            }
        }
        if source.is_at_end()? {
            return Ok(());
        }
        self.member = match self.packing {
            Packing::Gzip => Member::Gzip(Box::new(GzDecoder::new(source))),
            Packing::Zstd => {
                let mut decoder = FrameDecoder::new();
                decoder.set_max_window_size(LARGEST_WINDOW);
                let begun = begin_zstd(&mut source, &mut decoder);
                self.member = Member::Zstd(source, Box::new(decoder));
                match begun {
                    Ok(true) => return Ok(()),
                    Ok(false) => match std::mem::replace(&mut self.member, Member::Ended) {
                        Member::Zstd(source, _) => Member::Between(source),
                        other => other,
                    },
                    Err(error) => {
                        let what = error.to_string();
                        return Err(self.damaged(&what, ErrorKind::InvalidData));
                    }
                }
            }
        };
        Ok(())
    }

    /// Ends the file with the error of a member.
    fn damaged(&mut self, error: &str, kind: ErrorKind) -> io::Error {
        let name = self.packing.name();
        let mut source = match std::mem::replace(&mut self.member, Member::Ended) {
            Member::Gzip(decoder) => decoder.into_inner(),
            Member::Zstd(source, _) | Member::Between(source) => source,
            Member::Ended => return io::Error::other(error.to_owned()),
        };
        if let Some(failed) = source.failed.take() {
            return failed;
        }
        let byte = source.bytes;
        let damaged = if source.is_starved || kind == ErrorKind::UnexpectedEof {
            let what = format!("the {name} data ends too early, at byte {byte} of the file");
            Damaged { what, hint: "Download or copy the file again: it is truncated" }
        } else if error.starts_with(LARGE_WINDOW) {
            let what =
                format!("the {name} data was written with {error}, expected 128 MiB at most");
            Damaged { what, hint: "Decompress it first: zstd -d --long=31" }
        } else {
            let error: String = error.chars().take(160).collect();
            let what =
                format!("the {name} data is damaged before byte {byte} of the file: {error}");
            Damaged { what, hint: "Download or copy the file again" }
        };
        io::Error::new(ErrorKind::InvalidData, damaged)
    }
}

/// Begins a frame. `false` for a skippable frame.
fn begin_zstd<R: Read>(
    source: &mut Source<R>,
    decoder: &mut FrameDecoder,
) -> Result<bool, Box<dyn StdError>> {
    match decoder.init(&mut *source) {
        Ok(()) => Ok(true),
        Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
            length,
            ..
        })) => {
            let skipped = io::copy(&mut source.take(length.into()), &mut io::sink())?;
            source.is_starved = skipped < u64::from(length);
            match source.is_starved {
                true => Err("a skippable frame has no end".into()),
                false => Ok(false),
            }
        }
        Err(FrameDecoderError::WindowSizeTooBig { requested, .. }) => {
            Err(format!("{LARGE_WINDOW} of {requested} bytes").into())
        }
        Err(error) => Err(error.into()),
    }
}

fn zstd_read<R: Read>(
    source: &mut Source<R>,
    decoder: &mut FrameDecoder,
    buffer: &mut [u8],
) -> Result<usize, Box<dyn StdError>> {
    while decoder.can_collect() == 0 && !decoder.is_finished() {
        decoder.decode_blocks(&mut *source, BlockDecodingStrategy::UptoBlocks(1))?;
    }
    let read = decoder.read(buffer)?;
    let (stored, found) = (decoder.get_checksum_from_data(), decoder.get_calculated_checksum());
    if read == 0 && stored.is_some() && stored != found {
        return Err("its checksum does not match".into());
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_of_names_are_taken_apart() {
        for (name, format, stem) in [
            ("a.jsonl", "jsonl", "a"),
            ("a.JSONL.GZ", "jsonl", "a"),
            ("dir.v1/gsm8k.test.csv.zst", "csv", "gsm8k.test"),
            ("a.gz", "", "a"),
            ("a", "", "a"),
            (".gz", "", ".gz"),
        ] {
            let path = Path::new(name);
            assert_eq!((format_of_name(path), stem_of_name(path)), (format.into(), stem.into()));
        }
    }
}
