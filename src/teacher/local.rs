//! A local model as a teacher.

use super::{Failure, Response, Teacher, TeacherPrompt, TeacherSample};
use crate::context::{Context, StopFlag};
use crate::data::ChatTemplate;
use crate::data::chat::reasoning;
use crate::error::{Error, Result};
use crate::eval::opens_reasoning;
use crate::model::{
    DecoderLm, EndReason, Generate, GenerateConfig, LoadOptions, StopConditions, TextInterface,
    TextModel, TextModelFiles,
};
use crate::text::hex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

/// Settings of a local model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalConfig {
    /// Model to run: a folder in Hugging Face format, a GGUF file, or a run. With the feature `hub`, also
    /// `owner/name` on the Hugging Face Hub.
    pub model: String,
    /// System message of every prompt. It replaces system messages that come with the problems. If empty,
    /// those are used, if any.
    pub system: String,
    /// Variables for the chat template, such as `enable_thinking`.
    pub template_variables: BTreeMap<String, Value>,
    /// Backend to run the model on, such as `cuda`. `auto` is the first one in the build.
    pub backend: String,
    /// Maximum length of an answer in tokens, including the reasoning. Truncated answers are never kept, so
    /// raise it if the report counts many of them.
    pub max_tokens: usize,
    /// Sampling temperature. 0 always takes the most likely token. More than one answer per problem
    /// (`samples`) requires a value above 0.
    pub temperature: f64,
    /// Nucleus sampling: samples only from the most likely tokens whose probabilities sum to this value,
    /// above 0 and at most 1. 1 samples from all tokens.
    pub top_p: f64,
    /// Number of problems to answer at the same time. A larger batch is faster and takes more memory. Random
    /// choices do not depend on it.
    pub batch_size: usize,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            system: String::new(),
            template_variables: BTreeMap::new(),
            backend: "auto".into(),
            max_tokens: 2048,
            temperature: 0.0,
            top_p: 1.0,
            batch_size: 16,
        }
    }
}

impl LocalConfig {
    fn generate(&self) -> GenerateConfig {
        GenerateConfig {
            max_new_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            batch_size: self.batch_size,
            ..GenerateConfig::default()
        }
    }

    /// Validates the settings.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for the first invalid setting.
    pub fn validate(&self) -> Result<()> {
        let mut names = self.template_variables.keys();
        names.try_for_each(|name| ChatTemplate::check_variable("template_variables", name))?;
        self.generate().validate().map_err(|error| match error {
            Error::Config { key, what, hint } => {
                let key = match key.trim_start_matches("generate.") {
                    "max_new_tokens" => "max_tokens",
                    key => key,
                };
                Error::config(key, what, hint)
            }
            other => other,
        })
    }
}

/// A local model as a teacher. The random draws of a question do not depend on its batch.
pub struct LocalTeacher {
    config: LocalConfig,
    model: Mutex<DecoderLm>,
    fingerprint: String,
    files: TextModelFiles,
}

impl LocalTeacher {
    /// Loads the model.
    ///
    /// # Errors
    /// Same as [`LocalConfig::validate`]; errors of the model folder and the device.
    pub fn load(config: LocalConfig, context: &Context<'_>) -> Result<Self> {
        config.validate()?;
        let system = Some(config.system.clone()).filter(|system| !system.is_empty());
        let backend = config.backend.clone();
        let template_variables = config.template_variables.clone();
        let options = LoadOptions {
            system,
            template_variables,
            max_length: Some(config.max_tokens),
            backend,
            ..LoadOptions::default()
        };
        let TextModel { model, files } = TextModel::load(&config.model, &options, context)?;
        let fingerprint = model.fingerprint()?;
        Ok(Self { config, model: Mutex::new(model), fingerprint, files })
    }

    /// Returns the number that determines the random draws of a question.
    fn number(question: &TeacherPrompt) -> u64 {
        let mut hash = Sha256::new();
        hash.update(question.seed.to_le_bytes());
        hash.update(question.prompt.as_bytes());
        let hash: [u8; 32] = hash.finalize().into();
        hash[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn answers(
        &self,
        questions: &[TeacherPrompt],
        stop: &StopFlag,
    ) -> Result<Option<Vec<Response>>> {
        // A problem that leaves no room for an answer gets none.
        let longest = self.files.folder().config().context();
        let TextInterface { tokenizer, template, end_tokens } = self.files.text_interface();
        let mut responses = vec![Response::default(); questions.len()];
        let (mut places, mut prompts, mut numbers) = (vec![], vec![], vec![]);
        for (place, question) in questions.iter().enumerate() {
            let prompt = template.prompt(tokenizer, question.prompt())?;
            if prompt.len() < longest {
                places.push(place);
                prompts.push(prompt);
                numbers.push(Self::number(question));
            }
        }
        let stop_conditions = StopConditions { tokens: end_tokens, tokenizer };
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        let config = self.config.generate();
        let generated =
            model.generate_as(&prompts, &numbers, stop_conditions, &config, &mut |_| match stop
                .is_requested()
            {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })?;
        if generated.iter().any(|answer| answer.end == EndReason::Interrupted) {
            return Ok(None);
        }
        for ((generation, prompt), place) in generated.iter().zip(&prompts).zip(places) {
            let reason = if generation.hit_limit() { "length" } else { "stop" };
            let mut text = generation.text(tokenizer)?;
            // If the template opens the reasoning, the answer starts inside it.
            if opens_reasoning(tokenizer, prompt)? {
                text.insert_str(0, reasoning::OPEN);
            }
            responses[place] = Response {
                samples: vec![TeacherSample::of_text(&text, Some(reason.to_owned()))],
                prompt_tokens: Some(prompt.len() as u64),
                completion_tokens: Some(generation.tokens.len() as u64),
            };
        }
        Ok(Some(responses))
    }
}

impl Teacher for LocalTeacher {
    fn name(&self) -> String {
        let name = self.config.model.trim_end_matches(['/', '\\']);
        name.rsplit(['/', '\\']).next().unwrap_or(name).to_owned()
    }

    fn place(&self) -> String {
        self.config.model.clone()
    }

    fn request(&self, question: &TeacherPrompt) -> Value {
        // The hash of the tokens covers the template and the tokenizer.
        let mut tokens = Sha256::new();
        let text = self.files.text_interface();
        let prompt = text.template.prompt(text.tokenizer, question.prompt());
        for token in prompt.unwrap_or_default() {
            tokens.update(token.to_le_bytes());
        }
        let tokens = hex(tokens.finalize());
        json!({
            "model": self.fingerprint,
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "prompt": question.prompt,
            "tokens": tokens,
            "seed": question.seed,
        })
    }

    fn batch(&self) -> usize {
        self.config.batch_size
    }

    fn ask(&self, questions: &[TeacherPrompt], stop: &StopFlag) -> Result<Vec<Response>, Failure> {
        match self.answers(questions, stop) {
            Ok(Some(responses)) => Ok(responses),
            Ok(None) => Err(Failure::Stopped),
            Err(error) => Err(Failure::All(error)),
        }
    }
}
