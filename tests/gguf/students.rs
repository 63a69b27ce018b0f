//! A model that is written and read again is unchanged.

use super::{Student, cases, export, other_tokenizers, sentence_piece, small};
use crate::common::{command, devices, relative_error, say, smollm2};
use crate::parity_support::{self, with_random_b};
use mixdistill::context::Context;
use mixdistill::gguf::{GgufArray, GgufFile, TensorType};
use mixdistill::model::{
    Architecture, BaseType, BaseWeights, DecoderConfig, DecoderLm, GgufOptions, LoadOptions,
    LoraConfig, ModelFolder, Patterns, RopeScaling, RopeType, SaveAdapter, SaveFolder, TextModel,
    export_gguf, export_gguf_adapter,
};
use serde_json::json;
use std::path::Path;

const LENGTH: usize = 40;

/// A file of safetensors in f32.
struct SafeTensors(Vec<u8>);

impl SafeTensors {
    fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let bytes = file.tensor(name).unwrap().data();
        bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }
}

/// Logits of one row.
pub fn logits(model: &DecoderLm) -> Vec<f32> {
    let tokens: Vec<u32> = (0..LENGTH as u32).map(|i| (i * i * 7 + i) % 261).collect();
    parity_support::logits(model, &tokens, &devices()[0])
}

fn read(path: &Path, base: BaseWeights) -> TextModel {
    let options = LoadOptions { base, backend: "flex".into(), ..LoadOptions::default() };
    TextModel::load(path.to_str().unwrap(), &options, &Context::default()).unwrap()
}

#[test]
fn each_family_comes_back() {
    for (name, config) in cases() {
        let student = Student::new(&config);
        let (file, report) = student.export("student.gguf", TensorType::F32);
        assert!(report.notices.is_empty(), "{name}: {:?}", report.notices);
        let back = read(&file, BaseWeights::default());
        // 1 is added to the norms of some families and taken away again; LongRoPE's factors are f32 in
        // the file.
        let plus_one = config.architecture.properties().norm_weight_plus_one;
        let exact = !plus_one && !name.contains("longrope");
        let (before, after) = (logits(&student.model), logits(&back.model));
        let error = relative_error(&after, &before);
        assert!(if exact { before == after } else { error < 1e-5 }, "{name}: {error}");
        let folder = TextModel::load(
            student.folder.to_str().unwrap(),
            &LoadOptions { backend: "flex".into(), ..LoadOptions::default() },
            &Context::default(),
        );
        let folder = folder.unwrap();
        let (ours, theirs) = (&folder.files, &back.files);
        assert_eq!(ours.end_tokens(), theirs.end_tokens(), "{name}");
        assert_eq!(ours.tokenizer().first_difference(theirs.tokenizer()), None);
        let text = "Is 12 × 7 = 84?\n\n<think>é 🦙</think><|im_end|>";
        let tokens = [ours, theirs].map(|files| {
            let tokenizer = files.tokenizer();
            (tokenizer.encode(text).unwrap(), tokenizer.encode_marked(text).unwrap())
        });
        assert_eq!(tokens[0], tokens[1], "{name}");
        let source = |files: &mixdistill::model::TextModelFiles| {
            files.chat_template().unwrap().source().to_owned()
        };
        assert_eq!(source(ours), source(theirs));
    }
}

#[test]
fn other_tokenizers_come_back() {
    for (name, tokenizer) in other_tokenizers() {
        let student = Student::with_tokenizer(&tokenizer);
        let (file, _) = student.export("student.gguf", TensorType::F32);
        let back = ModelFolder::open(&file).unwrap().tokenizer(None).unwrap();
        assert_eq!(back.end_token_text(), tokenizer.end_token_text(), "{name}");
        assert_eq!(back.vocabulary_size(), tokenizer.vocabulary_size(), "{name}");
        assert_eq!(back.first_difference(&tokenizer), None, "{name}");
        for text in ["the  33 hens at it", " in\n\nthere: é 🦙 x333", "", "a", "12 + 7 = 19"] {
            let tokens = tokenizer.encode(text).unwrap();
            assert_eq!(back.encode(text).unwrap(), tokens, "{name}: {text}");
            assert_eq!(back.decode(&tokens).unwrap(), tokenizer.decode(&tokens).unwrap(), "{name}");
        }
    }
}

#[test]
fn scores_are_those_of_sentence_piece_where_it_is_there() {
    let student = Student::with_tokenizer(&sentence_piece(true));
    // Pieces as SentencePiece stores them: text, score, type.
    let mut model = vec![];
    for (text, score, kind) in
        [("<unk>", 0f32, 2u8), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<0x00>", -7.25, 6)]
    {
        let mut piece = vec![0x0A, text.len() as u8];
        piece.extend(text.as_bytes());
        piece.push(0x15);
        piece.extend(score.to_le_bytes());
        piece.extend([0x18, kind]);
        model.extend([0x0A, piece.len() as u8]);
        model.extend(piece);
    }
    let path = student.folder.join("tokenizer.model");
    std::fs::write(&path, &model).unwrap();
    let (file, _) = student.export("student.gguf", TensorType::F32);
    let file = GgufFile::open(&file).unwrap();
    let GgufArray::F32(scores) = file.metadata()["tokenizer.ggml.scores"].as_array().unwrap()
    else {
        panic!("scores are numbers")
    };
    assert_eq!(scores[3], -7.25);
    std::fs::write(&path, &model[..model.len() - 1]).unwrap();
    let error = export(&student.folder, &student.path("other.gguf"), TensorType::F32).unwrap_err();
    assert!(error.to_string().contains("tokenizer.model is damaged"), "{error}");
}

#[test]
fn other_types_are_as_near_as_they_can_be() {
    let student = Student::new(&small(Architecture::Qwen3));
    let exact = logits(&student.model);
    let mut sizes = vec![];
    for (kind, allowed) in [
        (TensorType::F32, 1e-7),
        (TensorType::F16, 2e-3),
        (TensorType::Bf16, 2e-2),
        (TensorType::Q8_0, 6e-2),
        (TensorType::Q4_0, 0.8),
    ] {
        let (file, report) = student.export(&format!("{}.gguf", kind.name()), kind);
        let error = relative_error(&logits(&read(&file, BaseWeights::default()).model), &exact);
        assert!(error <= allowed, "{}: {error}", kind.name());
        assert_eq!(report.bytes, std::fs::metadata(&file).unwrap().len());
        sizes.push(report.bytes);
        let of_norms = report.tensors[&TensorType::F32];
        assert!(kind == TensorType::F32 || of_norms > 0);
    }
    assert!(sizes.windows(2).all(|pair| pair[1] <= pair[0]), "{sizes:?}");
    // The embedding of q4_0 keeps 8 bits.
    let file = GgufFile::open(&student.path("q4_0.gguf")).unwrap();
    assert_eq!(file.tensors()["token_embd.weight"].kind, TensorType::Q8_0);
    assert_eq!(file.tensors()["blk.0.attn_q.weight"].kind, TensorType::Q4_0);
}

#[test]
fn blocks_are_taken_into_a_frozen_base_as_they_are() {
    let student = Student::new(&small(Architecture::Llama));
    for (kind, base_type) in [(TensorType::Q8_0, BaseType::Int8), (TensorType::Q4_0, BaseType::Nf4)]
    {
        let (file, _) = student.export(&format!("{}.gguf", kind.name()), kind);
        let numbers = logits(&read(&file, BaseWeights::default()).model);
        let embeddings = Some(BaseType::F32);
        let base = BaseWeights { base_type, embeddings, ..BaseWeights::default() };
        let error = relative_error(&logits(&read(&file, base).model), &numbers);
        // Encoded anew they would be some hundredths off.
        assert!(error < 1e-5, "{}: {error}", kind.name());
    }
}

#[test]
fn an_adapter_is_merged_on_the_way() {
    let student = Student::new(&small(Architecture::Llama));
    let lora = LoraConfig { rank: 4, alpha: 64.0, ..LoraConfig::default() };
    let adapted = student.model.clone().with_lora(&lora, 3).unwrap();
    let adapted = with_random_b(adapted);
    let (adapter, merged) = (student.path("adapter"), student.path("merged"));
    let base = student.folder.to_str().unwrap();
    adapted.save_adapter(&adapter, &SaveAdapter { base, ..SaveAdapter::default() }).unwrap();
    let how = |files: &ModelFolder, out: &Path| {
        let tokenizer = files.tokenizer(None).unwrap();
        let how = SaveFolder { base: Some(files), ..SaveFolder::new(&tokenizer) };
        adapted.clone().merged().save(out, &how).unwrap();
    };
    how(&ModelFolder::open(&student.folder).unwrap(), &merged);
    let options = GgufOptions {
        tensor_type: TensorType::F32,
        name: Some("same".into()),
        backend: "flex".into(),
        ..GgufOptions::default()
    };
    let files = ["on_the_way.gguf", "from_folder.gguf"].map(|name| student.path(name));
    export_gguf(base, Some(&adapter), &files[0], &options, &Context::default()).unwrap();
    let folder = merged.to_str().unwrap();
    export_gguf(folder, None, &files[1], &options, &Context::default()).unwrap();
    let [one, other] = files.map(|file| std::fs::read(file).unwrap());
    assert!(one == other);
}

#[test]
fn a_head_of_the_adapter_s_own_goes_into_the_file_and_biases_without_place_do_not() {
    let student = Student::new(&small(Architecture::Llama));
    let base = student.folder.to_str().unwrap();
    let save = |lora: &LoraConfig, name: &str| {
        let adapted = with_random_b(student.model.clone().with_lora(lora, 3).unwrap());
        let folder = student.path(name);
        adapted.save_adapter(&folder, &SaveAdapter { base, ..SaveAdapter::default() }).unwrap();
        (folder, adapted)
    };
    let options = GgufOptions {
        tensor_type: TensorType::F32,
        backend: "flex".into(),
        ..GgufOptions::default()
    };
    let lora = LoraConfig {
        rank: 2,
        modules_to_save: vec!["lm_head".into()],
        ensure_weight_tying: false,
        ..LoraConfig::default()
    };
    let (adapter, adapted) = save(&lora, "untied");
    let out = student.path("untied.gguf");
    export_gguf(base, Some(&adapter), &out, &options, &Context::default()).unwrap();
    assert!(GgufFile::open(&out).unwrap().tensors().contains_key("output.weight"));
    let back = read(&out, BaseWeights::default()).model;
    assert!(logits(&back) == logits(&adapted.merged()));
    let (adapter, _) = save(&LoraConfig { lora_bias: true, ..LoraConfig::default() }, "bias");
    let out = student.path("bias.gguf");
    let refused = export_gguf(base, Some(&adapter), &out, &options, &Context::default());
    assert!(refused.unwrap_err().to_string().contains("lora_bias"));
    assert!(!out.exists());
}

#[test]
fn an_adapter_alone_has_the_scale_of_each_layer() {
    let student = Student::new(&small(Architecture::Llama));
    let lora = LoraConfig {
        rank: 4,
        alpha: 8.0,
        rank_pattern: Patterns(vec![("q_proj".into(), 2)]),
        alpha_pattern: Patterns(vec![("layers.1.mlp.up_proj".into(), 32.0)]),
        ..LoraConfig::default()
    };
    let base = student.folder.to_str().unwrap();
    let save = |lora: &LoraConfig, name: &str| {
        let adapted = with_random_b(student.model.clone().with_lora(lora, 3).unwrap());
        let folder = student.path(name);
        adapted.save_adapter(&folder, &SaveAdapter { base, ..SaveAdapter::default() }).unwrap();
        folder
    };
    let alone = |adapter: &Path, out: &Path| {
        export_gguf_adapter(base, Some(adapter), out, TensorType::F32, &Context::default())
    };
    let (adapter, out) = (save(&lora, "adapter"), student.path("adapter.gguf"));
    alone(&adapter, &out).unwrap();
    let file = GgufFile::open(&out).unwrap();
    let alpha = file.metadata()["adapter.lora.alpha"].as_f64().unwrap();
    // What a layer adds to its matrix: by llama.cpp's rule for the file, and by ours for the adapter.
    let product = |a: &[f32], b: &[f32], rank: usize, scale: f64| -> Vec<f32> {
        let columns = a.len() / rank;
        let cell = |row: usize, column: usize| {
            (0..rank)
                .map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * columns + column]))
                .sum::<f64>()
        };
        let cells =
            (0..b.len() / rank).flat_map(|row| (0..columns).map(move |column| (row, column)));
        cells.map(|(row, column)| (scale * cell(row, column)) as f32).collect()
    };
    let weights = SafeTensors::read(&adapter.join("adapter_model.safetensors"));
    for (layer, theirs, rank, of_layer) in [
        ("model.layers.0.mlp.down_proj", "blk.0.ffn_down", 4, 8.0),
        ("model.layers.1.mlp.up_proj", "blk.1.ffn_up", 4, 32.0),
        ("model.layers.2.self_attn.v_proj", "blk.2.attn_v", 4, 8.0),
    ] {
        let matrix = |part: &str| file.read(&format!("{theirs}.weight.{part}")).unwrap();
        let found = product(&matrix("lora_a"), &matrix("lora_b"), rank, alpha / rank as f64);
        let matrix =
            |part: &str| weights.floats(&format!("base_model.model.{layer}.{part}.weight"));
        let expected = product(&matrix("lora_A"), &matrix("lora_B"), rank, of_layer / rank as f64);
        assert!(relative_error(&found, &expected) < 1e-6, "{layer}");
    }
    let shape = &file.tensors()["blk.0.attn_q.weight.lora_b"].shape;
    assert_eq!(shape[1], 2);
    for (lora, name, what) in [
        (LoraConfig { use_dora: true, ..LoraConfig::default() }, "dora", "uses DoRA"),
        (LoraConfig { lora_bias: true, ..LoraConfig::default() }, "bias", "has a bias in B"),
        (
            LoraConfig { modules_to_save: vec!["embed_tokens".into()], ..LoraConfig::default() },
            "saved",
            "stores all of",
        ),
    ] {
        let (adapter, out) = (save(&lora, name), student.path("refused.gguf"));
        let error = alone(&adapter, &out).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("--adapter-only"), "{error}");
        assert!(!out.exists());
    }
}

#[test]
fn what_llama_cpp_does_not_compute_is_refused_by_name() {
    let yarn = RopeScaling {
        rope_type: RopeType::Yarn,
        factor: 2.0,
        beta_fast: 16.0,
        ..RopeScaling::default()
    };
    let llama3 = RopeScaling { rope_type: RopeType::Llama3, factor: 2.0, ..RopeScaling::default() };
    let llama = small(Architecture::Llama);
    for (config, what) in [
        (DecoderConfig { rope_scaling: Some(yarn), ..llama.clone() }, "beta_fast"),
        (
            DecoderConfig { rope_scaling: Some(llama3), ..small(Architecture::Qwen3) },
            "RoPE scaling `llama3`",
        ),
        (
            DecoderConfig { head_dim: Some(8), ..small(Architecture::Qwen2) },
            "total width of 32 in a model of width 64",
        ),
        (
            DecoderConfig { no_rope_layers: vec![1, 0, 1, 0], ..small(Architecture::Smollm3) },
            "RoPE in other layers",
        ),
    ] {
        let student = Student::new(&config);
        let out = student.path("student.gguf");
        let error = export(&student.folder, &out, TensorType::F32).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("llama.cpp does not support"), "{error}");
        assert!(!out.exists());
    }
}

#[test]
fn windows_that_llama_cpp_does_not_compute_bound_the_context() {
    let config = DecoderConfig { sliding_window: Some(32), ..small(Architecture::Mistral) };
    let student = Student::new(&config);
    let (file, report) = student.export("student.gguf", TensorType::F32);
    assert!(report.notices[0].contains("context is 32 tokens"), "{:?}", report.notices);
    let metadata = GgufFile::open(&file).unwrap();
    assert_eq!(metadata.metadata()["llama.context_length"].as_u64(), Some(32));
}

/// Calls the program, and gives what it says.
fn call(words: &[&str]) -> String {
    let ended = command(words[0]).args(&words[1..]).output().unwrap();
    let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    assert!(ended.status.success(), "{words:?}: {said}");
    said
}

#[test]
fn a_file_is_a_student_and_a_teacher_like_any_folder() {
    let student = Student::new(&small(Architecture::Qwen3));
    let (file, _) = student.export("student.gguf", TensorType::Q8_0);
    let path = |name: &str| student.path(name).to_str().unwrap().to_owned();
    let rows = |teacher: &str| -> String {
        let row = |n: usize| {
            let solution = format!("{teacher} {}", n + 7);
            json!({"problem": format!("What is {n} + 7?"), "solution": solution}).to_string() + "\n"
        };
        (0..12).map(row).collect()
    };
    std::fs::write(path("long.jsonl"), rows("First we add, and then we have")).unwrap();
    std::fs::write(path("short.jsonl"), rows("It is")).unwrap();
    std::fs::write(path("bench.jsonl"), "{\"problem\": \"1 + 1?\", \"answer\": \"2\"}\n").unwrap();
    let (model, long, short) = (file.to_str().unwrap(), path("long.jsonl"), path("short.jsonl"));
    let run = path("run");
    let of_run = [
        "train",
        "--model",
        model,
        "--long",
        &long,
        "--short",
        &short,
        "--lora-rank",
        "2",
        "--max-length",
        "160",
        "--base-type",
        "int8",
    ];
    let with = |more: &[&str]| call(&[&of_run[..], more].concat());
    let teacher = format!("teacher.path={model}");
    let weight = "train.objective.distillation.weight=0.5";
    with(&["--steps", "2", "--out", &run, "--set", &teacher, "--set", weight]);
    call(&["train", "--resume", "--out", &run, "--steps", "3", "--allow-changes"]);
    // The adapter and the card lead to the file, from anywhere.
    let adapter = std::fs::read_to_string(path("run/adapter/adapter_config.json")).unwrap();
    let adapter: serde_json::Value = serde_json::from_str(&adapter).unwrap();
    assert_eq!(adapter["base_model_name_or_path"], model);
    let card = std::fs::read_to_string(path("run/adapter/README.md")).unwrap();
    assert!(!card.contains(model) && card.contains("student.gguf"), "{card}");
    call(&["plan", "--model", model, "--lora-rank", "2"]);
    call(&["merge", "--model", &run, "--out", &path("merged")]);
    let ask = |model: &str| {
        call(&["generate", "--model", model, "--prompt", "1 + 1?", "--max-new-tokens", "8", "-q"])
    };
    assert_eq!(ask(&run), ask(&path("merged")));
    // The program writes both kinds of file, and a Modelfile beside the first.
    let (tuned, adapter) = (path("out/tuned.gguf"), path("out/adapter.gguf"));
    let said = call(&["export", "--model", &run, "--gguf", &tuned, "--type", "f32"]);
    assert!(said.contains("qwen3") && said.contains("ollama create"), "{said}");
    assert_eq!(ask(&tuned), ask(&run));
    assert!(student.path("out/Modelfile").is_file());
    let said = call(&["export", "--model", &run, "--gguf", &adapter, "--adapter-only", "--json"]);
    assert!(said.contains("\"adapter_only\":true"), "{said}");
    let bench = path("bench.jsonl");
    let evaluate = ["evaluate", "--model", model, "--bench", &bench, "--out"];
    call(&[&evaluate[..], &[&path("scores"), "--set", "generate.max_new_tokens=4"]].concat());
}

#[test]
fn a_file_in_place_of_a_folder_is_written_as_a_folder() {
    let student = Student::new(&small(Architecture::Qwen2));
    let (file, _) = student.export("student.gguf", TensorType::F16);
    let folder = ModelFolder::open(&file).unwrap();
    let model = folder.load(&devices()[0]).unwrap();
    let tokenizer = folder.tokenizer(None).unwrap();
    let out = student.path("written");
    let how = SaveFolder { base: Some(&folder), ..SaveFolder::new(&tokenizer) };
    model.save(&out, &how).unwrap();
    let back = read(&out, BaseWeights::default());
    assert_eq!(logits(&back.model), logits(&model));
    assert_eq!(back.files.end_tokens(), folder.end_tokens());
    assert!(back.files.chat_template().is_some());
    // And once more as a file: the same bytes.
    let again = student.path("again.gguf");
    let named = |folder: &Path, out: &Path| {
        let options = GgufOptions { name: Some("same".into()), ..GgufOptions::default() };
        export_gguf(folder.to_str().unwrap(), None, out, &options, &Context::default()).unwrap();
        std::fs::read(out).unwrap()
    };
    assert!(named(&out, &again) == named(&file, &student.path("third.gguf")));
}

#[test]
fn the_original_smollm2_is_read_from_its_file() {
    let Some(folder) = smollm2() else { return };
    // Where the folder was made from: see its provenance.json.
    let file = folder.with_file_name("gguf").join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if !file.is_file() {
        return say(&format!("skipped: {} is not there", file.display()));
    }
    let (folder, file) = (ModelFolder::open(&folder).unwrap(), read(&file, BaseWeights::default()));
    let model = folder.load(&devices()[0]).unwrap();
    assert_eq!(file.files.tokenizer().vocabulary_size(), 49152);
    let text = "It's 3333 times\n\n  \"better\" ```x = [1, 2]``` 1/2 né 🦙";
    let tokenizer = folder.tokenizer(None).unwrap();
    assert_eq!(file.files.tokenizer().encode(text).unwrap(), tokenizer.encode(text).unwrap());
    assert_eq!(file.files.tokenizer().first_difference(&tokenizer), None);
    assert_eq!(file.files.folder().config(), folder.config());
    // The folder holds the same numbers.
    assert!(logits(&file.model) == logits(&model));
}
