//! Promises of reading a file of records, through the public API.

mod bad_input;
mod cases;
mod compressed;
mod conventions;
mod data_sets;
mod formats;
mod left_out;
mod never_panics;
#[cfg(feature = "parquet")]
mod parquet;
mod real_files;
mod tables;
mod whole_rows;

use std::path::PathBuf;

use mixdistill::data::{ColumnMap, Records, read_records};
use mixdistill::{Error, Result};
use tempfile::TempDir;

/// A file that is gone when the test ends.
struct Sample {
    _directory: TempDir,
    path: PathBuf,
}

impl Sample {
    fn new(name: &str, content: impl AsRef<[u8]>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        Self { _directory: directory, path }
    }

    fn read(&self, columns: &str) -> Result<Records> {
        self.read_within(columns, 1.0)
    }

    /// With a share of rows that may be unusable.
    fn read_within(&self, columns: &str, max_left_out: f64) -> Result<Records> {
        let map = match columns {
            "" => ColumnMap::default(),
            text => ColumnMap::parse(text).unwrap(),
        };
        read_records(&self.path, &map, max_left_out)
    }

    /// The error's text after the directory, which is another one in every run.
    #[track_caller]
    fn error(&self, columns: &str) -> String {
        let error = self.read_within(columns, 0.0).expect_err("the file should not be readable");
        let directory = self.path.parent().unwrap().display().to_string();
        error.to_string().replace(&format!("{directory}{}", std::path::MAIN_SEPARATOR), "")
    }
}

fn read(name: &str, content: impl AsRef<[u8]>, columns: &str) -> Records {
    Sample::new(name, content).read(columns).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn error(name: &str, content: impl AsRef<[u8]>, columns: &str) -> String {
    Sample::new(name, content).error(columns)
}

/// Problem and solution of the only record.
#[track_caller]
fn only(records: &Records) -> (&str, &str) {
    assert_eq!(records.records.len(), 1);
    (&records.records[0].problem, &records.records[0].solution)
}

/// Every record is in one place.
#[track_caller]
fn assert_adds_up(records: &Records) {
    assert_eq!(
        records.read,
        records.records.len() + records.left_out.rows() + records.wrong + records.without_verdict
    );
    assert_eq!(records.lines.len(), records.records.len());
    assert!(records.lines.is_sorted());
    for record in &records.records {
        assert!(!record.problem.trim().is_empty() && !record.solution.trim().is_empty());
    }
}

#[track_caller]
fn assert_config_error(result: Result<impl std::fmt::Debug>, what: &str) {
    match result {
        Err(Error::Config { key, what: found, hint }) => {
            assert_eq!(key, "columns");
            assert_eq!(found, what);
            assert!(!hint.is_empty());
        }
        other => panic!("expected a configuration error, got {other:?}"),
    }
}
