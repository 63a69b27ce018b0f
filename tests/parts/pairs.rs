//! Pairs of teachers in parts.

use super::*;
use crate::server::{Manner, Server, long_answer, numbers, short_answer};

/// Two teachers of 11 problems: one is wrong at the third, the other refuses the fifth.
fn asking() -> (Job, [Server; 2]) {
    let job = Job::new("pairs", "", &[]);
    let number = |prompt: &str| numbers(prompt).0 - 1;
    let long = Server::start(move |request| match number(&request.prompt) {
        2 => Manner::Says("\\boxed{1}".into()),
        _ => Manner::Says(long_answer(&request.prompt)),
    });
    let short = Server::start(move |request| match number(&request.prompt) {
        4 => Manner::Status(400, String::new(), "{\"error\": \"too long\"}".into()),
        _ => Manner::Says(short_answer(&request.prompt)),
    });
    let file = problems(job.folder.path(), "problems.jsonl", 11);
    let text = std::fs::read_to_string(&file).unwrap();
    // A problem that is there twice is asked once, whichever part it would fall to.
    let again = text.lines().next().unwrap().replace("s0", "again");
    std::fs::write(&file, format!("{text}{again}\n")).unwrap();
    let flags = ["--problems", &file, "--long-url", &long.url, "--short-url", &short.url]
        .into_iter()
        .chain(["--long-model", "L", "--short-model", "S", "--set", "keep=either"])
        .map(str::to_owned)
        .collect();
    (Job { flags, ..job }, [long, short])
}

#[test]
fn pairs_in_parts_are_those_of_one_process() {
    let (job, servers) = asking();
    let told = good(&job.work("p1", &["--part", "1/3"]));
    assert!(told.contains("part 1/3") && !told.contains("next:"), "{told}");
    let json = job.work("p2", &["--part", "2/3", "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["part"], "2/3");
    assert_eq!(json["report"]["problems"]["asked"], 4);
    assert_eq!(json["report"]["short"]["refused"], 1);
    job.part("3/3", "p3");
    assert!(!job.place("p1").join("long.jsonl").exists(), "a part has no rows");
    let asked = servers.iter().map(|server| server.requests().len()).sum::<usize>();
    good(&job.join(&["p1", "p3", "p2"], "joined"));
    let after = servers.iter().map(|server| server.requests().len()).sum::<usize>();
    assert_eq!((asked, after), (22, 0), "nobody is asked by a join");
    good(&job.work("whole", &[]));
    let [mut whole, mut joined] = ["whole", "joined"].map(|name| files_in(&job.place(name)));
    let responses = [&mut whole, &mut joined].map(|files| files.remove("responses.jsonl").unwrap());
    assert_eq!(untimed(&responses[0]), untimed(&responses[1]));
    for (name, bytes) in &whole {
        let other = joined.get(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert_eq!(Some(String::from_utf8_lossy(bytes).into_owned()), other, "{name}");
    }
    assert!(whole.keys().eq(joined.keys()));
    assert!(
        ["long.jsonl", "short.jsonl", "pairs.jsonl", "left-out.jsonl", "README.md", "report.json"]
            .iter()
            .all(|name| whole.contains_key(*name))
    );
    // Joined once more, as after a part that has asked again for what was not answered.
    let before = files_in(&job.place("joined"));
    good(&job.join(&["p2", "p1", "p3"], "joined"));
    assert!(before == files_in(&job.place("joined")));
    refuses_what_is_no_whole(
        &job,
        &["--set", "seed=5", "--temperature", "0.5"],
        &["--limit", "7"],
        &|part| {
            std::fs::remove_file(part.join("outcome.json")).unwrap();
            cut(&part.join("responses.jsonl"));
        },
    );
    // Pairs of other problems are not written over.
    let others = problems(&job.folder.path().join("others"), "others.jsonl", 2);
    let text = std::fs::read_to_string(&others).unwrap().replace("What is", "How much is");
    std::fs::write(&others, text).unwrap();
    good(&job.work("foreign", &["--set", &format!("problems={others}")]));
    job.refuses(
        &|| job.join(&["p1", "p2", "p3"], "foreign"),
        &["it holds pairs of other problems"],
    );
    // More parts than problems; the fifth is refused its only one.
    let parts: Vec<String> = (1..=13).map(|i| format!("s{i}")).collect();
    for (i, part) in parts.iter().enumerate() {
        let told = good(&job.work(part, &["--part", &format!("{}/13", i + 1)]));
        assert_eq!(told.contains("S did not answer all problems: "), i == 4, "{told}");
    }
    good(&job.join(&parts.iter().map(String::as_str).collect::<Vec<_>>(), "small"));
    for name in ["long.jsonl", "short.jsonl", "pairs.jsonl", "report.json"] {
        let small = std::fs::read(job.place("small").join(name)).unwrap();
        assert!(small == whole[name], "{name}");
    }
    // Two problems for four parts.
    (1..=4).for_each(|i| {
        good(&job.work(&format!("f{i}"), &["--limit", "2", "--part", &format!("{i}/4")]));
    });
    good(&job.join(&["f1", "f2", "f3", "f4"], "few"));
    assert_eq!(
        std::fs::read_to_string(job.place("few").join("pairs.jsonl")).unwrap().lines().count(),
        2
    );
    // Responses that are gone are missed.
    std::fs::write(job.place("f2").join("responses.jsonl"), "").unwrap();
    job.refuses(
        &|| job.join(&["f1", "f2", "f3", "f4"], "gone"),
        &["f2", "responses have disappeared"],
    );
}

#[test]
fn a_teacher_in_a_folder_draws_the_same_in_parts() {
    let job = Job::new("pairs", "", &[]);
    let (file, model) =
        (problems(job.folder.path(), "problems.jsonl", 5), student(job.folder.path()));
    let flags = ["--problems", &file, "--long-folder", &model, "--short-folder", &model]
        .into_iter()
        .chain(["--samples", "2", "--temperature", "0.9", "--max-tokens", "9"])
        .chain(["--set", "keep=either"])
        .map(str::to_owned)
        .collect();
    let job = Job { flags, ..job };
    (1..=3).for_each(|i| job.part(&format!("{i}/3"), &format!("p{i}")));
    // Random weights answer nothing right, which is an error, of the whole as of the parts joined.
    let whole = job.work("whole", &[]);
    let joined = job.join(&["p1", "p2", "p3"], "joined");
    assert_eq!([whole.status.code(), joined.status.code()], [Some(1), Some(1)], "{joined:?}");
    let [whole, joined] = ["whole", "joined"].map(|name| files_in(&job.place(name)));
    assert_eq!(untimed(&whole["responses.jsonl"]), untimed(&joined["responses.jsonl"]));
    assert_eq!(untimed(&whole["responses.jsonl"]).len(), 20);
}

#[test]
fn a_teacher_that_refuses_all_parts_is_an_error_once_they_are_joined() {
    let (mut job, servers) = asking();
    let refuses = Server::start(|_| Manner::Status(400, String::new(), "no such field".into()));
    let place = job.flags.iter().position(|flag| *flag == servers[1].url).unwrap();
    job.flags[place].clone_from(&refuses.url);
    job.flags.extend(["--limit", "3"].map(str::to_owned));
    (1..=3).for_each(|i| job.part(&format!("{i}/3"), &format!("p{i}")));
    let join = || job.join(&["p1", "p2", "p3"], "joined");
    job.refuses(&join, &["it refused all problems", "no such field"]);
    assert_eq!(job.work("whole", &[]).status.code(), Some(1));
}
