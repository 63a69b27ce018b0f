//! Rows that cannot be used are left out and counted by reason, up to a share. Every row is
//! accounted for.

use mixdistill::Error;
use mixdistill::data::{ColumnMap, Join, LeftOut, MAX_LEFT_OUT, Pairs, Source};

use crate::{Sample, assert_adds_up, read};

const GOOD: &str = r#"{"problem":"p","solution":"s"}"#;

/// A file of many good rows and these.
fn among_good(bad: &[&str]) -> String {
    let good = (0..40).map(|n| format!(r#"{{"problem":"p{n}","solution":"s"}}"#));
    let mut lines: Vec<String> = good.collect();
    for (index, line) in bad.iter().enumerate() {
        lines.insert(3 + 2 * index, (*line).to_owned());
    }
    lines.join("\n")
}

fn reasons(left_out: &LeftOut) -> Vec<(&str, usize)> {
    left_out.reasons().iter().map(|reason| (reason.reason.as_str(), reason.rows)).collect()
}

#[test]
fn one_odd_row_of_any_kind_never_ends_a_reading() {
    for (line, reason) in [
        (r#"{"problem":"p","solution":"#, "not JSON"),
        (r#"{"problem":"p",}"#, "not JSON"),
        ("12", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("{}", "without the column `problem`"),
        (r#"{"problem":"p"}"#, "without the column `solution`"),
        (r#"{"problem":" ","solution":"s"}"#, "no problem"),
        (r#"{"problem":null,"solution":"s"}"#, "no problem"),
        (r#"{"problem":"p","solution":""}"#, "no answer"),
        (r#"{"problem":7,"solution":"s"}"#, "wrong type in `problem`"),
        (r#"{"problem":"p","solution":{"a":"b"}}"#, "wrong type in `solution`"),
    ] {
        for (name, text) in [
            ("a.jsonl", among_good(&[line])),
            ("a.json", format!("[{}]", among_good(&[line]).replace("\n", ","))),
        ] {
            // An array that breaks within a record has no end that could be found.
            if name == "a.json" && line.ends_with(':') {
                continue;
            }
            let records = Sample::new(name, &text).read_within("", MAX_LEFT_OUT);
            let records = records.unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(records.records.len(), 40, "{line}");
            assert_eq!(reasons(&records.left_out), [(reason, 1)], "{name}");
            assert_adds_up(&records);
            let shown = records.left_out.to_string();
            assert!(shown.starts_with(&format!("1 row: 1 x {reason} (")), "{shown}");
            assert!(shown.contains(&format!("{name}:4")), "{shown}");
        }
    }
}

#[test]
fn a_row_before_the_others_is_not_what_the_columns_are_chosen_on() {
    for first in ["{}", r#"{"note":"x"}"#, "null", r#"{"question":"q","output":"o"}"#] {
        let text = format!("{first}\n{}", among_good(&[]));
        let records = Sample::new("a.jsonl", text).read_within("", MAX_LEFT_OUT).unwrap();
        assert_eq!((records.records.len(), records.left_out.rows()), (40, 1), "{first}");
        assert_eq!(records.columns.to_string(), "problem=problem, solution=solution");
    }
}

#[test]
fn bytes_that_are_not_utf8_leave_their_row_out() {
    for name in ["a.jsonl", "a.json"] {
        let mut text = among_good(&[]).into_bytes();
        text.extend(b"\n{\"problem\":\"\xff\",\"solution\":\"s\"}");
        if name == "a.json" {
            text = [b"[", &text[..], b"]"].concat();
            text.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b',');
        }
        let records = Sample::new(name, text).read_within("", MAX_LEFT_OUT).unwrap();
        assert_eq!(reasons(&records.left_out), [("not UTF-8", 1)]);
        assert_eq!(records.records.len(), 40);
    }
}

#[test]
fn too_many_odd_rows_are_an_error_that_lists_the_reasons() {
    let bad = ["{}", "12", "12", r#"{"problem":"p","solution":""}"#];
    let error = Sample::new("a.jsonl", among_good(&bad)).read_within("", MAX_LEFT_OUT);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("4 of 44 rows cannot be used: "), "{error}");
    // Every reason comes with an example.
    for example in [
        "a.jsonl:4: column `problem`: the record lacks it",
        "2 x not a JSON object (",
        "a.jsonl:6: found the number 12",
        "1 x no answer (",
        "a.jsonl:10: the answer is empty",
    ] {
        assert!(error.contains(example), "{example} in {error}");
    }
    assert!(error.ends_with("data.max_left_out allows 0.05 of a file's rows"), "{error}");
    // The same rows within a share that allows them.
    let records = Sample::new("a.jsonl", among_good(&bad)).read_within("", 0.1).unwrap();
    assert_eq!((records.records.len(), records.left_out.rows()), (40, 4));
    assert_adds_up(&records);
    // None is allowed with a share of 0, and a file of nothing else is an error with any.
    assert!(Sample::new("a.jsonl", among_good(&bad[..1])).read_within("", 0.0).is_err());
    let all = Sample::new("a.jsonl", "{\"problem\":\"p\",\"solution\":\"\"}\n12");
    let error = all.read_within("", 1.0).unwrap_err().to_string();
    assert!(error.contains("2 of 2 rows cannot be used"), "{error}");
}

#[test]
fn a_share_that_is_none_is_refused() {
    for share in [-0.1, 1.5, f64::NAN] {
        match Sample::new("a.jsonl", GOOD).read_within("", share) {
            Err(Error::Config { key, .. }) => assert_eq!(key, "data.max_left_out"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn rows_without_an_optional_column_are_kept() {
    let text = "{\"problem\":\"p1\",\"solution\":\"s\",\"id\":1,\"answer\":4}\n\
                {\"problem\":\"p2\",\"solution\":\"s\"}\n\
                {\"problem\":\"p3\",\"solution\":\"s\",\"id\":null,\"answer\":\"5\"}";
    let records = read("a.jsonl", text, "");
    let found: Vec<_> =
        records.records.iter().map(|r| (r.id.as_deref(), r.answer.as_deref())).collect();
    assert_eq!(found, [(Some("1"), Some("4")), (None, None), (None, Some("5"))]);
    assert!(records.left_out.is_empty());
}

#[test]
fn verdicts_do_not_count_towards_the_share() {
    let line = |n: usize, verdict: &str| {
        format!("{{\"problem\":\"{n}?\",\"solution\":\"{n}\",\"ok\":{verdict}}}\n")
    };
    let text = [line(1, "true"), line(2, "null"), line(3, "false"), line(4, "null")].concat();
    let sample = Sample::new("a.jsonl", &text);
    let records = sample.read_within("correct=ok", 0.0).unwrap();
    assert_eq!((records.records.len(), records.wrong, records.without_verdict), (1, 1, 2));
    assert_adds_up(&records);
    let map = ColumnMap::parse("correct=ok").unwrap();
    let source = Source::read("long", &sample.path, &map, 0.0).unwrap();
    let (_, ledger) = Pairs::join(vec![source], Join::Inner).unwrap();
    assert!(ledger.adds_up());
    let shown = ledger.to_string();
    assert!(shown.contains("long: 2 without a verdict (null) and left out"), "{shown}");
    // Nothing left is an error that says why.
    let none = Sample::new("a.jsonl", text.replace("true", "null"));
    let source = Source::read("long", &none.path, &map, 0.0).unwrap();
    let error = Pairs::join(vec![source], Join::Inner).unwrap_err().to_string();
    assert!(
        error
            .contains("no usable record: of its 4 records, 1 marked as wrong, 3 without a verdict"),
        "{error}"
    );
}

#[test]
fn what_is_left_out_and_which_columns_are_used_stand_in_the_ledger() {
    let rows = (0..30).map(|n| {
        format!(
            "{{\"question\":\"q{n}\",\"output\":\"the output of {n} is this long text\",\
             \"source\":\"web\",\"level\":3,\"tags\":[\"a\"],\"system\":\"Be brief.\"}}"
        )
    });
    let text = rows.chain(["oops".to_owned()]).collect::<Vec<_>>().join("\n");
    let sample = Sample::new("a.jsonl", text);
    let source = Source::read("long", &sample.path, &ColumnMap::default(), MAX_LEFT_OUT).unwrap();
    let (_, ledger) = Pairs::join(vec![source], Join::Inner).unwrap();
    let shown = ledger.to_string();
    for line in [
        "long: columns system=system, problem=question, solution=output",
        "long: columns with text that are not used: source, tags",
        "long: 30 rows with their own system text",
        "long: unusable and left out: 1 row: 1 x not JSON (",
    ] {
        assert!(shown.contains(line), "{line} is not in {shown}");
    }
    // It comes back from ledger.json as it was, and a ledger of an earlier version is read.
    let json = serde_json::to_string(&ledger).unwrap();
    assert_eq!(serde_json::from_str::<mixdistill::data::Ledger>(&json).unwrap(), ledger);
    assert!(json.contains("\"reason\":\"not JSON\",\"rows\":1"), "{json}");
    let old = r#"{"sources":[{"name":"long","read":5,"empty_problems":1,"empty_solutions":1,"wrong":0,
        "duplicates":0,"unmatched":0,"too_long":0,"usable":3,"cut":0,"id_conflicts":0}],"joined":3,
        "without_answer":0,"held_out":0,"training":3}"#;
    assert!(serde_json::from_str::<mixdistill::data::Ledger>(old).unwrap().adds_up());
}

#[test]
fn a_quote_too_many_in_an_array_loses_no_row_silently() {
    let row = |n: usize| format!(r#"{{"problem":"p{n}","solution":"the sum is {n}, so {n}"}}"#);
    let broken = |n: usize| row(n).replace("the sum", "he said \"the sum");
    let array = |rows: &[String], between: &str| format!("[{}]", rows.join(between));
    for between in [",", ",\n", ",\n  "] {
        let mut rows: Vec<String> = (0..60).map(row).collect();
        (rows[3], rows[40]) = (broken(3), broken(40));
        let error = Sample::new("a.json", array(&rows, between)).read_within("", 1.0);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("the records after it cannot be separated"), "{error}");
        // The same rows as lines are told apart.
        let lines = Sample::new("a.jsonl", rows.join("\n")).read_within("", 0.05).unwrap();
        assert_eq!((lines.records.len(), lines.left_out.rows_for("not JSON")), (58, 2));
        // A row that is broken otherwise is left out alone.
        let mut rows: Vec<String> = (0..60).map(row).collect();
        rows[3] = rows[3].replace("\":\"p3\"", "\" \"p3\"");
        let records = Sample::new("a.json", array(&rows, between)).read_within("", 0.05).unwrap();
        assert_eq!((records.records.len(), records.left_out.rows_for("not JSON")), (59, 1));
    }
}

#[test]
fn columns_that_come_late_are_used_or_told() {
    let row = |n: usize| {
        let more = match n {
            0..70 => "",
            _ => r#","reasoning":"I think","system":"Be brief.","context":"So:","remark":"late""#,
        };
        format!(r#"{{"problem":"p{n}","solution":"the answer of {n} is this"{more}}}"#)
    };
    let records = read("a.jsonl", (0..100).map(row).collect::<Vec<_>>().join("\n"), "");
    assert_eq!((records.with_reasoning, records.with_system), (30, 30));
    assert_eq!(records.records[80].problem, "So: p80");
    assert_eq!(records.columns.unused, ["remark"]);
    assert_eq!(
        records.columns.to_string(),
        "system=system, context=context, problem=problem, reasoning=reasoning, solution=solution"
    );
}

#[test]
fn columns_that_are_null_are_no_choice() {
    let rows = |row: &str| vec![row.replace('\n', " "); 10].join("\n");
    let records = read("a.jsonl", rows(r#"{"problem":"p","solution":null,"response":"s"}"#), "");
    assert_eq!(records.columns.solution.as_deref(), Some("response"));
    let conversation = r#"{"problem":null,"solution":null,"messages":[{"role":"user","content":"u"},
        {"role":"assistant","content":"a"}]}"#;
    let records = read("a.jsonl", rows(conversation), "");
    assert_eq!((records.records.len(), records.records[0].problem.as_str()), (10, "u"));
    let beside = r#"{"problem":"p","solution":"s","reasoning_content":null,"thinking":"deep","system":null,
        "system_prompt":"be kind"}"#;
    let records = read("a.jsonl", rows(beside), "");
    assert_eq!((records.with_reasoning, records.with_system), (10, 10));
    // From row to row another one of the usual names.
    let text = "{\"problem\":\"p\",\"solution\":\"s\",\"reasoning\":\"r\"}\n\
                {\"problem\":\"q\",\"solution\":\"s\",\"thinking\":\"r\"}";
    let records = read("a.jsonl", text, "");
    assert_eq!(records.with_reasoning, 2);
    assert_eq!(records.columns.reasoning.as_deref(), Some("reasoning|thinking"));
}

#[test]
fn names_that_no_row_has_are_refused() {
    let pair = r#"{"problem":"p","solution":"s"}"#;
    let turns =
        r#"{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a"}]}"#;
    for (line, columns) in [
        (pair, "reasoning=thougts"),
        (pair, "system=sys"),
        (pair, "context=ctx"),
        (pair, "options=opts"),
        (pair, "id=key"),
        (pair, "answer=gold"),
        (turns, "reasoning=thougts"),
        (turns, "system=sys"),
    ] {
        let error = Sample::new("a.jsonl", line).read_within(columns, 1.0).unwrap_err().to_string();
        let name = columns.split_once('=').unwrap().1;
        assert!(error.contains(name) && error.contains("no record has it"), "{columns}: {error}");
    }
    for columns in ["context=x", "options=x"] {
        let error =
            Sample::new("a.jsonl", turns).read_within(columns, 1.0).unwrap_err().to_string();
        assert!(error.contains("the problem is a turn of a conversation"), "{error}");
    }
}

#[test]
fn many_columns_take_neither_long_nor_many_lines() {
    let columns: Vec<String> =
        (0..80_000).map(|n| format!("\"{}{n}\":\"x\"", "c".repeat(50))).collect();
    let line = format!("{{\"problem\":\"p\",\"solution\":\"s\",{}}}", columns.join(","));
    let records = read("a.jsonl", line, "");
    assert!(records.columns.unused.len() < 100 && records.columns.unused.concat().len() < 10_000);
    assert!(records.columns.unused.last().unwrap().starts_with("and "));
}
