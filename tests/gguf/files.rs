//! Damaged and misleading files: each gives an error and nothing else.

use super::{Student, export, sentence_piece, small};
use crate::common::{Said, devices};
use mixdistill::context::{Context, StopFlag};
use mixdistill::gguf::{GgufFile, TensorType};
use mixdistill::model::{Architecture, DecoderConfig, GgufOptions, ModelFolder, export_gguf};
use proptest::prelude::*;
use std::path::Path;
use std::sync::OnceLock;

/// Opens a file as a model and reads it whole.
fn read(path: &Path) -> mixdistill::Result<()> {
    let folder = ModelFolder::open(path)?;
    folder.tokenizer(None)?;
    folder.chat_template()?;
    folder.load(&devices()[0]).map(|_| ())
}

/// A file that is right.
fn whole() -> &'static [u8] {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let student = Student::new(&small(Architecture::Qwen3));
        let (file, _) = student.export("student.gguf", TensorType::Q8_0);
        std::fs::read(file).unwrap()
    })
}

/// What reading these bytes says.
fn error_of(bytes: &[u8]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let error = read(&path).err()?.to_string();
    assert!(error.contains("model.gguf"), "{error}");
    Some(error)
}

/// A file of metadata alone, whose entries are already bytes.
fn header(version: u32, tensors: u64, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    bytes.extend(entries.concat());
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

#[test]
fn a_whole_file_is_read() {
    assert_eq!(error_of(whole()), None);
}

#[test]
fn each_way_to_be_wrong_is_named() {
    let architecture = |name: &str| entry("general.architecture", 8, &text(name));
    let list = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let tensor = |dimensions: &[u64], kind: u32, offset: u64| {
        let sizes: Vec<u8> = dimensions.iter().flat_map(|size| size.to_le_bytes()).collect();
        let count = (dimensions.len() as u32).to_le_bytes();
        [&text("t")[..], &count, &sizes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
    };
    let with_tensor = |tensor: Vec<u8>| [header(3, 1, &[]), tensor, vec![0; 64]].concat();
    for (bytes, what) in [
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>".to_vec(), "web page"),
        (b"PK\x03\x04".to_vec(), "not a GGUF file"),
        (b"GGUF".to_vec(), "ends within its header"),
        (header(1, 0, &[]), "version 1"),
        (header(3u32.swap_bytes(), 0, &[]), "big-endian"),
        (header(3, u64::MAX, &[]), "more than the file has room for"),
        (header(3, 0, &[]), "architecture is `nothing`"),
        (header(3, 0, &[architecture("mamba")]), "`mamba`; supported architectures are"),
        (header(3, 0, &[architecture("llama"), architecture("llama")]), "twice"),
        (header(3, 0, &[entry("general.type", 8, &text("adapter"))]), "not a whole model"),
        (header(3, 0, &[entry("x", 13, &[])]), "has the unknown type 13"),
        (header(3, 0, &[entry("x", 9, &list(9, 1))]), "an array of the unknown type 9"),
        (header(3, 0, &[entry("x", 9, &list(8, 1 << 60))]), "strings, more than"),
        (header(3, 0, &[entry("x", 9, &list(4, u64::MAX))]), "ends within `x`"),
        (header(3, 0, &[entry("x", 8, &u64::MAX.to_le_bytes())]), "ends within `x`"),
        (header(3, 0, &[entry("x", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 255])]), "not UTF-8"),
        (header(3, 0, &[entry("general.alignment", 4, &[3, 0, 0, 0])]), "not a power of 2"),
        (header(3, 0, &[architecture("llama")]), "no embedding"),
        (with_tensor(tensor(&[1, 1, 1, 1, 1], 0, 0)), "5 dimensions"),
        (with_tensor(tensor(&[1 << 40, 1 << 40], 0, 0)), "size is out of range"),
        (with_tensor(tensor(&[0], 0, 0)), "size is out of range"),
        (with_tensor(tensor(&[1 << 40], 0, 0)), "past the end of the file"),
        (with_tensor(tensor(&[4], 0, 32_000)), "past the end of the file"),
        (with_tensor(tensor(&[4], 0, 5)), "not aligned"),
        (with_tensor(tensor(&[4], 8, 0)), "not a multiple of the block size 32"),
        (with_tensor(tensor(&[256], 16, 0)), "`iq2_xxs`"),
        (with_tensor(tensor(&[256], 4711, 0)), "number 4711"),
    ] {
        let error = error_of(&bytes).unwrap_or_else(|| panic!("read in spite of: {what}"));
        assert!(error.contains(what), "{error} instead of: {what}");
    }
}

#[test]
fn a_file_that_ends_early_is_an_error_wherever_it_ends() {
    let whole = whole();
    let step = whole.len() / 97;
    for length in (0..2000).step_by(61).chain((2000..whole.len() - 32).step_by(step)) {
        assert!(error_of(&whole[..length]).is_some(), "{length} of {} bytes", whole.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn changed_bytes_never_panic(at in 4usize..6000, byte: u8, other in 4usize..30_000, more: u8) {
        let mut bytes = whole().to_vec();
        for (at, byte) in [(at, byte), (other, more)] {
            if let Some(old) = bytes.get_mut(at) {
                *old = byte;
            }
        }
        let _ = error_of(&bytes);
    }
}

#[test]
fn nothing_is_overwritten_and_nothing_half_is_left() {
    let student = Student::new(&small(Architecture::Llama));
    let out = student.path("student.gguf");
    std::fs::write(&out, "mine").unwrap();
    let error = export(&student.folder, &out, TensorType::F16).unwrap_err().to_string();
    assert!(error.contains("already exists"), "{error}");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "mine");
    let modelfile = student.path("Modelfile");
    std::fs::write(&modelfile, "mine").unwrap();
    let options = GgufOptions { modelfile: Some(modelfile.clone()), ..GgufOptions::default() };
    let (model, other) = (student.folder.to_str().unwrap(), student.path("other.gguf"));
    let error = export_gguf(model, None, &other, &options, &Context::default()).unwrap_err();
    assert!(error.to_string().contains("Modelfile: it already exists"), "{error}");
    assert!(!other.exists());
    assert_eq!(std::fs::read_to_string(&modelfile).unwrap(), "mine");
    // Types that are read only.
    let error = export(&student.folder, &other, TensorType::Q4K).unwrap_err().to_string();
    assert!(error.contains("q4_K can be read but not written"), "{error}");
    let left: Vec<_> = std::fs::read_dir(student.path("")).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_modelfile_leads_to_its_file_and_never_takes_its_place() {
    let student = Student::new(&small(Architecture::Llama));
    let model = student.folder.to_str().unwrap();
    let export = |file: &str, modelfile: &str| {
        let (file, modelfile) = (student.path(file), student.path(modelfile));
        let options = GgufOptions { modelfile: Some(modelfile.clone()), ..GgufOptions::default() };
        export_gguf(model, None, &file, &options, &Context::default())
            .map(|_| std::fs::read_to_string(&modelfile).unwrap())
    };
    let error = export("Modelfile", "./Modelfile").unwrap_err().to_string();
    assert!(error.contains("have the same path"), "{error}");
    assert!(!student.path("Modelfile").exists());
    let beside = export("a.gguf", "Modelfile").unwrap();
    assert!(beside.contains("\nFROM ./a.gguf\n"), "{beside}");
    assert!(beside.contains("PARAMETER stop \"<|im_end|>\""), "{beside}");
    assert!(beside.contains("{{ \"<|im_start|>system\\n\" }}{{ .System }}"), "{beside}");
    std::fs::create_dir(student.path("elsewhere")).unwrap();
    let elsewhere = export("b.gguf", "elsewhere/Modelfile").unwrap();
    let whole = format!("\nFROM {}\n", student.path("b.gguf").display());
    assert!(elsewhere.contains(&whole), "{elsewhere}");
}

#[test]
fn a_vocabulary_that_would_take_forever_is_refused() {
    let student = Student::with_tokenizer(&sentence_piece(true));
    let (file, _) = student.export("student.gguf", TensorType::F32);
    let bytes = std::fs::read(file).unwrap();
    // One of the pieces gets a length of its own; the offsets of tensors count from the end of all this.
    let piece = [&3u64.to_le_bytes()[..], b"ing"].concat();
    let at = bytes.windows(piece.len()).position(|window| window == piece).unwrap();
    let long = "ab".repeat(100_000);
    let mut longer = bytes[..at].to_vec();
    longer.extend((long.len() as u64).to_le_bytes());
    longer.extend(long.as_bytes());
    longer.extend(&bytes[at + piece.len()..]);
    longer.resize(longer.len().next_multiple_of(32), 0);
    let error = error_of(&longer).unwrap();
    assert!(error.contains("has 200000 bytes"), "{error}");
}

#[test]
fn metadata_are_those_that_were_written() {
    let student = Student::new(&small(Architecture::Gemma3Text));
    let (file, _) = student.export("student.gguf", TensorType::Q8_0);
    let file = GgufFile::open(&file).unwrap();
    let number = |key: &str| file.metadata()[key].as_f64();
    assert_eq!(number("gemma3.attention.layer_norm_rms_epsilon"), Some(1e-6));
    assert_eq!(number("gemma3.rope.freq_base_swa"), Some(10_000.0));
    assert_eq!(number("gemma3.attention.sliding_window"), Some(12.0));
    // The usual pattern needs no words.
    assert!(!file.metadata().contains_key("gemma3.attention.sliding_window_pattern"));
    assert_eq!(file.metadata()["tokenizer.ggml.pre"].as_str(), Some("gpt-2"));
    assert_eq!(number("tokenizer.ggml.eos_token_id"), Some(257.0));
    assert_eq!(number("general.file_type"), Some(7.0));
}

/// Qwen3.5's blocks that predict several tokens at once stand after the others, and are counted with them.
#[test]
fn blocks_that_predict_further_tokens_are_set_aside() {
    let five = DecoderConfig { num_hidden_layers: 5, ..small(Architecture::Qwen35Text) };
    let student = Student::new(&five);
    let (file, _) = student.export("student.gguf", TensorType::F32);
    let bytes = std::fs::read(file).unwrap();
    // Entries in front of the others, as long together as tensors are aligned to.
    let count = entry("qwen35.nextn_predict_layers", 4, &1u32.to_le_bytes());
    let filler = |length: usize| entry("filler", 8, &text(&" ".repeat(length)));
    let missing =
        (count.len() + filler(0).len()).next_multiple_of(32) - count.len() - filler(0).len();
    let mut changed = bytes[..24].to_vec();
    let entries = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    changed[16..24].copy_from_slice(&(entries + 2).to_le_bytes());
    changed.extend([count, filler(missing), bytes[24..].to_vec()].concat());
    let path = student.path("nextn.gguf");
    std::fs::write(&path, changed).unwrap();
    let folder = ModelFolder::open(&path).unwrap();
    assert_eq!(folder.config().num_hidden_layers, 4);
    let mut said = Said::default();
    let context = Context::new(&mut said, &StopFlag::default());
    folder.load_with(&devices()[0], &context).unwrap();
    drop(context);
    assert!(said.contains("ignored: blk.4 ("), "{:?}", said.0);
}
