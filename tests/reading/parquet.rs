//! Parquet files, written by the `parquet` crate itself.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use mixdistill::data::{ColumnMap, MAX_LEFT_OUT, Records, read_records};
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use crate::{Sample, assert_adds_up, error};

type Group<'g> = SerializedRowGroupWriter<'g, File>;

fn write(path: &Path, schema: &str, compression: Compression, groups: &[&dyn Fn(&mut Group<'_>)]) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(compression).build();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for group in groups {
        let mut rows = writer.next_row_group().unwrap();
        group(&mut rows);
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

/// Writes the next column; the levels are the format's definition and repetition levels.
fn text(group: &mut Group<'_>, values: &[&str], defined: Option<&[i16]>, repeated: Option<&[i16]>) {
    let values: Vec<ByteArray> = values.iter().map(|value| ByteArray::from(*value)).collect();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&values, defined, repeated).unwrap();
    column.close().unwrap();
}

fn integers(group: &mut Group<'_>, values: &[i64], defined: &[i16]) {
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(values, Some(defined), None).unwrap();
    column.close().unwrap();
}

fn floats(group: &mut Group<'_>, values: &[f64]) {
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<DoubleType>().write_batch(values, None, None).unwrap();
    column.close().unwrap();
}

const TEXTS: &str = "message rows {
    optional int64 id;
    required binary problem (UTF8);
    optional binary solution (UTF8);
    required double answer;
}";

fn texts(path: &Path, compression: Compression) {
    write(
        path,
        TEXTS,
        compression,
        &[
            &|group| {
                integers(group, &[7, 9], &[1, 0, 1]);
                text(group, &["p1", "p2", "p3"], None, None);
                text(group, &["s1", "s3"], Some(&[1, 0, 1]), None);
                floats(group, &[1.5, 2.0, f64::NAN]);
            },
            &|group| {
                integers(group, &[], &[0]);
                text(group, &["p4 é"], None, None);
                text(group, &["s4"], Some(&[1]), None);
                floats(group, &[4.0]);
            },
        ],
    );
}

fn sample(write: impl Fn(&Path)) -> Sample {
    let sample = Sample::new("a.parquet", "");
    write(&sample.path);
    sample
}

#[test]
fn text_columns_come_back_in_every_compression() {
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(ZstdLevel::default()),
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        // Hadoop's framing.
        Compression::LZ4,
        Compression::LZ4_RAW,
    ] {
        let records = sample(|path| texts(path, compression)).read("").unwrap();
        assert_adds_up(&records);
        assert_eq!(records.read, 4);
        assert_eq!(records.empty_solutions, 1);
        assert_eq!(records.lines, [1, 3, 4]);
        assert_eq!(
            records.columns.to_string(),
            "problem=problem, solution=solution, answer=answer, id=id"
        );
        let rows: Vec<_> = records
            .records
            .iter()
            .map(|record| {
                (
                    record.id.as_deref(),
                    record.problem.as_str(),
                    record.solution.as_str(),
                    record.answer.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            rows,
            [
                (Some("7"), "p1", "s1", Some("1.5")),
                (Some("9"), "p3", "s3", None),
                (None, "p4 é", "s4", Some("4.0")),
            ]
        );
    }
}

#[test]
fn parquet_is_known_by_its_content() {
    let sample = sample(|path| texts(path, Compression::SNAPPY));
    let other = sample.path.with_extension("data");
    std::fs::copy(&sample.path, &other).unwrap();
    assert_eq!(read_records(&other, &ColumnMap::default(), MAX_LEFT_OUT).unwrap().read, 4);
}

const MESSAGES: &str = "message rows {
    optional group messages (LIST) {
        repeated group list {
            optional group element {
                optional binary content (UTF8);
                optional binary role (UTF8);
            }
        }
    }
    optional group runs (LIST) {
        repeated group list {
            optional binary element (UTF8);
        }
    }
    required int64 embedding;
}";

/// Two conversations of two and three turns, and lists of one and two runs.
fn messages(path: &Path) {
    write(
        path,
        MESSAGES,
        Compression::SNAPPY,
        &[&|group| {
            let (defined, repeated) = ([4; 5], [0, 1, 0, 1, 1]);
            text(group, &["u1", "a1", "be", "u2", "a2"], Some(&defined), Some(&repeated));
            let roles = ["user", "assistant", "system", "user", "assistant"];
            text(group, &roles, Some(&defined), Some(&repeated));
            text(group, &["r1", "r2", "r3"], Some(&[3; 3]), Some(&[0, 0, 1]));
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&[1, 2], None, None).unwrap();
            column.close().unwrap();
        }],
    );
}

fn pairs(records: &Records) -> Vec<(&str, &str)> {
    records
        .records
        .iter()
        .map(|record| (record.problem.as_str(), record.solution.as_str()))
        .collect()
}

#[test]
fn conversations_and_dotted_paths_work_as_in_json() {
    let sample = sample(messages);
    let records = sample.read("").unwrap();
    assert_eq!(pairs(&records), [("u1", "a1"), ("u2", "a2")]);
    assert_eq!(records.with_system, 1);
    assert_eq!(records.columns.to_string(), "messages=messages");

    let records = sample.read("problem=messages.1.content,solution=runs.0").unwrap();
    assert_eq!(pairs(&records), [("a1", "r1"), ("u2", "r2")]);

    assert_eq!(
        sample.error("problem=messages.0.content,solution=runs.1"),
        "a.parquet:1: column `runs.1`: the record lacks it, unlike others: `runs` is a list of 1, \
         without `1`; its columns are `embedding`, `messages`, `runs` (row 1). Give every record the \
         same columns, with null for missing values"
    );
}

#[test]
fn wrong_columns_are_named_with_all_that_the_file_has() {
    let sample = sample(messages);
    let error = sample.error("problem=embedding,solution=runs.0");
    assert!(
        error.contains(
            "a.parquet:1: column `embedding`: found the number 1, expected text; the record's columns \
             are `embedding`, `messages`, `runs` (row 1)"
        ) && error.contains("2 of 2 rows cannot be used: 2 x wrong type in `embedding`"),
        "{error}"
    );
    let unknown = crate::parquet::sample(|path| {
        write(
            path,
            "message m { required binary q (UTF8); }",
            Compression::SNAPPY,
            &[&|group| {
                text(group, &["p"], None, None);
            }],
        );
    });
    assert!(unknown.error("").starts_with(
        "a.parquet:1: no column is recognized as the problem; the record's columns are `q` (row 1)."
    ));
}

#[test]
fn text_that_is_not_marked_as_text_is_read() {
    let sample = sample(|path| {
        write(
            path,
            "message m { required binary problem; required binary solution; }",
            Compression::UNCOMPRESSED,
            &[&|group| {
                text(group, &["p é"], None, None);
                text(group, &["s"], None, None);
            }],
        );
    });
    assert_eq!(pairs(&sample.read("").unwrap()), [("p é", "s")]);
}

#[test]
fn text_that_is_not_utf8_is_found_by_row() {
    let schema = "message m { required binary problem (UTF8); required binary solution (UTF8); }";
    let sample = sample(|path| {
        write(
            path,
            schema,
            Compression::SNAPPY,
            &[&|group| {
                text(group, &["p1", "p2"], None, None);
                let mut column = group.next_column().unwrap().unwrap();
                let values = [ByteArray::from("s1"), ByteArray::from(vec![b's', 0xFF])];
                column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
                column.close().unwrap();
            }],
        );
    });
    assert_eq!(
        sample.error(""),
        "a.parquet:2: a text of the row is not UTF-8. Download or write the file again, for example \
         with pandas: frame.to_parquet(path, compression=\"snappy\")"
    );
}

#[test]
fn a_compression_that_cannot_be_read_is_named_with_the_way_out() {
    let sample = sample(|path| texts(path, Compression::SNAPPY));
    let mut content = std::fs::read(&sample.path).unwrap();
    // The codec stands after the column's path in the footer: an i32 (0x15), zigzag encoded, where
    // 1 is SNAPPY and 3 is LZO, which no writer in use has.
    let snappy = b"\x18\x07problem\x15\x02";
    let at = content.windows(snappy.len()).position(|bytes| bytes == snappy).unwrap();
    content[at + snappy.len() - 1] = 0x06;
    std::fs::write(&sample.path, content).unwrap();
    assert_eq!(
        sample.error(""),
        "a.parquet: column `problem`: compressed with LZO, expected SNAPPY, ZSTD, GZIP, BROTLI, LZ4 or none. \
         Download or write the file again, for example with pandas: frame.to_parquet(path, \
         compression=\"snappy\")"
    );
}

#[test]
fn columns_that_are_not_needed_are_not_decoded() {
    // An interval is a type that the crate's row reader panics on.
    let schema = "message m {
        required binary problem (UTF8);
        required fixed_len_byte_array(12) took (INTERVAL);
        required binary solution (UTF8);
    }";
    let sample = sample(|path| {
        write(
            path,
            schema,
            Compression::SNAPPY,
            &[&|group| {
                text(group, &["p"], None, None);
                let mut column = group.next_column().unwrap().unwrap();
                let value = ByteArray::from(vec![0; 12]).into();
                column
                    .typed::<parquet::data_type::FixedLenByteArrayType>()
                    .write_batch(&[value], None, None)
                    .unwrap();
                column.close().unwrap();
                text(group, &["s"], None, None);
            }],
        );
    });
    assert_eq!(pairs(&sample.read("").unwrap()), [("p", "s")]);
    let error = sample.error("id=took");
    assert!(error.starts_with("a.parquet: the Parquet file is damaged"), "{error}");
}

#[test]
fn a_parquet_file_without_rows_is_refused() {
    let no_rows = |group: &mut Group<'_>| {
        integers(group, &[], &[]);
        text(group, &[], None, None);
        text(group, &[], Some(&[]), None);
        floats(group, &[]);
    };
    let one_group: [&dyn Fn(&mut Group<'_>); 1] = [&no_rows];
    for groups in [&[][..], &one_group[..]] {
        let sample = sample(|path| write(path, TEXTS, Compression::SNAPPY, groups));
        assert!(sample.error("").starts_with("a.parquet: the file has no records. "));
    }
    assert!(error("a.parquet", "", "").starts_with("a.parquet: the file has no records. "));
}

#[test]
fn a_file_that_is_no_parquet_is_refused() {
    assert_eq!(
        error("a.parquet", "{\"problem\":\"p\",\"solution\":\"s\"}", ""),
        "a.parquet: the file does not begin with PAR1, as Parquet files do. Rename it to .jsonl or \
         .json if it is JSONL or a JSON array, or download it again"
    );
    for content in ["PAR1", "PAR1PAR1", "PAR1 and then nothing that could be read PAR1"] {
        let error = error("a.parquet", content, "");
        assert!(error.starts_with("a.parquet: the Parquet file cannot be read: "), "{error}");
        assert!(error.contains("Download or write the file again"), "{error}");
    }
}

#[test]
fn a_parquet_file_that_is_cut_off_or_damaged_is_an_error_at_most() {
    // The bytes around compressed pages are the same for every codec: of the later ones some are enough.
    for (schema, compression, step) in [
        (0, Compression::UNCOMPRESSED, 1),
        (0, Compression::SNAPPY, 1),
        (0, Compression::ZSTD(ZstdLevel::default()), 1),
        (0, Compression::GZIP(GzipLevel::default()), 7),
        (0, Compression::BROTLI(BrotliLevel::default()), 7),
        (0, Compression::LZ4_RAW, 7),
        (1, Compression::SNAPPY, 1),
    ] {
        let sample = sample(|path| match schema {
            0 => texts(path, compression),
            _ => messages(path),
        });
        let whole = std::fs::read(&sample.path).unwrap();
        let mut damaged = 0;
        for at in (0..whole.len()).step_by(step) {
            let mut content = whole.clone();
            content[at] ^= 1 << (at % 8);
            std::fs::write(&sample.path, &content).unwrap();
            match sample.read("") {
                Ok(records) => assert_adds_up(&records),
                Err(_) => damaged += 1,
            }
            std::fs::write(&sample.path, &whole[..at]).unwrap();
            assert!(sample.read("").is_err());
        }
        assert!(damaged > 0);
    }
}
