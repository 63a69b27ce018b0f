//! Models and datasets from a local hub, and models pushed to it. The hub is a small server with the API that
//! the client uses.
#![cfg(feature = "hub")]

#[path = "../common/mod.rs"]
mod common;
mod datasets;
mod journey;
mod pushing;
mod server;
mod store;

use mixdistill::Error;
use mixdistill::context::{Context, Event, Observer, StopFlag, Task};
use mixdistill::hub::{HubModel, HubOptions};
use server::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const ONE_FILE: [(&str, &[u8]); 6] = [
    ("config.json", b"{\"model_type\": \"qwen2\"}"),
    ("tokenizer.json", b"{}"),
    ("tokenizer_config.json", b"{\"a\": 1}"),
    ("model.safetensors", b"weights, weights, weights"),
    ("README.md", b"not needed"),
    ("pytorch_model.bin", b"not needed either"),
];

const SHARDS: [(&str, &[u8]); 5] = [
    ("config.json", b"{}"),
    (
        "model.safetensors.index.json",
        br#"{"metadata": {}, "weight_map": {
            "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
            "c": "model-00001-of-00002.safetensors"}}"#,
    ),
    ("model-00001-of-00002.safetensors", b"the first part"),
    ("model-00002-of-00002.safetensors", b"the other part"),
    ("consolidated.safetensors", b"the same once more"),
];

fn model(text: &str) -> HubModel {
    HubModel::parse(text).unwrap()
}

fn quiet() -> Context<'static> {
    Context::default()
}

fn cache() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn folder(cache: &TempDir) -> PathBuf {
    cache.path().join("models--some--model")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What an attempt fails with; no failure may show the token or the keys in addresses.
fn failure(text: &str, hub: &HubOptions) -> String {
    let error = model(text).fetch_with(hub, &quiet()).unwrap_err();
    assert!(matches!(error, Error::Model { .. }), "{error:?}");
    let (short, long) = (error.to_string(), format!("{error:?}"));
    assert!(short.starts_with("model some/model@"), "{short}");
    for text in [&short, &long] {
        assert!(!text.contains(TOKEN) && !text.contains("secret"), "{text}");
    }
    short
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn names_and_revisions_are_read() {
    for (text, full) in [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B@main"),
        ("a/b@v1.0", "a/b@v1.0"),
        ("a_1/b.c-d@refs/pr/1", "a_1/b.c-d@refs/pr/1"),
        (
            "a/b@1111111111111111111111111111111111111111",
            "a/b@1111111111111111111111111111111111111111",
        ),
    ] {
        assert_eq!(model(text).to_string(), full);
    }
}

#[test]
fn anything_else_is_refused() {
    for text in [
        "",
        "/",
        "@",
        "a",
        "a/",
        "/b",
        "a/b/c",
        "/a/b",
        "a/b@",
        "@main",
        "a/b@@",
        "a/b@x@y",
        "a b/c",
        " a/b",
        "a/b ",
        "a/b\n",
        "a/b\0",
        "a\u{7}/b",
        "../b",
        "a/..",
        "a/.",
        "./b",
        "a/.b",
        "a/b-",
        "a--b/c",
        "a/b..c",
        "a\\b/c",
        "C:/b",
        "a/b@../x",
        "a/b@x/../y",
        "a/b@/etc",
        "a/b@x/",
        "a/b@x//y",
        "a/b@./x",
        "a/b@.x",
        "a/b@x y",
        "a/b@x\\y",
        "a/b@x?y",
        "a/b@x#y",
        "a/b@x%2e",
        "ä/b",
        "a/ｂ",
        "https://huggingface.co/a/b",
    ] {
        let error = HubModel::parse(text).expect_err(text);
        let shown = error.to_string();
        assert!(matches!(error, Error::Model { .. }));
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert_says(&shown, &["owner/name@revision"]);
    }
    assert!(HubModel::parse(&format!("a/{}", "b".repeat(97))).is_err());
}

#[test]
fn a_model_of_one_file_comes_whole() {
    let (server, cache) = (Server::start(&ONE_FILE), cache());
    let snapshot = model("some/model").fetch_with(&server.hub(&cache), &quiet()).unwrap();
    assert_eq!(snapshot, folder(&cache).join("snapshots").join(FIRST));
    let needed = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&snapshot), set(&needed));
    for (name, content) in &ONE_FILE[..4] {
        assert_eq!(fs::read(snapshot.join(name)).unwrap(), *content, "{name}");
    }
    assert_eq!(fs::read_to_string(folder(&cache).join("refs/main")).unwrap(), FIRST);
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.ends_with("+token")), "{requests:?}");
    assert_eq!(requests.iter().filter(|request| request.starts_with("GET /some")).count(), 4);
}

#[test]
fn shards_come_and_nothing_that_the_index_does_not_name() {
    let (server, cache) = (Server::start(&SHARDS), cache());
    let snapshot = model("some/model@main").fetch_with(&server.hub(&cache), &quiet()).unwrap();
    assert_eq!(names(&snapshot), SHARDS[..4].iter().map(|(name, _)| (*name).to_owned()).collect());
    for (name, content) in &SHARDS[..4] {
        assert_eq!(fs::read(snapshot.join(name)).unwrap(), *content, "{name}");
    }
}

#[test]
fn a_second_fetch_asks_for_the_commit_only() {
    for files in [&ONE_FILE[..], &SHARDS[..]] {
        let (server, cache) = (Server::start(files), cache());
        let hub = server.hub(&cache);
        let first = model("some/model").fetch_with(&hub, &quiet()).unwrap();
        server.requests();
        assert_eq!(model("some/model").fetch_with(&hub, &quiet()).unwrap(), first);
        assert_eq!(server.requests(), ["GET /api/models/some/model/revision/main +token"]);
        let pinned = format!("some/model@{FIRST}");
        assert_eq!(model(&pinned).fetch_with(&hub, &quiet()).unwrap(), first);
        assert_eq!(server.requests(), [""; 0]);
    }
}

#[test]
fn a_new_commit_brings_only_what_changed() {
    let (server, cache) = (Server::start(&ONE_FILE), cache());
    let hub = server.hub(&cache);
    let first = model("some/model").fetch_with(&hub, &quiet()).unwrap();
    let mut files = ONE_FILE;
    files[1].1 = b"{\"new\": true}";
    server.commit(SECOND, &files);
    server.requests();
    let second = model("some/model").fetch_with(&hub, &quiet()).unwrap();
    assert_eq!(second, first.with_file_name(SECOND));
    let requests = server.requests();
    let fetched: Vec<_> = requests.iter().filter(|r| r.starts_with("GET /some")).collect();
    assert_eq!(fetched, [&format!("GET /some/model/resolve/{SECOND}/tokenizer.json +token")]);
    assert_eq!(fs::read(second.join("tokenizer.json")).unwrap(), files[1].1);
    assert_eq!(fs::read(first.join("tokenizer.json")).unwrap(), ONE_FILE[1].1);
    assert_eq!(fs::read(second.join("model.safetensors")).unwrap(), ONE_FILE[3].1);
    // The old commit is still there, and needs no hub.
    assert_eq!(model(&format!("some/model@{FIRST}")).fetch_with(&hub, &quiet()).unwrap(), first);
}

#[test]
fn a_revision_with_slashes_has_a_note_of_its_own() {
    let (server, cache) = (Server::start(&ONE_FILE), cache());
    server.state.lock().unwrap().revisions.insert("refs/pr/1".into(), FIRST.into());
    let mut hub = server.hub(&cache);
    let snapshot = model("some/model@refs/pr/1").fetch_with(&hub, &quiet()).unwrap();
    assert_eq!(fs::read_to_string(folder(&cache).join("refs/refs/pr/1")).unwrap(), FIRST);
    hub.offline = true;
    assert_eq!(model("some/model@refs/pr/1").fetch_with(&hub, &quiet()).unwrap(), snapshot);
    assert_says(&failure("some/model@main", &hub), &["is not in the cache"]);
}

/// How far downloads are.
#[derive(Default)]
struct Bytes(Vec<(u64, u64)>);

impl Observer for Bytes {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        if let Event::Task { task: Task::Download, progress } = event {
            self.0.push((progress.done, progress.total));
        }
        Ok(())
    }
}

#[test]
fn a_stop_before_or_while_a_model_comes_leaves_no_snapshot_of_it() {
    let (server, cache) = (Server::start(&ONE_FILE), cache());
    let stop = StopFlag::default();
    stop.request();
    let error = model("some/model").fetch_with(&server.hub(&cache), &Context::new((), &stop));
    assert!(matches!(error.unwrap_err(), Error::Stopped { .. }));
    assert_eq!(names(&folder(&cache).join("refs")), set(&[]));
}

#[test]
fn big_files_come_from_elsewhere_and_the_token_stays_here() {
    let big: Vec<u8> = (0..12_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut files = ONE_FILE;
    files[3].1 = &big;
    let (server, store, cache) = (Server::start(&files), Server::start(&files), cache());
    let elsewhere = Manner::Elsewhere(store.address.clone());
    server.manner("model.safetensors", elsewhere.clone());
    store.manner("model.safetensors", elsewhere);
    server.manner("config.json", Manner::Moved);
    let mut bytes = Bytes::default();
    let context = Context::new(&mut bytes, &StopFlag::default());
    let snapshot = model("some/model").fetch_with(&server.hub(&cache), &context).unwrap();
    drop(context);
    assert!(bytes.0.iter().all(|(done, total)| done < total && *total == big.len() as u64));
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), big);
    assert_eq!(fs::read(snapshot.join("config.json")).unwrap(), files[0].1);
    assert_eq!(store.requests(), [format!("GET /stored/{FIRST}/model.safetensors")]);
}

#[test]
fn a_gated_model_names_the_token_variable() {
    for status in [401, 403] {
        let (server, cache) = (Server::start(&ONE_FILE), cache());
        server.manner("config.json", Manner::Refused(status));
        let text = failure("some/model", &server.hub(&cache));
        assert_says(&text, &["config.json", &status.to_string(), "is restricted", "HF_TOKEN"]);
        assert_eq!(names(&folder(&cache).join("refs")), set(&[]));
    }
}

#[test]
fn what_the_hub_does_not_have_is_named() {
    let (server, cache) = (Server::start(&ONE_FILE), cache());
    let hub = server.hub(&cache);
    let text = failure("some/model@v9", &hub);
    assert_says(&text, &["some/model@v9", "no such revision", "a branch, a tag, or a commit"]);
    server.fail(404, "RepoNotFound");
    assert_says(&failure("some/model", &hub), &["no such model", "Check the spelling"]);
    server.fail(404, "");
    assert_says(&failure("some/model", &hub), &["no such model or revision"]);
    // So the hub answers without a token if there is no such repository, or a private one.
    server.fail(401, "RepoNotFound");
    let text = failure("some/model", &hub);
    assert_says(&text, &["(401): Said by the hub. See https://hub.test. ", "spelling", "HF_TOKEN"]);
    let other = format!("some/model@{SECOND}");
    server.state.lock().unwrap().api_error = None;
    assert_says(&failure(&other, &hub), &["no such revision"]);
    assert_eq!(names(cache.path()), set(&[]));
}

#[test]
fn config_and_safetensors_must_be_there() {
    let (server, cache1, cache2) = (Server::start(&ONE_FILE[1..]), cache(), cache());
    let text = failure("some/model", &server.hub(&cache1));
    assert_says(&text, &["it has no `config.json`"]);
    let mut files = ONE_FILE;
    files[3].0 = "model.bin";
    let server = Server::start(&files);
    let text = failure("some/model", &server.hub(&cache2));
    assert_says(&text, &["it has no `model.safetensors`", "only safetensors are supported"]);
    let server = Server::start(&SHARDS[..3]);
    let text = failure("some/model", &server.hub(&cache()));
    assert_says(&text, &["it has no `model-00002-of-00002.safetensors`"]);
}

#[test]
fn an_index_names_plain_files_or_is_refused() {
    for index in [
        r#"{"weight_map": {"a": "../../../evil.safetensors"}}"#,
        r#"{"weight_map": {"a": "good.safetensors", "b": "/evil.safetensors"}}"#,
        r#"{"weight_map": {"a": "folder/evil.safetensors"}}"#,
        r#"{"weight_map": {"a": "folder\\evil.safetensors"}}"#,
        r#"{"weight_map": {"a": "C:evil.safetensors"}}"#,
        r#"{"weight_map": {"a": "evil\u0000.safetensors"}}"#,
        r#"{"weight_map": {"a": "evil\n.safetensors"}}"#,
        r#"{"weight_map": {"a": ".safetensors"}}"#,
        r#"{"weight_map": {"a": "config.json"}}"#,
        r#"{"weight_map": {"a": ""}}"#,
        r#"{"weight_map": {"a": 1}}"#,
        r#"{"weight_map": {}}"#,
        r#"{"weight_map": []}"#,
        "[]",
        "no JSON",
        "",
    ] {
        let files: [(&str, &[u8]); 3] = [
            ("config.json", b"{}"),
            ("model.safetensors.index.json", index.as_bytes()),
            ("good.safetensors", b"good"),
        ];
        let (server, cache) = (Server::start(&files), cache());
        let mut hub = server.hub(&cache);
        let text = failure("some/model", &hub);
        assert_says(&text, &["model.safetensors.index.json names"]);
        assert!(!text.contains(['\0', '\n']), "{text:?}");
        assert!(server.requests().iter().all(|r| !r.contains("evil") && !r.contains("good")));
        hub.offline = true;
        failure("some/model", &hub);
    }
}

#[test]
fn a_cut_connection_is_tried_again() {
    let (server, cache) = (Server::start(&ONE_FILE), cache());
    server.manner("model.safetensors", Manner::Cut(2));
    let snapshot = model("some/model").fetch_with(&server.hub(&cache), &quiet()).unwrap();
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), ONE_FILE[3].1);
}

#[test]
fn half_a_file_is_never_left_in_the_snapshot() {
    for manner in [Manner::Cut(99), Manner::CutUnannounced, Manner::ErrorPage] {
        let (server, cache) = (Server::start(&ONE_FILE), cache());
        server.manner("model.safetensors", manner);
        let mut hub = server.hub(&cache);
        let text = failure("some/model", &hub);
        assert_says(&text, &["`model.safetensors`", "Try again"]);
        let snapshot = folder(&cache).join("snapshots").join(FIRST);
        assert_eq!(
            names(&snapshot),
            set(&["config.json", "tokenizer.json", "tokenizer_config.json"])
        );
        let blobs = names(&folder(&cache).join("blobs"));
        assert_eq!(blobs.iter().filter(|name| !name.ends_with(".incomplete")).count(), 3);
        assert_eq!(names(&folder(&cache).join("refs")), set(&[]));
        // It is the same offline, and all is well once the server is.
        hub.offline = true;
        failure("some/model", &hub);
        hub.offline = false;
        server.manner("model.safetensors", Manner::Whole);
        model("some/model").fetch_with(&hub, &quiet()).unwrap();
        assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), ONE_FILE[3].1);
    }
}

#[test]
fn a_file_of_another_commit_is_refused() {
    let (server, cache) = (Server::start(&ONE_FILE), cache());
    server.manner("tokenizer.json", Manner::OtherCommit);
    let text = failure("some/model", &server.hub(&cache));
    assert_says(&text, &["`tokenizer.json` of another commit"]);
}

#[test]
fn offline_a_whole_copy_is_enough() {
    for files in [&ONE_FILE[..], &SHARDS[..]] {
        let (server, cache) = (Server::start(files), cache());
        let mut hub = server.hub(&cache);
        let online = model("some/model").fetch_with(&hub, &quiet()).unwrap();
        server.requests();
        hub.offline = true;
        assert_eq!(model("some/model").fetch_with(&hub, &quiet()).unwrap(), online);
        let pinned = format!("some/model@{FIRST}");
        assert_eq!(model(&pinned).fetch_with(&hub, &quiet()).unwrap(), online);
        let last = names(&online).into_iter().rfind(|name| name.ends_with(".safetensors")).unwrap();
        fs::remove_file(online.join(&last)).unwrap();
        for text in ["some/model", &pinned] {
            let text = failure(text, &hub);
            assert_says(&text, &["HF_HUB_OFFLINE is set", "has no `model", "with a network"]);
        }
        assert_eq!(server.requests(), [""; 0]);
    }
}

#[test]
fn offline_nothing_in_the_cache_is_an_error() {
    let (server, cache) = (Server::start(&ONE_FILE), cache());
    let hub = HubOptions { offline: true, ..server.hub(&cache) };
    let text = failure("some/model", &hub);
    assert_says(&text, &["HF_HUB_OFFLINE is set", "not in the cache", "with a network"]);
    assert_eq!(server.requests(), [""; 0]);
    assert_eq!(names(cache.path()), set(&[]));
}

#[test]
fn without_a_network_a_whole_copy_is_enough() {
    let (server, cache1, cache2) = (Server::start(&ONE_FILE), cache(), cache());
    let online = model("some/model").fetch_with(&server.hub(&cache1), &quiet()).unwrap();
    server.fail(503, "");
    assert_eq!(model("some/model").fetch_with(&server.hub(&cache1), &quiet()).unwrap(), online);
    let (hub1, hub2) = (server.hub(&cache1), server.hub(&cache2));
    drop(server);
    assert_eq!(model("some/model").fetch_with(&hub1, &quiet()).unwrap(), online);
    let text = failure("some/model", &hub2);
    assert_says(&text, &["the Hub cannot be reached", "not in the cache", "with a network"]);
    fs::remove_file(online.join("config.json")).unwrap();
    let text = failure("some/model", &hub1);
    assert_says(&text, &["the Hub cannot be reached", "no `config.json`"]);
}

#[test]
fn two_fetches_at_once_do_not_disturb_each_other() {
    let (server, cache) = (Server::start(&ONE_FILE), cache());
    std::thread::scope(|scope| {
        let fetch = || model("some/model").fetch_with(&server.hub(&cache), &quiet()).unwrap();
        let (first, second) = (scope.spawn(fetch), scope.spawn(fetch));
        let snapshot = first.join().unwrap();
        assert_eq!(snapshot, second.join().unwrap());
        assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), ONE_FILE[3].1);
    });
}

#[test]
fn settings_come_without_weights_and_weights_later() {
    let (server, cache) = (Server::start(&ONE_FILE), cache());
    let settings = HubOptions { settings_only: true, ..server.hub(&cache) };
    let folder = model("some/model").fetch_with(&settings, &quiet()).unwrap();
    assert!(folder.join("config.json").is_file() && folder.join("tokenizer.json").is_file());
    assert!(!folder.join("model.safetensors").exists());
    assert!(server.requests().iter().all(|request| !request.contains("safetensors")));
    let offline = HubOptions { offline: true, ..settings };
    assert_eq!(model("some/model").fetch_with(&offline, &quiet()).unwrap(), folder);
    assert_eq!(model("some/model").fetch_with(&server.hub(&cache), &quiet()).unwrap(), folder);
    assert!(folder.join("model.safetensors").is_file());
}

#[test]
fn an_endpoint_that_is_no_address_is_named() {
    let cache = cache();
    let hub = HubOptions {
        endpoint: Some("hub".into()),
        cache: Some(cache.path().into()),
        ..HubOptions::default()
    };
    assert_says(&failure("some/model", &hub), &["HF_ENDPOINT"]);
}
