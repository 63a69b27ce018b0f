//! A model in a folder as a teacher.

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

/// How a model in a folder answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalConfig {
    /// The folder, in Hugging Face's format (with the feature hub also owner/name).
    pub model: String,
    /// Message of the system; none where it is empty.
    pub system: String,
    /// Variables for the chat template, such as `enable_thinking`.
    pub template_variables: BTreeMap<String, Value>,
    /// The device, by the name of its backend.
    pub backend: String,
    /// Length limit of an answer in tokens.
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// Tokens are drawn among the likeliest whose probabilities sum to this.
    pub top_p: f64,
    /// Answers generated at the same time.
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

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) with the first that cannot be used.
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

/// A model with all that it takes to ask it. A question has the same draws whatever it is batched
/// with.
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
    /// As [`LocalConfig::validate`], and what folders and devices give.
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

    /// The number of a question, which its random draws depend on.
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
        // A problem that leaves no room for an answer has none.
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
            // Where the template opens the reasoning, the answer begins within it.
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
        // The tokens say what template and tokenizer make of it.
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
