//! Servers that are busy, break off, lie, or die, and processes that are killed.

use crate::server::{Manner, Server, long_answer, says, short_answer};
use crate::{Said, number, rows, run, run_saying, set, sums};
use mixdistill::Error;
use mixdistill::context::{Context, StopFlag};
use mixdistill::teacher::{MakePairsConfig, PairsDirectory, make_pairs};
use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn right() -> Server {
    Server::start(|request| Manner::Says(short_answer(&request.prompt)))
}

/// All bytes in a directory.
fn all_bytes(out: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file()).flat_map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn whatever_passes_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let long = Server::start(|request| {
        let busy = |status, headers: &str| Manner::Status(status, headers.into(), String::new());
        match (number(&request.prompt), request.before) {
            (0, 0) => busy(429, "Retry-After: 1\r\n"),
            (1, 0) => busy(500, ""),
            (1, 1) => busy(503, "Retry-After: 0\r\n"),
            (2, 0) => Manner::Cut,
            (3, 0) => Manner::Silent(Duration::from_secs(4)),
            (4, 0) => Manner::Body("{\"choices\": [{\"mess".into()),
            (5, 0) => Manner::Body("{\"error\": {\"message\": \"overloaded\"}}".into()),
            // An answer of 10 MB is an answer.
            (6, _) => Manner::Says(format!(
                "<think>{}</think>{}",
                "so ".repeat(3_500_000),
                short_answer(&request.prompt)
            )),
            // One above all bounds is none.
            (7, _) => Manner::Body("x".repeat(17 << 20)),
            _ => Manner::Says(long_answer(&request.prompt)),
        }
    });
    let short = right();
    let mut config = sums(folder.path(), 10, [&long, &short]);
    set(&mut config, |server| server.timeout = 2);
    let out = folder.path().join("pairs");
    let report = run(&config, &out).unwrap();
    assert_eq!((report.pairs, report.long.refused), (9, 1));
    assert!(report.long.reason.as_ref().unwrap().contains("larger than 16 MiB"));
    let requests = long.requests();
    assert_eq!(requests.len(), 10 + 7);
    // Nobody asks before the busy server wishes.
    let at = |index: u64, before: usize| {
        let found = requests.iter().find(|r| number(&r.prompt) == index && r.before == before);
        found.unwrap().at
    };
    assert!(at(0, 1) - at(0, 0) >= Duration::from_secs(1));
    assert!(report.lengths[0].quantiles[5] > 10_000_000);
}

#[test]
fn a_server_that_dies_ends_the_run_and_the_next_one_asks_for_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    let long = Server::start(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        20 => Manner::Dies,
        _ => Manner::Says(long_answer(&request.prompt)),
    });
    let short = right();
    let mut config = sums(folder.path(), 60, [&long, &short]);
    set(&mut config, |server| server.retries = 1);
    let out = folder.path().join("pairs");
    let error = run(&config, &out).unwrap_err().to_string();
    assert!(error.contains("the request failed") || error.contains("broke off"), "{error}");
    let stored = rows(&out.join("responses.jsonl"));
    assert!(error.contains(&format!("{} responses are saved", stored.len())), "{error}");
    let long_stored = stored.iter().filter(|line| line["teacher"] == "long").count();
    // Four are asked at a time: those beside the last one may be on their way, or come.
    assert!((17..=23).contains(&long_stored), "{long_stored}");
    assert!(!out.join("pairs.jsonl").exists());
    let asked_of_short = short.requests().len();

    // Elsewhere, and well.
    let long = Server::start(|request| Manner::Says(long_answer(&request.prompt)));
    config.long.server.as_mut().unwrap().url.clone_from(&long.url);
    let report = run(&config, &out).unwrap();
    assert_eq!((report.pairs, report.long.requests_known), (60, long_stored));
    assert_eq!(long.requests().len(), 60 - long_stored);
    assert_eq!(asked_of_short + short.requests().len(), 60);
    assert_eq!(rows(&out.join("responses.jsonl")).len(), 120);
}

#[test]
fn one_question_without_an_answer_does_not_end_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let long = Server::start(|request| match number(&request.prompt) {
        3 => Manner::Status(500, "Retry-After: 0\r\n".into(), "boom".into()),
        _ => Manner::Says(long_answer(&request.prompt)),
    });
    let short = right();
    let config = sums(folder.path(), 12, [&long, &short]);
    let report = run(&config, &folder.path().join("pairs")).unwrap();
    assert_eq!((report.pairs, report.long.not_answered), (11, 1));
    assert!(report.long.reason.unwrap().contains("status 500: boom, 3 times"));
}

#[test]
fn a_wrong_key_ends_the_run_at_once_and_stands_nowhere() {
    const KEY: &str = "sk-this-is-the-secret-key";
    let folder = tempfile::tempdir().unwrap();
    let refusing = || {
        Server::start(|request| {
            assert!(request.head.contains(&format!("authorization: bearer {KEY}")));
            Manner::Status(401, String::new(), format!("Incorrect API key provided: {KEY}"))
        })
    };
    let (long, short) = (refusing(), refusing());
    let mut config = sums(folder.path(), 50, [&long, &short]);
    set(&mut config, |server| server.key_variable = "MIXDISTILL_TEST_SECRET".into());
    let out = folder.path().join("pairs");
    // Variables of a process that has threads must not be set, so another process is asked.
    let done = child(&config, &out, Some(("MIXDISTILL_TEST_SECRET", KEY))).output().unwrap();
    let said =
        String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success());
    assert!(said.contains("refuses access") && said.contains("MIXDISTILL_TEST_SECRET"), "{said}");
    assert!(!said.contains(KEY), "{said}");
    assert!(long.requests().len() + short.requests().len() <= 8);

    // A server that quotes the key, and one that takes it.
    let quoting = Server::start(|_| Manner::Status(404, String::new(), format!("no {KEY} here")));
    config.long.server.as_mut().unwrap().url.clone_from(&quoting.url);
    let done = child(&config, &out, Some(("MIXDISTILL_TEST_SECRET", KEY))).output().unwrap();
    assert!(!String::from_utf8_lossy(&done.stderr).contains(KEY));
    let (long, short) = (right(), right());
    let urls = [&long.url, &short.url];
    for (teacher, url) in [&mut config.long, &mut config.short].into_iter().zip(urls) {
        teacher.server.as_mut().unwrap().url.clone_from(url);
    }
    let done = child(&config, &out, Some(("MIXDISTILL_TEST_SECRET", KEY))).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    assert!(long.requests()[0].head.contains(KEY));
    let bytes = all_bytes(&out);
    assert!(bytes.len() > 1000);
    assert!(!bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()));
}

#[test]
fn a_server_that_refuses_everything_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let long = Server::start(|_| {
        Manner::Status(400, String::new(), "use max_completion_tokens instead".into())
    });
    let short = right();
    let config = sums(folder.path(), 200, [&long, &short]);
    let error = run(&config, &folder.path().join("pairs")).unwrap_err().to_string();
    assert!(error.contains("use max_completion_tokens instead"), "{error}");
    assert!(error.contains("max_tokens_field = \"max_completion_tokens\""), "{error}");
    assert!(long.requests().len() <= 12);
}

/// Whether one problem is asked or a few: a refusal of all of them is an error, and no report.
#[test]
fn a_server_that_refuses_the_few_problems_that_there_are_is_an_error() {
    for count in [1, 3, 7] {
        for (status, body, hint) in [
            (400, "Unsupported parameter: 'max_tokens'", "max_tokens_field"),
            (422, "extra fields not permitted: 'temperature'", "Check the settings"),
            (413, "too large", "Check the settings"),
            (404, "no such model", "Check the URL"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let refuses =
                Server::start(move |_| Manner::Status(status, String::new(), body.into()));
            let answers = right();
            for (index, servers) in [[&refuses, &answers], [&answers, &refuses]].iter().enumerate()
            {
                let (out, servers) = (folder.path().join(format!("pairs{index}")), *servers);
                let error =
                    run(&sums(folder.path(), count, servers), &out).unwrap_err().to_string();
                assert!(error.contains(body) && error.contains(hint), "{count}: {error}");
            }
        }
    }
    // Where one is answered, it is the others that are refused.
    let folder = tempfile::tempdir().unwrap();
    let long = Server::start(|request| match number(&request.prompt) {
        0 => Manner::Says(long_answer(&request.prompt)),
        _ => Manner::Status(400, String::new(), "too long".into()),
    });
    let short = right();
    let report = run(&sums(folder.path(), 3, [&long, &short]), &folder.path().join("pairs"));
    assert_eq!(report.unwrap().long.refused, 2);
}

#[test]
fn a_server_is_asked_with_the_name_that_it_has_for_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let long = Server::start(|request| match request.body.get("max_tokens") {
        Some(_) => Manner::Status(400, String::new(), "use max_completion_tokens".into()),
        None => Manner::Says(long_answer(&request.prompt)),
    });
    let short = right();
    let mut config = sums(folder.path(), 3, [&long, &short]);
    config.long.server.as_mut().unwrap().max_tokens_field = "max_completion_tokens".into();
    let report = run(&config, &folder.path().join("pairs")).unwrap();
    assert_eq!(report.pairs, 3);
    assert!(long.requests().iter().all(|r| r.body["max_completion_tokens"] == 8192));
    assert!(short.requests().iter().all(|r| r.body["max_tokens"] == 8192));
}

/// A connection that ends within a character is one that breaks; a body whose text ends so is whole.
#[test]
fn a_reply_that_ends_within_a_character_is_neither_lost_nor_spoiled() {
    let folder = tempfile::tempdir().unwrap();
    let long = Server::start(|request| {
        let answer = format!("{} 😀", short_answer(&request.prompt));
        let body = says(&answer, "stop").to_string().into_bytes();
        let within = body.windows(2).position(|two| two == "😀".as_bytes()[..2].to_vec()).unwrap();
        match (number(&request.prompt), request.before) {
            (0, 0) => Manner::Bytes(body, within + 2),
            (1, _) => {
                let half = [&body[..within + 2], &body[within + 4..]].concat();
                let length = half.len();
                Manner::Bytes(half, length)
            }
            _ => Manner::Says(answer),
        }
    });
    let short = right();
    let out = folder.path().join("pairs");
    let (report, said) = run_saying(&sums(folder.path(), 3, [&long, &short]), &out, true);
    assert_eq!(report.unwrap().pairs, 3);
    assert_eq!(long.requests().len(), 4);
    let mut ends: Vec<String> = rows(&out.join("long.jsonl"))
        .iter()
        .map(|row| row["solution"].as_str().unwrap().chars().rev().take(2).collect())
        .collect();
    ends.sort();
    assert_eq!(ends, ["\u{fffd} ", "😀 ", "😀 "]);
    assert!(said.iter().any(|text| text.contains("1 reply of")), "{said:?}");
}

#[test]
fn broken_characters_in_replies_are_mended_and_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let long = Server::start(|request| {
        let answer = short_answer(&request.prompt).replace('\\', "\\\\");
        let broken = if number(&request.prompt) < 2 { "\\ud83d" } else { "" };
        Manner::Body(format!(
            "{{\"choices\": [{{\"message\": {{\"content\": \"{broken}{answer}\", \
             \"thinking\": \"sum\"}}, \"finish_reason\": \"stop\"}}], \"score\": NaN}}"
        ))
    });
    let short = right();
    let out = folder.path().join("pairs");
    let config = sums(folder.path(), 4, [&long, &short]);
    let (report, said) = run_saying(&config, &out, true);
    assert_eq!(report.unwrap().pairs, 4);
    let about: Vec<&String> = said.iter().filter(|text| text.contains("Unicode")).collect();
    assert!(about.len() == 1 && about[0].contains("2 replies"), "{said:?}");
    let rows = rows(&out.join("long.jsonl"));
    let broken = rows.iter().filter(|row| row["solution"].as_str().unwrap().contains('\u{fffd}'));
    assert_eq!(broken.count(), 2);
    assert!(rows.iter().all(|row| row["solution"].as_str().unwrap().contains("<think>\nsum")));
}

#[test]
fn a_server_that_cannot_name_its_model_says_why() {
    let folder = tempfile::tempdir().unwrap();
    for (status, expected) in [(401, "refuses access"), (503, "status 503"), (404, "status 404")] {
        let long = Server::naming_models(status, |_| Manner::Says("no".into()));
        let config = sums(folder.path(), 2, [&long, &long]);
        let error = run(&config, &folder.path().join("pairs")).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // Where nobody is asked, nobody is asked for the model either.
    let long = right();
    let config = sums(folder.path(), 2, [&long, &long]);
    let error = run_saying(&config, &folder.path().join("new"), false).0.unwrap_err().to_string();
    assert!(error.contains("long.server.model"), "{error}");
}

#[test]
fn a_busy_server_is_left_alone_as_long_as_it_asks_and_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    // More refusals than tries; each is a wish, not a failure.
    let long = Server::start(|request| match request.before {
        0..4 => Manner::Status(429, "Retry-After: 0\r\n".into(), "slow down".into()),
        _ => Manner::Says(long_answer(&request.prompt)),
    });
    let short = right();
    let mut config = sums(folder.path(), 2, [&long, &short]);
    set(&mut config, |server| server.retries = 1);
    let start = Instant::now();
    let (report, said) = run_saying(&config, &folder.path().join("pairs"), true);
    assert_eq!(report.unwrap().pairs, 2);
    assert!(said.iter().any(|text| text.contains("slow down")), "{said:?}");
    // The pauses grow although the server asks for none: 0.25, 0.5, 1 and 2 seconds at least.
    assert!(start.elapsed() > Duration::from_millis(3750), "{:?}", start.elapsed());
}

#[test]
fn requests_are_begun_no_faster_than_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let (long, short) = (right(), right());
    let mut config = sums(folder.path(), 21, [&long, &short]);
    // One in 50 ms, although four threads ask.
    set(&mut config, |server| server.requests_per_minute = 1200.0);
    let start = Instant::now();
    run(&config, &folder.path().join("pairs")).unwrap();
    assert_eq!((long.requests().len(), short.requests().len()), (21, 21));
    assert!(start.elapsed() >= Duration::from_millis(20 * 50), "{:?}", start.elapsed());
}

#[test]
fn a_stop_does_not_wait_for_a_busy_server() {
    let folder = tempfile::tempdir().unwrap();
    let busy =
        || Server::start(|_| Manner::Status(429, "Retry-After: 300\r\n".into(), String::new()));
    let (long, short) = (busy(), busy());
    let config = sums(folder.path(), 5, [&long, &short]);
    let out = PairsDirectory::open(&folder.path().join("pairs")).unwrap();
    let stop = StopFlag::default();
    let asked = stop.clone();
    let timer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        asked.request();
        Instant::now()
    });
    let mut said = Said::default();
    let context = Context::new(&mut said, &stop);
    let report = make_pairs(&config, &out, true, &context);
    drop(context);
    assert!(matches!(report.unwrap_err(), Error::Stopped { .. }));
    assert!(timer.join().unwrap().elapsed() < Duration::from_secs(30));
    // Something moves meanwhile.
    assert!(said.pairs > 2, "{}", said.pairs);
}

#[test]
fn a_process_that_is_killed_at_any_moment_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let slow = |answer: fn(&str) -> String| {
        Server::start(move |request| {
            std::thread::sleep(Duration::from_millis(10));
            Manner::Json(says(&answer(&request.prompt), "stop"))
        })
    };
    let (long, short) = (slow(long_answer), slow(short_answer));
    let config = sums(folder.path(), 150, [&long, &short]);
    let out = folder.path().join("pairs");
    let store = out.join("responses.jsonl");
    let (mut kills, mut known) = (0, HashSet::new());
    let mut asked = 0;
    loop {
        let mut process = child(&config, &out, None);
        let mut process = process.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // At a moment that depends on what was reached, up to where it ends by itself.
        let until = known.len() + 37;
        let whole = |path: &Path| {
            std::fs::read(path).unwrap_or_default().iter().filter(|b| **b == b'\n').count()
        };
        let ended = loop {
            if let Some(status) = process.try_wait().unwrap() {
                break Some(status);
            }
            if whole(&store) > until {
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if ended.is_none() {
            process.kill().unwrap();
            process.wait().unwrap();
            kills += 1;
        }
        // What the process asked for was not known before it began.
        for request in long.requests().into_iter().chain(short.requests()) {
            asked += 1;
            let host = request.head.lines().find_map(|line| line.strip_prefix("host:")).unwrap();
            let key = (request.prompt.clone(), host.trim().to_owned());
            assert!(!known.contains(&key), "asked again: {}", request.prompt);
        }
        if kills == 3 && ended.is_none() {
            // As if the machine had gone down within a line.
            let end = std::fs::metadata(&store).unwrap().len();
            let file = std::fs::File::options().write(true).open(&store).unwrap();
            file.set_len(end - 5).unwrap();
        }
        let text = String::from_utf8(std::fs::read(&store).unwrap()).unwrap();
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        known = lines
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| {
                let server = if line["teacher"] == "long" { &long } else { &short };
                let host = server.url.trim_start_matches("http://").trim_end_matches("/v1");
                (line["prompt"].as_str().unwrap().to_owned(), host.to_owned())
            })
            .collect::<HashSet<_>>();
        if let Some(status) = ended {
            assert!(status.success());
            break;
        }
    }
    assert!(kills >= 5, "{kills}");
    // Each is asked once, but for those on their way when a process was killed, and the torn line.
    assert!(asked >= 300 && asked <= 300 + kills * 8 + 1, "{asked} requests, {kills} kills");
    let (report, _) = run_saying(&config, &out, false);
    assert_eq!(report.unwrap().pairs, 150);
}

/// A process that makes pairs: this test program again, with the settings in a file.
fn child(config: &MakePairsConfig, out: &Path, variable: Option<(&str, &str)>) -> Command {
    let file = out.with_extension("toml");
    std::fs::write(&file, toml::to_string(config).unwrap()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "trouble::as_a_process", "--ignored", "--nocapture"]);
    command.env("MIXDISTILL_TEST_CONFIG", file).env("MIXDISTILL_TEST_OUT", out);
    command.envs(variable);
    command
}

#[test]
#[ignore = "the process that other tests start"]
fn as_a_process() {
    let (Ok(config), Ok(out)) =
        (std::env::var("MIXDISTILL_TEST_CONFIG"), std::env::var("MIXDISTILL_TEST_OUT"))
    else {
        return;
    };
    let config = MakePairsConfig::read(Path::new(&config)).unwrap();
    if let Err(error) = run(&config, Path::new(&out)) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
