//! Adapter settings that a user writes.

use super::*;

#[test]
fn settings_that_name_nothing_are_refused() {
    let plain = shaken(&tiny(Architecture::Qwen2), &devices()[0]);
    let names = |name: &str| vec![name.to_owned()];
    let usual = LoraConfig::default;
    for (config, key, said) in [
        (
            LoraConfig { target_modules: ["9.mlp.up_proj"].into(), ..usual() },
            "target_modules",
            "9.mlp",
        ),
        (LoraConfig { target_modules: "x.*".into(), ..usual() }, "target_modules", "no layer"),
        (LoraConfig { target_modules: ".*".into(), ..usual() }, "target_modules", "lm_head"),
        (LoraConfig { target_modules: "(".into(), ..usual() }, "target_modules", "expression"),
        (
            LoraConfig { target_modules: ["embed_tokens"].into(), ..usual() },
            "target_modules",
            "embed",
        ),
        (LoraConfig { exclude_modules: ["k"].into(), ..usual() }, "exclude_modules", "`k`"),
        (LoraConfig { layers_to_transform: vec![2], ..usual() }, "layers_to_transform", "block 2"),
        (LoraConfig { layers_pattern: names("layers"), ..usual() }, "layers_pattern", "not set"),
        (
            LoraConfig {
                target_modules: ".*q_proj".into(),
                layers_to_transform: vec![1],
                ..usual()
            },
            "layers_to_transform",
            "regular expression",
        ),
        (LoraConfig { rank_pattern: [("z_proj", 3)].into(), ..usual() }, "rank_pattern", "z_proj"),
        (
            LoraConfig { rank_pattern: [("q_proj", 0)].into(), ..usual() },
            "rank_pattern.q_proj",
            "it is 0",
        ),
        (
            LoraConfig { alpha_pattern: [("^q_proj", 3.0)].into(), ..usual() },
            "alpha_pattern",
            "matches no",
        ),
        (LoraConfig { modules_to_save: names("head"), ..usual() }, "modules_to_save", ""),
        (LoraConfig { modules_to_save: names("heads"), ..usual() }, "modules_to_save", "`heads`"),
        (LoraConfig { lora_bias: true, use_dora: true, ..usual() }, "lora_bias", "DoRA"),
    ] {
        if said.is_empty() {
            plain.clone().with_lora(&config, 1).unwrap();
            continue;
        }
        let error = plain.clone().with_lora(&config, 1).unwrap_err().to_string();
        assert!(error.contains(&format!("lora.{key}")) && error.contains(said), "{key}: {error}");
    }
}

/// What a user writes, in a file and on the command line.
#[test]
fn settings_of_adapters_are_written_as_pefts() {
    let text = "base_model = \"m\"\n[lora]\nrank = 8\ntarget_modules = \"all-linear\"\n\
                layers_to_transform = [0, 3]\nmodules_to_save = [\"lm_head\"]\nuse_dora = true\n\
                [lora.rank_pattern]\n\"^model.layers.0.mlp.up_proj\" = 4\nq_proj = 2\na_proj = 1\n";
    let config = RunConfig::from_toml(text).unwrap();
    let lora = config.lora.clone().unwrap();
    assert_eq!(lora.target_modules, "all-linear".into());
    assert_eq!(lora.alpha, 16.0);
    // In their order.
    let expected = [("^model.layers.0.mlp.up_proj", 4), ("q_proj", 2), ("a_proj", 1)];
    assert_eq!(lora.rank_pattern, expected.into());
    assert_eq!(RunConfig::from_toml(&config.to_toml().unwrap()).unwrap(), config);

    let set = |assignments: &[&str]| {
        let mut layers = Layers::<RunConfig>::new().unwrap();
        layers.text("base_model = \"m\"\n[lora]\n").unwrap();
        assignments.iter().for_each(|assignment| layers.set(assignment).unwrap());
        layers.settings().unwrap().lora.unwrap()
    };
    let targets = |text: &str| set(&[&format!("lora.target_modules={text}")]).target_modules;
    assert_eq!(targets("q_proj,v_proj"), ["q_proj", "v_proj"].into());
    assert_eq!(targets("0.mlp.up_proj"), ["0.mlp.up_proj"].into());
    assert_eq!(targets("[\"q_proj\"]"), ["q_proj"].into());
    assert_eq!(targets("all-linear"), "all-linear".into());
    assert_eq!(targets(r".*\.(q|v)_proj"), r".*\.(q|v)_proj".into());
    assert_eq!(targets("\"q_proj\""), "q_proj".into());
    let lora = set(&[
        "lora.rank_pattern.q_proj=4",
        "lora.alpha_pattern.\"layers.0\"=2.5",
        "lora.layers_to_transform=1,2",
        "lora.modules_to_save=embed_tokens,lm_head",
        "lora.ensure_weight_tying=false",
    ]);
    assert_eq!(lora.rank_pattern, [("q_proj", 4)].into());
    assert_eq!(lora.alpha_pattern, [("layers.0", 2.5)].into());
    assert_eq!(lora.layers_to_transform, [1, 2]);
    assert_eq!(lora.modules_to_save, ["embed_tokens", "lm_head"]);
    assert!(!lora.ensure_weight_tying && LoraConfig::default().ensure_weight_tying);
    let mut layers = Layers::<RunConfig>::new().unwrap();
    let error = layers.set("lora.target_modules=[1]").unwrap_err().to_string();
    assert!(error.contains("lora.target_modules.0"), "{error}");
    let error = layers.set("lora.rank_pattern.q_proj=x").unwrap_err().to_string();
    assert!(error.contains("lora.rank_pattern.q_proj"), "{error}");
}
