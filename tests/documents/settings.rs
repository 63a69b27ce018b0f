//! Promise: documents show only existing settings, and the settings reference matches the code.

use super::commands::{blocks, documents, name_of, repository};
use mixdistill::eval::EvaluateConfig;
use mixdistill::ops::{Distillation, Divergence};
use mixdistill::recipe::RunConfig;
use mixdistill::settings::{Key, Layers, Settings};
use mixdistill::study::StudyConfig;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

/// The one block of settings of a page that has this in it.
fn block_with(page: &str, what: &str) -> String {
    let text = fs::read_to_string(repository().join("docs").join(page)).unwrap();
    let mut found = blocks(&text, "toml").into_iter().filter(|(_, block)| block.contains(what));
    found.next().unwrap_or_else(|| panic!("{page} has no block with {what}")).1
}

#[test]
fn settings_that_documents_show_are_settings() {
    let mut count = 0;
    for path in documents() {
        let name = name_of(&path);
        // Reports end with the settings of their study, in which the runs have defaults of their own.
        if name.ends_with("report.md") {
            continue;
        }
        for (line, block) in blocks(&fs::read_to_string(&path).unwrap(), "toml") {
            count += 1;
            let checked = match block.lines().next().unwrap_or_default() {
                "# Cargo.toml" => {
                    block.parse::<toml::Table>().map(|_| ()).map_err(|e| e.to_string())
                }
                "# study.toml" => check::<StudyConfig>(&block),
                "# pairs.toml" => {
                    #[cfg(feature = "teacher")]
                    let checked = check::<mixdistill::teacher::MakePairsConfig>(&block);
                    #[cfg(not(feature = "teacher"))]
                    let checked = Ok(());
                    checked
                }
                _ => check::<RunConfig>(&block).and_then(|()| {
                    let config = RunConfig::from_toml(&block).map_err(|e| e.to_string())?;
                    config.validate().map_err(|e| e.to_string())
                }),
            };
            assert_eq!(checked, Ok(()), "{name}:{line}\n{block}");
        }
    }
    assert!(count > 8, "{count} blocks were found");
}

fn check<T: Settings>(block: &str) -> Result<(), String> {
    let mut layers = Layers::<T>::new().map_err(|e| e.to_string())?;
    layers.text(block).map_err(|e| e.to_string())
}

#[test]
fn each_source_has_variables_of_its_own_as_shown() {
    let config = RunConfig::from_toml(&block_with("thinking.md", "enable_thinking")).unwrap();
    config.validate().unwrap();
    let thinks =
        |variables: &BTreeMap<String, serde_json::Value>| variables["enable_thinking"].clone();
    let [long, short] = &config.data.sources[..] else { panic!("two sources") };
    assert_eq!((long.name.as_str(), short.name.as_str()), ("long", "short"));
    assert_eq!(thinks(&long.template_variables), true);
    assert_eq!(thinks(&short.template_variables), false);
    assert_eq!(thinks(&config.asked_with()), true);
}

#[cfg(feature = "teacher")]
#[test]
fn teachers_differ_as_shown() {
    use mixdistill::teacher::MakePairsConfig;
    let config =
        MakePairsConfig::from_toml(&block_with("pairs.md", "chat_template_kwargs")).unwrap();
    config.validate().unwrap();
    let server = config.long.server.as_ref().unwrap();
    assert_eq!(server.extra["chat_template_kwargs"]["enable_thinking"], true);
    assert_eq!(config.short.local.as_ref().unwrap().temperature, 0.7);
    let text = toml::to_string(&config).unwrap();
    assert_eq!(MakePairsConfig::from_toml(&text).unwrap(), config);
}

#[test]
fn objectives_are_set_as_shown() {
    let block = block_with("objectives.md", "[train.objective.distillation]");
    let config = RunConfig::from_toml(&block).unwrap();
    config.validate().unwrap();
    let part = config.train.objective.distillation.unwrap();
    assert_eq!((part.divergence, part.weight), (Divergence::ForwardKl, 0.5));
    assert_eq!(config.train.objective.neftune_alpha, 5.0);
    assert_eq!(config.train.parameter_groups[0].names, ["embed_tokens", "lora_B"]);
    let teacher = config.teacher.as_ref().unwrap();
    assert_eq!((teacher.path.as_str(), teacher.top_k), ("logits", 64));
    // What is written is read back.
    assert_eq!(RunConfig::from_toml(&config.to_toml().unwrap()).unwrap(), config);
    for (text, expected) in
        [("{ jsd = 0.25 }", Divergence::Jsd(0.25)), ("\"reverse_kl\"", Divergence::ReverseKl)]
    {
        let block = block.replace("\"forward_kl\"", text);
        let config = RunConfig::from_toml(&block).unwrap();
        assert_eq!(config.train.objective.distillation.unwrap().divergence, expected);
        assert_eq!(RunConfig::from_toml(&config.to_toml().unwrap()).unwrap(), config);
    }
    // A teacher alone has the usual part in the loss.
    let config = RunConfig::from_toml("[teacher]\npath = \"t\"").unwrap();
    assert_eq!(config.train.objective.distillation, Some(Distillation::default()));
}

/// A text in a cell of a table. Outside of code, angle brackets would be taken for HTML.
fn cell(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let parts =
        parts.map(|(n, part)| if n % 2 == 0 { part.replace('<', "&lt;") } else { part.into() });
    parts.collect::<Vec<String>>().join("`").replace('|', "\\|").replace('\n', " ")
}

/// A value in a cell of a table, in one line.
fn code(value: &str) -> String {
    let value = match value.strip_prefix("\"\"\"").and_then(|rest| rest.strip_suffix("\"\"\"")) {
        Some(lines) => format!("{:?}", lines.strip_prefix('\n').unwrap_or(lines)),
        None => value.to_owned(),
    };
    format!("`{}`", value.replace('|', "\\|").replace('\n', " "))
}

/// Settings that change the defaults of others.
type Variant = (&'static str, &'static [&'static str]);

/// The reference of one kind of settings: a table of keys for each table of settings.
fn reference<T: Settings>(command: &str, variants: &[Variant]) -> String {
    let keys_with = |set: &[&str]| {
        let mut layers = Layers::<T>::new().unwrap();
        set.iter().for_each(|assignment| layers.set(assignment).unwrap());
        layers.keys().unwrap()
    };
    let keys = keys_with(&[]);
    let variants = variants.iter().map(|(name, set)| (*name, *set, keys_with(set)));
    let variants: Vec<_> = variants.collect();
    // Tables in the order in which their first keys stand.
    let mut tables: Vec<(&str, Vec<String>)> = vec![];
    for key in &keys {
        // Settings of runs within studies have a page of their own.
        let inner = [".run.", ".pretraining."];
        let is_of_run =
            key.path.starts_with("run.") || inner.iter().any(|part| key.path.contains(part));
        let is_run = ["run", "pretraining"]
            .iter()
            .any(|name| key.path == *name || key.path.ends_with(&format!(".{name}")));
        if is_of_run || key.is_table && !is_run {
            continue;
        }
        let (table, name) = key.path.rsplit_once('.').unwrap_or(("", &key.path));
        // Defaults that differ from those of the variant before.
        let mut others = String::new();
        let mut last = key.value.as_ref();
        for (with, set, keys) in &variants {
            let value =
                keys.iter().find(|one| one.path == key.path).and_then(|one| one.value.as_ref());
            let is_set = set.iter().any(|one| one.starts_with(&format!("{}=", key.path)));
            if let (Some(value), false) = (value, value == last || is_set) {
                write!(others, "<br>{} {with}", code(value)).unwrap();
            }
            last = value;
        }
        let row = row(name, key, &others);
        match tables.iter_mut().find(|(known, _)| *known == table) {
            Some((_, rows)) => rows.push(row),
            None => tables.push((table, vec![row])),
        }
    }
    let mut text = String::new();
    for (table, rows) in tables {
        let about = keys.iter().find(|key| key.is_table && key.path == table);
        let about = about.map_or(String::new(), |key| format!("{}\n\n", key.about));
        let title = match table {
            "" => format!("Top level of `{command}`"),
            name => name.replace('*', "N"),
        };
        let head = "| key | default | takes | effect |\n| --- | --- | --- | --- |";
        write!(text, "\n## {title}\n\n{about}{head}\n{}", rows.concat()).unwrap();
    }
    text
}

fn row(name: &str, key: &Key, others: &str) -> String {
    let value = match (&key.value, key.required) {
        (Some(value), _) => code(value),
        (None, true) => "required".into(),
        (None, false) if key.is_table => String::new(),
        (None, false) => "not set".into(),
    };
    let mut effect = cell(&key.about);
    for choice in &key.choices {
        write!(effect, "<br>`{}`: {}", choice.name, cell(&choice.about)).unwrap();
    }
    format!("| `{name}` | {value}{others} | {} | {effect} |\n", cell(&key.kind))
}

/// Holds a page to what the code says, or writes it with `MIXDISTILL_WRITE_DOCS=1`.
fn held(page: &str, title: &str, introduction: &str, reference: &str) {
    let path = repository().join("docs").join(page);
    let text = format!("# {title}\n\n{introduction}\n{reference}");
    if std::env::var_os("MIXDISTILL_WRITE_DOCS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let differs = written.lines().zip(text.lines()).find(|(written, now)| written != now);
    assert!(
        written == text,
        "docs/{page} is not what the code says: {differs:?}. Write it with MIXDISTILL_WRITE_DOCS=1 \
         cargo test --features teacher --test documents"
    );
}

#[test]
fn the_reference_of_a_run_is_that_of_the_code() {
    let introduction = "\
Every setting of `train`, `compare`, `preview`, `plan`, `score`, and `logits`. This page is generated from the code. \
The same text is in the program: `mixdistill config explain train.learning_rate`.

Set a key in a TOML file (`--config run.toml`) or on the command line (`--set train.batch_size=4`). `mixdistill config` \
prints all settings as TOML. `N` in a heading stands for an entry of a list: its number, or its name where entries have \
names (`data.sources.long.path`).
";
    let variants: [Variant; 2] = [
        ("with `base_model`", &["base_model=M"]),
        ("with `base_model` and `lora`", &["base_model=M", "lora.rank=16"]),
    ];
    held("settings.md", "Settings", introduction, &reference::<RunConfig>("run.toml", &variants));
}

#[test]
fn the_references_of_other_commands_are_those_of_the_code() {
    let introduction = "\
Every setting of `evaluate`, for `--set`. This page is generated from the code.
";
    let text = reference::<EvaluateConfig>("evaluate.toml", &[]);
    held("settings-evaluate.md", "Settings of evaluate", introduction, &text);
    let introduction = "\
Every setting of `study`, for `--set` and `--config`. This page is generated from the code. Tables named `run` hold \
[settings of a run](settings.md) that differ from the defaults.
";
    let text = reference::<StudyConfig>("study.toml", &[]);
    held("settings-study.md", "Settings of study", introduction, &text);
    #[cfg(feature = "teacher")]
    {
        let introduction = "\
Every setting of `pairs`, for `--set` and `--config`. This page is generated from the code.
";
        let text = reference::<mixdistill::teacher::MakePairsConfig>("pairs.toml", &[]);
        held("settings-pairs.md", "Settings of pairs", introduction, &text);
    }
}

/// The spans of code in running text.
fn spans(text: &str) -> Vec<String> {
    let outside = super::outside_of_blocks(text);
    let paragraphs = outside.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
    paragraphs
        .flat_map(|paragraph| {
            let spans = paragraph.split('`').skip(1).step_by(2);
            spans.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn settings_that_the_text_names_are_settings() {
    let keys = [
        Layers::<RunConfig>::new().unwrap().keys().unwrap(),
        Layers::<StudyConfig>::new().unwrap().keys().unwrap(),
        Layers::<EvaluateConfig>::new().unwrap().keys().unwrap(),
    ]
    .concat();
    let tables =
        ["data", "mixture", "pilots", "lora", "base", "train", "generate", "evaluation", "save"];
    let mut count = 0;
    let mut failures = vec![];
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for span in spans(&text) {
            let named = span.trim_start_matches("--set ").split(['=', ' ']).next().unwrap();
            let Some((table, rest)) = named.split_once('.') else { continue };
            let is_key = rest.chars().all(|c| c.is_ascii_alphanumeric() || "_.*".contains(c));
            // Names of files.
            let is_file =
                ["md", "rs", "json", "jsonl", "toml", "csv", "safetensors"].contains(&rest);
            if !tables.contains(&table) || !is_key || is_file || rest.is_empty() {
                continue;
            }
            count += 1;
            // Entries of lists have names: `data.sources.long.path` is `data.sources.*.path`.
            let fits = |key: &Key| {
                let mut parts = key.path.split('.');
                named
                    .split('.')
                    .all(|part| parts.next().is_some_and(|own| own == part || own == "*"))
            };
            let of_map = |key: &Key| {
                named.strip_prefix(&format!("{}.", key.path)).is_some()
                    && key.kind.contains("by name")
            };
            if !keys.iter().any(|key| fits(key) || of_map(key)) {
                failures.push(format!("{}: {span}", name_of(&path)));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(count > 100, "{count} settings were found");
}
