//! Reads and writes weights in safetensors files, tensor by tensor: a single file, or shards with an index.
//! Reading uses a memory map.

use super::base_weights::BaseType;
use super::gguf::{GgufModel, StoredBlocks};
use super::tensors::{Elements, HostTensor, NamedTensor};
use crate::error::{Error, Result};
use crate::files::{head_of, stands_in};
use burn::tensor::{Bytes, DType};
use burn_store::{ModuleStore, SafetensorsStore};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, View};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Type of the weights in written files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    /// 32-bit floats: the weights as trained.
    #[default]
    F32,
    /// bfloat16: half the size, rounded to 8 significant bits.
    Bf16,
}

impl FileType {
    /// Returns the name of the type in `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    fn encoded(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Bf16 => {
                values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
            }
        }
    }
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn damaged(path: &Path, what: impl Into<String>) -> Error {
    Error::Model {
        path: path.to_owned(),
        what: what.into(),
        hint: "Download or copy the file again; it is damaged or incomplete".into(),
    }
}

/// Returns the error for a folder without safetensors, with a hint about the weights that it has.
fn no_safetensors(folder: &Path) -> Error {
    let mut what = format!("it has neither {SINGLE} nor {INDEX}");
    let is_pickle = |name: &str| {
        (name.starts_with("pytorch_model") && name.ends_with(".bin")) || name.ends_with(".pth")
    };
    let mut others: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flat_map(|entries| entries.flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| is_pickle(name) || name.ends_with(".gguf"))
        .collect();
    others.sort();
    let Some(first) = others.first() else {
        let hint = "Convert the weights to safetensors with transformers";
        return Error::Model { path: folder.to_owned(), what, hint: hint.into() };
    };
    what.push_str(&format!(", but {first}; only safetensors weights are supported in a folder"));
    let hint = if first.ends_with(".gguf") {
        format!("Pass the GGUF file as the model: {}", folder.join(first).display())
    } else {
        format!(
            "Convert them with transformers: `from transformers import AutoModelForCausalLM, \
             AutoTokenizer; AutoModelForCausalLM.from_pretrained(\"{0}\", torch_dtype=\"auto\")\
             .save_pretrained(\"NEW\", safe_serialization=True); \
             AutoTokenizer.from_pretrained(\"{0}\").save_pretrained(\"NEW\")`, and pass NEW",
            folder.display()
        )
    };
    Error::Model { path: folder.to_owned(), what, hint }
}

/// An open file.
enum WeightFile {
    Safetensors(Box<SafetensorsFile>),
    Gguf(GgufModel),
}

impl WeightFile {
    fn read(&mut self, name: &str) -> Result<HostTensor> {
        match self {
            Self::Safetensors(file) => file.read(name),
            Self::Gguf(model) => model.read(name),
        }
    }
}

/// An open safetensors file.
struct SafetensorsFile {
    path: PathBuf,
    store: SafetensorsStore,
    /// Bytes read since it was mapped.
    read: usize,
}

impl SafetensorsFile {
    fn open(path: PathBuf) -> Result<Self> {
        // Mapping a folder or a missing file would give less clear errors.
        let metadata = std::fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?;
        if metadata.is_file()
            && let Some((what, hint)) = stands_in(&head_of(&path)?)
        {
            return Err(Error::Model { path, what: what.into(), hint: hint.into() });
        }
        if !metadata.is_file() || metadata.len() < 8 {
            return Err(damaged(&path, "it is not a safetensors file"));
        }
        let store = SafetensorsStore::from_file(&path);
        Ok(Self { path, store, read: 0 })
    }

    /// Returns the names and shapes of the tensors.
    fn shapes(&mut self) -> Result<Vec<(String, Vec<usize>)>> {
        let tensors =
            self.store.get_all_tensors().map_err(|e| damaged(&self.path, e.to_string()))?;
        Ok(tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape.to_vec())).collect())
    }

    /// Reads the bytes of a tensor, with its type and shape.
    fn read_raw(&mut self, name: &str) -> Result<(DType, Vec<usize>, Bytes)> {
        /// The file is mapped again after this many bytes, so that pages already read do not stay in memory.
        const MAPPED: usize = 64 << 20;
        if self.read > MAPPED {
            (self.store, self.read) = (SafetensorsStore::from_file(&self.path), 0);
        }
        let failed = |what: String| damaged(&self.path, format!("tensor `{name}`: {what}"));
        let tensor = self.store.get_tensor(name).map_err(|e| failed(e.to_string()))?;
        let tensor = tensor.ok_or_else(|| failed("it is missing".into()))?;
        let bytes = tensor.to_bytes().map_err(|e| failed(e.to_string()))?;
        self.read += bytes.len();
        Ok((tensor.dtype, tensor.shape.to_vec(), bytes))
    }

    fn read_bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        match self.read_raw(name)? {
            (DType::U8, _, bytes) => Ok(bytes.to_vec()),
            (other, ..) => {
                let what = format!("tensor `{name}`: its type is {other:?}, not u8");
                Err(damaged(&self.path, what))
            }
        }
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        let (dtype, shape, bytes) = self.read_raw(name)?;
        let failed = |what: String| damaged(&self.path, format!("tensor `{name}`: {what}"));
        let bytes: &[u8] = &bytes;
        let pairs = || bytes.as_chunks::<2>().0.iter();
        let values: Vec<f32> = match dtype {
            DType::F32 => {
                bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
            }
            DType::BF16 => pairs().map(|word| bf16::from_le_bytes(*word).to_f32()).collect(),
            DType::F16 => pairs().map(|word| f16::from_le_bytes(*word).to_f32()).collect(),
            other => return Err(failed(format!("its type is {other:?}, not f32, bf16, or f16"))),
        };
        let bad = values.iter().filter(|value| !value.is_finite()).count();
        if bad > 0 {
            let what = format!("{bad} of its {} values are not finite", values.len());
            return Err(failed(what));
        }
        Ok(HostTensor { shape, values })
    }
}

/// The weights of a model, by name.
pub(crate) struct WeightFiles {
    files: Vec<WeightFile>,
    /// Location, name in the file, and shape of each tensor.
    tensors: BTreeMap<String, Held>,
    /// Tensors of parts other than the decoder, by their names in files.
    set_aside: Vec<String>,
    path: PathBuf,
}

/// A tensor in a file.
struct Held {
    file: usize,
    name: String,
    shape: Vec<usize>,
}

/// Returns the name in a text-only model of a tensor of a vision-language model. `None` for tensors of other
/// parts.
pub(super) fn text_name(name: &str) -> Option<String> {
    // The names in transformers 4 and 5.
    for prefix in ["language_model.model.", "model.language_model."] {
        if let Some(rest) = name.strip_prefix(prefix) {
            return Some(format!("model.{rest}"));
        }
    }
    let head = name.strip_prefix("language_model.").unwrap_or(name);
    (head == "lm_head.weight").then(|| head.to_owned())
}

impl WeightFiles {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] if files are damaged, or shards and index do not match.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.is_file() {
            return Self::open_file(single);
        }
        let Some(text) = crate::files::read_if_there(&index)? else {
            return Err(no_safetensors(folder));
        };
        let json: Value = serde_json::from_str(&text)
            .map_err(|e| damaged(&index, format!("it is not JSON: {e}")))?;
        let map = json["weight_map"].as_object();
        let map = map.ok_or_else(|| damaged(&index, "it has no `weight_map`"))?;
        let mut shards: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (tensor, shard) in map {
            let name = shard.as_str().filter(|name| is_plain(name)).ok_or_else(|| {
                damaged(
                    &index,
                    format!("tensor `{tensor}` is in {shard}, which is not a file name"),
                )
            })?;
            shards.entry(name).or_default().insert(tensor);
        }
        let mut all = Self::empty(index.clone());
        if let Some(shard) = shards.keys().find(|shard| !folder.join(shard).is_file()) {
            let what = format!("it lists {shard}, which is not in the folder");
            return Err(damaged(&index, what));
        }
        for (shard, named) in shards {
            let mut file = SafetensorsFile::open(folder.join(shard))?;
            let shapes = file.shapes()?;
            let held: BTreeSet<&str> = shapes.iter().map(|(name, _)| name.as_str()).collect();
            let differing: Vec<&str> = named.symmetric_difference(&held).copied().collect();
            if !differing.is_empty() {
                let what = format!("it and {INDEX} differ in {}", listed(&differing));
                return Err(damaged(&file.path, what));
            }
            all.add(WeightFile::Safetensors(Box::new(file)), shapes);
        }
        Ok(all)
    }

    /// Opens one file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] if the file is damaged.
    pub(crate) fn open_file(path: PathBuf) -> Result<Self> {
        let mut file = SafetensorsFile::open(path.clone())?;
        let shapes = file.shapes()?;
        let mut all = Self::empty(path);
        all.add(WeightFile::Safetensors(Box::new(file)), shapes);
        Ok(all)
    }

    /// Returns the weights of a GGUF file.
    pub(super) fn of_gguf(model: GgufModel, path: &Path) -> Self {
        let mut all = Self::empty(path.to_owned());
        let shapes = model.shapes();
        all.set_aside = model.others().to_vec();
        all.add(WeightFile::Gguf(model), shapes);
        all
    }

    fn empty(path: PathBuf) -> Self {
        Self { files: vec![], tensors: BTreeMap::new(), set_aside: vec![], path }
    }

    fn add(&mut self, file: WeightFile, shapes: Vec<(String, Vec<usize>)>) {
        let index = self.files.len();
        self.files.push(file);
        self.tensors.extend(shapes.into_iter().map(|(name, shape)| {
            let held = Held { file: index, name: name.clone(), shape };
            (name, held)
        }));
    }

    /// Renames tensors, and sets aside those for which `new_name` returns `None`.
    pub(super) fn rename(&mut self, new_name: impl Fn(&str) -> Option<String>) {
        for (name, held) in std::mem::take(&mut self.tensors) {
            match new_name(&name) {
                Some(new) => {
                    self.tensors.insert(new, held);
                }
                None => self.set_aside.push(name),
            }
        }
    }

    /// Returns the tensors that are set aside, such as `model.visual (153), mtp (15)`. `None` if there are
    /// none.
    pub(super) fn set_aside(&self) -> Option<String> {
        let mut parts: BTreeMap<String, usize> = BTreeMap::new();
        for name in &self.set_aside {
            let depth =
                if ["model.", "blk."].iter().any(|of| name.starts_with(of)) { 2 } else { 1 };
            let part: Vec<&str> = name.split('.').take(depth).collect();
            *parts.entry(part.join(".")).or_default() += 1;
        }
        let parts: Vec<String> =
            parts.iter().map(|(part, count)| format!("{part} ({count})")).collect();
        (!parts.is_empty()).then(|| listed(&parts))
    }

    /// Returns the file, or the index of the shards.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the distinct files that contain the weights.
    pub(super) fn file_paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| match file {
            WeightFile::Safetensors(file) => file.path.as_path(),
            WeightFile::Gguf(_) => self.path.as_path(),
        })
    }

    /// Returns the names and shapes of the tensors.
    pub(super) fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, held)| (name.as_str(), held.shape.as_slice()))
    }

    /// Returns a metadata entry in the header of a single file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] if the file is damaged.
    pub(super) fn metadata(&self, key: &str) -> Result<Option<String>> {
        let mut file = File::open(&self.path).map_err(|e| Error::io("read", &self.path, e))?;
        let mut read = |count: u64| -> Result<Vec<u8>> {
            let mut bytes = vec![];
            let part = (&mut file).take(count).read_to_end(&mut bytes);
            part.map(|_| bytes).map_err(|e| Error::io("read", &self.path, e))
        };
        let length = read(8)?.try_into().map(u64::from_le_bytes);
        // `take` bounds the length by the size of the file.
        let header = read(length.map_err(|_| damaged(&self.path, "it has no header"))?)?;
        let header: Value = serde_json::from_slice(&header)
            .map_err(|e| damaged(&self.path, format!("its header is not JSON: {e}")))?;
        Ok(header["__metadata__"][key].as_str().map(str::to_owned))
    }

    /// Returns whether there is a tensor with this name.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Reads a tensor as f32.
    ///
    /// # Errors
    /// [`Error::Model`] if it is missing, or has an unknown type or values that are not finite.
    pub(crate) fn read(&mut self, name: &str) -> Result<HostTensor> {
        match self.tensors.get(name) {
            Some(held) => self.files[held.file].read(&held.name),
            None => Err(damaged(&self.path, format!("tensor `{name}` is missing"))),
        }
    }

    /// Returns the codes of a matrix in a GGUF file, if their type corresponds to the storage type of the
    /// base.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn stored(&self, name: &str, wanted: BaseType) -> Result<Option<StoredBlocks>> {
        match self.tensors.get(name).map(|held| (&self.files[held.file], &held.name)) {
            Some((WeightFile::Gguf(model), name)) => model.stored(name, wanted),
            _ => Ok(None),
        }
    }

    /// Reads a tensor of bytes.
    ///
    /// # Errors
    /// [`Error::Model`] if it is missing or has another type.
    pub(crate) fn read_bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        match self.tensors.get(name) {
            Some(Held { file, name, .. }) => match &mut self.files[*file] {
                WeightFile::Safetensors(file) => file.read_bytes(name),
                WeightFile::Gguf(_) => {
                    Err(damaged(&self.path, format!("`{name}` is not a tensor of bytes")))
                }
            },
            None => Err(damaged(&self.path, format!("tensor `{name}` is missing"))),
        }
    }
}

/// Returns whether a name is a plain file name, without a path.
fn is_plain(name: &str) -> bool {
    let path = Path::new(name);
    path.file_name().is_some_and(|file| file == path.as_os_str()) && !name.contains(['/', '\\'])
}

/// Returns the first few names, and how many more there are.
pub(super) fn listed<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 12;
    let mut text: String = names
        .iter()
        .take(SHOWN)
        .map(|name| name.as_ref().to_owned())
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// A tensor that is read from its device when it is written.
struct Written<'a> {
    tensor: &'a NamedTensor,
    file_type: FileType,
    error: &'a RefCell<Option<Error>>,
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        match (&self.tensor.elements, self.file_type) {
            (Elements::Bytes(_), _) => Dtype::U8,
            (_, FileType::F32) => Dtype::F32,
            (_, FileType::Bf16) => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = match &self.tensor.elements {
            Elements::Numbers(read) => read().map(|host| self.file_type.encoded(&host.values)),
            Elements::Bytes(read) => read(),
        };
        match bytes {
            Ok(bytes) => Cow::Owned(bytes),
            Err(error) => {
                // Reported after the write, which needs the right length.
                *self.error.borrow_mut() = Some(error);
                Cow::Owned(vec![0; self.data_len()])
            }
        }
    }

    fn data_len(&self) -> usize {
        self.tensor.shape.iter().product::<usize>() * self.dtype().bitsize() / 8
    }
}

/// Writes tensors to one file and flushes it.
///
/// # Errors
/// [`Error::Io`]; [`Error::Training`] if a device cannot be read.
pub(crate) fn write_file(
    path: &Path,
    tensors: &[NamedTensor],
    file_type: FileType,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let error = RefCell::new(None);
    let views = tensors.iter().map(|tensor| {
        let view = Written { tensor, file_type, error: &error };
        (tensor.name.as_str(), view)
    });
    // With an empty map and no tensors, the library writes a header that it cannot read.
    let metadata = Some(metadata).filter(|metadata| !metadata.is_empty());
    safetensors::serialize_to_file(views, metadata, path)
        .map_err(|e| Error::io("write", path, std::io::Error::other(e.to_string())))?;
    if let Some(error) = error.into_inner() {
        return Err(error);
    }
    // The library creates files that only their owner can read. Set the usual permissions.
    let usual = path.with_extension("mode");
    let finish = || {
        let permissions = File::create(&usual)?.metadata()?.permissions();
        std::fs::remove_file(&usual)?;
        std::fs::set_permissions(path, permissions)?;
        File::options().write(true).open(path)?.sync_all()
    };
    finish().map_err(|e| Error::io("write", path, e))
}

/// Writes a model's tensors to a folder: a single file, or shards of at most `max_shard_bytes` (more if a
/// single tensor is larger) and their index.
///
/// # Errors
/// See [`write_file`].
pub(super) fn write_model(
    folder: &Path,
    tensors: Vec<NamedTensor>,
    file_type: FileType,
    max_shard_bytes: u64,
) -> Result<()> {
    let metadata = || HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let size =
        |tensor: &NamedTensor| (tensor.shape.iter().product::<usize>() * file_type.bytes()) as u64;
    let mut shards: Vec<(u64, Vec<NamedTensor>)> = vec![];
    for tensor in tensors {
        let bytes = size(&tensor);
        match shards.last_mut() {
            Some((total, shard)) if *total + bytes <= max_shard_bytes => {
                *total += bytes;
                shard.push(tensor);
            }
            _ => shards.push((bytes, vec![tensor])),
        }
    }
    if let [(_, only)] = shards.as_slice() {
        return write_file(&folder.join(SINGLE), only, file_type, metadata());
    }
    let (count, mut map) = (shards.len(), BTreeMap::new());
    let total: u64 = shards.iter().map(|(bytes, _)| bytes).sum();
    for (index, (_, shard)) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        write_file(&folder.join(&name), shard, file_type, metadata())?;
        map.extend(shard.iter().map(|tensor| (tensor.name.clone(), name.clone())));
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    let path = folder.join(INDEX);
    std::fs::write(&path, format!("{index:#}\n")).map_err(|e| Error::io("write", &path, e))
}
