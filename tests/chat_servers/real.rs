//! A real model: SmolLM2-135M-Instruct, served by this library over HTTP, and run in the process.

use crate::server::{Manner, Server, says};
use crate::{rows, rows_of, run, sums};
use mixdistill::context::{Context, StopFlag};
use mixdistill::teacher::{Keep, LocalConfig, LocalTeacher, Teacher, TeacherConfig, TeacherPrompt};
use serde_json::json;

/// Problems that so small a model can answer now and then.
const PROBLEMS: [(&str, u64); 8] = [
    ("What is 2 + 3?", 5),
    ("What is 10 + 5?", 15),
    ("What is 7 + 1?", 8),
    ("What is 4 times 2?", 8),
    ("Tom has 3 apples and gets 2 more. How many apples has he?", 5),
    ("What is 100 - 1?", 99),
    ("What is 6 + 6?", 12),
    ("A cat has 4 legs. How many legs have 2 cats?", 8),
];

#[test]
fn a_real_model_behind_http_and_in_the_process_answers_alike() {
    let Ok(model) = std::env::var("MIXDISTILL_SMOLLM2") else {
        eprintln!("skipped: MIXDISTILL_SMOLLM2 does not name the folder of SmolLM2-135M-Instruct");
        return;
    };
    let local = LocalConfig { model, max_tokens: 96, batch_size: 4, ..LocalConfig::default() };
    let teacher = LocalTeacher::load(local.clone(), &Context::default()).unwrap();
    let served = Server::start(move |request| {
        let question =
            TeacherPrompt { system: None, prompt: request.prompt.clone(), seed: 0, n: 1 };
        let responses = teacher.ask(&[question], &StopFlag::default()).unwrap();
        let sample = &responses[0].samples[0];
        let mut json = says(&sample.content, sample.finish_reason.as_deref().unwrap());
        json["usage"]["completion_tokens"] = responses[0].completion_tokens.into();
        Manner::Json(json)
    });
    let folder = tempfile::tempdir().unwrap();
    let mut config = sums(folder.path(), 0, [&served, &served]);
    let lines = PROBLEMS.map(|(problem, answer)| {
        json!({ "question": problem, "answer": format!("#### {answer}") }).to_string() + "\n"
    });
    std::fs::write(&config.problems, lines.concat()).unwrap();
    config.instruct = false;
    // So that all are asked of both.
    config.keep = Keep::Either;
    config.long.server.as_mut().unwrap().timeout = 120;
    config.short = TeacherConfig { local: Some(local), ..TeacherConfig::default() };
    let out = folder.path().join("pairs");
    let report = run(&config, &out).unwrap();
    // The same greedy answers, alone over HTTP and in batches here.
    assert_eq!(report.long.with_correct, report.short.with_correct);
    assert_eq!(report.pairs, report.long.with_correct);
    assert!(report.pairs >= 3, "{report:?}");
    let pairs = rows(&out.join("pairs.jsonl"));
    assert!(pairs.iter().all(|pair| pair["long"] == pair["short"]));
    assert_eq!(rows_of(&out, "long.jsonl"), report.pairs);
    assert!(report.short.tokens[0] > 100 && report.short.tokens[1] > 10);
    // Nobody is asked again.
    served.requests();
    let again = run(&config, &out).unwrap();
    assert_eq!((again.long.requests_new, again.short.requests_new), (0, 0));
    assert_eq!((served.requests().len(), again.pairs), (0, report.pairs));
}
