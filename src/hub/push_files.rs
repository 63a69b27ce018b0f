//! The files of a model to push, with a card if it has none.

use super::data_card::front_matter;
use super::push::Going;
use crate::context::StopFlag;
use crate::error::{Error, Result};
use crate::files::read_if_there;
use crate::model::{Pushable, pushable};
use bytes::Bytes;
use futures_core::Stream;
use hf_hub::repository::{SourceByteStream, StreamFactory};
use hf_hub::{HFError, HFResult};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Waking, Poll};

pub(super) const CARD: &str = "README.md";
/// The error of a large file that would be sent inside the commit.
pub(super) const NO_XET: &str = "no Xet";
/// Files from this size on go through Xet or not at all. Inside the commit, they would be held in memory.
const BIG: u64 = 16 << 20;
const BLOCK: usize = 256 << 10;
/// File extensions that only model files have.
const ENDINGS: [&str; 4] = ["safetensors", "jinja", "model", "gguf"];
/// Other files of a model, besides licenses and notices.
const NAMES: [&str; 17] = [
    "README.md",
    "Modelfile",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "tekken.json",
];
/// A file that training leaves in a folder.
const OF_TRAINING: &str = "optimizer.safetensors";

/// A file to push, with its name in the repository.
pub(super) struct PushFile {
    pub name: String,
    pub source: Source,
}

pub(super) enum Source {
    File { path: PathBuf, size: u64 },
    Text(String),
}

/// The files of a model, an adapter or a GGUF file.
pub(super) struct PushFiles {
    files: Vec<PushFile>,
    /// The card to push if neither the folder nor the repository has one.
    card: Option<String>,
    left_out: Vec<String>,
    notices: Vec<String>,
    word: &'static str,
}

fn failed(path: &Path, what: impl Into<String>, hint: &str) -> Error {
    Error::Model { path: path.to_owned(), what: what.into(), hint: hint.into() }
}

/// Returns whether a file of a folder belongs to the model.
fn is_of_model(name: &str) -> bool {
    let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
    let is_notice = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"].contains(&stem)
        && ["", "md", "txt"].contains(&ending);
    name != OF_TRAINING && (is_notice || NAMES.contains(&name) || ENDINGS.contains(&ending))
}

impl PushFiles {
    /// Finds the files.
    ///
    /// # Errors
    /// [`Error::Model`] if there is nothing to push or a part of it is missing; [`Error::Io`].
    pub fn of(what: &Path) -> Result<Self> {
        match pushable(what)? {
            Pushable::Model(folder) => {
                let config = json(&folder.join("config.json"))?;
                check_weights(&folder)?;
                Self::of_folder(&folder, "model", &model_card(&config))
            }
            Pushable::Adapter(folder) => {
                let path = folder.join("adapter_config.json");
                let config = json(&path)?;
                if !folder.join("adapter_model.safetensors").is_file() {
                    let what = "it has no adapter_model.safetensors";
                    return Err(failed(
                        &folder,
                        what,
                        "Give the folder of an adapter in PEFT format",
                    ));
                }
                let base = config["base_model_name_or_path"].as_str().unwrap_or_default();
                let is_id = super::HubModel::parse(base).is_ok();
                let mut files = Self::of_folder(
                    &folder,
                    "adapter",
                    &adapter_card(Some(base).filter(|_| is_id)),
                )?;
                if !is_id {
                    files.notices.push(format!(
                        "{} names `{}` as the base model, which others cannot find; use a model on the \
                         Hub, owner/name",
                        path.display(),
                        base.escape_debug()
                    ));
                }
                Ok(files)
            }
            Pushable::Gguf(path) => {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let size = path.metadata().map_err(|e| Error::io("read", &path, e))?.len();
                let name = name.to_owned();
                let card = Some(gguf_card(&name));
                let files = vec![PushFile { name, source: Source::File { path, size } }];
                Ok(Self { files, card, left_out: vec![], notices: vec![], word: "GGUF file" })
            }
        }
    }

    fn of_folder(folder: &Path, word: &'static str, card: &str) -> Result<Self> {
        let read = |e| Error::io("read", folder, e);
        let (mut files, mut left_out) = (vec![], vec![]);
        for entry in std::fs::read_dir(folder).map_err(read)? {
            let path = entry.map_err(read)?.path();
            // A link into a cache counts as its target. A broken link does not count.
            let file = path.metadata().ok().filter(std::fs::Metadata::is_file);
            let name = path.file_name().and_then(|name| name.to_str());
            match name {
                Some(name) if name.starts_with('.') => {}
                Some(name) => match file.filter(|_| is_of_model(name)) {
                    Some(file) => {
                        let (name, size) = (name.to_owned(), file.len());
                        files.push(PushFile { name, source: Source::File { path, size } });
                    }
                    None => left_out.push(name.to_owned()),
                },
                None => left_out.push(path.to_string_lossy().into_owned()),
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        left_out.sort();
        let has_card = files.iter().any(|file| file.name == CARD);
        if has_card {
            check_card(&folder.join(CARD))?;
        }
        let mut notices = vec![];
        if !left_out.is_empty() {
            let names = left_out.join(", ");
            notices.push(format!("left out files that are not part of the {word}: {names}"));
        }
        let card = (!has_card).then(|| card.to_owned());
        Ok(Self { files, card, left_out, notices, word })
    }

    /// Notices for the user.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Returns the default commit message.
    pub fn message(&self) -> String {
        format!("Upload {} with mixdistill {}", self.word, env!("CARGO_PKG_VERSION"))
    }

    /// Returns the total size of the files.
    pub fn bytes(&self) -> u64 {
        let size = |file: &PushFile| match &file.source {
            Source::File { size, .. } => *size,
            Source::Text(text) => text.len() as u64,
        };
        self.files.iter().map(size).sum()
    }

    /// Returns the files to push. Adds the generated card only if the repository has none.
    pub fn to_send(&self, has_card: bool) -> Vec<PushFile> {
        let copy = |file: &PushFile| PushFile {
            name: file.name.clone(),
            source: match &file.source {
                Source::File { path, size } => Source::File { path: path.clone(), size: *size },
                Source::Text(text) => Source::Text(text.clone()),
            },
        };
        let card = self.card.clone().filter(|_| !has_card);
        let card = card.map(|card| PushFile { name: CARD.into(), source: Source::Text(card) });
        self.files.iter().map(copy).chain(card).collect()
    }
}

fn json(path: &Path) -> Result<Value> {
    let text = read_if_there(path)?.unwrap_or_default();
    serde_json::from_str(&text)
        .map_err(|e| failed(path, format!("it is not valid JSON: {e}"), "Fix the file"))
}

/// Checks that all weights of a model are present.
fn check_weights(folder: &Path) -> Result<()> {
    const INDEX: &str = "model.safetensors.index.json";
    if folder.join("model.safetensors").is_file() {
        return Ok(());
    }
    if !folder.join(INDEX).is_file() {
        return Err(failed(folder, "it has no safetensors", "Give a folder with its weights"));
    }
    let index = json(&folder.join(INDEX))?;
    let shards = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    match shards.filter_map(Value::as_str).find(|shard| !folder.join(shard).is_file()) {
        None => Ok(()),
        Some(shard) => {
            let what = format!("it has no `{}`, which its index names", shard.escape_debug());
            Err(failed(folder, what, "Give a folder with all of its weights"))
        }
    }
}

/// Refuses a card that the Hub would refuse after the upload.
fn check_card(path: &Path) -> Result<()> {
    let Some(text) = read_if_there(path)? else { return Ok(()) };
    let Some(matter) = front_matter(&text) else { return Ok(()) };
    let bases =
        match serde_saphyr::from_str::<Value>(matter).map(|matter| matter["base_model"].clone()) {
            Ok(Value::String(base)) => vec![base],
            Ok(Value::Array(bases)) => {
                bases.iter().filter_map(|base| base.as_str().map(str::to_owned)).collect()
            }
            _ => return Ok(()),
        };
    let is_path = |base: &&String| {
        base.starts_with(['.', '/', '~']) || base.contains('\\') || base.matches('/').count() > 1
    };
    match bases.iter().find(is_path) {
        None => Ok(()),
        Some(base) => {
            let what = format!("it names `{}` as base_model, which is a path", base.escape_debug());
            Err(failed(path, what, "Use a model on the Hub, owner/name, or remove the line"))
        }
    }
}

const UNKNOWN: &str = "Its folder had no model card, so its training data, its training, and its quality are \
                       not recorded here.";

/// Returns a short card with no more than what the folder says.
fn short_card(library: &str, base: Option<&str>, title: &str, about: &str) -> String {
    let library =
        if library.is_empty() { String::new() } else { format!("library_name: {library}\n") };
    let base = base.map(|base| format!("base_model: {}\n", Value::from(base))).unwrap_or_default();
    format!(
        "---\n{library}pipeline_tag: text-generation\n{base}tags:\n- mixdistill\n---\n\n# {title}\n\n\
         {about}\n\nPushed with mixdistill {}. {UNKNOWN}\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn model_card(config: &Value) -> String {
    let kind = config["model_type"].as_str().unwrap_or("unknown");
    let kind: String = kind.chars().filter(|c| c.is_alphanumeric() || "_-.".contains(*c)).collect();
    short_card("transformers", None, "A language model", &format!("Architecture: `{kind}`."))
}

fn adapter_card(base: Option<&str>) -> String {
    let base = base.map(|base| base.split('@').next().unwrap_or(base));
    let of = base.map_or("an unnamed model".into(), |base| format!("`{base}`"));
    short_card("peft", base, "A LoRA adapter", &format!("An adapter of {of} in PEFT format."))
}

fn gguf_card(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control() && *c != '`').collect();
    short_card(
        "",
        None,
        "A language model in GGUF",
        &format!("`{name}` is for llama.cpp and Ollama."),
    )
}

impl PushFile {
    /// Returns the file as a stream that can be reopened.
    pub fn stream(&self, path: &Path, stop: &StopFlag, going: &Arc<Going>) -> Factory {
        let Source::File { size, .. } = self.source else {
            return Factory { size: 0, ..Factory::new(path, stop, going) };
        };
        Factory { size, ..Factory::new(path, stop, going) }
    }
}

/// Opens a file each time that it is read.
pub(super) struct Factory {
    path: PathBuf,
    size: u64,
    stop: StopFlag,
    going: Arc<Going>,
    was_read: AtomicBool,
}

impl Factory {
    fn new(path: &Path, stop: &StopFlag, going: &Arc<Going>) -> Self {
        let was_read = AtomicBool::new(false);
        Self { path: path.to_owned(), size: 0, stop: stop.clone(), going: going.clone(), was_read }
    }
}

impl StreamFactory for Factory {
    fn open(&self) -> SourceByteStream {
        let again = self.was_read.swap(true, Ordering::SeqCst);
        // hf-hub first reads a file for its checksum. Then a separate task sends it through Xet. Without Xet,
        // the file is put into the commit as text, in memory, outside of a separate task.
        let is_within = again && self.size >= BIG && tokio::task::try_id().is_none();
        let file = match is_within {
            true => Err(HFError::Other(NO_XET.into())),
            false => File::open(&self.path).map_err(HFError::from),
        };
        Box::pin(FileStream {
            file: Some(file),
            left: self.size,
            stop: self.stop.clone(),
            going: (!again).then(|| self.going.clone()),
        })
    }
}

/// A file in blocks.
struct FileStream {
    file: Option<HFResult<File>>,
    left: u64,
    stop: StopFlag,
    /// The counter of read bytes.
    going: Option<Arc<Going>>,
}

impl FileStream {
    fn block(&mut self) -> Option<HFResult<Bytes>> {
        let mut file = match self.file.take()? {
            Ok(file) => file,
            Err(error) => return Some(Err(error)),
        };
        if self.stop.is_requested() {
            return Some(Err(HFError::Other("stopped".into())));
        }
        let mut block = vec![0; BLOCK.min(usize::try_from(self.left).unwrap_or(BLOCK).max(1))];
        match file.read(&mut block) {
            Err(error) => Some(Err(error.into())),
            Ok(0) if self.left == 0 => None,
            Ok(0) => Some(Err(HFError::Other("a file shrank during the upload".into()))),
            Ok(_) if self.left == 0 => {
                Some(Err(HFError::Other("a file grew during the upload".into())))
            }
            Ok(bytes) => {
                block.truncate(bytes);
                self.left -= bytes as u64;
                if let Some(going) = &self.going {
                    going.read.fetch_add(bytes as u64, Ordering::Relaxed);
                }
                self.file = Some(Ok(file));
                Some(Ok(block.into()))
            }
        }
    }
}

impl Stream for FileStream {
    type Item = HFResult<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Waking<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.block())
    }
}
