//! JSONL and JSON arrays, in the forms that programs write.

use crate::{assert_adds_up, only, read};

const TWO: &str = r#"{"problem":"p1","solution":"s1"}
{"problem":"p2","solution":"s2"}"#;

#[test]
fn jsonl_is_known_by_its_name_or_by_its_content() {
    for name in ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.txt", "a"] {
        let records = read(name, TWO, "");
        assert_eq!((records.read, records.lines.as_slice()), (2, &[1, 2][..]));
    }
}

#[test]
fn json_arrays_are_known_by_their_content() {
    for name in ["a.json", "a.jsonl", "a"] {
        let array = format!("\n [{}\n]\n", TWO.replace("}\n", "},\n\n"));
        let records = read(name, array, "");
        assert_eq!((records.read, records.lines.as_slice()), (2, &[1, 2][..]));
        assert_eq!(records.blank_lines, 0);
        assert_adds_up(&records);
    }
}

#[test]
fn places_in_a_json_array_count_the_records_left_out() {
    let array = r#"[{"problem":"","solution":"s"},{"problem":"p","solution":"s"}]"#;
    assert_eq!(read("a.json", array, "").lines, [2]);
}

#[test]
fn byte_order_marks_crlf_and_blank_lines_do_no_harm() {
    let text = format!("\u{feff}\r\n  \r\n{}\r\n\r\n", TWO.replace('\n', "\r\n\r\n"));
    let records = read("a.jsonl", text, "");
    assert_eq!(records.lines, [3, 5]);
    assert_eq!(records.blank_lines, 4);
    let records = read("a.json", format!("\u{feff}[{}]", TWO.replace('\n', ",\r\n")), "");
    assert_eq!(records.lines, [1, 2]);
}

#[test]
fn many_blank_lines_before_the_first_record_are_counted() {
    // More than any buffer holds at once.
    let records = read("a.jsonl", format!("{}{TWO}", "\n".repeat(300_000)), "");
    assert_eq!(records.lines, [300_001, 300_002]);
    assert_eq!(records.blank_lines, 300_000);
}

#[test]
fn a_last_line_without_a_line_end_counts() {
    assert_eq!(read("a.jsonl", TWO.trim_end(), "").read, 2);
    assert_eq!(read("a.jsonl", format!("{TWO}\n"), "").read, 2);
}

#[test]
fn a_long_record_is_read_whole() {
    let solution = "0123456789".repeat(1_000_000);
    let line = format!(r#"{{"problem":"p","solution":"{solution}"}}"#);
    assert_eq!(only(&read("a.jsonl", &line, "")).1, solution);
    assert_eq!(only(&read("a.json", format!("[{line}]"), "")).1, solution);
}

#[test]
fn a_list_longer_than_the_limit_of_one_record_is_read() {
    let record = format!(r#"{{"problem":"p","solution":"{}"}}"#, "x".repeat(1 << 20));
    let array = format!("[{}]", vec![record; 70].join(","));
    assert_eq!(read("a.json", array, "").read, 70);
}

#[test]
fn the_last_of_two_equal_keys_is_taken() {
    let line = r#"{"problem":"a","problem":"b","solution":"s"}"#;
    assert_eq!(only(&read("a.jsonl", line, "")), ("b", "s"));
}

#[cfg(unix)]
#[test]
fn json_may_come_from_a_pipe() {
    use mixdistill::data::{ColumnMap, MAX_LEFT_OUT, read_records};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: no mkfifo here");
        return;
    }
    let writer = std::thread::spawn({
        let path = path.clone();
        move || std::fs::write(path, TWO).unwrap()
    });
    assert_eq!(read_records(&path, &ColumnMap::default(), MAX_LEFT_OUT).unwrap().read, 2);
    writer.join().unwrap();
}
