//! Promise: what the documents show exists.

use mixdistill::ops::{Distillation, Divergence};
use mixdistill::recipe::RunConfig;
use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn the_settings_that_the_readme_shows_are_settings() {
    let readme = include_str!("../README.md");
    let blocks = readme.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let [pairs, thinking, block] = blocks.collect::<Vec<_>>()[..] else {
        panic!("three blocks of settings")
    };
    let config = RunConfig::from_toml(thinking).unwrap();
    config.validate().unwrap();
    let thinks =
        |variables: &BTreeMap<String, serde_json::Value>| variables["enable_thinking"].clone();
    let [long, short] = &config.data.sources[..] else { panic!("two sources") };
    assert_eq!((long.name.as_str(), short.name.as_str()), ("long", "short"));
    assert_eq!(thinks(&long.template_variables), true);
    assert_eq!(thinks(&short.template_variables), false);
    assert_eq!(thinks(&config.asked_with()), true);
    #[cfg(feature = "teacher")]
    {
        use mixdistill::teacher::MakePairsConfig;
        let config = MakePairsConfig::from_toml(pairs).unwrap();
        config.validate().unwrap();
        let server = config.long.server.as_ref().unwrap();
        assert_eq!(server.extra["chat_template_kwargs"]["enable_thinking"], true);
        assert_eq!(config.short.local.as_ref().unwrap().temperature, 0.7);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(MakePairsConfig::from_toml(&text).unwrap(), config);
    }
    assert!(pairs.contains("[long.server]"));
    let config = RunConfig::from_toml(block).unwrap();
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

#[test]
fn the_tests_that_hold_the_promises_are_there() {
    let table =
        [include_str!("../docs/RELIABILITY.md"), include_str!("../docs/SERVING.md")].concat();
    let mut named = 0;
    for name in table.split('`').filter(|part| part.contains("::") && !part.contains(' ')) {
        let (file, test) = name.split_once("::").unwrap();
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let mut paths = vec![tests.join(format!("{file}.rs"))];
        if let Ok(entries) = std::fs::read_dir(tests.join(file)) {
            paths.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let holds = |path: &std::path::PathBuf| {
            std::fs::read_to_string(path)
                .is_ok_and(|text| text.contains(&format!("#[test]\nfn {test}()")))
        };
        assert!(paths.iter().any(holds), "there is no test {name}");
        named += 1;
    }
    assert!(named > 20, "{named}");
}
