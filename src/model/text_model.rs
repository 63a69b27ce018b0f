//! Models with their text side: the tokenizer, the layout of prompts, and the end tokens.

use super::adapter::AdapterFiles;
use super::base_weights::BaseWeights;
use super::decoder::DecoderLm;
use super::folder::ModelFolder;
use super::location::Location;
use crate::context::{Context, Task};
use crate::data::{
    ChatFormat, ChatTemplate, Message, PlainTemplate, PromptTemplate, TextTokenizer,
};
use crate::device;
use crate::error::{Error, Result};
use burn::tensor::Device;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The value of [`LoadOptions::chat_template`] that means the built-in layout.
pub(crate) const BUILT_IN: &str = "none";

/// Converts between text and a model's tokens.
#[derive(Clone, Copy)]
pub struct TextInterface<'a> {
    /// Tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// Layout of prompts.
    pub template: &'a dyn PromptTemplate,
    /// Tokens that end an answer.
    pub end_tokens: &'a [u32],
}

/// Options of [`TextModel::load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Adapter in PEFT's format, or a run that trained one.
    pub adapter: Option<PathBuf>,
    /// File with a chat template, or `none` for the built-in layout. `None` means the adapter's template,
    /// else the model's own, else the built-in layout.
    pub chat_template: Option<PathBuf>,
    /// Variables for the chat template, such as `enable_thinking`.
    pub template_variables: BTreeMap<String, serde_json::Value>,
    /// System message of every conversation, which replaces that of a prompt.
    pub system: Option<String>,
    /// Maximum length of prompt and answer together in tokens, if it is known. It selects the LongRoPE
    /// frequencies, which are otherwise those of the original context; see
    /// [`DecoderConfig::for_length`](super::DecoderConfig::for_length).
    pub max_length: Option<usize>,
    /// Storage types of the model's weights in memory.
    pub base: BaseWeights,
    /// Name of the device's backend; see [`device::by_name`].
    pub backend: String,
}

impl Default for LoadOptions {
    /// Defaults to no adapter, the model's own template, and the backend `auto`.
    fn default() -> Self {
        Self {
            adapter: None,
            chat_template: None,
            template_variables: BTreeMap::new(),
            system: None,
            max_length: None,
            base: BaseWeights::default(),
            backend: "auto".into(),
        }
    }
}

/// The files of a model, opened and checked. No weights have been read.
#[derive(Clone, Debug)]
pub struct TextModelFiles {
    folder: ModelFolder,
    adapter: Option<PathBuf>,
    tokenizer: TextTokenizer,
    chat: Option<ChatFormat>,
    plain: PlainTemplate,
    end_tokens: Vec<u32>,
}

impl TextModelFiles {
    /// Opens a model. `name` is a folder, a GGUF file, the directory of a run (its model, or its adapter with
    /// the base model), or, with the feature `hub`, `owner/name` or `owner/name@revision`. Checks all files
    /// except for the values of the weights.
    ///
    /// Without a chat template, prompts use the built-in layout, and the context is notified.
    ///
    /// # Errors
    /// [`Error::Model`] if there is no such model, the adapter does not fit it, or it needs an unsupported
    /// feature. [`Error::Tokenizer`] if the tokenizer is invalid. [`Error::Template`] if the chat template
    /// cannot format a prompt, or ignores the given system message. [`Error::Config`] if a system message or
    /// variables are given without a chat template. [`Error::Io`] if a file cannot be read.
    pub fn open(name: &str, options: &LoadOptions, context: &Context<'_>) -> Result<Self> {
        let files = Self::read(name, options, context)?;
        if files.chat.is_none() && options.chat_template.is_none() {
            let layout = files.plain.prompt_text("...".into());
            context.notice(format!(
                "{name} has no chat template: prompts use the built-in layout, {layout:?}"
            ))?;
        }
        Ok(files)
    }

    /// Like [`TextModelFiles::open`], without the notice about a missing template.
    pub(super) fn read(name: &str, options: &LoadOptions, context: &Context<'_>) -> Result<Self> {
        let Location { folder, adapter, trained_length } =
            Location::find(name, options.adapter.as_deref(), context)?;
        let mut folder = ModelFolder::open(&folder)?.with_base_weights(options.base)?;
        // A run's student keeps the length limit of its training.
        if let Some(tokens) = options.max_length.max(trained_length) {
            folder = folder.for_length(tokens, context)?;
        }
        folder.open_weights()?;
        if let Some(adapter) = &adapter {
            AdapterFiles::open(adapter, folder.config())?;
        }
        let tokenizer = folder.tokenizer(None)?;
        let template = match options.chat_template.as_deref() {
            Some(file) if file == Path::new(BUILT_IN) => None,
            file => folder.chat_template_with(file, adapter.as_deref())?,
        };
        let (plain, system) = (PlainTemplate::default(), options.system.clone());
        let chat = match template {
            Some(mut template) => {
                template.set_all(&options.template_variables);
                Some(ChatFormat::for_prompts(template, &tokenizer, system)?)
            }
            None if !options.template_variables.is_empty() => {
                let what = "there is no chat template to pass them to";
                return Err(Error::config(
                    "template_variables",
                    what,
                    "Set a chat template, or remove them",
                ));
            }
            None if system.is_some() => {
                let what = "there is no chat template to insert it into";
                return Err(Error::config(
                    "system",
                    what,
                    "Set a chat template, or remove the system message",
                ));
            }
            None => None,
        };
        let mut files = Self { folder, adapter, tokenizer, chat, plain, end_tokens: vec![] };
        files.end_tokens = files.folder.answer_ends(&files.tokenizer, files.template());
        Ok(files)
    }

    /// Selects the configuration for rows of up to `tokens` tokens, prompt and answer together; see
    /// [`DecoderConfig::for_length`](super::DecoderConfig::for_length). An earlier selection for longer rows
    /// stays.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the context was stopped.
    pub fn for_length(mut self, tokens: usize, context: &Context<'_>) -> Result<Self> {
        if self.folder.config().clone().for_length(tokens).context()
            > self.folder.config().context()
        {
            self.folder = self.folder.for_length(tokens, context)?;
        }
        Ok(self)
    }

    /// Returns the folder of the model, or of the adapter's base model.
    pub fn folder(&self) -> &ModelFolder {
        &self.folder
    }

    /// Returns the folder of the adapter.
    pub fn adapter(&self) -> Option<&Path> {
        self.adapter.as_deref()
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Returns the layout of prompts.
    pub fn template(&self) -> &dyn PromptTemplate {
        match &self.chat {
            Some(chat) => chat,
            None => &self.plain,
        }
    }

    /// Returns the built-in layout of prompts.
    pub(super) fn built_in_layout(&self) -> &PlainTemplate {
        &self.plain
    }

    /// Returns the chat template, or `None` if prompts use the built-in layout.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref().map(ChatFormat::template)
    }

    /// Returns all tokens that end an answer: those of the folder's configuration files, the tokenizer's end
    /// token, and the one with which the template ends answers.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Returns the conversion between text and tokens.
    pub fn text_interface(&self) -> TextInterface<'_> {
        TextInterface {
            tokenizer: &self.tokenizer,
            template: self.template(),
            end_tokens: &self.end_tokens,
        }
    }

    /// Returns the tokens of a conversation, up to the start of the model's next answer.
    ///
    /// # Errors
    /// [`Error::Template`] if there is no chat template, or it rejects the conversation.
    pub fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let Some(chat) = &self.chat else {
            return Err(Error::Template {
                name: self.folder.path().display().to_string(),
                what: "a conversation needs a chat template, but there is none".into(),
                hint: "Set a chat template, or use single prompts".into(),
            });
        };
        chat.conversation(&self.tokenizer, messages)
    }

    /// Returns the tokens of a text without a template. Special tokens may be spelled out in it.
    ///
    /// # Errors
    /// The errors of the tokenizer.
    pub fn plain_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.with_bos(self.tokenizer.encode_marked(text)?))
    }

    /// Loads the weights and attaches the adapter.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read; [`Error::Model`] if weights are damaged or the adapter belongs
    /// to another base model; [`Error::Stopped`] if the context was stopped.
    pub fn load(self, device: &Device, context: &Context<'_>) -> Result<TextModel> {
        self.load_as(Task::LoadModel, device, context)
    }

    /// Like [`TextModelFiles::load`], reported as another task.
    pub(crate) fn load_as(
        self,
        task: Task,
        device: &Device,
        context: &Context<'_>,
    ) -> Result<TextModel> {
        let model = self.folder.load_as(task, device, context)?;
        let model = match &self.adapter {
            Some(adapter) => model.with_adapter(adapter)?,
            None => model,
        };
        Ok(TextModel { model, files: self })
    }
}

/// A model with its tokenizer, its layout of prompts, and its end tokens.
///
/// ```no_run
/// use mixdistill::context::Context;
/// use mixdistill::model::{GenerateConfig, LoadOptions, StopConditions, TextModel};
/// use std::ops::ControlFlow;
///
/// # fn main() -> mixdistill::Result<()> {
/// let loaded = TextModel::load("SmolLM2-135M-Instruct", &LoadOptions::default(), &Context::default())?;
/// let text = loaded.text_interface();
/// let prompt = text.template.prompt(text.tokenizer, "What is 12 * 7?".into())?;
/// let stop = StopConditions { tokens: text.end_tokens, tokenizer: text.tokenizer };
/// let answers = loaded.model.generate(&[prompt], stop, &GenerateConfig::default(), &mut |_| {
///     ControlFlow::Continue(())
/// })?;
/// println!("{}", answers[0].text(text.tokenizer)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TextModel {
    /// Model, with its adapter.
    pub model: DecoderLm,
    /// The files it was loaded from, with everything but the weights.
    pub files: TextModelFiles,
}

impl TextModel {
    /// Opens and loads a model; see [`TextModelFiles::open`] for `name`.
    ///
    /// # Errors
    /// See [`TextModelFiles::open`] and [`TextModelFiles::load`]. [`Error::Backend`] if the device is not
    /// available.
    pub fn load(name: &str, options: &LoadOptions, context: &Context<'_>) -> Result<Self> {
        let files = TextModelFiles::open(name, options, context)?;
        files.load(&device::by_name(&options.backend)?, context)
    }

    /// Returns the conversion between text and tokens.
    pub fn text_interface(&self) -> TextInterface<'_> {
        self.files.text_interface()
    }
}
