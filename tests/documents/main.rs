//! Promise: what the documents show exists and works: commands, settings, links, tests, and files.

#[path = "../common/commands.rs"]
mod commands;
mod settings;

use commands::{documents, name_of, repository, shown};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The most that the README has, in bytes: what one reads in five minutes.
const README: usize = 9_000;

#[test]
fn the_readme_is_read_in_five_minutes() {
    let size = fs::read_to_string(repository().join("README.md")).unwrap().len();
    assert!(size <= README, "{size} bytes");
}

#[test]
fn every_page_is_in_the_book_and_every_entry_has_a_page() {
    let docs = repository().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let entries: BTreeSet<String> =
        links(&summary).into_iter().map(|link| format!("docs/{link}")).collect();
    let pages = documents().into_iter().map(|path| name_of(&path));
    let pages: BTreeSet<String> =
        pages.filter(|name| name.starts_with("docs/") && name != "docs/SUMMARY.md").collect();
    assert_eq!(entries, pages);
}

/// Where the links of a document lead.
fn links(text: &str) -> Vec<String> {
    let outside = outside_of_blocks(text);
    let ends = outside.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    ends.map(|(link, _)| link.to_owned()).collect()
}

fn outside_of_blocks(text: &str) -> String {
    let mut is_block = false;
    let mut outside = String::new();
    for line in text.lines() {
        let is_mark = line.trim_start().starts_with("```");
        is_block ^= is_mark;
        if !is_block && !is_mark {
            outside.push_str(line);
            outside.push('\n');
        }
    }
    outside
}

/// What a heading is called in links to it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    // A link in a heading counts by its text.
    let kept = kept.split("](").map(|part| part.rsplit_once(')').map_or(part, |(_, rest)| rest));
    let kept: String = kept.collect();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_to_files_and_headings_that_are_there() {
    let mut failures = vec![];
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => path.clone(),
                _ => path.parent().unwrap().join(file),
            };
            if !target.exists() {
                failures.push(format!("{}: {link}", name_of(&path)));
            } else if !heading.is_empty() {
                let text = outside_of_blocks(&fs::read_to_string(&target).unwrap());
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                if !headings.any(|line| anchor(line.trim_start_matches('#')) == heading) {
                    failures.push(format!("{}: {link} (no such heading)", name_of(&path)));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The settings of this package in Cargo.toml.
fn manifest() -> toml::Table {
    let text = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    text.parse().unwrap()
}

/// Whether there is a target of cargo with this name.
fn is_target(manifest: &toml::Table, kind: &str, name: &str) -> bool {
    let listed = manifest.get(kind).and_then(|list| list.as_array());
    let folder = match kind {
        "example" => "examples",
        "test" => "tests",
        _ => "benches",
    };
    let folder = repository().join(folder);
    listed.is_some_and(|list| list.iter().any(|one| one["name"].as_str() == Some(name)))
        || (kind != "bench"
            && (folder.join(format!("{name}.rs")).exists()
                || folder.join(name).join("main.rs").exists()))
}

#[test]
fn commands_of_cargo_and_scripts_name_what_is_there() {
    let manifest = manifest();
    let features = manifest["features"].as_table().unwrap();
    let mut count = 0;
    let mut failures = vec![];
    for shown in shown() {
        let Some(first) = shown.words.first() else { continue };
        let mut fail = |what: String| failures.push(format!("{}: {what}", shown.place));
        match first.as_str() {
            "cargo" => {
                count += 1;
                let own = shown.words.iter().take_while(|word| *word != "--").collect::<Vec<_>>();
                for pair in own.windows(2) {
                    match pair[0].as_str() {
                        "--features" => {
                            for feature in pair[1].split(',') {
                                if !features.contains_key(feature) {
                                    fail(format!("there is no feature {feature}"));
                                }
                            }
                        }
                        "--example" | "--test" | "--bench"
                            if !is_target(&manifest, &pair[0][2..], pair[1]) =>
                        {
                            fail(format!("there is no {} {}", &pair[0][2..], pair[1]));
                        }
                        _ => {}
                    }
                }
            }
            "python" | "python3" if shown.words.len() > 1 && shown.words[1].ends_with(".py") => {
                count += 1;
                if !repository().join(&shown.words[1]).exists() {
                    fail(format!("there is no {}", shown.words[1]));
                }
            }
            // Scripts of the repository.
            script if script.contains('/') && !script.starts_with(['.', '/', '$', '~']) => {
                count += 1;
                if !repository().join(script).exists() {
                    fail(format!("there is no {script}"));
                }
            }
            _ => {}
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(count > 20, "{count} commands were found");
}

#[test]
fn commands_that_cost_nothing_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for shown in shown() {
        let Some(words) = shown.of_program() else { continue };
        let is_cheap = words.iter().any(|word| word == "--help" || word == "--version")
            || matches!(words.get(1).map(String::as_str), Some("config" | "completions"));
        // Files of the reader.
        let needs_files = words.iter().any(|word| word == "--config");
        if !is_cheap || needs_files {
            continue;
        }
        count += 1;
        let program = env!("CARGO_BIN_EXE_mixdistill");
        let output = Command::new(program).args(&words[1..]).current_dir(&folder).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {words:?}\n{told}", shown.place);
    }
    assert!(count > 5, "{count} commands were run");
}

#[test]
fn the_mixture_that_documents_show_is_that_of_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["train", "--steps", "1", "--questions", "0", "--out", "run"];
    let program = env!("CARGO_BIN_EXE_mixdistill");
    let output = Command::new(program).args(words).current_dir(&folder).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let table = printed.split_once("mixture:\n").unwrap().1.split_once("\n\n").unwrap().0;
    assert!(table.lines().count() > 3, "{printed}");
    for name in ["README.md", "docs/getting-started.md", "docs/mixing.md"] {
        let text = fs::read_to_string(repository().join(name)).unwrap();
        assert!(text.contains(table), "{name} does not show\n{table}");
    }
}

#[test]
fn nothing_is_presupposed_that_a_reader_lacks() {
    // The settings of the studies of real students name files there, and the page says where to get them.
    let may = ["CONTRIBUTING.md", "docs/real-study/", "docs/gsm8k-study/report.md"];
    let sources = fs::read_to_string(repository().join("docs/example-data.md")).unwrap();
    for path in documents() {
        let name = name_of(&path);
        let text = fs::read_to_string(&path).unwrap();
        let is_allowed = may.iter().any(|place| name.starts_with(place));
        assert!(is_allowed || !text.contains("../shared"), "{name}");
    }
    for shown in shown() {
        // Folders are made, not fetched.
        let files =
            shown.words.iter().filter(|word| word.starts_with("data/") && word.contains('.'));
        for file in files {
            let is_fetched = sources.contains(&format!("-o {file} "));
            assert!(is_fetched, "{}: example-data.md does not fetch {file}", shown.place);
        }
    }
}

#[test]
fn the_tests_that_hold_the_promises_are_there() {
    let table =
        [include_str!("../../docs/reliability.md"), include_str!("../../docs/serving.md")].concat();
    let mut named = 0;
    for name in table.split('`').filter(|part| part.contains("::") && !part.contains(' ')) {
        let (file, test) = name.split_once("::").unwrap();
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let mut paths = vec![tests.join(format!("{file}.rs"))];
        if let Ok(entries) = fs::read_dir(tests.join(file)) {
            paths.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let holds = |path: &std::path::PathBuf| {
            fs::read_to_string(path)
                .is_ok_and(|text| text.contains(&format!("#[test]\nfn {test}()")))
        };
        assert!(paths.iter().any(holds), "there is no test {name}");
        named += 1;
    }
    assert!(named > 20, "{named}");
}
