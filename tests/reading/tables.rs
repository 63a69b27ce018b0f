//! CSV and TSV, including files of pandas and Python in `files/` (made by `make_files.py`).

use mixdistill::data::{ColumnMap, read_records};
use serde_json::Value;

use crate::compressed::written;
use crate::{assert_adds_up, error, only, read};

#[test]
fn tables_of_pandas_and_python_are_read_to_the_letter() {
    let expected = std::fs::read_to_string(written("tables.json")).unwrap();
    let expected: Vec<Value> = serde_json::from_str(&expected).unwrap();
    for (file, lines) in [
        ("pandas.csv", [2, 3, 5, 7, 12]),
        ("pandas.tsv", [2, 3, 5, 7, 12]),
        ("index.csv", [2, 3, 5, 7, 12]),
        ("excel.csv", [2, 3, 5, 7, 12]),
        ("all_quoted.csv", [2, 3, 5, 7, 12]),
        ("pandas.csv.gz", [2, 3, 5, 7, 12]),
        ("pandas.tsv.zst", [2, 3, 5, 7, 12]),
    ] {
        let records = read_records(written(file), &ColumnMap::default(), 0.0);
        let records = records.unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_adds_up(&records);
        assert_eq!(records.records.len(), expected.len(), "{file}");
        for (record, expected) in records.records.iter().zip(&expected) {
            assert_eq!(record.problem, expected["problem"], "{file}");
            assert_eq!(record.solution, expected["solution"], "{file}");
            assert_eq!(record.id.as_deref(), expected["id"].as_str(), "{file}");
        }
        assert_eq!(&records.lines[..2], &lines[..2], "{file}");
        assert_eq!(records.columns.to_string(), "problem=problem, solution=solution, id=id");
        let map = ColumnMap::parse("correct=correct").unwrap();
        let judged = read_records(written(file), &map, 0.0).unwrap();
        assert_eq!(
            (judged.records.len(), judged.wrong, judged.without_verdict),
            (3, 1, 1),
            "{file}"
        );
    }
}

#[test]
fn a_table_is_known_by_its_name() {
    let table = "problem,solution\np,s\n";
    for name in ["a.csv", "a.CSV"] {
        assert_eq!(only(&read(name, table, "")), ("p", "s"));
    }
    for name in ["a.tsv", "a.tab"] {
        assert_eq!(only(&read(name, table.replace(',', "\t"), "")), ("p", "s"));
    }
    assert_eq!(only(&read("a.csv", r#"{"problem":"p","solution":"s"}"#, "")), ("p", "s"));
    let error = error("a.txt", table, "");
    assert!(error.contains("CSV and TSV files need the extension .csv or .tsv"), "{error}");
}

#[test]
fn line_ends_blank_lines_and_byte_order_marks_do_no_harm() {
    for end in ["\n", "\r\n"] {
        let table =
            ["\u{feff}problem,solution", "", "p1,s1", "", "  ", "\"p\n2\",s2", "p3,s3"].join(end);
        let records = read("a.csv", &table, "");
        assert_eq!((&records.lines[..], records.blank_lines), (&[3, 6, 8][..], 3), "{end:?}");
        assert_eq!(records.records[1].problem, "p\n2");
        assert_eq!(records.records[2].solution, "s3");
    }
    // Of old Macs.
    assert_eq!(only(&read("a.csv", "problem,solution\rp,s\r", "")), ("p", "s"));
}

#[test]
fn values_are_text_and_hold_what_json_would() {
    let table = "id,messages\n007,\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"u\"\"},{\"\"role\"\":\
                 \"\"assistant\"\",\"\"content\"\":\"\"a\"\"}]\"\n";
    let records = read("a.csv", table, "");
    assert_eq!(only(&records), ("u", "a"));
    assert_eq!(records.records[0].id.as_deref(), Some("007"));
}

#[test]
fn odd_rows_are_left_out_with_their_lines() {
    let table =
        "problem,solution\np1,s1\np2\np3,s3,more\n\"a \"b\" c\",s\np4,s4\n\"p\n5\"\np6,s6\n";
    let records = read("a.csv", table, "");
    assert_eq!(records.lines, [2, 6, 9]);
    let reasons: Vec<(&str, usize)> =
        records.left_out.reasons().iter().map(|r| (r.reason.as_str(), r.rows)).collect();
    assert_eq!(reasons, [("wrong number of fields", 3), ("malformed quotes", 1)]);
    assert_adds_up(&records);
    assert!(
        records.left_out.reasons()[0]
            .example
            .ends_with("a.csv:3: the row has 1 fields, but the header has 2")
    );
    let error = error("a.csv", "problem,solution\np,s\n\"p\n5\"\n", "");
    assert!(
        error.starts_with("a.csv:3: the row has 1 fields, but the header has 2 (lines 3 to 4). ")
    );
}

#[test]
fn text_that_is_not_utf8_is_found_by_line_and_column() {
    let table = b"problem,solution\np1,s1\np2,s\xFF2\n";
    let error = error("a.csv", table, "");
    assert!(error.starts_with("a.csv:3: byte 2 of column `solution` is not UTF-8. "), "{error}");
    assert_eq!(read("a.csv", table, "").left_out.rows_for("not UTF-8"), 1);
    let error = crate::error("a.csv", b"problem,solutio\xFF\np1,s1\n", "");
    assert!(error.starts_with("a.csv:1: the header: a name is not UTF-8"), "{error}");
}

#[test]
fn quotes_that_hide_rows_are_an_error() {
    let open = "problem,solution\np1,s1\np2,\"s2\np3,s3\np4,s4\n";
    let error = error("a.csv", open, "");
    assert!(
        error.starts_with("a.csv:3: a quoted field that begins in this row has no end. "),
        "{error}"
    );
    let hiding = "problem,solution\np1,s1\np2,\"s2\np3,\"s3\"\np4,s4\n";
    let error = crate::Sample::new("a.csv", hiding).read("").unwrap_err().to_string();
    assert!(error.contains("a.csv:3: ") && error.contains("cannot be separated"), "{error}");
}

#[test]
fn wrong_headers_are_refused() {
    for (table, what) in [
        ("problem,solution,problem\n1,2,3\n", "the name `problem` occurs twice"),
        ("a, a\n1,2\n", "the name `a` occurs twice"),
        ("problem;solution\np;s\n", "it is one column, `problem;solution`"),
        ("problem\tsolution\np\ts\n", "it is one column, `problem\tsolution`"),
        ("\"pro\"blem,solution\np,s\n", "its quotes are malformed"),
    ] {
        let error = error("a.csv", table, "");
        assert!(error.starts_with(&format!("a.csv:1: the header: {what}. ")), "{error}");
    }
    for table in ["", "\n\n", "problem,solution\n", "problem,solution\n\n \n"] {
        assert!(
            error("a.csv", table, "").starts_with("a.csv: the file has no records"),
            "{table:?}"
        );
    }
}

#[test]
fn a_row_larger_than_any_buffer_is_read() {
    let solution = "0123456789,\"\n".repeat(100_000);
    let quoted = solution.replace('"', "\"\"");
    let records = read("a.csv", format!("problem,solution\np,\"{quoted}\"\nq,s\n"), "");
    assert_eq!(records.records[0].solution, solution);
    assert_eq!(records.records[1].solution, "s");
    assert_eq!(records.lines, [2, 100_003]);
}
