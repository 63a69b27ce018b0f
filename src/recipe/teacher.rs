//! The teacher of a run, whose likely tokens the student learns beside the answers.

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

/// The configured teacher, and what must be the same when the run is resumed. Whatever does not fit
/// shows here, before anything is replaced.
///
/// # Errors
/// [`Error::Config`] where it does not fit the student or the settings; what opening it gives.
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
                hint: "Write logits with the settings of this run, or for every answer".into(),
            });
        }
        let identity = header.identity();
        return Ok(Some((Box::new(logits), identity)));
    }
    let vocabulary = prepared.tokenizer.vocabulary_size();
    // Found wrong here, and not at the first step.
    TeacherLogitsHeader::new(path, "", vocabulary, *top_k, temperature)?;
    let model = load_teacher(path, prepared, device, context)?;
    let identity = json!({ "fingerprint": model.fingerprint()?, "top_k": top_k });
    Ok(Some((Box::new(ModelTeacher::new(model, *top_k, temperature, vocabulary)), identity)))
}

/// Opens stored logits; those of a part are not what a run trains on.
fn open_logits(path: &Path) -> Result<TeacherLogits> {
    check_part(path, &path.join(PART), None, true)?;
    TeacherLogits::open(path)
}

/// Stored logits must hold every answer where a run trains on answers that are not known yet, as pilots do.
///
/// # Errors
/// [`Error::Config`] where they do not; as [`TeacherLogits::open`].
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
            "{path} has nothing for {} of {} answers, the first of them {}, and with mixture.share = auto \
             pilots train on answers of every share",
            missing.count() + 1,
            answers.len(),
            first.row.label
        ),
        "Write the logits of all answers, or give another share",
    ))
}

/// The shape of a teacher that runs beside the training, by its `config.json`; `None` where there is
/// none, or logits in a folder.
///
/// # Errors
/// As [`ModelFolder::open`].
pub(super) fn teacher_shape(config: &RunConfig) -> Result<Option<DecoderConfig>> {
    let Some(LogitTeacherConfig { path, .. }) = &config.teacher else { return Ok(None) };
    let path = Path::new(path);
    if TeacherLogits::is_in(path) {
        return Ok(None);
    }
    let mut folders = vec![path.to_owned(), path.join("model")];
    if RunDirectory::holds_run(path) {
        // A run that trained adapters stands for them on its base model.
        folders.extend(RunConfig::read(&path.join("config.toml"))?.base_model.map(PathBuf::from));
    }
    let model = folders.into_iter().find(|folder| folder.join("config.json").is_file());
    model.map(|folder| ModelFolder::open(&folder).map(|folder| folder.config().clone())).transpose()
}

/// Reads a teacher onto a device without autodiff, and holds its tokens against the student's. It is
/// named as in [`TextModelFiles::open`]; an adapter is added to its weights.
///
/// # Errors
/// [`Error::Config`] where they have different tokens or rows are too long; what reading gives.
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
            "Name a model's folder, or one of logits",
        ));
    }
    // It is given tokens, and no template.
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
            "Logits can be learned only from a teacher with the student's tokens",
        ));
    }
    let (longest, limit) = (prepared.longest, files.folder().config().context());
    if longest > limit {
        return Err(Error::config(
            "teacher.path",
            format!("{name} is made for {limit} tokens, and a row has {longest}"),
            "Lower data.max_length",
        ));
    }
    let model = files.load_as(Task::LoadTeacher, device, context)?.model;
    // Its fingerprint is then that of all that it says.
    Ok(if model.lora().is_some() { model.merged() } else { model })
}
