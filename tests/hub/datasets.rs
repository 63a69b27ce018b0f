//! Files of datasets, their splits, and runs on them.

use super::server::*;
use super::{assert_says, cache, names, quiet, set};
use mixdistill::Error;
use mixdistill::data::{ColumnMap, DataFiles, Records, read_records};
use mixdistill::hub::{HubDataset, HubOptions};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn dataset(text: &str) -> HubDataset {
    HubDataset::parse(text).unwrap()
}

fn folder(cache: &TempDir) -> PathBuf {
    cache.path().join("datasets--some--data")
}

/// The names of the files that come for a name, below the snapshot.
fn files(text: &str, hub: &HubOptions) -> Vec<String> {
    let fetched = dataset(text).fetch_with(hub, &quiet()).unwrap();
    let name = |path: &PathBuf| {
        let text = path.display().to_string().replace('\\', "/");
        assert!(path.is_file(), "{text}");
        text.split_once("/snapshots/").unwrap().1[41..].to_owned()
    };
    fetched.files.iter().map(name).collect()
}

/// What an attempt fails with; no failure may show the token or the keys in addresses.
fn failure(text: &str, hub: &HubOptions) -> String {
    let error = dataset(text).fetch_with(hub, &quiet()).unwrap_err();
    assert!(matches!(error, Error::Data { .. }), "{error:?}");
    let (short, long) = (error.to_string(), format!("{error:?}"));
    assert!(short.starts_with("some/data"), "{short}");
    for text in [&short, &long] {
        assert!(!text.contains(TOKEN) && !text.contains("secret"), "{text}");
    }
    short
}

fn server(names: &[&str]) -> Server {
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, name.as_bytes())).collect();
    Server::start(&files)
}

const CARD: &[u8] = b"---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test-a.jsonl, main/test-b.jsonl]
- config_name: extra
  data_files: extra/all.jsonl
---
# A dataset
";

const CARDED: [(&str, &[u8]); 7] = [
    ("README.md", CARD),
    ("main/train-00000-of-00002.jsonl", b"{\"a\": 1}"),
    ("main/train-00001-of-00002.jsonl", b"{\"a\": 2}"),
    ("main/test-a.jsonl", b"{\"a\": 3}"),
    ("main/test-b.jsonl", b"{\"a\": 4}"),
    ("extra/all.jsonl", b"{\"a\": 5}"),
    ("loader.py", b"import os"),
];

#[test]
fn a_card_says_which_files_are_which() {
    let (server, cache) = (Server::start(&CARDED), cache());
    let hub = server.hub(&cache);
    let train = ["main/train-00000-of-00002.jsonl", "main/train-00001-of-00002.jsonl"];
    assert_eq!(files("some/data:main:train", &hub), train);
    assert_eq!(files("some/data:main:test", &hub), ["main/test-a.jsonl", "main/test-b.jsonl"]);
    // Of a subset of one split its name is enough.
    assert_eq!(files("some/data:extra", &hub), ["extra/all.jsonl"]);
    assert_eq!(files("some/data@main:extra:train", &hub), ["extra/all.jsonl"]);
    assert_eq!(files("some/data/main/test-a.jsonl", &hub), ["main/test-a.jsonl"]);
    assert_eq!(
        files("some/data/main/test-*.jsonl", &hub),
        ["main/test-a.jsonl", "main/test-b.jsonl"]
    );
    assert_eq!(fs::read_to_string(folder(&cache).join("refs/main")).unwrap(), FIRST);
    // Nothing else has come.
    let snapshot = folder(&cache).join("snapshots").join(FIRST);
    assert_eq!(names(&snapshot), set(&["README.md", "main", "extra"]));
    assert!(server.requests().iter().all(|request| request.ends_with("+token")));
}

#[test]
fn what_may_be_meant_is_listed() {
    let (server, cache) = (Server::start(&CARDED), cache());
    let hub = server.hub(&cache);
    let says = |text: &str, parts: &[&str]| assert_says(&failure(text, &hub), parts);
    says("some/data", &["several subsets: main, extra", "some/data:main"]);
    says("some/data:train", &["several subsets: main, extra"]);
    says("some/data:main", &["several splits: train, test", "some/data:main:train"]);
    says("some/data:main:dev", &["no split `dev`", "train, test"]);
    says("some/data:other:train", &["no subset `other`", "main, extra"]);
    says("some/data/main/*.csv", &["no file matches `main/*.csv`"]);
    says("some/data/gone.jsonl", &["it has no `gone.jsonl`", "spelling"]);
    says("some/data/loader.py", &["rows cannot be read from `loader.py`", "Parquet"]);
    // Of none of these a file has come.
    let snapshot = folder(&cache).join("snapshots").join(FIRST);
    assert_eq!(names(&snapshot), set(&["README.md"]));
}

#[test]
fn without_a_card_names_say_which_files_are_which() {
    for (all, text, expected) in [
        (
            &["data/train-00000-of-00001.parquet", "data/sft-00000-of-00001.parquet"][..],
            ":sft",
            &["data/sft-00000-of-00001.parquet"][..],
        ),
        (&["train.jsonl", "test.jsonl"], ":test", &["test.jsonl"]),
        (
            &["a/train/x.jsonl", "a/dev/y.jsonl", "b/valid/z.jsonl"],
            ":validation",
            &["a/dev/y.jsonl", "b/valid/z.jsonl"],
        ),
        (&["my-eval-set.jsonl", "training_1.jsonl"], ":test", &["my-eval-set.jsonl"]),
        (&["b.jsonl", "a.jsonl", "sub/c.jsonl"], "", &["a.jsonl", "b.jsonl", "sub/c.jsonl"]),
        (
            &["b.jsonl", "config.json", "dataset_info.json", ".hidden.jsonl", "__x/c.jsonl"],
            ":train",
            &["b.jsonl"],
        ),
        (&["trainer.jsonl", "testament.jsonl"], "", &["testament.jsonl", "trainer.jsonl"]),
        // The hub's own conversion.
        (
            &["main/train/0000.parquet", "main/train/0001.parquet", "other/train/0000.parquet"],
            ":main:train",
            &["main/train/0000.parquet", "main/train/0001.parquet"],
        ),
    ] {
        let (server, cache) = (server(all), cache());
        assert_eq!(files(&format!("some/data{text}"), &server.hub(&cache)), expected, "{all:?}");
    }
    for (all, part) in [
        (
            &["train.jsonl", "test.jsonl"][..],
            "several splits: train, test. Choose one, such as some/data:train",
        ),
        (&["a.jsonl", "a.parquet"], "files of several kinds"),
        (&["a.arrow", "README.md"], "no readable data files"),
        (&["model.bin"], "@refs/convert/parquet"),
        (&[], "no readable data files"),
        (&["main/train/0000.parquet", "other/train/0000.parquet"], "several subsets: main, other"),
    ] {
        let (server, cache) = (server(all), cache());
        assert_says(&failure("some/data", &server.hub(&cache)), &[part]);
    }
}

#[test]
fn hostile_repositories_are_errors() {
    for (card, part) in [
        (&b"---\nconfigs: {a: b\n---\n"[..], "front matter of its README.md cannot be read"),
        (b"---\nconfigs:\n- config_name: a\n  data_files: ../../evil.jsonl\n---\n", "has no files"),
        (
            b"---\nconfigs:\n- config_name: a\n  data_files: 'x[.jsonl'\n---\n",
            "not a valid file pattern",
        ),
        (b"---\nconfigs:\n- config_name: a\n  data_files: other/*.jsonl\n---\n", "has no files"),
    ] {
        let (server, cache) = (Server::start(&[("README.md", card), ("a.jsonl", b"{}")]), cache());
        assert_says(&failure("some/data", &server.hub(&cache)), &[part]);
    }
    for name in
        ["../../evil.jsonl", "/evil.jsonl", "a\\..\\evil.jsonl", "C:evil.jsonl", "a//evil.jsonl"]
    {
        let (server, cache) = (server(&[name]), cache());
        let text = failure("some/data", &server.hub(&cache));
        assert!(
            text.contains("not a plain path") || text.contains("no readable data files"),
            "{text}"
        );
        assert!(server.requests().iter().all(|request| !request.contains("evil")));
    }
}

#[test]
fn a_gated_dataset_names_the_token_variable() {
    for status in [401, 403] {
        let (server, cache) = (Server::start(&CARDED[3..4]), cache());
        server.manner("main/test-a.jsonl", Manner::Refused(status));
        let text = failure("some/data/main/test-a.jsonl", &server.hub(&cache));
        assert_says(&text, &["test-a.jsonl", &status.to_string(), "is restricted", "HF_TOKEN"]);
        assert_eq!(names(&folder(&cache).join("refs")), set(&[]));
    }
    let (server, cache) = (Server::start(&CARDED), cache());
    server.fail(401, "RepoNotFound");
    let text = failure("some/data:main:train", &server.hub(&cache));
    assert_says(&text, &["(401)", "HF_TOKEN"]);
    server.fail(404, "RepoNotFound");
    assert_says(&failure("some/data:x", &server.hub(&cache)), &["the Hub has no such dataset"]);
    server.fail(404, "RevisionNotFound");
    assert_says(
        &failure("some/data@v1:x", &server.hub(&cache)),
        &["the dataset has no such revision"],
    );
}

#[test]
fn cut_files_are_tried_again_and_never_left() {
    let (server, cache) = (Server::start(&CARDED), cache());
    let hub = server.hub(&cache);
    server.manner("main/train-00001-of-00002.jsonl", Manner::Cut(2));
    assert_eq!(files("some/data:main:train", &hub).len(), 2);
    server.manner("main/test-b.jsonl", Manner::Cut(99));
    assert_says(&failure("some/data:main:test", &hub), &["test-b.jsonl", "Try again"]);
    let main = folder(&cache).join("snapshots").join(FIRST).join("main");
    assert!(main.join("test-a.jsonl").is_file() && !main.join("test-b.jsonl").exists());
}

#[test]
fn offline_what_has_come_is_enough() {
    let (server, cache) = (Server::start(&CARDED), cache());
    let mut hub = server.hub(&cache);
    let online = dataset("some/data:main:train").fetch_with(&hub, &quiet()).unwrap();
    assert_eq!(online.dataset.to_string(), format!("some/data@{FIRST}:main:train"));
    // The commit is all that a second call asks for, and at a commit nothing.
    server.requests();
    assert_eq!(dataset("some/data:main:train").fetch_with(&hub, &quiet()).unwrap(), online);
    assert_eq!(server.requests(), ["GET /api/datasets/some/data/revision/main +token"]);
    assert_eq!(online.dataset.fetch_with(&hub, &quiet()).unwrap(), online);
    hub.offline = true;
    assert_eq!(dataset("some/data:main:train").fetch_with(&hub, &quiet()).unwrap(), online);
    assert_eq!(online.dataset.fetch_with(&hub, &quiet()).unwrap(), online);
    let text = failure("some/data:main:test", &hub);
    assert_says(&text, &["HF_HUB_OFFLINE is set", "has no `main/test-a.jsonl`", "with a network"]);
    assert_says(&failure("some/data@v1:main:train", &hub), &["the dataset is not in the cache"]);
    assert_eq!(server.requests(), [""; 0]);
    // The same where the hub is not there.
    hub.offline = false;
    drop(server);
    assert_eq!(dataset("some/data:main:train").fetch_with(&hub, &quiet()).unwrap(), online);
}

#[test]
fn a_cache_that_other_tools_have_filled_is_enough_offline_and_shards_are_counted() {
    let cache = cache();
    let snapshot = folder(&cache).join("snapshots").join(FIRST);
    fs::create_dir_all(snapshot.join("data")).unwrap();
    fs::create_dir_all(folder(&cache).join("refs")).unwrap();
    fs::write(folder(&cache).join("refs/main"), FIRST).unwrap();
    let shard = |number: usize| snapshot.join(format!("data/train-{number:05}-of-00002.parquet"));
    fs::write(shard(0), "x").unwrap();
    let hub =
        HubOptions { cache: Some(cache.path().into()), offline: true, ..HubOptions::default() };
    assert_says(&failure("some/data", &hub), &["no `data/train-00001-of-00002.parquet`"]);
    fs::write(shard(1), "x").unwrap();
    assert_eq!(files("some/data", &hub).len(), 2);
}

fn rows_of(files: &[PathBuf]) -> Records {
    read_records(&files[0], &ColumnMap::default(), 0.0).unwrap()
}

/// A Parquet file of two row groups.
#[cfg(feature = "parquet")]
fn parquet(problems: &[&str]) -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    let schema =
        "message rows { required binary problem (UTF8); required binary solution (UTF8); }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let mut writer =
        parquet::file::writer::SerializedFileWriter::new(vec![], schema, Default::default())
            .unwrap();
    for half in problems.chunks(problems.len().div_ceil(2)) {
        let mut group = writer.next_row_group().unwrap();
        while let Some(mut column) = group.next_column().unwrap() {
            let values: Vec<ByteArray> = half.iter().map(|text| ByteArray::from(*text)).collect();
            column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_is_read_in_order_and_a_damaged_file_is_named() {
    let good = parquet(&["one", "two", "three", "four"]);
    let bad = &good[..good.len() / 2];
    let files = [("data/train-00000-of-00001.parquet", &good[..]), ("bad.parquet", bad)];
    let (server, cache) = (Server::start(&files), cache());
    let hub = server.hub(&cache);
    let fetched = dataset("some/data:train").fetch_with(&hub, &quiet()).unwrap();
    let read: Vec<String> =
        rows_of(&fetched.files).records.into_iter().map(|record| record.problem).collect();
    assert_eq!(read, ["one", "two", "three", "four"]);
    let bad = dataset("some/data/bad.parquet").fetch_with(&hub, &quiet()).unwrap();
    let error = read_records(&bad.files[0], &ColumnMap::default(), 0.0).unwrap_err().to_string();
    assert_says(&error, &["bad.parquet", "Parquet file"]);
}

#[test]
fn several_files_are_one_source_and_each_row_has_its_own_label() {
    let line = |name: &str| format!("{{\"problem\": \"{name}\", \"solution\": \"x {name}\"}}\n");
    let [a, b] = [line("one") + &line("two"), line("three")];
    let files = [("train/a.jsonl", a.as_bytes()), ("train/b.jsonl", b.as_bytes())];
    let (server, cache) = (Server::start(&files), cache());
    let fetched = dataset("some/data").fetch_with(&server.hub(&cache), &quiet()).unwrap();
    assert_eq!(fetched.files.len(), 2);
    let out = run_program(&server, &cache, &["generate", "--help"]);
    assert!(out.status.success());
    // The same through the program, which knows the hub by its variables.
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run").display().to_string();
    let tokenizer = tokenizer(folder.path());
    let words =
        ["preview", "--long", "some/data", "--short", "some/data:train", "--set", &tokenizer];
    let ended =
        run_program(&server, &cache, &[&words[..], &["--out", &out, "--rows", "9"]].concat());
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{text}{}", String::from_utf8_lossy(&ended.stderr));
    for part in ["`long` a.jsonl line 1", "`long` a.jsonl line 2", "`short` b.jsonl line 1"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Calls the program with the hub that a server is.
pub fn run_program(server: &Server, cache: &TempDir, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixdistill"));
    command.args(words).env("HF_ENDPOINT", &server.address).env("HF_TOKEN", TOKEN);
    command.env("HF_HUB_CACHE", cache.path()).env("HF_HOME", cache.path().join("home"));
    command.env_remove("HF_HUB_OFFLINE").env("HF_HUB_DISABLE_TELEMETRY", "1");
    command.env("HF_XET_CACHE", cache.path().join("xet")).output().unwrap()
}

/// A tokenizer of characters, as a setting.
fn tokenizer(folder: &Path) -> String {
    let words: Vec<String> = (' '..='~').map(String::from).collect();
    let tokenizer = mixdistill::data::TextTokenizer::builtin(words.iter().map(String::as_str));
    let path = folder.join("tokenizer.json");
    fs::write(&path, tokenizer.unwrap().to_json().unwrap()).unwrap();
    format!("data.tokenizer={}", path.display())
}

/// Rows of problems with a solution that depends on the source.
fn traces(source: &str, count: usize) -> Vec<u8> {
    let row = |index: usize| {
        format!("{{\"problem\": \"{index} + 1\", \"solution\": \"{source} {}\"}}\n", index + 1)
    };
    (0..count).map(row).collect::<String>().into_bytes()
}

#[test]
fn a_run_records_the_commit_and_stays_with_it() {
    let [long, short, new] = [traces("long", 12), traces("short", 12), traces("new", 12)];
    let files = [("long/train.jsonl", &long[..]), ("short/train.jsonl", &short[..])];
    let (server, cache) = (Server::start(&files), cache());
    let folder = tempfile::tempdir().unwrap();
    let (out, tokenizer) = (folder.path().join("run"), tokenizer(folder.path()));
    let out_text = out.display().to_string();
    let words = [
        "train",
        "--long",
        "some/data/long/train.jsonl",
        "--short",
        "some/data/short/train.jsonl",
        "--set",
        &tokenizer,
        "--out",
        &out_text,
        "--set",
        "evaluation.questions=0",
        "--set",
        "model.hidden_size=16",
        "--set",
        "model.num_hidden_layers=1",
        "--set",
        "model.intermediate_size=16",
        "--set",
        "train.checkpoint_every=1",
        "--set",
        "train.evaluate_every=0",
    ];
    let call = |more: &[&str]| {
        let ended = run_program(&server, &cache, &[&words[..], more].concat());
        let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
        assert!(!said.contains(TOKEN));
        (ended.status.code(), said)
    };
    let (status, said) = call(&["--steps", "2"]);
    assert_eq!(status, Some(0), "{said}");
    let pinned = format!("some/data@{FIRST}/long/train.jsonl");
    for name in ["config.toml", "summary.json"] {
        let text = fs::read_to_string(out.join(name)).unwrap();
        assert!(text.contains(&pinned), "{name}: {text}");
    }
    assert!(said.contains(&pinned), "{said}");
    // The hub goes on; the run does not, whether it is told the names again or not.
    server.commit(SECOND, &[("long/train.jsonl", &new), ("short/train.jsonl", &short)]);
    for more in
        [&["--steps", "2", "--resume"][..], &["--steps", "3", "--resume", "--allow-changes"]]
    {
        let (status, said) = call(more);
        assert_eq!(status, Some(0), "{said}");
        assert!(!fs::read_to_string(out.join("config.toml")).unwrap().contains(SECOND));
    }
    server.requests();
    let ended = run_program(&server, &cache, &["train", "--resume", "--out", &out_text]);
    assert!(ended.status.success());
    assert_eq!(server.requests(), [""; 0], "a commit in the cache needs no hub");
    // A new run takes what is there now.
    let (status, said) = call(&["--steps", "1", "--overwrite"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(fs::read_to_string(out.join("config.toml")).unwrap().contains(SECOND));
}

#[test]
fn evaluations_and_studies_note_the_commit_and_stay_with_it() {
    let bench = |answer: &str| format!("{{\"problem\": \"1 + 1\", \"answer\": \"{answer}\"}}\n");
    let [then, now] = [bench("2"), bench("3")];
    let [long, short] = [traces("long", 12), traces("short", 12)];
    let files = [
        ("bench/test.jsonl", then.as_bytes()),
        ("long/train.jsonl", &long),
        ("short/train.jsonl", &short),
    ];
    let (server, cache) = (Server::start(&files), cache());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).display().to_string();
    let answers = r#"{"problem": "1 + 1", "text": "The answer is \\boxed{2}."}"#;
    fs::write(path("answers.jsonl"), answers).unwrap();
    let scores = |out: &str| -> f64 {
        let (out, answers) = (text(out), text("answers.jsonl"));
        let words = ["evaluate", "--bench", "some/data/bench/test.jsonl", "--answers", &answers];
        let ended =
            run_program(&server, &cache, &[&words[..], &["--out", &out, "--json"]].concat());
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success(), "{said}");
        let result: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
        result["scores"][0]["accuracy"].as_f64().unwrap()
    };
    let settings = format!(
        "out = {:?}\nseeds = [1]\nresamples = 20\nbenchmarks = [\"some/data/bench/test.jsonl\"]\n\
         [[comparisons]]\nname = \"Long\"\nstrong = \"long\"\nweak = \"short\"\nalphas = []\n\
         [[students]]\nname = \"small\"\n[students.run.model]\nhidden_size = 16\n\
         intermediate_size = 16\nnum_hidden_layers = 1\n[run.data]\ntokenizer = {:?}\n\
         [run.data.sources.long]\npath = \"some/data/long/train.jsonl\"\n\
         [run.data.sources.short]\npath = \"some/data/short/train.jsonl\"\n\
         [run.train]\nsteps = 1\nevaluate_every = 0\n[run.generate]\nmax_new_tokens = 2\n",
        text("study"),
        tokenizer(folder.path()).split_once('=').unwrap().1,
    );
    fs::write(path("study.toml"), settings).unwrap();
    let study = || {
        let ended = run_program(&server, &cache, &["study", "--config", &text("study.toml")]);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        let noted = fs::read_to_string(path("study/datasets.json")).unwrap();
        let run = "study/cells/small/Long-0.00/seed-1/config.toml";
        (noted, fs::read_to_string(path(run)).unwrap())
    };
    assert_eq!(scores("scores"), 1.0);
    let (noted, run) = study();
    for part in ["/bench/test.jsonl", "/long/train.jsonl", "/short/train.jsonl"] {
        assert!(noted.contains(&format!("some/data@{FIRST}{part}")), "{noted}");
    }
    assert!(run.contains(&format!("some/data@{FIRST}/long/train.jsonl")), "{run}");
    let new = [
        ("bench/test.jsonl", now.as_bytes()),
        ("long/train.jsonl", &short),
        ("short/train.jsonl", &long),
    ];
    server.commit(SECOND, &new);
    assert_eq!((scores("scores"), scores("new")), (1.0, 0.0));
    assert_eq!(study(), (noted, run));
}

#[test]
fn what_is_here_comes_first_and_what_is_nowhere_is_no_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let (server, cache) = (Server::start(&CARDED), cache());
    fs::create_dir_all(folder.path().join("some")).unwrap();
    fs::write(folder.path().join("some/data"), "{\"problem\": \"1\", \"solution\": \"2\"}")
        .unwrap();
    let path = folder.path().join("some/data");
    assert_eq!(DataFiles::find(&path, &quiet()).unwrap().files(), std::slice::from_ref(&path));
    for text in ["gone.jsonl", "gone/gone.jsonl", "src/gone/gone.jsonl", "/gone/gone"] {
        let error = DataFiles::find(Path::new(text), &quiet()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
    let error = DataFiles::find(Path::new("a/b:"), &quiet()).unwrap_err().to_string();
    assert_says(&error, &["a/b:", "owner/name"]);
    let words = ["evaluate", "--model", "x", "--bench", "some/data:other:test"];
    let ended = run_program(&server, &cache, &words);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_says(&said, &["no subset `other`", "main, extra"]);
}
