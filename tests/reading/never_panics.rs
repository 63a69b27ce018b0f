//! No file makes the reader panic, and what it reads adds up.

use mixdistill::data::{ColumnMap, read_records};
use proptest::prelude::*;
use serde_json::{Map, Value};

use crate::{Sample, assert_adds_up};

/// Reads any file by any map; whether that works does not matter here.
fn read_any(name: &str, content: &[u8], map: &ColumnMap) {
    let sample = Sample::new(name, content);
    match read_records(&sample.path, map, 0.5) {
        Ok(records) => assert_adds_up(&records),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn names() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a.jsonl", "a.json", "a.parquet", "a", "a.csv", "a.tsv", "a.json.gz"])
}

/// Keys that the reader looks for, and others.
fn keys() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec![
            "problem", "question", "prompt", "instruction", "input", "solution", "answer",
            "completion", "id", "messages", "conversations", "role", "content", "from", "value",
            "generations", "correctness_math_verify", "is_reasoning_complete", "deepseek_reasoning",
            "deepseek_solution", "ground_truth_solution",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        2 => any::<String>().prop_map(Value::from),
        3 => prop::sample::select(vec!["user", "human", "assistant", "gpt", "system", "", " "])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys(), inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// A conversation, or nearly.
fn conversations() -> impl Strategy<Value = Value> {
    let turn = (
        prop::sample::select(vec!["system", "user", "human", "assistant", "gpt", "tool"]),
        prop_oneof![any::<String>().prop_map(Value::from), Just(Value::Null)],
        any::<bool>(),
    );
    prop::collection::vec(turn, 0..4).prop_map(|turns| {
        turns
            .into_iter()
            .map(|(role, text, sharegpt)| {
                let (role_key, text_key) =
                    if sharegpt { ("from", "value") } else { ("role", "content") };
                let turn: Map<_, _> =
                    [(role_key.to_owned(), role.into()), (text_key.to_owned(), text)]
                        .into_iter()
                        .collect();
                Value::Object(turn)
            })
            .collect()
    })
}

/// A record as datasets have them, or nearly.
fn records() -> impl Strategy<Value = Value> {
    let value = prop_oneof![3 => any::<String>().prop_map(Value::from), 1 => values(), 1 => conversations()];
    prop_oneof![
        6 => prop::collection::vec((keys(), value), 1..8)
            .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        1 => values(),
    ]
}

fn maps() -> impl Strategy<Value = ColumnMap> {
    let column = || {
        prop::option::weighted(
            0.2,
            prop_oneof![
                keys(),
                (keys(), keys()).prop_map(|(outer, inner)| format!("{outer}.{inner}")),
                (keys(), 0..3_usize).prop_map(|(outer, index)| format!("{outer}.{index}.content")),
                prop::sample::select(vec!["", ".", "..", "0", ".0", "none", "problem.", "é.ü.0"])
                    .prop_map(str::to_owned),
            ],
        )
    };
    let texts = (column(), column(), column(), column(), column());
    let beside = (column(), column(), column(), column(), column(), column());
    (texts, beside).prop_map(|(texts, beside)| {
        let (problem, solution, id, answer, messages) = texts;
        let (correct, reasoning, system, context, options, score) = beside;
        ColumnMap {
            problem,
            solution,
            id,
            answer,
            messages,
            correct,
            reasoning,
            system,
            context,
            options,
            score,
        }
    })
}

proptest! {
    #[test]
    fn on_random_bytes(
        name in names(),
        head in prop::sample::select(vec![
            &b""[..], b"{", b"[", b"[{", b"PAR1", b"\xEF\xBB\xBF", b"\xEF\xBB\xBF\n{\"", b"{\"problem\":",
            b"\x1F\x8B\x08\0\0\0\0\0\0\xFF", b"\x28\xB5\x2F\xFD", b"problem,solution\n\"",
        ]),
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        map in maps(),
    ) {
        read_any(name, &[head, &bytes].concat(), &map);
    }

    #[test]
    fn on_random_json(
        name in names(),
        records in prop::collection::vec(records(), 0..5),
        map in maps(),
        as_array in any::<bool>(),
    ) {
        let text = if as_array {
            serde_json::to_string(&records).unwrap()
        } else {
            records.iter().map(|record| format!("{record}\n")).collect()
        };
        read_any(name, text.as_bytes(), &map);
    }

    #[test]
    fn on_json_with_a_few_bytes_changed(
        records in prop::collection::vec(records(), 1..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut text = serde_json::to_vec(&records).unwrap();
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        text.truncate(1 + cut.index(text.len()));
        read_any("a.json", &text, &ColumnMap::default());
        read_any("a.jsonl", &text[1..], &ColumnMap::default());
    }

    #[test]
    fn on_random_column_maps(text in "\\PC*", keyed in "(problem|id|x)?=?[a.,= ]{0,6}(,|=)?(answer=.*)?") {
        let _ = ColumnMap::parse(&text);
        if let Ok(map) = ColumnMap::parse(&keyed) {
            let again = serde_json::to_string(&map).unwrap();
            prop_assert_eq!(serde_json::from_str::<ColumnMap>(&again).unwrap(), map);
        }
    }

    #[test]
    fn and_what_it_wrote_is_what_it_reads(
        texts in prop::collection::vec(
            (any::<String>(), any::<String>(), prop::option::of(any::<String>())),
            1..5,
        ),
        as_array in any::<bool>(),
    ) {
        let lines: Vec<String> = texts
            .iter()
            .map(|(problem, solution, answer)| {
                serde_json::json!({"problem": problem, "solution": solution, "gold_answer": answer})
                    .to_string()
            })
            .collect();
        let text = if as_array { format!("[{}]", lines.join(",")) } else { lines.join("\n") };
        let read = Sample::new("a", text).read("");
        let blank = |text: &String| text.trim().is_empty();
        // A file without a single usable record is an error.
        if texts.iter().all(|(problem, solution, _)| blank(problem) || blank(solution)) {
            prop_assert!(read.is_err());
            return Ok(());
        }
        let records = read.unwrap();
        assert_adds_up(&records);
        prop_assert_eq!(records.read, texts.len());
        for (record, line) in records.records.iter().zip(&records.lines) {
            let (problem, solution, _) = &texts[*line as usize - 1];
            prop_assert_eq!((&record.problem, &record.solution), (problem, solution));
        }
    }

    #[test]
    fn and_what_a_table_holds_is_what_is_read(
        texts in prop::collection::vec(("[a,\"\n\r\té ]{0,6}", "[a,\"\n\r\té ]{0,6}"), 1..6),
        is_quoted in any::<bool>(),
        end in prop::sample::select(vec!["\n", "\r\n"]),
        has_last_end in any::<bool>(),
    ) {
        let field = |text: &String| {
            // Of several fields a blank row is one with quotes, too.
            let needs = text.contains([',', '"', '\n', '\r']);
            if needs || is_quoted { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.clone() }
        };
        let mut table = format!("problem,solution{end}");
        let mut lines = vec![];
        for (index, (problem, solution)) in texts.iter().enumerate() {
            lines.push(1 + table.matches('\n').count());
            table.push_str(&format!("{},{}", field(problem), field(solution)));
            if has_last_end || index + 1 < texts.len() {
                table.push_str(end);
            }
        }
        let read = Sample::new("a.csv", table).read("");
        let says = |(problem, solution): &&(String, String)| {
            !problem.trim().is_empty() && !solution.trim().is_empty()
        };
        let expected: Vec<&(String, String)> = texts.iter().filter(says).collect();
        if expected.is_empty() {
            prop_assert!(read.is_err());
            return Ok(());
        }
        let records = read.unwrap();
        assert_adds_up(&records);
        prop_assert_eq!(records.read, texts.len());
        prop_assert_eq!(records.records.len(), expected.len());
        for ((record, line), (problem, solution)) in
            records.records.iter().zip(&records.lines).zip(expected)
        {
            prop_assert_eq!((&record.problem, &record.solution), (problem, solution));
            prop_assert!(lines.contains(&(*line as usize)));
        }
    }
}
