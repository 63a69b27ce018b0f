//! The teacher of a run, whose logits the student learns in addition to the answers.

use super::config::{LogitTeacherConfig, RunConfig};
use super::directory::RunDirectory;
use super::prepare::Prepared;
use crate::context::{Context, Task};
use crate::data::Row;
use crate::error::{Error, Result};
use crate::files::{PART, check_part};
use crate::model::{BUILT_IN, DecoderConfig, DecoderLm, LoadOptions, ModelFolder, TextModelFiles};
use crate::train::{LogitTeacher, ModelTeacher, TeacherLogits, TeacherLogitsHeader};
use burn::tensor::Device;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Opens the configured teacher. Also returns its identity, which must be the same when the run is resumed.
/// All checks happen here, before anything is replaced.
///
/// # Errors
/// [`Error::Config`] if it does not fit the student or the settings; errors of opening it.
pub(super) fn teacher(
    config: &RunConfig,
    prepared: &Prepared,
    device: &Device,
    context: &Context<'_>,
) -> Result<Option<(Box<dyn LogitTeacher>, Value)>> {
    let (Some(LogitTeacherConfig { path, top_k }), Some(distillation)) =
        (&config.teacher, &config.train.objective.distillation)
    else {
        return Ok(None);
    };
    let temperature = distillation.temperature;
    if TeacherLogits::is_in(Path::new(path)) {
        let logits = open_logits(Path::new(path))?;
        let header = logits.header();
        let known = prepared.model.vocab_size;
        if header.vocabulary > known {
            return Err(Error::config(
                "teacher.path",
                format!(
                    "{path} has a vocabulary of {} tokens, but the student has {known}",
                    header.vocabulary
                ),
                "Write the logits again for this student",
            ));
        }
        if header.temperature != temperature {
            return Err(Error::config(
                "train.objective.distillation.temperature",
                format!("it is {temperature}, but {path} has temperature {}", header.temperature),
                "Use the temperature of the folder, or write the logits again",
            ));
        }
        // Missing rows are an error now rather than hours into training.
        let rows = prepared.used_rows(config)?;
        let missing: Vec<&Row> = rows.iter().filter(|row| !logits.holds(row)).collect();
        if let Some(first) = missing.first() {
            return Err(Error::Model {
                path: path.into(),
                what: format!(
                    "it lacks {} of the run's {} rows, such as {}",
                    missing.len(),
                    rows.len(),
                    first.label
                ),
                hint: "Write the logits with the settings of this run, or of all answers \
                       (`mixdistill logits --all`)"
                    .into(),
            });
        }
        let identity = header.identity();
        return Ok(Some((Box::new(logits), identity)));
    }
    let vocabulary = prepared.tokenizer.vocabulary_size();
    // Checks the numbers now rather than at the first step.
    TeacherLogitsHeader::new(path, "", vocabulary, *top_k, temperature)?;
    let model = load_teacher(path, prepared, device, context)?;
    let identity = json!({ "fingerprint": model.fingerprint()?, "top_k": top_k });
    Ok(Some((Box::new(ModelTeacher::new(model, *top_k, temperature, vocabulary)), identity)))
}

/// Opens stored logits. A part of a divided job is an error.
fn open_logits(path: &Path) -> Result<TeacherLogits> {
    check_part(path, &path.join(PART), None, true)?;
    TeacherLogits::open(path)
}

/// Checks that stored logits contain every answer. Pilots need this, since they train on answers of every
/// share.
///
/// # Errors
/// [`Error::Config`] if an answer is missing; see [`TeacherLogits::open`].
pub(super) fn check_every_answer(config: &RunConfig, prepared: &Prepared) -> Result<()> {
    let Some(LogitTeacherConfig { path, .. }) = &config.teacher else { return Ok(()) };
    if !TeacherLogits::is_in(Path::new(path)) {
        return Ok(());
    }
    let logits = open_logits(Path::new(path))?;
    let answers = prepared.all_answers();
    let mut missing = answers.iter().filter(|answer| !logits.holds(&answer.row));
    let Some(first) = missing.next() else { return Ok(()) };
    Err(Error::config(
        "teacher.path",
        format!(
            "{path} lacks {} of {} answers, such as {}; with mixture.share = auto, pilots train on answers \
             of every share",
            missing.count() + 1,
            answers.len(),
            first.row.label
        ),
        "Write the logits of all answers (`mixdistill logits --all`), or set a share",
    ))
}

/// Returns the shape of a teacher model that runs during training, from its `config.json`. `None` without a
/// teacher, with stored logits, or if the model is not in a folder.
///
/// # Errors
/// See [`ModelFolder::open`].
pub(super) fn teacher_shape(config: &RunConfig) -> Result<Option<DecoderConfig>> {
    let Some(LogitTeacherConfig { path, .. }) = &config.teacher else { return Ok(None) };
    let path = Path::new(path);
    if TeacherLogits::is_in(path) {
        return Ok(None);
    }
    let mut folders = vec![path.to_owned(), path.join("model")];
    if RunDirectory::holds_run(path) {
        // A run that trained adapters: the shape is that of its base model.
        folders.extend(RunConfig::read(&path.join("config.toml"))?.base_model.map(PathBuf::from));
    }
    let model = folders.into_iter().find(|folder| folder.join("config.json").is_file());
    model.map(|folder| ModelFolder::open(&folder).map(|folder| folder.config().clone())).transpose()
}

/// Loads a teacher onto a device without autodiff, and checks that it has the student's tokens. `name` is as
/// in [`TextModelFiles::open`]; an adapter is merged into the weights.
///
/// # Errors
/// [`Error::Config`] if its tokens differ or rows are too long for it; errors of loading it.
pub fn load_teacher(
    name: &str,
    prepared: &Prepared,
    device: &Device,
    context: &Context<'_>,
) -> Result<DecoderLm> {
    let path = Path::new(name);
    if path.is_dir() && !["config.json", "config.toml"].iter().any(|file| path.join(file).is_file())
    {
        return Err(Error::config(
            "teacher.path",
            format!("{name} holds neither a model (config.json) nor logits (teacher.json)"),
            "Name the folder of a model or of logits",
        ));
    }
    // The teacher reads tokens and needs no template.
    let options = LoadOptions {
        chat_template: Some(BUILT_IN.into()),
        max_length: Some(prepared.longest),
        ..LoadOptions::default()
    };
    let files = TextModelFiles::open(name, &options, context)?;
    if let Some(token) = prepared.tokenizer.first_difference(files.tokenizer()) {
        return Err(Error::config(
            "teacher.path",
            format!("{name} and the student differ in token {token}"),
            "Use a teacher with the student's tokens",
        ));
    }
    let (longest, limit) = (prepared.longest, files.folder().config().context());
    if longest > limit {
        return Err(Error::config(
            "teacher.path",
            format!("{name} supports {limit} tokens, but a row has {longest}"),
            "Lower data.max_length",
        ));
    }
    let model = files.load_as(Task::LoadTeacher, device, context)?.model;
    // Merged, so that the fingerprint covers the adapter.
    Ok(if model.lora().is_some() { model.merged() } else { model })
}
