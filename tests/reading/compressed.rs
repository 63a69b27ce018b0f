//! Compressed files, including those of other programs in `files/` (made by `make_files.py`).

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use mixdistill::data::{ColumnMap, Records, read_prompts, read_records};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::{Sample, error, only, read};

/// A file that another program wrote.
pub fn written(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reading/files").join(name)
}

fn gz(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(vec![], flate2::Compression::new(6));
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zst(text: &[u8]) -> Vec<u8> {
    compress_to_vec(text, CompressionLevel::Fastest)
}

fn assert_whole(records: &Records, file: &str) {
    assert_eq!(records.records.len(), 60, "{file}");
    for (n, record) in records.records.iter().enumerate() {
        assert_eq!(record.problem, format!("{n} + {n}?"), "{file}");
        assert_eq!(record.solution, format!("{n} + {n} = {}. ", 2 * n).repeat(40), "{file}");
        assert_eq!(records.lines[n] as usize, n + 1, "{file}");
    }
}

#[test]
fn files_of_gzip_zstd_and_pzstd_are_read_whole() {
    for file in [
        // Several members, an empty one, and zeros behind them.
        "members.jsonl.gz",
        // Several frames, one to skip, with a checksum and without.
        "frames.jsonl.zst",
        "parallel.jsonl.zst",
        "long.jsonl.zst",
        "array.json.gz",
    ] {
        let read = read_records(written(file), &ColumnMap::default(), 0.0);
        assert_whole(&read.unwrap_or_else(|error| panic!("{file}: {error}")), file);
        // By the content alone, and by a name that says something else.
        let packed = std::fs::read(written(file)).unwrap();
        for name in ["a", "a.jsonl", "a.json.zst", "a.gz"] {
            assert_whole(&crate::read(name, &packed, ""), file);
        }
    }
}

#[test]
fn a_window_above_that_of_zstd_is_refused_with_the_way_out() {
    let error = read_records(written("longer.jsonl.zst"), &ColumnMap::default(), 0.0).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains(
            "longer.jsonl.zst:1: the Zstandard data was written with a window of 2147483648 bytes"
        ) && error.ends_with("Decompress it first: zstd -d --long=31"),
        "{error}"
    );
}

#[test]
fn plain_text_under_a_compressed_name_is_read() {
    let line = r#"{"problem":"p","solution":"s"}"#;
    assert_eq!(only(&read("a.jsonl.gz", line, "")), ("p", "s"));
    assert_eq!(
        error("a.jsonl.gz", b"\x00\x01\x02", ""),
        "a.jsonl.gz: its name says gzip, but its content does not. Download or copy the file again"
    );
    assert!(error("a.jsonl.gz", "", "").starts_with("a.jsonl.gz: the file has no records"));
    for packed in [gz(b""), zst(b"")] {
        assert!(error("a.jsonl", packed, "").starts_with("a.jsonl: the file has no records"));
    }
}

#[test]
fn what_is_compressed_twice_or_is_an_archive_is_said() {
    let line = br#"{"problem":"p","solution":"s"}"#;
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    for (content, what) in [
        (gz(&gz(line)), "the file is compressed twice"),
        (zst(&gz(line)), "the file is compressed twice"),
        (gz(&tar), "the file is a tar archive"),
        (zst(b"PAR1 and so on"), "the file is a compressed Parquet file"),
        (b"BZh91AY".to_vec(), "the file is compressed with bzip2"),
        (b"\xFD7zXZ\0".to_vec(), "the file is compressed with xz"),
        (b"\x04\x22\x4D\x18".to_vec(), "the file is compressed with LZ4"),
        (gz(b"version https://git-lfs.github.com/spec/v1\n"), "the file is a Git LFS pointer"),
    ] {
        let error = error("a.jsonl.gz", content, "");
        assert!(error.starts_with(&format!("a.jsonl.gz: {what}")), "{error}");
    }
}

/// Lines that compress little, so that the data has several blocks.
fn noise(lines: usize) -> String {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 20
    };
    let mut line = |n| {
        let text: String = (0..20).map(|_| format!("{:x}", next())).collect();
        format!("{{\"problem\":\"p{n}\",\"solution\":\"{text}\"}}\n")
    };
    (0..lines).map(&mut line).collect()
}

#[test]
fn a_file_that_is_cut_off_or_damaged_ends_with_its_place() {
    let text = noise(2000);
    for (name, packed) in
        [("a.jsonl.gz", gz(text.as_bytes())), ("a.jsonl.zst", zst(text.as_bytes()))]
    {
        let whole = read(name, &packed, "");
        assert_eq!(whole.records.len(), 2000);
        let half = packed.len() / 2;
        let cut = error(name, &packed[..half], "");
        assert!(
            cut.contains(" data ends too early, at byte ") && cut.contains("truncated"),
            "{cut}"
        );
        // Lines before the place were read; a frame that is its own window comes as a whole.
        let line: usize = cut.split(':').nth(1).unwrap().parse().unwrap();
        assert!((500..1500).contains(&line) || name.ends_with("zst"), "{cut}");
        for cut in [packed.len() - 1, 1, 5, 11] {
            Sample::new(name, &packed[..cut]).read("").unwrap_err();
        }
        for at in (0..packed.len()).step_by(packed.len() / 97) {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x10;
            match Sample::new(name, &damaged).read("") {
                // Bytes that say nothing of the text, such as the time in gzip's header.
                Ok(read) => assert_eq!(read.records, whole.records, "byte {at}"),
                Err(error) => assert!(error.to_string().contains(name), "{error}"),
            }
        }
        let mut damaged = packed.clone();
        let checksum = if name.ends_with("gz") { packed.len() - 8 } else { packed.len() - 1 };
        damaged[checksum] ^= 1;
        let error = error(name, &damaged, "");
        assert!(error.contains(&format!("{name}:2001: ")) && error.contains("checksum"), "{error}");
        let mut more = packed.clone();
        more.extend_from_slice(b"and more");
        let error = crate::error(name, &more, "");
        assert!(error.contains("data is damaged") || error.contains("too early"), "{error}");
    }
}

#[test]
fn text_far_longer_than_its_file_is_held_to_the_limit_of_a_row() {
    // 256 MiB of spaces, and as much in one text: neither is ever held.
    let spaces = vec![b' '; 1 << 20];
    let bomb = |begin: &[u8]| {
        let mut encoder = GzEncoder::new(vec![], flate2::Compression::new(9));
        encoder.write_all(begin).unwrap();
        (0..256).for_each(|_| encoder.write_all(&spaces).unwrap());
        encoder.finish().unwrap()
    };
    assert!(error("a.jsonl.gz", bomb(b""), "").contains("has no records"));
    let error = error("a.jsonl.gz", bomb(b"{\"problem\":\""), "");
    assert!(error.contains("a.jsonl.gz:1: the line is longer than 64 MiB"), "{error}");
    let error = crate::error("a.csv.gz", bomb(b"problem,solution\np,\""), "");
    assert!(error.contains("a.csv.gz:2: the row is longer than 64 MiB"), "{error}");
}

#[test]
fn prompts_are_unpacked_as_well() {
    let rows = "{\"problem\":\"p\"}\n";
    for (name, packed, problems) in [
        ("a.jsonl.gz", gz(rows.as_bytes()), vec!["p"]),
        ("a.gz", gz(rows.as_bytes()), vec!["p"]),
        ("a.txt.zst", zst(b"one\n\ntwo\n"), vec!["one", "two"]),
        ("a.csv", b"problem\n\"one,\ntwo\"\n".to_vec(), vec!["one,\ntwo"]),
    ] {
        let sample = Sample::new(name, packed);
        let read = read_prompts(&sample.path, &ColumnMap::default()).unwrap();
        let found: Vec<&str> = read.prompts.iter().map(|row| row.problem.as_str()).collect();
        assert_eq!(found, problems, "{name}");
    }
}
