//! Checks of settings that need no file.

use super::{DataConfig, EvaluationConfig, RunConfig};
use crate::data::ChatTemplate;
use crate::error::{Error, Problems, Result};
use crate::model::FileType;
use crate::recipe::pilots::validate_mixture;

fn refuse(key: &str, what: impl Into<String>, hint: &str) -> Result<()> {
    Err(Error::config(key, what, hint))
}

impl RunConfig {
    /// Checks the settings that need no file.
    ///
    /// # Errors
    /// [`Error::Config`] with the invalid setting, or [`Error::Several`] with all of them.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Problems::default();
        problems.note(self.train.validate());
        problems.note(self.generate.validate());
        problems.note(self.validate_teacher());
        problems.note(self.evaluation.validate(self.train.evaluate_every));
        problems.note(self.data.validate());
        problems.note(self.mixture.validate_choice());
        problems.note(self.pilots.validate());
        problems.note(validate_mixture(&self.mixture));
        problems.note(self.validate_model());
        for (key, name) in self.template_variables() {
            problems.note(ChatTemplate::check_variable(&key, name));
        }
        problems.check()
    }

    /// Returns all chat template variables that are set: the setting, and the variable's name.
    pub(in crate::recipe) fn template_variables(&self) -> impl Iterator<Item = (String, &str)> {
        let sources = self.data.sources.iter().map(|source| {
            (format!("data.sources.{}.template_variables", source.name), &source.template_variables)
        });
        let of_all = ("data.template_variables".to_owned(), &self.data.template_variables);
        let of_answers =
            ("evaluation.template_variables".to_owned(), &self.evaluation.template_variables);
        let all = [of_all].into_iter().chain(sources).chain([of_answers]);
        all.flat_map(|(key, variables)| {
            variables.keys().map(move |name| (key.clone(), name.as_str()))
        })
    }

    /// Checks that there is a teacher if and only if the objective distills from one.
    fn validate_teacher(&self) -> Result<()> {
        match (&self.teacher, &self.train.objective.distillation) {
            (None, Some(_)) => {
                refuse("train.objective.distillation", "there is no teacher", "Set teacher.path")
            }
            (Some(_), None) => refuse(
                "teacher",
                "there is a teacher, but the loss does not use it",
                "Set train.objective.distillation, or remove the teacher",
            ),
            (Some(teacher), Some(_)) if teacher.top_k == 0 => {
                refuse("teacher.top_k", "it is 0", "Use a positive number (default 64)")
            }
            _ => Ok(()),
        }
    }

    /// Checks what is trained and how it is written.
    fn validate_model(&self) -> Result<()> {
        if let Some(lora) = &self.lora {
            lora.validate()?;
            if self.save.file_type != FileType::F32 {
                let what = "adapters are always written in f32";
                return refuse("save.file_type", what, "Remove it, or merge the adapter later");
            }
            if self.base_model.is_none() {
                let what = "there is no model to add adapters to";
                return refuse("lora", what, "Name it with base_model");
            }
        }
        self.base.validate()?;
        if self.lora.is_none() && !self.base.is_f32() {
            let what = "all weights are trained, and trained weights are f32";
            return refuse("base.type", what, "Train adapters (lora.rank=16), or remove it");
        }
        if self.base_model.is_some() && self.data.tokenizer.is_some() {
            let what = "the base model has its own tokenizer";
            return refuse("data.tokenizer", what, "Remove it");
        }
        if self.save.max_shard_bytes == 0 {
            return refuse("save.max_shard_bytes", "it is 0", "Use a positive number");
        }
        Ok(())
    }
}

impl EvaluationConfig {
    fn validate(&self, evaluate_every: usize) -> Result<()> {
        let asks = self.during_training > 0;
        if asks && evaluate_every == 0 {
            let what = "there are no evaluations during training, since train.evaluate_every is 0";
            return refuse("evaluation.during_training", what, "Set train.evaluate_every");
        }
        if asks && self.questions < self.during_training {
            let (asked, of) = (self.during_training, self.questions);
            let what = format!("it is {asked}, but evaluation.questions is only {of}");
            return refuse("evaluation.during_training", what, "Raise evaluation.questions");
        }
        Ok(())
    }
}

impl DataConfig {
    fn validate(&self) -> Result<()> {
        if self.max_length < 2 {
            let what = format!("it is {}", self.max_length);
            return refuse("data.max_length", what, "Use 2 or more; a row has at least two tokens");
        }
        if !(0.0..1.0).contains(&self.hold_out) {
            let what = format!("it is {}", self.hold_out);
            return refuse("data.hold_out", what, "Use a share from 0 to below 1");
        }
        if self.problems == Some(0) {
            return refuse("data.problems", "it is 0", "Use a positive number, or remove it");
        }
        if let Some(date) = &self.date
            && date.parse::<jiff::civil::Date>().is_err()
        {
            return refuse("data.date", format!("it is \"{date}\""), "Write it as YYYY-MM-DD");
        }
        if self.sources.is_empty() { self.validate_toy() } else { Ok(()) }
    }

    fn validate_toy(&self) -> Result<()> {
        let toy = &self.toy;
        let ordered = 1 <= toy.operations.0 && toy.operations.0 <= toy.operations.1;
        if !ordered || toy.operations.1 > 64 {
            let what = format!("it is {} to {}", toy.operations.0, toy.operations.1);
            return refuse("data.toy.operations", what, "Use 1 to 64, the smaller first");
        }
        for (key, value) in [("data.toy.start", toy.start), ("data.toy.operand", toy.operand)] {
            if !(1..=1_000_000_000).contains(&value) {
                return refuse(key, format!("it is {value}"), "Use 1 to 1000000000");
            }
        }
        /// A sanity limit.
        const MOST: usize = 10_000_000;
        let problems = self.toy_problems.saturating_add(self.toy_test_problems);
        if self.toy_problems == 0 || problems > MOST {
            let what = format!("it is {}", self.toy_problems);
            let hint = "Use 1 or more; with data.toy_test_problems, at most 10000000";
            return refuse("data.toy_problems", what, hint);
        }
        Ok(())
    }
}
