//! The teacher of a run, whose likely tokens the student learns beside the answers.

use super::config::{RunConfig, TeacherConfig};
use super::prepare::Prepared;
use crate::data::Row;
use crate::error::{Error, Result};
use crate::model::{DecoderLm, ModelFolder, model_folder};
use crate::train::{ModelTeacher, Progress, Teacher, TeacherHeader, TeacherLogits};
use burn::tensor::Device;
use serde_json::{Value, json};
use std::path::Path;

/// The configured teacher, and what must be the same when the run is resumed. Whatever does not fit
/// shows here, before anything is replaced.
///
/// # Errors
/// [`Error::Config`] where it does not fit the student or the settings; what opening it gives.
pub(super) fn teacher(
    config: &RunConfig,
    prepared: &Prepared,
    device: &Device,
) -> Result<Option<(Box<dyn Teacher>, Value)>> {
    let (Some(TeacherConfig { path, top_k }), Some(distillation)) =
        (&config.teacher, &config.train.objective.distillation)
    else {
        return Ok(None);
    };
    let temperature = distillation.temperature;
    if TeacherLogits::is_in(Path::new(path)) {
        let logits = TeacherLogits::open(Path::new(path))?;
        let header = logits.header();
        let known = prepared.model.vocab_size;
        if header.vocabulary > known {
            return Err(Error::config(
                "teacher.path",
                format!("{path} is of {} tokens, and the student knows {known}", header.vocabulary),
                "Write the folder anew for this student",
            ));
        }
        if header.temperature != temperature {
            return Err(Error::config(
                "train.objective.distillation.temperature",
                format!("it is {temperature}, but {path} was made at {}", header.temperature),
                "Take the file's, or write the file anew",
            ));
        }
        // Found missing here, and not in the middle of the night.
        let rows = prepared.used_rows(config)?;
        let missing: Vec<&Row> = rows.iter().filter(|row| !logits.holds(row)).collect();
        if let Some(first) = missing.first() {
            return Err(Error::Model {
                path: path.into(),
                what: format!(
                    "it has nothing for {} of the run's {} rows, the first of them {}",
                    missing.len(),
                    rows.len(),
                    first.label
                ),
                hint: "Let the example `teacher_logits` go on with the settings of this run; \
                       --all takes in every answer"
                    .into(),
            });
        }
        let identity = header.identity();
        return Ok(Some((Box::new(logits), identity)));
    }
    let vocabulary = prepared.tokenizer.vocabulary_size();
    // Found wrong here, and not at the first step.
    TeacherHeader::new(path, "", vocabulary, *top_k, temperature)?;
    let model = load_teacher(path, prepared, device)?;
    let identity = json!({ "fingerprint": model.fingerprint()?, "top_k": top_k });
    Ok(Some((Box::new(ModelTeacher::new(model, *top_k, temperature, vocabulary)), identity)))
}

/// Reads a teacher's folder onto a device without autodiff, and holds its tokens against the
/// student's.
///
/// # Errors
/// [`Error::Config`] where they have different tokens or rows are too long; what reading gives.
pub fn load_teacher(name: &str, prepared: &Prepared, device: &Device) -> Result<DecoderLm> {
    let path = model_folder(name)?;
    if path.is_dir() && !path.join("config.json").is_file() {
        return Err(Error::config(
            "teacher.path",
            format!("{name} holds neither a model (config.json) nor logits (teacher.json)"),
            "Name a model's folder, or one that the example `teacher_logits` wrote",
        ));
    }
    let folder = ModelFolder::open(&path)?;
    let tokenizer = folder.tokenizer(None)?;
    if let Some(token) = prepared.tokenizer.first_difference(&tokenizer) {
        return Err(Error::config(
            "teacher.path",
            format!("{name} and the student differ in token {token}"),
            "Logits can be learned only from a teacher with the student's tokens",
        ));
    }
    let (longest, limit) = (prepared.longest, folder.config().max_position_embeddings);
    if longest > limit {
        return Err(Error::config(
            "teacher.path",
            format!("{name} is made for {limit} tokens, and a row has {longest}"),
            "Lower data.max_length",
        ));
    }
    let mut progress = Progress::new("load teacher", 0);
    let model = folder.load_with(device, &mut |done, of| {
        progress.update_of(done as u64, of as u64, String::new);
    })?;
    progress.finish();
    Ok(model)
}
