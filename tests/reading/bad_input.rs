//! Errors about a file give the file, line, and column, what was found, what was expected, and what
//! to do.

use std::fs::File;
use std::io::Write;

use mixdistill::data::{ColumnMap, MAX_LEFT_OUT, read_records};
use mixdistill::{Error, Place};

use crate::{Sample, error};

const GOOD: &str = "{\"problem\":\"p\",\"solution\":\"s\"}\n";

/// A file whose second line is `line`.
#[track_caller]
fn second(line: &str) -> String {
    error("a.jsonl", format!("{GOOD}{line}\n{GOOD}"), "")
}

#[test]
fn a_missing_file_is_named_with_what_to_check() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("traces.jsonl");
    let error = read_records(&path, &ColumnMap::default(), MAX_LEFT_OUT).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot read {}: there is no such file. Check the path; relative paths start in the \
             current directory",
            path.display()
        )
    );
    match error {
        Error::Io { source, .. } => assert_eq!(source.kind(), std::io::ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let error = read_records(directory.path(), &ColumnMap::default(), MAX_LEFT_OUT)
        .unwrap_err()
        .to_string();
    // Windows does not even open one.
    if cfg!(unix) {
        assert!(error.ends_with(": it is a directory. Give the path of a file"));
    }
}

#[cfg(unix)]
#[test]
fn a_file_without_the_right_to_read_it_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let sample = Sample::new("a.jsonl", GOOD);
    std::fs::set_permissions(&sample.path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if File::open(&sample.path).is_ok() {
        println!("skipped: this user can read every file");
        return;
    }
    assert_eq!(
        sample.error(""),
        "cannot read a.jsonl: permission denied. Make the file readable, or copy it"
    );
}

#[test]
fn a_file_without_records_is_refused() {
    for content in ["", "\u{feff}", "\n\r\n  \n", "[]", " [ ] \n"] {
        for name in ["a.jsonl", "a.json"] {
            assert_eq!(
                error(name, content, ""),
                format!(
                    "{name}: the file has no records. Check that it is the right file and that \
                     it is complete"
                )
            );
        }
    }
}

#[test]
fn a_file_of_another_format_is_refused() {
    assert_eq!(
        error("a.txt", "\nproblem,solution\np,s\n", ""),
        "a.txt:2: the text begins with 'p', expected { (JSONL) or [ (a JSON array). Convert the \
         file to JSONL with one {\"problem\": \"...\", \"solution\": \"...\"} on each line, or to \
         Parquet; CSV and TSV files need the extension .csv or .tsv"
    );
    for (content, what) in [
        (&b"PK\x03\x04"[..], "the file is a ZIP archive. Unpack it first"),
        (b"\xff\xfe{\0", "the file is UTF-16 text, expected UTF-8. Save it as UTF-8"),
    ] {
        assert_eq!(error("a.jsonl", content, ""), format!("a.jsonl: {what}"));
    }
}

#[test]
fn bytes_that_are_not_utf8_are_found_by_line_and_byte() {
    let content =
        b"{\"problem\":\"p\",\"solution\":\"s\"}\n\n{\"problem\":\"\xff\",\"solution\":\"s\"}";
    assert_eq!(
        error("a.jsonl", content, ""),
        "a.jsonl:3: byte 13 of the line is not UTF-8. Save the file as UTF-8"
    );
    assert_eq!(
        error("a.jsonl", b"  {\"\xe9\":1}", ""),
        "a.jsonl:1: byte 5 of the line is not UTF-8. Save the file as UTF-8"
    );
    assert_eq!(
        error("a.json", b"[\n{\"problem\":\"\xff\",\"solution\":\"s\"}]", ""),
        "a.json:1: a text is not UTF-8 at line 2, column 13 of the file, in record 1 of the list. \
         Save the file as UTF-8"
    );
}

#[test]
fn broken_json_is_found_by_line_and_column() {
    let hint = "Correct the record, or write the file again with a JSON library";
    for (line, what) in [
        (r#"{"problem":"p" "solution":"s"}"#, "column 16: expected `,` or `}`"),
        (r#"{'problem':'p'}"#, "column 2: key must be a string"),
        (r#"{"problem":"p","solution":"s"} {"problem":"p"}"#, "column 32: trailing characters"),
        (
            "{\"problem\":\"a\tb\"}",
            "column 14: control character (\\u0000-\\u001F) found while parsing a string",
        ),
    ] {
        assert_eq!(second(line), format!("a.jsonl:2: broken JSON at {what}. {hint}"));
    }
}

#[test]
fn the_column_counts_what_stands_before_the_first_record() {
    let error = error("a.jsonl", "\n   {\"problem\":}", "");
    assert!(error.starts_with("a.jsonl:2: broken JSON at column 15: expected value"), "{error}");
}

#[test]
fn a_line_that_ends_early_is_explained() {
    let hint = "Write one complete object per line: the file may be truncated here, or an object \
                may span several lines, which only a JSON array allows";
    assert_eq!(
        error("a.jsonl", format!("{GOOD}{{\"problem\":\"p"), ""),
        format!("a.jsonl:2: the line ends inside a string (column 13). {hint}")
    );
    // Neither is a column of the next line named.
    let cut = "[\n  {\n    \"problem\": \"two\nlines\", \"solution\": \"s\"\n  }\n]";
    assert!(
        error("a.json", cut, "").starts_with(
            "a.json:1: line 3 of the file ends inside a string (column 20), in record 1 of the list"
        ),
        "{}",
        error("a.json", cut, "")
    );
    let pretty = error("a.json", "{\n  \"problem\": \"p\"\n}", "");
    assert!(pretty.contains("a.json:1: broken JSON at column"), "{pretty}");
    assert!(pretty.ends_with(hint), "{pretty}");
}

#[test]
fn a_trailing_comma_is_explained() {
    let hint = "Remove the comma before the closing bracket, or write the file again with a JSON \
                library";
    assert_eq!(
        second(r#"{"problem":"p",}"#),
        format!("a.jsonl:2: broken JSON at column 16: trailing comma. {hint}")
    );
    let first = GOOD.trim_end();
    for (array, spot, record) in [
        (format!("[{first},{{\"problem\":\"p\",}}]"), "line 1, column 48", 2),
        (format!("[{first},\n]"), "line 1, column 32", 2),
    ] {
        let error = error("a.json", array, "");
        let what = format!("{spot} of the file, in record {record} of the list: trailing comma");
        assert!(error.contains(&what) && error.ends_with(hint), "{error}");
    }
}

#[test]
fn a_comma_between_lines_is_explained() {
    let error = error("a.jsonl", format!("{},\n{GOOD}", GOOD.trim_end()), "");
    assert!(error.contains("a.jsonl:1: broken JSON at column 31: trailing characters"), "{error}");
    assert!(error.ends_with("JSONL has none between records"), "{error}");
}

#[test]
fn a_list_of_records_within_an_object_is_named() {
    let list = format!("[{0},{0}]", GOOD.trim_end());
    for text in [
        format!("{{\"data\": {list}}}"),
        format!("{{\n  \"version\": \"1.1\",\n  \"data\": {list}\n}}\n"),
    ] {
        let error = error("a.json", text, "");
        assert!(
            error.contains("the file is one object whose key `data` has a list of 2 records"),
            "{error}"
        );
        assert!(
            error.ends_with("for example with: jq '.[\"data\"]' FILE > records.json"),
            "{error}"
        );
    }
}

#[test]
fn a_pointer_of_git_lfs_and_a_web_page_are_told_from_data() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
    for name in ["a.jsonl", "a.json", "a.parquet"] {
        let error = error(name, pointer, "");
        assert!(error.contains("is a Git LFS pointer, not the file itself"), "{error}");
    }
    let page = error("a.jsonl", "<!DOCTYPE html>\n<html></html>", "");
    assert!(page.contains("the file is a web page"), "{page}");
}

#[test]
fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
    let deep = format!("{{\"problem\":{}", "[".repeat(1_000_000));
    assert_eq!(
        error("a.jsonl", &deep, ""),
        "a.jsonl:1: broken JSON at column 138: recursion limit exceeded. Remove the record: \
         nesting is limited to 127 levels, far more than a reasoning trace needs"
    );
    let array = error("a.json", "[".repeat(1_000_000), "");
    assert!(array.contains("in record 1 of the list: recursion limit exceeded. "), "{array}");
    let objects = error("a.jsonl", "{\"a\":".repeat(100_000), "");
    assert!(objects.contains("recursion limit exceeded"), "{objects}");
}

#[test]
fn broken_json_arrays_are_found_by_record_line_and_column() {
    let first = GOOD.trim_end();
    assert_eq!(
        error("a.json", format!("\n [{first},\n{{\"problem\" \"p\"}}]"), ""),
        "a.json:2: broken JSON at line 3, column 12 of the file, in record 2 of the list: expected \
         `:`. Correct the record, or write the file again with a JSON library"
    );
    assert_eq!(
        error("a.json", format!("  [{first} x]"), ""),
        "a.json:2: broken JSON at line 1, column 35 of the file, in record 2 of the list: expected \
         `,` or `]`. Correct the record, or write the file again with a JSON library"
    );
    for cut in [format!("[{first},"), format!("[{first}"), format!("[{first},{{\"problem\":\"")] {
        let error = error("a.json", cut, "");
        assert!(error.ends_with("Check that the file is complete: the list has no end"), "{error}");
    }
    let error = error("a.json", format!("[{first}]\n[{first}]"), "");
    assert!(error.contains("line 2, column 1 of the file"), "{error}");
    assert!(error.contains("trailing characters"), "{error}");
}

#[test]
fn a_line_above_the_limit_is_refused_before_it_is_held() {
    for name in ["a.jsonl", "a.json"] {
        let sample = Sample::new(name, "");
        let mut file = File::create(&sample.path).unwrap();
        file.write_all(GOOD.as_bytes()).unwrap();
        file.write_all(b"{\"problem\":\"").unwrap();
        // A hole of 80 GiB costs nothing on the disk; reading it all would not end.
        file.set_len(80 << 30).unwrap();
        assert_eq!(
            sample.error(""),
            format!(
                "{name}:2: the line is longer than 64 MiB. Write one record per line, and remove \
                 what is not a reasoning trace"
            )
        );
    }
}

#[test]
fn a_record_of_an_array_above_the_limit_is_refused() {
    let long = format!("[{},{{\"problem\":\"{}\"}}]", GOOD.trim_end(), "x".repeat(65 << 20));
    assert_eq!(
        error("a.json", long, ""),
        "a.json:2: record 2 of the list is longer than 64 MiB. Remove what is not a reasoning \
         trace, or check that the file is complete"
    );
}

#[test]
fn a_line_that_is_no_object_is_refused() {
    for (line, found) in [
        ("12", "the number 12"),
        ("\"text\"", "the text \"text\""),
        ("null", "null"),
        ("true", "the boolean true"),
        ("[1,2]", "a list of 2"),
        ("[]", "an empty list"),
    ] {
        let hint = r#"Write each record as {"problem": "...", "solution": "..."}"#;
        assert_eq!(
            second(line),
            format!("a.jsonl:2: found {found}, expected a record as a JSON object. {hint}")
        );
        let array = format!("[{},{line}]", GOOD.trim_end());
        assert_eq!(
            error("a.json", array, ""),
            format!(
                "a.json:2: found {found}, expected a record as a JSON object (record 2 of the \
                 list). {hint}"
            )
        );
    }
}

#[test]
fn a_later_record_without_a_column_is_refused() {
    let hint = "Give every record the same columns, with null for missing values";
    assert_eq!(
        second(r#"{"problem":"p","answer":"s","id":3}"#),
        format!(
            "a.jsonl:2: column `solution`: the record lacks it, unlike others; its \
             columns are `answer`, `id`, `problem`. {hint}"
        )
    );
    assert_eq!(
        second("{}"),
        format!(
            "a.jsonl:2: column `problem`: the record lacks it, unlike others; its \
             columns are none. {hint}"
        )
    );
}

#[test]
fn the_place_of_a_wrong_column_can_be_taken_from_the_error() {
    let sample = Sample::new("a.jsonl", format!("\n{GOOD}{{\"problem\":\"p\",\"solution\":1}}"));
    match sample.read_within("", 0.0) {
        Err(Error::Data { place, .. }) => {
            assert_eq!(place, Place::line(&sample.path, 3).with_column("solution"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_later_record_of_another_type_is_refused() {
    assert_eq!(
        second(r#"{"problem":12,"solution":"s"}"#),
        "a.jsonl:2: column `problem`: found the number 12, expected text; the record's columns are \
         `problem`, `solution`. Write the value as text, or name another column with \
         problem=<column>"
    );
}

#[test]
fn wrong_types_are_named_with_the_way_out() {
    let columns = "the record's columns are `problem`, `solution`";
    for (value, found, hint) in [
        (
            "12",
            "the number 12",
            "Write the value as text, or name another column with solution=<column>",
        ),
        (
            "false",
            "the boolean false",
            "Write the value as text, or name another column with solution=<column>",
        ),
        (
            r#"["s"]"#,
            "a list of 1",
            "Name one element of the list, for example solution=solution.0",
        ),
        (
            "[]",
            "an empty list",
            "Write the value as text, or name another column with solution=<column>",
        ),
        (
            r#"{"text":"s"}"#,
            "an object with `text`",
            "Name one field of the object, for example solution=solution.text",
        ),
    ] {
        assert_eq!(
            error("a.jsonl", format!(r#"{{"problem":"p","solution":{value}}}"#), ""),
            format!(
                "a.jsonl:1: column `solution`: found {found}, expected text; {columns}. {hint}"
            )
        );
    }
    assert_eq!(
        error("a.json", r#"[{"problem":"p","solution":12}]"#, ""),
        format!(
            "a.json:1: column `solution`: found the number 12, expected text; {columns} (record 1 \
             of the list). Write the value as text, or name another column with solution=<column>"
        )
    );
}

#[test]
fn wrong_types_of_id_and_gold_answer_are_named_with_the_way_out() {
    let error = error("a.jsonl", r#"{"problem":"p","solution":"s","final_answer":["4"]}"#, "");
    assert_eq!(
        error,
        "a.jsonl:1: column `final_answer`: found a list of 1, expected text or a number; the \
         record's columns are `final_answer`, `problem`, `solution`. Name one element of the list, \
         for example answer=final_answer.0"
    );
}

#[test]
fn a_wrong_type_is_not_hidden_by_an_empty_text() {
    let error = second(r#"{"problem":"","solution":3}"#);
    assert!(error.starts_with("a.jsonl:2: column `solution`: found the number 3"), "{error}");
}

#[test]
fn a_wrong_input_column_is_refused() {
    assert_eq!(
        error("a.jsonl", r#"{"instruction":"i","input":7,"output":"o"}"#, ""),
        "a.jsonl:1: column `input`: found the number 7, expected text; the record's columns are \
         `input`, `instruction`, `output`. Write the value as text, or use problem=instruction to \
         read only the instruction"
    );
}

#[test]
fn a_named_column_that_is_not_there_is_refused() {
    let hint = "Check the spelling, or remove the setting to detect the column by its name \
                (setting `columns.solution`)";
    let columns = "its columns are `problem`, `runs`, `solution`";
    let line = r#"{"problem":"p","solution":"s","runs":["a",{"text":"b"}]}"#;
    for (named, reason) in [
        ("sulotion", ""),
        ("missing.0", ""),
        ("runs.2", ": `runs` is a list of 2, without `2`"),
        ("runs.-1", ": `runs` is a list of 2, without `-1`"),
        ("runs.text", ": `runs` is a list of 2, without `text`"),
        ("runs.0.x", ": `runs.0` is the text \"a\", without `x`"),
        ("runs.1.x", ": `runs.1` is an object with `text`, without `x`"),
        ("runs.1.", ": `runs.1` is an object with `text`, without ``"),
    ] {
        assert_eq!(
            error("a.jsonl", line, &format!("solution={named}")),
            format!("a.jsonl:1: column `{named}`: the record lacks it{reason}; {columns}. {hint}")
        );
    }
}

#[test]
fn a_list_without_the_named_element_is_refused_later_too() {
    let lines = "{\"problem\":\"p\",\"runs\":[\"s\"]}\n{\"problem\":\"p\",\"runs\":[]}";
    assert_eq!(
        error("a.jsonl", lines, "solution=runs.0"),
        "a.jsonl:2: column `runs.0`: the record lacks it, unlike others: `runs` is an \
         empty list, without `0`; its columns are `problem`, `runs`. Give every record the same \
         columns, with null for missing values"
    );
}

#[test]
fn conversations_of_another_shape_are_refused() {
    let alternate = "Alternate user and assistant turns, with a user turn first and the answer to \
                     train on last, or remove the record";
    let one = "Give only that turn, or the whole conversation as one list of messages";
    let (user, assistant, system) = (
        r#"{"role":"user","content":"u"}"#,
        r#"{"role":"assistant","content":"a"}"#,
        r#"{"role":"system","content":"s"}"#,
    );
    for (turns, what) in [
        (vec![], "the conversation has neither a user turn nor an assistant turn"),
        (vec![system], "the conversation has neither a user turn nor an assistant turn"),
        (vec![system, user], "the conversation has no assistant turn"),
        (vec![user, user], "the conversation has no assistant turn"),
        (vec![assistant], "the conversation begins with an assistant turn, expected a user turn"),
        (
            vec![assistant, user],
            "the conversation begins with an assistant turn, expected a user turn",
        ),
        (
            vec![user, assistant, system, user, assistant, user],
            "the conversation ends with a user turn (user, assistant, user, assistant and 1 more), \
             expected an answer",
        ),
        (
            vec![user, assistant, assistant],
            "the conversation's turns do not alternate (user, assistant, assistant)",
        ),
    ] {
        assert_eq!(
            error("a.jsonl", format!(r#"{{"messages":[{}]}}"#, turns.join(",")), ""),
            format!("a.jsonl:1: column `messages`: {what}. {alternate}")
        );
    }
    assert_eq!(
        error(
            "a.jsonl",
            format!(r#"{{"prompt":[{user},{assistant},{assistant}],"completion":"x"}}"#),
            ""
        ),
        format!(
            "a.jsonl:1: column `prompt`: the list of messages has user, assistant, assistant, \
             expected one user turn. {one}"
        )
    );
    assert_eq!(
        error("a.jsonl", format!(r#"{{"prompt":[{system}],"completion":"x"}}"#), ""),
        format!("a.jsonl:1: column `prompt`: the list of messages has no user turn. {one}")
    );
}

#[test]
fn messages_of_another_form_are_refused() {
    let form = "Write every turn as {\"role\": \"user\", \"content\": \"...\"} or {\"from\": \
                \"human\", \"value\": \"...\"} with the roles user or human, assistant or gpt, and \
                system";
    for (message, what) in [
        (r#""hello""#, "found the text \"hello\", expected an object"),
        (r#"{"content":"a"}"#, "it has neither `role` nor `from`"),
        (r#"{"role":"tool","content":"a"}"#, "unknown role `tool`"),
        (r#"{"role":3,"content":"a"}"#, "`role`: found the number 3, expected text"),
        (r#"{"role":"assistant"}"#, "it has `role` but no `content`"),
        (r#"{"from":"gpt","content":"a"}"#, "it has `from` but no `value`"),
        (
            r#"{"role":"assistant","content":[{"type":"image_url"}]}"#,
            "`content`: part 1: found a part `image_url`, expected text",
        ),
    ] {
        let line = format!(r#"{{"messages":[{{"role":"user","content":"u"}},{message}]}}"#);
        assert_eq!(
            error("a.jsonl", line, ""),
            format!("a.jsonl:1: column `messages`: message 2: {what}. {form}")
        );
    }
    assert_eq!(
        error("a.jsonl", r#"{"messages":"hello"}"#, ""),
        "a.jsonl:1: column `messages`: found the text \"hello\", expected a list of messages; the \
         record's columns are `messages`. Write the value as a list of messages, or name another \
         column with messages=<column>"
    );
}

#[test]
fn long_names_and_texts_are_shortened_in_errors() {
    let name = "n".repeat(10_000);
    let line = format!(r#"{{"problem":"p","solution":{{"{name}":1}},"{name}":1}}"#);
    assert!(error("a.jsonl", line, "").len() < 500);
    let many: Vec<_> = (0..1000).map(|number| format!("\"c{number}\":1")).collect();
    let error = error("a.jsonl", format!("{{{}}}", many.join(",")), "");
    assert!(error.contains("`c111` and 984 more."), "{error}");
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_files_name_the_feature_to_enable() {
    for (name, content) in [("a.parquet", ""), ("a.bin", "PAR1...")] {
        assert_eq!(
            error(name, content, ""),
            format!(
                "{name}: this build does not read Parquet files. Use a build with \
                 the feature `parquet`, or convert the file to JSONL"
            )
        );
    }
}
