//! `--set` and `config`.

use super::call;

#[test]
fn a_wrong_key_is_answered_with_the_nearest() {
    for command in ["train", "compare", "config"] {
        let said = call(&[command, "--set", "train.learning_rat=1e-4"]).with(2).err;
        assert!(said.contains("train.learning_rate"), "{said}");
    }
    let said = call(&["config", "explain", "learning_rat"]).with(2).err;
    assert!(said.contains("train.learning_rate"), "{said}");
    // A value of the wrong type.
    let said = call(&["train", "--set", "train.learning_rate=fast"]).with(2).err;
    assert!(said.contains("number") && said.contains("train.learning_rate"), "{said}");
}

#[test]
fn printed_settings_read_back_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml").display().to_string();
    for more in [&[][..], &["--explained"]] {
        let words = ["config", "--set", "train.steps=5", "--set", "lora.rank=4"];
        let words = [&words[..], &["--set", "base_model=some/folder"], more].concat();
        let printed = call(&words).with(0).out;
        assert!(printed.contains("steps = 5") && printed.contains("rank = 4"), "{printed}");
        // Unset settings are listed, too.
        assert!(printed.contains("# tokenizer = <"), "{printed}");
        std::fs::write(&path, &printed).unwrap();
        let again = call(&[&["config", "--config", &path], more].concat()).with(0).out;
        assert_eq!(again, printed);
    }
    let said = call(&["config", "check", "--config", &path]).with(0).out;
    assert!(said.contains("the settings are valid"), "{said}");
}

#[test]
fn settings_are_checked_with_their_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, "seed = 1\ncolour = 2\n[train]\nbatch_size = 0\n").unwrap();
    let path = path.display().to_string();
    for words in [&["config", "check"][..], &["train", "--out", "nowhere"]] {
        let said = call(&[words, &["--config", &path]].concat()).with(1).err;
        assert!(said.contains("colour") && said.contains("c.toml"), "{said}");
    }
    std::fs::write(&path, "seed = 1\n[train]\nbatch_size = 0\n").unwrap();
    let said = call(&["config", "check", "--config", &path]).with(1).err;
    assert!(said.contains("train.batch_size") && said.contains("c.toml"), "{said}");
}

#[test]
fn every_setting_is_explained() {
    let all = call(&["config", "explain"]).with(0).out;
    for key in ["train.learning_rate = ", "data.sources", "mixture.share = ", "lora.rank"] {
        assert!(all.lines().any(|line| line.starts_with(key)), "{key}: {all}");
    }
    let one = call(&["config", "explain", "mixture.share"]).with(0).out;
    assert!(one.lines().count() < 12 && one.contains("\"tokens\": "), "{one}");
    // A table with all of its settings.
    let table = call(&["config", "explain", "lora"]).with(0).out;
    assert!(table.contains("lora.alpha") && !table.contains("train."), "{table}");
    let study = call(&["config", "explain", "seeds", "--study"]).with(0).out;
    assert!(study.starts_with("seeds"), "{study}");
}

#[test]
fn messages_name_the_flag_beside_the_setting() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run").display().to_string();
    let said = |words: &[&str]| {
        let ended = call(&[&["train", "--out", &out], words].concat()).with(1);
        assert!(!folder.path().join("run/config.toml").exists());
        ended.err
    };
    for (words, message) in [
        (&["--max-length", "1"][..], "setting `data.max_length` (--max-length): it is 1"),
        (&["--steps", "0"], "setting `train.steps` (--steps)"),
        (&["--set", "train.batch_size=0"], "`train.batch_size` (--set train.batch_size=...)"),
        (&["--backend", "abacus"], "there is no such backend"),
        (&["--resume"], "start a new run without --resume"),
        (&["--long", "a.jsonl", "--short", "b.jsonl"], "cannot read a.jsonl"),
        (&["--long", "a.jsonl", "--short", "b.jsonl"], "(--set data.tokenizer=...)"),
    ] {
        let said = said(words);
        assert!(said.contains(message), "{words:?}: {said}");
    }
    // Columns of one source.
    let words = ["--long", "a.jsonl", "--short", "b.jsonl", "--long-columns", "solution"];
    let said = call(&[&["train", "--out", &out], &words[..]].concat()).with(2).err;
    assert!(said.contains("data.sources.long.columns` (--long-columns)"), "{said}");
}
