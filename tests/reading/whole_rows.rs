//! A record has everything that its row has: reasoning beside an answer, system texts, context,
//! options, and parts of a message. Each can be left out by a setting.

use crate::{Sample, assert_adds_up, error, only, read};

const THOUGHT: &str = "<think>\n1 and 1\n</think>\n\nIt is 2.";

fn conversation(assistant: &str) -> String {
    format!(
        r#"{{"messages":[{{"role":"user","content":"1+1?"}},{{"role":"assistant",{assistant}}}]}}"#
    )
}

#[test]
fn reasoning_beside_an_answer_comes_before_it() {
    for key in ["reasoning_content", "reasoning", "thinking"] {
        let turn = conversation(&format!(r#""content":"It is 2.","{key}":"1 and 1""#));
        let records = read("a.jsonl", &turn, "");
        assert_eq!((only(&records), records.with_reasoning), (("1+1?", THOUGHT), 1));
        assert_eq!(only(&read("a.jsonl", &turn, "reasoning=none")), ("1+1?", "It is 2."));
        let column = format!(r#"{{"problem":"1+1?","solution":"It is 2.","{key}":"1 and 1"}}"#);
        let records = read("a.jsonl", &column, "");
        assert_eq!(only(&records), ("1+1?", THOUGHT));
        assert!(records.columns.to_string().contains(&format!("reasoning={key}, solution")));
        let without = read("a.jsonl", &column, "reasoning=none");
        assert_eq!(only(&without), ("1+1?", "It is 2."));
        assert_eq!(without.columns.unused, [key]);
        let lists = format!(
            r#"{{"prompt":[{{"role":"user","content":"1+1?"}}],
                "completion":[{{"role":"assistant","content":"It is 2.","{key}":"1 and 1"}}]}}"#
        );
        assert_eq!(only(&read("a.jsonl", lists.replace('\n', " "), "")).1, THOUGHT);
    }
    // A field that is not read is told.
    let thought = conversation(r#""content":"It is 2.","thought":"1 and 1","weight":1"#);
    let records = read("a.jsonl", &thought, "");
    assert_eq!(records.columns.unused, ["messages.*.thought"]);
    assert_eq!(records.with_reasoning, 0);
    assert_eq!(read("a.jsonl", &thought, "reasoning=thought").columns.unused, [""; 0]);
    // ShareGPT's form, a key of its own, and parts that are marked as thinking.
    let shared = r#"{"conversations":[{"from":"human","value":"1+1?"},
        {"from":"gpt","value":"It is 2.","thought":"1 and 1"}]}"#
        .replace('\n', " ");
    assert_eq!(only(&read("a.jsonl", &shared, "reasoning=thought")).1, THOUGHT);
    let parts = conversation(
        r#""content":[{"type":"thinking","thinking":"1 and 1"},{"type":"text","text":"It is 2."}]"#,
    );
    assert_eq!(only(&read("a.jsonl", &parts, "")).1, THOUGHT);
    assert_eq!(only(&read("a.jsonl", &parts, "reasoning=none")).1, "It is 2.");
}

#[test]
fn reasoning_is_never_there_twice_and_never_lost() {
    let json = |text: &str| serde_json::to_string(text).unwrap();
    let repeated =
        conversation(&format!(r#""content":{},"reasoning_content":"1 and 1""#, json(THOUGHT)));
    assert_eq!(only(&read("a.jsonl", repeated, "")).1, THOUGHT);
    let marked = conversation(r#""content":"It is 2.","reasoning":"<think>1 and 1</think>""#);
    assert_eq!(only(&read("a.jsonl", marked, "")).1, THOUGHT);
    let null = conversation(r#""content":"It is 2.","reasoning_content":null,"thinking":"  ""#);
    assert_eq!(only(&read("a.jsonl", null, "")).1, "It is 2.");
    let other =
        conversation(&format!(r#""content":{},"reasoning_content":"2 and 0""#, json(THOUGHT)));
    let two = error("a.jsonl", other, "");
    assert!(two.contains("differs from the separate reasoning"), "{two}");
    let wrong = conversation(r#""content":"It is 2.","reasoning":{"steps":1}"#);
    assert!(error("a.jsonl", wrong, "").contains("`reasoning`: found an object"));
}

#[test]
fn an_answer_of_reasoning_alone_is_unusable_and_counted() {
    let good = conversation(r#""content":"It is 2.","reasoning":"1 and 1""#);
    let alone = conversation(r#""content":null,"reasoning":"1 and 1""#);
    let missing = conversation(r#""reasoning":"1 and 1""#);
    let records = read("a.jsonl", format!("{good}\n{alone}\n{missing}"), "");
    assert_eq!(records.left_out.rows_for("no answer, only reasoning"), 2);
    assert_eq!((records.records.len(), records.empty_solutions), (1, 2));
    assert_adds_up(&records);
    let all = error("a.jsonl", format!("{alone}\n{missing}"), "");
    assert!(all.contains("2 of 2 rows cannot be used: 2 x no answer, only reasoning"), "{all}");
}

#[test]
fn system_texts_are_part_of_the_record() {
    let system = r#"{"role":"system","content":"Be brief."}"#;
    let user = r#"{"role":"user","content":"1+1?"}"#;
    let answer = r#"{"role":"assistant","content":"2"}"#;
    let of = |line: &str, columns: &str| {
        let records = read("a.jsonl", line.replace('\n', " "), columns);
        assert_eq!(only(&records), ("1+1?", "2"));
        records.records[0].system.clone()
    };
    let turn = format!(r#"{{"messages":[{system},{user},{answer}]}}"#);
    assert_eq!(of(&turn, "").as_deref(), Some("Be brief."));
    assert_eq!(of(&turn, "system=none"), None);
    let developer = turn.replace("\"system\"", "\"developer\"");
    assert_eq!(of(&developer, "").as_deref(), Some("Be brief."));
    let two = format!(r#"{{"messages":[{system},{system},{user},{answer}]}}"#);
    assert_eq!(of(&two, "").as_deref(), Some("Be brief.\n\nBe brief."));
    for key in ["system", "system_prompt"] {
        let column = format!(r#"{{"{key}":"Be brief.","conversations":[{user},{answer}]}}"#);
        assert_eq!(of(&column, "").as_deref(), Some("Be brief."));
        let column = format!(r#"{{"{key}":"Be brief.","problem":"1+1?","solution":"2"}}"#);
        assert_eq!(of(&column, "").as_deref(), Some("Be brief."));
        assert_eq!(of(&column, "system=none"), None);
        let both = format!(r#"{{"{key}":"Be brief.","messages":[{system},{user},{answer}]}}"#);
        assert_eq!(of(&both, "").as_deref(), Some("Be brief."));
    }
    let prompt = format!(r#"{{"prompt":[{system},{user}],"completion":"2"}}"#);
    assert_eq!(of(&prompt, "").as_deref(), Some("Be brief."));
    let late = format!(r#"{{"messages":[{user},{system},{answer}]}}"#);
    assert!(error("a.jsonl", late, "").contains("message 2: a system turn follows another turn"));
}

#[test]
fn context_and_options_belong_to_the_problem() {
    let dolly =
        r#"{"instruction":"How many are there?","context":"There are 3 balls","response":"3"}"#;
    let records = read("a.jsonl", dolly, "");
    assert_eq!(only(&records), ("There are 3 balls. How many are there?", "3"));
    assert_eq!(
        records.columns.to_string(),
        "context=context, problem=instruction+input, solution=response"
    );
    assert_eq!(only(&read("a.jsonl", dolly, "context=none")), ("How many are there?", "3"));
    for key in ["options", "choices"] {
        let line = format!(
            r#"{{"question":"Which?","{key}":["red","green"],"answer":"It is green, so B."}}"#
        );
        let records = read("a.jsonl", &line, "");
        assert_eq!(only(&records), ("Which?\nA) red\nB) green", "It is green, so B."));
        assert_eq!(only(&read("a.jsonl", &line, "options=none")).0, "Which?");
    }
    // They may come and go from row to row.
    let text = "{\"problem\":\"a\",\"solution\":\"s\",\"context\":\"\"}\n\
                {\"problem\":\"b\",\"solution\":\"s\"}\n\
                {\"problem\":\"c\",\"solution\":\"s\",\"context\":\"So:\"}";
    let problems: Vec<String> =
        read("a.jsonl", text, "").records.into_iter().map(|r| r.problem).collect();
    assert_eq!(problems, ["a", "b", "So: c"]);
    let odd = r#"{"question":"Which?","options":[["x"]],"answer":"x"}"#;
    let odd = error("a.jsonl", odd, "");
    assert!(odd.contains("its option A is not text") && odd.contains("options=none"), "{odd}");
}

#[test]
fn a_column_of_bare_answers_is_not_taken_for_solutions_silently() {
    // s1K: reasoning and answer in two columns, the reference in the one that looks right.
    let row = |n: usize| {
        format!(
            r#"{{"question":"q{n}","solution":"{n}","thinking_trajectories":["I think of {n}."],
                "attempt":"It is {n}, as I have shown above.","cot_type":"math"}}"#
        )
        .replace('\n', " ")
    };
    let text = (0..5).map(row).collect::<Vec<_>>().join("\n");
    let records = read("a.jsonl", &text, "");
    assert_eq!(
        records.columns.to_string(),
        "problem=question, reasoning=thinking_trajectories.0, solution=attempt, answer=solution"
    );
    assert_eq!(
        records.records[3].solution,
        "<think>\nI think of 3.\n</think>\n\nIt is 3, as I have shown above."
    );
    assert_eq!(records.columns.unused, ["cot_type"]);
    // Any two columns can be joined.
    let other = text.replace("attempt", "reply").replace("thinking_trajectories", "notes");
    let joined = read("a.jsonl", &other, "reasoning=notes.0,solution=reply");
    assert_eq!(joined.records[3].solution, records.records[3].solution);
    // Where nothing says which, there is a warning.
    let warned = read("a.jsonl", &other, "");
    assert_eq!(warned.records[3].solution, "3");
    let notes = warned.columns.notes.join("\n");
    assert!(notes.starts_with("warning: the solutions in `solution` are bare"), "{notes}");
    assert_eq!(warned.columns.unused, ["cot_type", "notes", "reply"]);
    // Another usual name with working is read in its place, and that is said.
    let usual = text.replace("attempt", "response").replace("thinking_trajectories", "steps");
    let records = read("a.jsonl", &usual, "");
    assert_eq!(records.columns.solution.as_deref(), Some("response"));
    assert_eq!(records.columns.answer.as_deref(), Some("solution"));
    assert!(records.columns.notes[0].contains("`response` is read as the solution"));
    // s1K has whole solutions among the bare ones; its pair of columns is read all the same.
    let mixed =
        text.replacen("\"solution\":\"0\"", "\"solution\":\"A whole solution, step by step.\"", 1);
    let records = read("a.jsonl", &mixed, "");
    assert_eq!(records.columns.solution.as_deref(), Some("attempt"));
    assert!(records.columns.notes[0].contains("are read as reasoning and solution"));
    // Files of short answers alone are no reason to warn.
    let short = r#"{"problem":"2+2?","solution":"4"}"#;
    assert_eq!(read("a.jsonl", short, "").columns.notes, [""; 0]);
}

#[test]
fn lists_that_are_written_as_text_are_read() {
    let turns = r#"[{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]"#;
    let line = serde_json::json!({ "messages": turns }).to_string();
    assert_eq!(only(&read("a.jsonl", line, "")), ("1+1?", "2"));
    let prompt = r#"[{"role": "user", "content": "1+1?"}]"#;
    let line = serde_json::json!({ "prompt": prompt, "response": "[2]" }).to_string();
    assert_eq!(only(&read("a.jsonl", line, "")), ("1+1?", "[2]"));
    let line = serde_json::json!({ "problem": "1+1?", "runs": "[\"a\", \"b\"]" }).to_string();
    assert_eq!(only(&read("a.jsonl", line, "solution=runs.1")), ("1+1?", "b"));
    let python = r#"{"messages":"[{'role': 'user', 'content': 'u'}]"}"#;
    let python = error("a.jsonl", python, "");
    assert!(python.contains("a list in Python's notation"), "{python}");
}

#[test]
fn parts_of_a_message_are_joined() {
    let line = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"1"},"+1?"]},
        {"role":"assistant","content":[{"type":"text","text":"2"}]}]}"#
        .replace('\n', " ");
    assert_eq!(only(&read("a.jsonl", line, "")), ("1+1?", "2"));
    let image = r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]},
        {"role":"assistant","content":"2"}]}"#
        .replace('\n', " ");
    assert!(error("a.jsonl", image, "").contains("found a part `image_url`, expected text"));
    // Mistral's form of thinking.
    let nested = r#"{"messages":[{"role":"User","content":"1+1?"},{"role":"assistant","content":
        [{"type":"thinking","thinking":[{"type":"text","text":"1 and 1"}]},
         {"type":"text","text":"It is 2."}]}]}"#
        .replace('\n', " ");
    assert_eq!(only(&read("a.jsonl", nested, "")).1, THOUGHT);
    let column = r#"{"prompt":[{"type":"text","text":"1+1?"}],"completion":"2"}"#;
    assert_eq!(only(&read("a.jsonl", column, "")), ("1+1?", "2"));
}

#[test]
fn json_of_other_writers_is_read() {
    for (name, open, close) in [("a.jsonl", "", ""), ("a.json", "[", "]")] {
        let line = r#"{"problem":"p\ud83d!","solution":"s","score":NaN,"id":123456789012345678901,
            "answer":-Infinity}"#
            .replace('\n', " ");
        let records = read(name, format!("{open}{line}{close}"), "");
        assert_eq!(only(&records), ("p\u{fffd}!", "s"));
        assert_eq!(records.broken_characters, 1);
        assert_eq!(records.records[0].id.as_deref(), Some("123456789012345678901"));
        assert_eq!(records.records[0].answer, None);
    }
    // NaN where text is wanted is a null: the row is left out, and no other.
    let text = "{\"problem\":\"p\",\"solution\":\"s\"}\n{\"problem\":\"q\",\"solution\":NaN}";
    let records = Sample::new("a.jsonl", text).read_within("", 0.05).unwrap();
    assert_eq!((records.records.len(), records.empty_solutions), (1, 1));
}
