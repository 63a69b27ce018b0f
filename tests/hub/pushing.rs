//! What is pushed, where to, and what is refused.

use super::datasets::run_program;
use super::server::*;
use super::store::Transfer;
use super::{assert_says, cache, quiet};
use mixdistill::Error;
use mixdistill::context::{Context, Event, Observer, StopFlag, Task};
use mixdistill::hub::{HubModel, PushOptions, Pushed, push};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// A model's folder with what else may be in one.
fn model(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    fs::create_dir_all(model.join("checkpoint-3")).unwrap();
    for (name, text) in [
        ("config.json", "{\"model_type\": \"qwen2\"}"),
        ("model.safetensors", "weights, weights, weights"),
        ("tokenizer.json", "{}"),
        ("README.md", "---\nbase_model: a/b\n---\n# Mine\n"),
        (".env", "HF_TOKEN=hf_secretsecret"),
        ("optimizer.pt", "moments"),
        ("trainer_state.json", "{}"),
        ("notes.txt", "mine alone"),
        ("data.json", "[]"),
        ("checkpoint-3/config.json", "{}"),
    ] {
        fs::write(model.join(name), text).unwrap();
    }
    model
}

fn options(server: &Server, cache: &TempDir) -> PushOptions {
    PushOptions { hub: server.hub(cache), ..PushOptions::default() }
}

/// What an attempt fails with.
fn failure(what: &Path, name: &str, options: &PushOptions) -> String {
    let error = push(what, name, options, &quiet()).unwrap_err();
    assert!(matches!(error, Error::Model { .. } | Error::Io { .. }), "{error:?}");
    let (short, long) = (error.to_string(), format!("{error:?}"));
    for text in [&short, &long] {
        assert!(!text.contains(TOKEN) && !text.contains("secret"), "{text}");
    }
    short
}

/// The files of a commit: text that is in it, or the size of one that is stored apart.
fn committed(server: &Server, number: usize) -> BTreeMap<String, String> {
    let state = server.state.lock().unwrap();
    let (_, lines) = &state.store.commits[number];
    assert_eq!(lines[0]["key"], "header");
    let file = |line: &Value| {
        let value = &line["value"];
        let name = value["path"].as_str().unwrap().to_owned();
        match line["key"].as_str().unwrap() {
            "file" => {
                assert_eq!(value["encoding"], "base64");
                (name, decoded(value["content"].as_str().unwrap()))
            }
            "lfsFile" => (name, format!("{} bytes", value["size"])),
            other => panic!("{other}"),
        }
    };
    lines[1..].iter().map(file).collect()
}

/// Base 64, as the commit has it.
fn decoded(text: &str) -> String {
    let code = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let codes: Vec<u8> = text.bytes().filter(|byte| *byte != b'=').map(code).collect();
    let bits = |codes: &[u8]| codes.iter().fold(0u32, |bits, code| bits << 6 | u32::from(*code));
    let mut bytes = vec![];
    for group in codes.chunks(4) {
        let all = bits(group) << (6 * (4 - group.len()));
        bytes.extend_from_slice(&all.to_be_bytes()[1..group.len()]);
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_model_goes_with_its_card_in_one_commit_to_a_private_repository() {
    let (server, cache, folder) = (Server::start(&[]), cache(), tempfile::tempdir().unwrap());
    let model = model(folder.path());
    let pushed = push(&model, "me/new", &options(&server, &cache), &quiet()).unwrap();
    let files = ["README.md", "config.json", "model.safetensors", "tokenizer.json"];
    let expected = Pushed {
        repository: "me/new".into(),
        url: format!("{}/me/new", server.address),
        revision: "main".into(),
        commit: format!("{:040x}", 1),
        commit_url: format!("{}/me/new/commit/{:040x}", server.address, 1),
        files: files.map(str::to_owned).to_vec(),
        bytes: 81,
        left_out: ["checkpoint-3", "data.json", "notes.txt", "optimizer.pt", "trainer_state.json"]
            .map(str::to_owned)
            .to_vec(),
        created: true,
        private: true,
    };
    assert_eq!(pushed, expected);
    let files = committed(&server, 0);
    assert_eq!(files["model.safetensors"], "25 bytes");
    assert_eq!(files["README.md"], "---\nbase_model: a/b\n---\n# Mine\n");
    let state = server.state.lock().unwrap();
    assert_eq!(state.store.commits.len(), 1);
    let created = &state.store.created;
    assert_eq!(created.len(), 1);
    assert_eq!((&created[0]["private"], &created[0]["type"]), (&true.into(), &"model".into()));
}

#[test]
fn big_files_go_through_xet_and_come_back_through_it() {
    let (server, cache, folder) = (Server::start(&[]), cache(), tempfile::tempdir().unwrap());
    let model = model(folder.path());
    // Two kinds of text, and noise, which no code makes smaller.
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let mut weights: Vec<u8> = (0..1_500_000).map(|_| noise()).collect();
    weights.extend((0..17_000_000u32).map(|n| (n / 3 % 256) as u8));
    fs::write(model.join("model.safetensors"), &weights).unwrap();
    let said = run_program(
        &server,
        &cache,
        &["push", "me/new", "--from", model.to_str().unwrap(), "--json"],
    );
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let [out, err] = [text(&said.stdout), text(&said.stderr)];
    assert!(said.status.success(), "{out}\n{err}");
    assert!(!out.contains(TOKEN) && !err.contains(TOKEN) && !err.contains("xet-key"), "{err}");
    let result: Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!(result["commit"], format!("{:040x}", 1));
    assert_eq!(committed(&server, 0)["model.safetensors"], format!("{} bytes", weights.len()));
    // The hub now offers it as it does any model of its own.
    {
        let mut state = server.state.lock().unwrap();
        let hashes: Vec<String> = state.store.xet_files.keys().cloned().collect();
        assert_eq!(hashes.len(), 1, "{hashes:?}");
        let key = |name: &str| (FIRST.to_owned(), name.to_owned());
        let manner = Manner::Xet(hashes[0].clone());
        state.files.insert(key("model.safetensors"), (weights.clone(), manner));
        let config = fs::read(model.join("config.json")).unwrap();
        state.files.insert(key("config.json"), (config, Manner::Whole));
        state.store.repositories.insert("some/model".into(), true);
        state.revisions.insert(FIRST.into(), FIRST.into());
    }
    server.requests();
    let fetched = HubModel::parse("some/model").unwrap();
    let fetched = fetched.fetch_with(&server.hub(&cache), &quiet()).unwrap();
    assert!(
        fs::read(fetched.join("model.safetensors")).unwrap() == weights,
        "what came back differs"
    );
    assert!(server.requests().iter().any(|request| request.contains("/xorb-data/")));
}

#[test]
fn a_folder_without_a_card_gets_a_short_one_where_the_repository_has_none() {
    let (server, cache, folder) = (Server::start(&[]), cache(), tempfile::tempdir().unwrap());
    let model = model(folder.path());
    fs::remove_file(model.join("README.md")).unwrap();
    push(&model, "me/new", &options(&server, &cache), &quiet()).unwrap();
    let files = committed(&server, 0);
    assert_says(&files["README.md"], &["library_name: transformers", "`qwen2`", "not recorded"]);
    assert!(!model.join("README.md").exists(), "the folder stays as it is");
    server.state.lock().unwrap().store.siblings.push("README.md".into());
    let again = push(&model, "me/new", &options(&server, &cache), &quiet()).unwrap();
    assert!(!again.created && !committed(&server, 1).contains_key("README.md"));
}

/// What is told.
#[derive(Default)]
struct Told {
    notices: Vec<String>,
    tasks: Vec<Task>,
}

impl Observer for &mut Told {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        match event {
            Event::Notice(text) => self.notices.push((*text).to_owned()),
            Event::Task { task, .. } => self.tasks.push(*task),
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn adapters_runs_and_gguf_files_are_known() {
    let (server, cache, folder) = (Server::start(&[]), cache(), tempfile::tempdir().unwrap());
    let adapter = folder.path().join("run/adapter");
    fs::create_dir_all(&adapter).unwrap();
    fs::write(folder.path().join("run/config.toml"), "base_model = \"x\"").unwrap();
    fs::create_dir_all(folder.path().join("run/checkpoints/step-3")).unwrap();
    fs::write(adapter.join("adapter_model.safetensors"), "weights").unwrap();
    let config = |base: &str| {
        let config = serde_json::json!({ "base_model_name_or_path": base });
        fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    };
    let run = folder.path().join("run");
    config("some/base");
    let pushed = push(&run, "me/new", &options(&server, &cache), &quiet()).unwrap();
    assert_eq!(pushed.files, ["adapter_config.json", "adapter_model.safetensors", "README.md"]);
    let card = &committed(&server, 0)["README.md"];
    assert_says(card, &["library_name: peft", "base_model: \"some/base\"", "PEFT"]);
    // A base that others cannot find is told.
    config("/home/me/base");
    let mut told = Told::default();
    let context = Context::new(&mut told, &StopFlag::default());
    push(&adapter, "me/new", &options(&server, &cache), &context).unwrap();
    drop(context);
    assert_says(&told.notices.join("\n"), &["/home/me/base", "others cannot find"]);
    assert!(!committed(&server, 1)["README.md"].contains("base_model:"));
    let gguf = folder.path().join("student.gguf");
    fs::write(&gguf, b"GGUF and more").unwrap();
    let pushed = push(&gguf, "me/new", &options(&server, &cache), &quiet()).unwrap();
    assert_eq!(pushed.files, ["student.gguf", "README.md"]);
}

#[test]
fn what_is_clearly_wrong_is_refused_before_anything_is_sent() {
    let (server, cache, folder) = (Server::start(&[]), cache(), tempfile::tempdir().unwrap());
    let model = model(folder.path());
    let options = options(&server, &cache);
    let path = |name: &str| folder.path().join(name);
    fs::write(path("x.gguf"), "no such thing").unwrap();
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir(path("run")).unwrap();
    fs::write(path("run/config.toml"), "").unwrap();
    assert_says(&failure(&path("gone"), "me/new", &options), &["there is no such folder or file"]);
    assert_says(&failure(&path("x.gguf"), "me/new", &options), &["it is not a GGUF file"]);
    assert_says(&failure(&path("empty"), "me/new", &options), &["neither a model nor an adapter"]);
    assert_says(&failure(&path("run"), "me/new", &options), &["has not written its student yet"]);
    for name in ["new", "me/", "me/a b", "../x", "me/new/x"] {
        assert_says(&failure(&model, name, &options), &["owner/name"]);
    }
    let at = |revision: &str| PushOptions { revision: Some(revision.into()), ..options.clone() };
    assert_says(&failure(&model, "me/new", &at(FIRST)), &["Name a branch"]);
    fs::write(model.join("README.md"), "---\nbase_model: /home/me/x\n---\n").unwrap();
    assert_says(
        &failure(&model, "me/new", &options),
        &["`/home/me/x` as base_model", "owner/name"],
    );
    fs::remove_file(model.join("README.md")).unwrap();
    fs::remove_file(model.join("model.safetensors")).unwrap();
    assert_says(&failure(&model, "me/new", &options), &["it has no safetensors"]);
    let index = r#"{"weight_map": {"a": "model-00001-of-00001.safetensors"}}"#;
    fs::write(model.join("model.safetensors.index.json"), index).unwrap();
    let text = failure(&model, "me/new", &options);
    assert_says(&text, &["no `model-00001-of-00001.safetensors`"]);
    assert_eq!(server.requests(), [""; 0]);
}

#[test]
fn the_hub_has_the_last_word() {
    let (server, cache, folder) = (Server::start(&[]), cache(), tempfile::tempdir().unwrap());
    let model = model(folder.path());
    let good = options(&server, &cache);
    let mut bad = good.clone();
    bad.hub.token = Some("hf_some_other_token".into());
    assert_says(&failure(&model, "me/new", &bad), &["no valid token", "HF_TOKEN", "write access"]);
    let offline = {
        let mut offline = good.clone();
        offline.hub.offline = true;
        offline
    };
    assert_says(&failure(&model, "me/new", &offline), &["HF_HUB_OFFLINE is set"]);
    let text = failure(&model, "you/new", &good);
    assert_says(&text, &["refuses access (403)", "under the namespace", "write access"]);
    server.state.lock().unwrap().store.repositories.insert("me/open".into(), false);
    let text = failure(&model, "me/open", &good);
    assert_says(&text, &["exists and is public", "--public"]);
    assert_eq!(server.state.lock().unwrap().store.commits.len(), 0);
    let public = PushOptions { public: true, ..good.clone() };
    assert!(!push(&model, "me/open", &public, &quiet()).unwrap().private);
    assert!(!push(&model, "me/fresh", &public, &quiet()).unwrap().private);
    // What the hub says of a commit is told, without what may be a key in it.
    let said = format!("bad card, see https://hub.test/x?key=secret and {TOKEN}");
    server.state.lock().unwrap().store.commit_error = Some((400, said));
    assert_says(&failure(&model, "me/new", &good), &["status 400", "bad card", "https://hub.test"]);
}

#[test]
fn a_branch_is_made_where_there_is_none() {
    let (server, cache, folder) = (Server::start(&[]), cache(), tempfile::tempdir().unwrap());
    let model = model(folder.path());
    let options = PushOptions {
        revision: Some("try-1".into()),
        message: Some("rank 16".into()),
        ..options(&server, &cache)
    };
    for _ in 0..2 {
        push(&model, "me/new", &options, &quiet()).unwrap();
    }
    let state = server.state.lock().unwrap();
    assert_eq!(state.store.branches, ["try-1"]);
    let (branch, lines) = &state.store.commits[0];
    assert_eq!((branch.as_str(), &lines[0]["value"]["summary"]), ("try-1", &"rank 16".into()));
}

#[test]
fn without_xet_big_files_are_refused_and_small_ones_go_within_the_commit() {
    let (server, cache, folder) = (Server::start(&[]), cache(), tempfile::tempdir().unwrap());
    let model = model(folder.path());
    let options = options(&server, &cache);
    server.state.lock().unwrap().store.transfer = Transfer::Basic;
    push(&model, "me/new", &options, &quiet()).unwrap();
    assert_eq!(committed(&server, 0)["model.safetensors"], "weights, weights, weights");
    fs::write(model.join("model.safetensors"), vec![7; 17 << 20]).unwrap();
    assert_says(&failure(&model, "me/new", &options), &["does not accept large files through Xet"]);
    server.state.lock().unwrap().store.transfer = Transfer::Broken;
    assert_says(&failure(&model, "me/new", &options), &["Xet, the Hub's storage, failed"]);
    assert_eq!(server.state.lock().unwrap().store.commits.len(), 1);
}

#[test]
fn a_stop_leaves_no_commit_behind_and_a_push_is_never_silent() {
    let (server, cache, folder) = (Server::start(&[]), cache(), tempfile::tempdir().unwrap());
    let model = model(folder.path());
    let options = options(&server, &cache);
    let stop = StopFlag::default();
    stop.request();
    let stopped = push(&model, "me/new", &options, &Context::new((), &stop)).unwrap_err();
    assert!(stopped.to_string().contains("nothing was committed"), "{stopped}");
    server.state.lock().unwrap().store.slow = Some(Duration::from_millis(900));
    let mut told = Told::default();
    push(&model, "me/new", &options, &Context::new(&mut told, &StopFlag::default())).unwrap();
    // Ten times a second.
    assert!(told.tasks.len() >= 5 && told.tasks.contains(&Task::Upload), "{:?}", told.tasks);
    let stop = StopFlag::default();
    let flag = stop.clone();
    let raising = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        flag.request();
    });
    let stopped = push(&model, "me/new", &options, &Context::new((), &stop)).unwrap_err();
    raising.join().unwrap();
    assert!(stopped.to_string().contains("in progress"), "{stopped}");
}

#[test]
fn the_program_says_where_it_is_and_never_the_token() {
    let (server, cache, folder) = (Server::start(&[]), cache(), tempfile::tempdir().unwrap());
    let model = model(folder.path());
    let words = ["push", "me/new", "--from", model.to_str().unwrap(), "-v"];
    let ended = run_program(&server, &cache, &words);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let all = text(&ended.stdout) + &text(&ended.stderr);
    assert!(ended.status.success(), "{all}");
    assert_says(&all, &["/me/new (private, new)", "commit ", "left out", "optimizer.pt"]);
    assert!(!all.contains(TOKEN) && !all.contains("secret"), "{all}");
    let ended = run_program(&server, &cache, &["push", "me/new", "--from", "gone"]);
    assert_eq!(ended.status.code(), Some(1));
    assert_says(&text(&ended.stderr), &["gone", "there is no such folder or file"]);
}
