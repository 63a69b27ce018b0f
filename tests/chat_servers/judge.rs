//! A judge is asked only about misses. Whatever the server does, the result is a verdict or an
//! error with a hint.

use super::server::{Manner, Server, says};
use mixdistill::Error;
use mixdistill::context::{Context, Event, Observer, StopFlag, Task};
use mixdistill::eval::{Benchmark, BenchmarkProblem, GradedAnswer, Scores, judge_misses};
use mixdistill::teacher::{ChatClient, ChatConfig};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A server that gives these answers (status, headers, body), one after the other, and then dies.
fn server(answers: Vec<(u16, &'static str, String)>) -> Server {
    let answers = Mutex::new(answers.into_iter());
    Server::start(move |_| match answers.lock().unwrap().next() {
        Some((status, headers, body)) => Manner::Status(status, headers.into(), body),
        None => Manner::Dies,
    })
}

fn verdict(text: &str) -> (u16, &'static str, String) {
    (200, "", says(text, "stop").to_string())
}

fn client(url: &str) -> ChatClient {
    let config = ChatConfig {
        url: url.into(),
        model: "judge".into(),
        key_variable: "MIXDISTILL_TEST_NO_KEY".into(),
        timeout: 5,
        retries: 1,
        ..ChatConfig::default()
    };
    ChatClient::new(config).unwrap()
}

fn benchmark() -> Benchmark {
    let problem = |id: &str| BenchmarkProblem {
        id: id.into(),
        problem: format!("Problem {id}?"),
        reference: "7".into(),
        ..BenchmarkProblem::default()
    };
    Benchmark {
        name: "b".into(),
        problems: ["1", "2", "3", "4"].map(problem).to_vec(),
        has_ids: true,
        ..Benchmark::default()
    }
}

/// How far the judging was.
#[derive(Default)]
struct Seen(Vec<(u64, u64)>);

impl Observer for Seen {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        if let Event::Task { task: Task::Judge, progress } = event {
            self.0.push((progress.done, progress.total));
        }
        Ok(())
    }
}

fn nobody() -> Context<'static> {
    Context::default()
}

#[test]
fn only_misses_that_state_something_are_judged() {
    let benchmark = benchmark();
    let texts = [r"\boxed{7}", r"\boxed{\text{the lucky number}}", r"\boxed{8}", "I do not know"];
    let mut answers: Vec<GradedAnswer> = benchmark
        .problems
        .iter()
        .zip(texts)
        .map(|(problem, text)| GradedAnswer::of(problem, 0, text.into(), false))
        .collect();
    let judge = server(vec![verdict("Yes."), verdict("No, it is not.")]);
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("verdicts.jsonl");
    let mut seen = Seen::default();
    let context = Context::new(&mut seen, &StopFlag::default());
    let unclear = judge_misses(&mut answers, &mut client(&judge.url), &store, &context).unwrap();
    drop(context);
    assert_eq!((seen.0, unclear), (vec![(1, 2), (2, 2)], 0));
    // Nothing is asked twice: the server is gone, and the verdicts are there. One that was cut off is
    // asked again.
    answers.iter_mut().for_each(|answer| answer.by_judge = None);
    let again = |answers: &mut [GradedAnswer], url: &str| {
        judge_misses(answers, &mut client(url), &store, &nobody())
    };
    again(&mut answers, &judge.url).unwrap();
    let text = std::fs::read_to_string(&store).unwrap();
    std::fs::write(&store, &text[..text.len() - 9]).unwrap();
    let third = server(vec![verdict("I cannot tell.")]);
    let mut unsure = answers.clone();
    assert_eq!(again(&mut unsure, &third.url).unwrap(), 1);
    assert_eq!(unsure[2].by_judge, None);
    // Another judge says what it thinks; what is no store of verdicts stays as it is.
    let other = server(vec![verdict("No."), verdict("No.")]);
    let config = ChatConfig { model: "other".into(), ..client(&other.url).config().clone() };
    let mut other = ChatClient::new(config).unwrap();
    let mut of_other = answers.clone();
    judge_misses(&mut of_other, &mut other, &store, &nobody()).unwrap();
    assert_eq!(of_other[1].by_judge, Some(false));
    let foreign = folder.path().join("foreign");
    std::fs::write(&foreign, "my only line").unwrap();
    let error = judge_misses(&mut of_other, &mut other, &foreign, &nobody()).unwrap_err();
    assert!(error.to_string().contains("no complete line"), "{error}");
    assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "my only line");
    // One that is cut in the middle of a character is asked again.
    let text = std::fs::read(&store).unwrap();
    std::fs::write(
        &store,
        [&text[..], "{\"judge\":\"ä".as_bytes().split_last().unwrap().1].concat(),
    )
    .unwrap();
    judge_misses(&mut of_other, &mut other, &store, &nobody()).unwrap();
    assert_eq!(std::fs::read(&store).unwrap(), text);
    let verdicts: Vec<Option<bool>> = answers.iter().map(|answer| answer.by_judge).collect();
    assert_eq!(verdicts, [None, Some(true), Some(false), None]);
    let scores = Scores::of(&benchmark, &answers);
    assert_eq!((scores.accuracy, scores.with_judge), (0.25, Some(0.5)));
    let asked = judge.requests();
    assert_eq!(asked.len(), 2);
    let (head, prompt) = (&asked[0].head, &asked[0].prompt);
    assert!(head.starts_with("post /v1/chat/completions") && !head.contains("authorization"));
    assert_eq!(asked[0].body["model"], "judge");
    assert!(
        prompt.contains("Problem 2?") && prompt.contains(r"\text{the lucky number}"),
        "{prompt}"
    );
}

#[test]
fn a_busy_server_is_asked_again_and_others_are_named() {
    let busy = server(vec![(429, "Retry-After: 0\r\n", String::new()), verdict("yes")]);
    assert_eq!(client(&busy.url).complete(&[("user", "?")], &nobody()).unwrap().text, "yes");
    assert_eq!(busy.requests().len(), 2);
    let fails = |answers: Vec<(u16, &'static str, String)>| {
        let server = server(answers);
        client(&server.url).complete(&[("user", "?")], &nobody()).unwrap_err().to_string()
    };
    let twice = |status, body: &str| {
        vec![(status, "Retry-After: 0\r\n", body.to_owned()), (status, "", body.to_owned())]
    };
    let error = fails(twice(500, "oops"));
    assert!(error.contains("status 500") && error.contains("2 times"), "{error}");
    let error = fails(twice(401, ""));
    assert!(error.contains("refuses access") && error.contains("key"), "{error}");
    let error = fails(twice(404, "no such model"));
    assert!(error.contains("no such model"), "{error}");
    let error = fails(twice(200, "<html>"));
    assert!(error.contains("not JSON") && error.contains("<html>"), "{error}");
    let error = fails(twice(200, "{\"choices\": []}"));
    assert!(error.contains("no message"), "{error}");
    // Larger than any answer.
    let error = fails(twice(200, &" ".repeat(17 << 20)));
    assert!(error.contains("larger than 16 MiB"), "{error}");
    // Nobody is there.
    let error = client("http://127.0.0.1:9/v1").complete(&[("user", "?")], &nobody()).unwrap_err();
    assert!(error.to_string().contains("the request failed"), "{error}");
    assert!(ChatClient::new(ChatConfig { url: "ftp://x".into(), ..Default::default() }).is_err());
}

#[test]
fn a_stop_does_not_wait_for_a_judge() {
    let judge = Server::start(|_| Manner::Silent(Duration::from_secs(20)));
    let stop = StopFlag::default();
    let asked = stop.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        asked.request();
    });
    let start = Instant::now();
    let config = ChatConfig { timeout: 60, ..client(&judge.url).config().clone() };
    let client = ChatClient::new(config).unwrap();
    let error = client.complete(&[("user", "?")], &Context::new((), &stop)).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
