//! A model with all that text needs: its tokenizer, the layout of prompts, the tokens that end answers.

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

/// The value of [`LoadOptions::chat_template`] that stands for the built-in layout.
pub(crate) const BUILT_IN: &str = "none";

/// How text goes into a model and comes out of it.
#[derive(Clone, Copy)]
pub struct TextInterface<'a> {
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// The layout of prompts.
    pub template: &'a dyn PromptTemplate,
    /// Tokens that end an answer.
    pub end_tokens: &'a [u32],
}

/// How a model is loaded to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// An adapter in PEFT's format, or a run that trained one.
    pub adapter: Option<PathBuf>,
    /// A chat template in a file, or `none` for the built-in layout; without it the adapter's, else
    /// the model's own, and where there is none the built-in layout.
    pub chat_template: Option<PathBuf>,
    /// Variables for the chat template, such as `enable_thinking`.
    pub template_variables: BTreeMap<String, serde_json::Value>,
    /// The system's message in each conversation. It takes the place of one that a prompt has.
    pub system: Option<String>,
    /// Tokens of the longest row that is asked for, prompt and answer together, where that is known. It
    /// decides LongRoPE, which otherwise is that of the model's original context; see
    /// [`DecoderConfig::for_length`](super::DecoderConfig::for_length).
    pub max_length: Option<usize>,
    /// How the model's weights are stored in memory.
    pub base: BaseWeights,
    /// The device, by the name of its backend; see [`device::by_name`].
    pub backend: String,
}

impl Default for LoadOptions {
    /// No adapter, the model's own template, the fastest backend.
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

/// A model's files, opened and checked; no weights are read yet.
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
    /// Opens a model by its folder, by a run's directory (its model, or its adapters with their base
    /// model), or, with the feature `hub`, by `owner/name` or `owner/name@revision`. Whatever is wrong
    /// with any of its files, but for the weights' numbers, shows here.
    ///
    /// A chat template that is there and cannot lay out a prompt is an error. Where there is none, the
    /// built-in layout is taken, and the context is told.
    ///
    /// # Errors
    /// [`Error::Model`] where there is no such model, its adapter is of another one, or it asks for
    /// what is not done here; [`Error::Tokenizer`]; [`Error::Template`], also for a template without a
    /// place for the system's text; [`Error::Config`] for a system's text, or variables, where there is
    /// no template; [`Error::Io`].
    pub fn open(name: &str, options: &LoadOptions, context: &Context<'_>) -> Result<Self> {
        let files = Self::read(name, options, context)?;
        if files.chat.is_none() && options.chat_template.is_none() {
            let layout = files.plain.prompt_text("...".into());
            context.notice(format!(
                "{name} has no chat template: prompts have the built-in layout, {layout:?}"
            ))?;
        }
        Ok(files)
    }

    /// As [`TextModelFiles::open`], where it makes no difference whether there is a template.
    pub(super) fn read(name: &str, options: &LoadOptions, context: &Context<'_>) -> Result<Self> {
        let Location { folder, adapter, trained_length } =
            Location::find(name, options.adapter.as_deref(), context)?;
        let mut folder = ModelFolder::open(&folder)?.with_base_weights(options.base)?;
        // A run's student goes on with what its training had.
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
                let what = "there is no chat template to give them to";
                return Err(Error::config(
                    "template_variables",
                    what,
                    "Name one, or leave them out",
                ));
            }
            None if system.is_some() => {
                let what = "there is no chat template to put it into";
                return Err(Error::config("system", what, "Name one, or leave the text out"));
            }
            None => None,
        };
        let mut files = Self { folder, adapter, tokenizer, chat, plain, end_tokens: vec![] };
        files.end_tokens = files.folder.answer_ends(&files.tokenizer, files.template());
        Ok(files)
    }

    /// The same for rows of up to so many tokens, prompt and answer together; see
    /// [`DecoderConfig::for_length`](super::DecoderConfig::for_length). What was decided for longer rows
    /// stays.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn for_length(mut self, tokens: usize, context: &Context<'_>) -> Result<Self> {
        if self.folder.config().clone().for_length(tokens).context()
            > self.folder.config().context()
        {
            self.folder = self.folder.for_length(tokens, context)?;
        }
        Ok(self)
    }

    /// The folder of the model, or of the adapter's base model.
    pub fn folder(&self) -> &ModelFolder {
        &self.folder
    }

    /// The folder of the adapter.
    pub fn adapter(&self) -> Option<&Path> {
        self.adapter.as_deref()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The layout of prompts.
    pub fn template(&self) -> &dyn PromptTemplate {
        match &self.chat {
            Some(chat) => chat,
            None => &self.plain,
        }
    }

    /// The built-in layout of prompts.
    pub(super) fn built_in_layout(&self) -> &PlainTemplate {
        &self.plain
    }

    /// The chat template; `None` where prompts have the built-in layout.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref().map(ChatFormat::template)
    }

    /// All tokens that end an answer: those of the folder's configurations, of its tokenizer, and the
    /// one that the template ends answers with.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// How text goes into the model and comes out of it.
    pub fn text_interface(&self) -> TextInterface<'_> {
        TextInterface {
            tokenizer: &self.tokenizer,
            template: self.template(),
            end_tokens: &self.end_tokens,
        }
    }

    /// The tokens of a conversation, up to the model's next answer.
    ///
    /// # Errors
    /// [`Error::Template`] where there is no chat template, or it refuses the conversation.
    pub fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let Some(chat) = &self.chat else {
            return Err(Error::Template {
                name: self.folder.path().display().to_string(),
                what: "a conversation needs a chat template, and there is none".into(),
                hint: "Name one, or ask single prompts".into(),
            });
        };
        chat.conversation(&self.tokenizer, messages)
    }

    /// The tokens of a text as it is, without a template; special tokens can be spelled in it.
    ///
    /// # Errors
    /// What the tokenizer gives.
    pub fn plain_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.with_bos(self.tokenizer.encode_marked(text)?))
    }

    /// Reads the weights, and puts the adapter on them.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] for damaged weights, or an adapter of another base model;
    /// [`Error::Stopped`].
    pub fn load(self, device: &Device, context: &Context<'_>) -> Result<TextModel> {
        self.load_as(Task::LoadModel, device, context)
    }

    /// As [`TextModelFiles::load`], told as another task.
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

/// A model with its tokenizer, its layout of prompts and its end tokens.
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
    /// The model, with its adapter.
    pub model: DecoderLm,
    /// What it was loaded from, and all that is not weights.
    pub files: TextModelFiles,
}

impl TextModel {
    /// Opens a model's files and loads it; see [`TextModelFiles::open`].
    ///
    /// # Errors
    /// As [`TextModelFiles::open`] and [`TextModelFiles::load`]; [`Error::Backend`].
    pub fn load(name: &str, options: &LoadOptions, context: &Context<'_>) -> Result<Self> {
        let files = TextModelFiles::open(name, options, context)?;
        files.load(&device::by_name(&options.backend)?, context)
    }

    /// How text goes into the model and comes out of it.
    pub fn text_interface(&self) -> TextInterface<'_> {
        self.files.text_interface()
    }
}
