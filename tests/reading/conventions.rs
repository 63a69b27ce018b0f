//! Columns that are recognized, and columns that are named.

use mixdistill::data::{ColumnMap, Join, MAX_LEFT_OUT, Pairs, Source, read_records};

use crate::{Sample, assert_adds_up, assert_config_error, error, only, read};

#[test]
fn every_usual_name_of_problem_and_solution_is_recognized() {
    for problem in ["problem", "question", "prompt", "instruction", "query"] {
        for solution in
            ["solution", "answer", "response", "output", "completion", "generated_solution"]
        {
            let line = format!(r#"{{"{problem}":"p","{solution}":"s","level":3}}"#);
            let records = read("a.jsonl", line, "");
            assert_eq!(only(&records), ("p", "s"));
            assert_eq!(records.columns.problem.as_deref(), Some(problem));
            assert_eq!(records.columns.solution.as_deref(), Some(solution));
            assert_eq!(records.columns.answer, None);
        }
    }
}

#[test]
fn the_first_usual_name_wins() {
    let line = r#"{"instruction":"no","prompt":"no","question":"no","problem":"p",
                   "completion":"no","output":"no","response":"no","answer":"a","solution":"s"}"#
        .replace('\n', " ");
    let records = read("a.jsonl", line, "");
    assert_eq!(only(&records), ("p", "s"));
    assert_eq!(records.records[0].answer.as_deref(), Some("a"));
    assert_eq!(records.columns.to_string(), "problem=problem, solution=solution, answer=answer");
}

#[test]
fn gsm8k_answers_are_solutions_and_never_also_gold_answers() {
    let records = read("a.jsonl", r#"{"question":"1+1?","answer":"1+1=2\n#### 2"}"#, "");
    assert_eq!(only(&records), ("1+1?", "1+1=2\n#### 2"));
    assert_eq!(records.records[0].answer, None);
    assert_eq!(records.columns.to_string(), "problem=question, solution=answer");
}

#[test]
fn every_usual_name_of_gold_answer_and_id_is_recognized() {
    for answer in ["gold_answer", "ground_truth", "final_answer", "expected_answer", "answer"] {
        for id in ["id", "problem_id", "unique_id", "uuid"] {
            let line =
                format!(r#"{{"problem":"p","solution":"s","{answer}":"42","{id}":"aime-1"}}"#);
            let records = read("a.jsonl", line, "");
            assert_eq!(records.records[0].answer.as_deref(), Some("42"));
            assert_eq!(records.records[0].id.as_deref(), Some("aime-1"));
            assert_eq!(records.columns.answer.as_deref(), Some(answer));
            assert_eq!(records.columns.id.as_deref(), Some(id));
        }
    }
}

#[test]
fn numbers_as_id_and_gold_answer_become_text_and_blank_ones_are_none() {
    let lines = r#"{"problem":"p","solution":"s","gold_answer":27.5,"id":7}
{"problem":"p","solution":"s","gold_answer":-3,"id":18446744073709551615}
{"problem":"p","solution":"s","gold_answer":" ","id":null}"#;
    let records = read("a.jsonl", lines, "").records;
    let texts: Vec<_> =
        records.iter().map(|record| (record.answer.as_deref(), record.id.as_deref())).collect();
    assert_eq!(
        texts,
        [(Some("27.5"), Some("7")), (Some("-3"), Some("18446744073709551615")), (None, None)]
    );
}

#[test]
fn alpaca_inputs_are_put_below_their_instruction() {
    let lines = r#"{"instruction":"Add the numbers.","input":"2, 3","output":"5"}
{"instruction":"Count to two.","input":"","output":"1 2"}
{"instruction":"Count to one.","output":"1"}
{"instruction":"Count to none.","input":null,"output":"0"}
{"instruction":" ","input":"lost","output":"0"}"#;
    let records = read("a.jsonl", lines, "");
    let problems: Vec<_> = records.records.iter().map(|record| record.problem.as_str()).collect();
    assert_eq!(
        problems,
        ["Add the numbers.\n\n2, 3", "Count to two.", "Count to one.", "Count to none."]
    );
    assert_eq!(records.empty_problems, 1);
    assert_eq!(records.columns.to_string(), "problem=instruction+input, solution=output");
    assert_adds_up(&records);
}

#[test]
fn an_input_beside_a_named_instruction_is_left_alone() {
    let line = r#"{"instruction":"Add.","input":"2, 3","output":"5"}"#;
    let records = read("a.jsonl", line, "problem=instruction");
    assert_eq!(only(&records), ("Add.", "5"));
    assert_eq!(records.columns.input, None);
}

#[test]
fn messages_of_openai_and_sharegpt_are_read() {
    let openai = r#"{"messages":[{"role":"system","content":"Be brief."},
        {"role":"user","content":"1+1?"},{"role":"assistant","content":"2"}],"id":1}"#;
    let records = read("a.jsonl", openai.replace('\n', " "), "");
    assert_eq!(only(&records), ("1+1?", "2"));
    assert_eq!(records.with_system, 1);
    assert_eq!(records.columns.to_string(), "messages=messages, id=id");

    for (user, assistant) in [("human", "gpt"), ("user", "assistant")] {
        let sharegpt = format!(
            r#"{{"conversations":[{{"from":"{user}","value":"1+1?"}},
            {{"from":"{assistant}","value":"2"}}],"answer":"2"}}"#
        );
        let records = read("a.jsonl", sharegpt.replace('\n', " "), "");
        assert_eq!(only(&records), ("1+1?", "2"));
        assert_eq!(records.records[0].answer.as_deref(), Some("2"));
        assert_eq!(records.with_system, 0);
        assert_eq!(records.columns.messages.as_deref(), Some("conversations"));
    }
}

#[test]
fn prompt_and_completion_can_be_lists_of_messages() {
    let line = r#"{"prompt":[{"role":"system","content":"x"},{"role":"user","content":"1+1?"}],
                   "completion":[{"role":"assistant","content":"2"}]}"#;
    let records = read("a.jsonl", line.replace('\n', " "), "");
    assert_eq!(only(&records), ("1+1?", "2"));
    assert_eq!(records.with_system, 1);
    assert_eq!(records.columns.to_string(), "problem=prompt, solution=completion");
}

#[test]
fn text_columns_win_over_conversations_unless_messages_is_named() {
    let line = r#"{"problem":"p","solution":"s","messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a"}]}"#;
    assert_eq!(only(&read("a.jsonl", line, "")), ("p", "s"));
    assert_eq!(only(&read("a.jsonl", line, "messages=messages")), ("u", "a"));
    // A prompt without a solution beside it is what such datasets repeat from the conversation.
    let line = line.replace("\"solution\":\"s\",", "");
    assert_eq!(only(&read("a.jsonl", line, "")), ("u", "a"));
}

#[test]
fn dotted_paths_reach_into_lists_and_objects() {
    let line = r#"{"q":{"text":["no","p"]},"runs":[{"text":"s"}],"meta":{"answer":5,"id":"x"}}"#;
    let columns = "problem=q.text.1, solution = runs.0.text,answer=meta.answer,id=meta.id";
    let records = read("a.jsonl", line, columns);
    assert_eq!(only(&records), ("p", "s"));
    assert_eq!(records.records[0].answer.as_deref(), Some("5"));
    assert_eq!(records.records[0].id.as_deref(), Some("x"));
    assert_eq!(
        records.columns.to_string(),
        "problem=q.text.1, solution=runs.0.text, answer=meta.answer, id=meta.id"
    );
}

#[test]
fn a_key_that_contains_the_dot_wins_over_the_path() {
    let line = r#"{"problem":"p","a.0":"literal","a":["path"]}"#;
    assert_eq!(only(&read("a.jsonl", line, "solution=a.0")), ("p", "literal"));
}

#[test]
fn a_null_on_a_dotted_path_is_an_empty_text() {
    let lines = r#"{"problem":"p","meta":{"text":"s"}}
{"problem":"p","meta":null}"#;
    let records = read("a.jsonl", lines, "solution=meta.text");
    assert_eq!((records.records.len(), records.empty_solutions), (1, 1));
}

#[test]
fn one_named_column_leaves_the_other_to_be_recognized() {
    let line = r#"{"question":"q","answer":"gold","rationale":"r"}"#;
    let records = read("a.jsonl", line, "solution=rationale");
    assert_eq!(only(&records), ("q", "r"));
    assert_eq!(records.records[0].answer.as_deref(), Some("gold"));
    // The column that is named as the problem is not also taken as the solution.
    let line = r#"{"answer":"jeopardy","response":"question"}"#;
    assert_eq!(only(&read("a.jsonl", line, "problem=answer")), ("jeopardy", "question"));
}

#[test]
fn blank_and_null_texts_are_left_out_and_counted_once() {
    let lines = r#"{"problem":"p1","solution":"s1"}
{"problem":"","solution":"s2"}
{"problem":"p3","solution":"  \n\t"}
{"problem":null,"solution":null}

{"problem":"p5","solution":null}
   
{"problem":"p6","solution":"s6"}
"#;
    let records = read("a.jsonl", lines, "");
    assert_eq!(records.lines, [1, 8]);
    assert_eq!(records.records[1].problem, "p6");
    assert_eq!(
        (records.read, records.empty_problems, records.empty_solutions, records.blank_lines),
        (6, 2, 2, 2)
    );
    assert_adds_up(&records);
}

#[test]
fn a_null_message_is_an_empty_text() {
    let lines = r#"{"messages":[{"role":"system","content":"x"},{"role":"user","content":"u"},{"role":"assistant","content":null}]}
{"messages":null}
{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a"}]}"#;
    let records = read("a.jsonl", lines, "");
    assert_eq!((records.empty_solutions, records.empty_problems), (1, 1));
    assert_adds_up(&records);
}

#[test]
fn texts_are_kept_to_the_letter() {
    let records = read(
        "a.jsonl",
        r#"{"problem":" p\r\n","solution":"\n<think>\u00e9\u0000 </think> a "}"#,
        "",
    );
    assert_eq!(only(&records), (" p\r\n", "\n<think>é\0 </think> a "));
}

#[test]
fn column_maps_are_parsed() {
    let map = ColumnMap::parse("problem=question, solution = generated_responses.0 ").unwrap();
    assert_eq!(
        map,
        ColumnMap {
            problem: Some("question".into()),
            solution: Some("generated_responses.0".into()),
            ..ColumnMap::default()
        }
    );
    assert_eq!(ColumnMap::parse("id=a=b").unwrap().id.as_deref(), Some("a=b"));
}

#[test]
fn wrong_column_maps_are_refused_with_the_reason() {
    for (text, what) in [
        ("", "`` has no `=`"),
        ("question", "`question` has no `=`"),
        ("problem=question,", "`` has no `=`"),
        ("problme=question", "unknown key `problme`"),
        ("problem=", "`problem` names no column"),
        ("problem= ,id=x", "`problem` names no column"),
        ("problem=a,problem=b", "`problem` is given twice"),
        ("problem=,problem=b", "`problem` is given twice"),
        ("messages=m,problem=p", "`messages` is combined with `problem` or `solution`"),
        ("problem=a,solution=a", "problem and solution name the same column"),
    ] {
        assert_config_error(ColumnMap::parse(text), what);
    }
}

#[test]
fn column_maps_from_settings_files_are_checked_too() {
    let map: ColumnMap = serde_json::from_str(r#"{"problem":"question"}"#).unwrap();
    assert_eq!(map, ColumnMap::parse("problem=question").unwrap());
    assert_eq!(serde_json::to_string(&map).unwrap(), r#"{"problem":"question"}"#);
    assert!(serde_json::from_str::<ColumnMap>(r#"{"porblem":"question"}"#).is_err());

    let sample = Sample::new("a.jsonl", r#"{"problem":"p","solution":"s"}"#);
    let map = ColumnMap { solution: Some(String::new()), ..ColumnMap::default() };
    assert_config_error(
        read_records(&sample.path, &map, MAX_LEFT_OUT),
        "`solution` names no column",
    );
}

#[test]
fn a_column_that_is_not_recognized_is_reported_with_the_names_that_are() {
    assert_eq!(
        error("a.jsonl", r#"{"q":"p","a":"s"}"#, ""),
        "a.jsonl:1: no column is recognized as the problem; the record's columns are `a`, `q`. \
         Name it with problem=<column>; recognized names are `problem`, `question`, `prompt`, \
         `instruction`, `query`, and `messages`, `conversations` for conversations (setting \
         `columns.problem`)"
    );
    assert_eq!(
        error("a.jsonl", "\n{\"problem\":\"p\",\"cot\":\"s\"}", ""),
        "a.jsonl:2: no column is recognized as the solution; the record's columns are `cot`, \
         `problem`. Name it with solution=<column>; recognized names are `solution`, `answer`, \
         `response`, `output`, `completion`, `generated_solution`, and `messages`, `conversations` \
         for conversations (setting `columns.solution`)"
    );
}

#[test]
fn answers_that_are_marked_as_wrong_are_left_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let line = |n: usize, correct: &str| {
        format!("{{\"problem\": \"{n}?\", \"a\": {{\"text\": \"{n}\", \"ok\": {correct}}}}}\n")
    };
    let text = [line(1, "true"), line(2, "false"), line(3, "1"), line(4, "0")].concat();
    std::fs::write(&path, &text).unwrap();
    let map = ColumnMap::parse("solution=a.text,correct=a.ok").unwrap();
    let records = read_records(&path, &map, MAX_LEFT_OUT).unwrap();
    let kept: Vec<&str> = records.records.iter().map(|r| r.solution.as_str()).collect();
    assert_eq!((kept, records.wrong, records.read), (vec!["1", "3"], 2, 4));
    assert_eq!(records.lines, [1, 3]);
    assert!(records.columns.to_string().contains("correct=a.ok"));
    let source = Source::read("teacher", &path, &map, MAX_LEFT_OUT).unwrap();
    let (_, ledger) = Pairs::join(vec![source], Join::Inner).unwrap();
    assert_eq!(ledger.sources[0].wrong, 2);
    assert!(ledger.sources[0].adds_up());
    assert!(ledger.to_string().contains("2 marked as wrong"), "{ledger}");
    // Without the name nothing is left out; what is no verdict is an error with its place.
    let map = ColumnMap::parse("solution=a.text").unwrap();
    assert_eq!(read_records(&path, &map, MAX_LEFT_OUT).unwrap().records.len(), 4);
    std::fs::write(&path, text + &line(5, "\"maybe\"")).unwrap();
    let map = ColumnMap::parse("solution=a.text,correct=a.ok").unwrap();
    let error = read_records(&path, &map, 0.0).unwrap_err().to_string();
    assert!(error.contains(":5") && error.contains("maybe"), "{error}");
    let records = read_records(&path, &map, MAX_LEFT_OUT).unwrap();
    assert_eq!((records.left_out.rows(), records.wrong, records.records.len()), (1, 2, 2));
}
