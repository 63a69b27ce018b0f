//! Pretrained students: trained once on their own data, then tuned by every cell.
//!
//! ```text
//! [students.pretraining]                    overrides [run] and [students.run]
//! OUT/pretrained/STUDENT/1f0c.../           the run directory; its name is a digest of the settings
//! CACHE/1f0c.../                            the same with a `pretrained_cache`
//! OUT/pretrained-models/STUDENT.json        by digest, a fingerprint of the model's files
//! ```
//!
//! Because the digest names the run, a student with other settings is another base model for the cells,
//! and studies that share a cache train each student once. The fingerprint shows whether the model is
//! still the one that the study's cells started from: a lost model that is trained again may differ.

use super::claims::Claims;
use super::config::{StudentConfig, StudyConfig};
use super::run::with_hint;
use crate::context::{Context, Event};
use crate::error::{Error, Result};
use crate::eval::{FileTimes, weight_files, wilson};
use crate::files::{FolderLock, write_text};
use crate::model::ModelFolder;
use crate::recipe::{
    PartEvents, Prepared, RunConfig, RunDirectory, RunMode, Summary, run_with_data,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// A pretrained student in the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PretrainedStudent {
    /// The student's name.
    pub student: String,
    /// A description of the pretraining data.
    pub data: String,
    /// The number of pretraining problems.
    pub problems: usize,
    /// Optimizer steps.
    pub updates: usize,
    /// Trained tokens of all steps.
    pub trained_tokens: u64,
    /// The number of held-out pretraining problems that it was tested on.
    pub asked: usize,
    /// How many of them it answered correctly.
    pub right: usize,
    /// Wall time of all steps, in seconds.
    pub seconds: f64,
}

impl PretrainedStudent {
    /// Returns the share of correct answers with its 95% interval (Wilson), in percent.
    pub(super) fn accuracy(&self) -> String {
        if self.asked == 0 {
            return "not tested".into();
        }
        let (low, high) = wilson(self.right, self.asked);
        let [value, low, high] = [self.right as f64 / self.asked as f64, low, high];
        format!("{:.1} ({:.1} to {:.1})", 100.0 * value, 100.0 * low, 100.0 * high)
    }
}

/// A pretrained student that is ready to be tuned.
pub(super) struct Ready {
    pub line: PretrainedStudent,
    /// Its index in the study.
    pub student: usize,
    /// Its pretraining problems.
    pub problems: Vec<String>,
}

impl StudyConfig {
    /// Returns the settings of a student's pretraining, if it has any.
    ///
    /// # Errors
    /// [`Error::Config`] for invalid settings.
    pub fn pretraining(&self, student: usize) -> Result<Option<RunConfig>> {
        let StudentConfig { name, run, pretraining, .. } = &self.students[student];
        let Some(pretraining) = pretraining else { return Ok(None) };
        if pretraining.contains_key("out") {
            let key = format!("students.{name}.pretraining.out");
            return Err(Error::config(key, "the study sets it", "Set pretrained_cache instead"));
        }
        let mut config = RunConfig::from_tables(&[&self.run, run, pretraining])?;
        // Adapters belong to the tuning.
        if !pretraining.contains_key("lora") {
            (config.lora, config.base) = (None, Default::default());
        }
        config.out = PathBuf::new();
        let digest = digest(&config, base_weights(config.base_model.as_deref()));
        config.out = match &self.pretrained_cache {
            Some(cache) => cache.join(digest),
            None => self.out.join("pretrained").join(name).join(digest),
        };
        Ok(Some(config))
    }

    /// Sets a cell's base model if its student is pretrained.
    pub(super) fn set_pretrained(&self, student: usize, cell: &mut RunConfig) -> Result<()> {
        let Some(pretraining) = self.pretraining(student)? else { return Ok(()) };
        cell.base_model = Some(pretraining.out.join(MODEL).display().to_string());
        // The base model has its own tokenizer.
        cell.data.tokenizer = None;
        Ok(())
    }

    /// Validates the settings of all pretraining runs.
    pub(super) fn validate_pretraining(&self) -> Result<()> {
        for (number, student) in self.students.iter().enumerate() {
            let table = format!("students.{}.pretraining", student.name);
            if let Some(config) = self.pretraining(number)? {
                config.validate().map_err(|error| error.in_table(&table))?;
                if config.lora.is_some() {
                    let hint = "Leave it out; set adapters for the cells in students.run.lora";
                    let what = "pretraining trains all weights";
                    return Err(Error::config(format!("{table}.lora"), what, hint));
                }
            }
        }
        Ok(())
    }
}

/// The model folder in a run directory.
const MODEL: &str = "model";

/// Advice if a pretraining directory does not match its settings or data.
const HINT: &str = "Restore the old settings and data, set another directory (pretrained_cache or out), or \
                    remove this folder to pretrain the student again";

/// Returns a digest of 16 hexadecimal digits of the settings that determine the student and of the weights
/// that it starts from. Settings at their defaults are left out, so settings that later versions add do not
/// change the digest.
fn digest(config: &RunConfig, base_weights: Option<String>) -> String {
    let config = RunConfig { out: PathBuf::new(), ..config.clone() };
    let json = |config: &RunConfig| serde_json::to_value(config).unwrap_or_default();
    let mut usual = RunConfig { out: PathBuf::new(), ..RunConfig::toy() };
    // It does not change answers.
    usual.generate.batch_size = config.generate.batch_size;
    let mut given = differing(json(&config), &json(&usual));
    if let Some(weights) = base_weights {
        given["base_weights"] = weights.into();
    }
    let hash = Sha256::digest(given.to_string().as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Returns a fingerprint of the weights of a model on this machine. `None` for a model on the Hub, or if
/// files cannot be read (the pretraining itself reports that). Every cell asks for it, so the result is
/// cached until the files change.
pub(super) fn base_weights(name: Option<&str>) -> Option<String> {
    static KNOWN: Mutex<BTreeMap<PathBuf, (FileTimes, String)>> = Mutex::new(BTreeMap::new());
    let path = Path::new(name?);
    if !path.exists() {
        return None;
    }
    let now = weight_files(path)?;
    let mut known = KNOWN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((then, weights)) = known.get(path)
        && *then == now
    {
        return Some(weights.clone());
    }
    let weights = ModelFolder::open(path).and_then(|folder| folder.files_fingerprint()).ok()?;
    known.insert(path.to_owned(), (now, weights.clone()));
    Some(weights)
}

/// Checks that a pretrained student is the one that the study's cells started from, by the fingerprint that
/// the first call stored.
///
/// # Errors
/// [`Error::RunDirectory`] if it is a different one; [`Error::Io`].
fn check_same(study: &StudyConfig, student: &str, run: &Path) -> Result<()> {
    let model = run.join(MODEL);
    let weights = ModelFolder::open(&model)?.files_fingerprint()?;
    let folder = study.out.join("pretrained-models");
    let path = folder.join(format!("{student}.json"));
    let mut known: BTreeMap<String, String> = match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|e| Error::RunDirectory {
            path: path.clone(),
            what: format!("it cannot be read: {e}"),
            hint: anew(study, student, &path),
        })?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let digest = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match known.get(&digest) {
        Some(then) if *then == weights => Ok(()),
        Some(_) => Err(Error::RunDirectory {
            path: model,
            what: format!(
                "this model of the pretrained student `{student}` is not the one that the study's cells \
                 started from, according to the fingerprint in {}",
                path.display()
            ),
            hint: anew(study, student, &path),
        }),
        None => {
            known.insert(digest, weights);
            fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
            let text = serde_json::to_string_pretty(&known)
                .map_err(|e| Error::io("write", &path, std::io::Error::other(e)))?;
            write_text(&path, &format!("{text}\n"))
        }
    }
}

/// Returns advice for a pretrained student that has changed.
fn anew(study: &StudyConfig, student: &str, fingerprints: &Path) -> String {
    let folders = ["cells", "untuned", "scores"].map(|part| study.out.join(part).join(student));
    let [cells, untuned, scores] = folders.map(|folder| folder.display().to_string());
    format!(
        "Restore the old model, choose another directory (out), or remove {cells}, {untuned}, {scores}, and \
         {} to start over with this student",
        fingerprints.display()
    )
}

/// Returns the entries of a value that differ from another value.
fn differing(value: Value, usual: &Value) -> Value {
    let (Value::Object(entries), Value::Object(usual)) = (&value, usual) else { return value };
    let entries = entries.iter().filter(|(key, value)| usual.get(*key) != Some(value));
    let null = Value::Null;
    let entries = entries.map(|(key, value)| {
        (key.clone(), differing(value.clone(), usual.get(key).unwrap_or(&null)))
    });
    Value::Object(entries.collect())
}

/// Pretrains every student that needs it. Finished pretraining runs are reused.
///
/// # Errors
/// [`Error::Stopped`]; errors of the run.
pub(super) fn pretrain(
    study: &StudyConfig,
    claims: Option<&Claims>,
    context: &Context<'_>,
) -> Result<Vec<Ready>> {
    let mut ready = vec![];
    for (student, of) in study.students.iter().enumerate() {
        let Some(config) = study.pretraining(student)? else { continue };
        context.check()?;
        let about = format!("the pretraining of {}", of.name);
        let name = format!("{}/pretraining.json", of.name);
        let _held = claims.map(|claims| claims.wait(&name, &about, context)).transpose()?;
        context.emit(&Event::Part {
            name: &of.name,
            about: "pretraining",
            number: 0,
            of: 0,
            seconds_left: None,
        })?;
        // Other processes with the same cache wait until this one is done.
        let _lock = lock_beside(&config.out, &about, context)?;
        let mode = match RunDirectory::holds_run(&config.out) {
            true => RunMode::Resume,
            false => RunMode::New,
        };
        if mode == RunMode::New && study.out.join("cells").join(&of.name).exists() {
            context.notice(format!(
                "warning: {} has cells, but its pretrained model is missing from {}: it is pretrained again \
                 and must give the same model",
                of.name,
                config.out.display()
            ))?;
        }
        let events = Context::new(PartEvents(context), context.stop_flag());
        let made = run_with_data(&config, mode, &events);
        let (summary, prepared) = made.map_err(|error| with_hint(error, HINT))?;
        if summary.outcome.stopped {
            return Err(Error::stopped(
                "the pretraining has a checkpoint; run the same command to resume the study",
            ));
        }
        if !study.keep_checkpoints {
            crate::files::remove_folder(&config.out.join("checkpoints"))?;
        }
        check_same(study, &of.name, &config.out)?;
        let pairs = prepared.mixture.pairs();
        let problems = (0..pairs.len()).map(|index| pairs.problem(index).to_owned()).collect();
        ready.push(Ready { line: line(&of.name, &summary, &prepared), student, problems });
    }
    Ok(ready)
}

/// Takes the lock next to a pretraining run directory. Waits while another process, of this study or of one
/// with the same cache, works on it.
fn lock_beside(folder: &Path, about: &str, context: &Context<'_>) -> Result<FolderLock> {
    const LOOK_EVERY: Duration = Duration::from_millis(200);
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    }
    let mut is_told = false;
    loop {
        // A run outside of a study holds only the lock of its directory.
        if let Some(lock) = FolderLock::try_of_file(folder)?
            && !FolderLock::is_taken(folder)
        {
            return Ok(lock);
        }
        if !is_told {
            let folder = folder.display();
            context
                .notice(format!("waiting: another process is working on {about}, in {folder}"))?;
            is_told = true;
        }
        std::thread::sleep(LOOK_EVERY);
        context.check()?;
    }
}

fn line(student: &str, summary: &Summary, prepared: &Prepared) -> PretrainedStudent {
    let config = &summary.config;
    let (asked, right) =
        summary.after.as_ref().map_or((0, 0), |after| (after.questions, after.correct));
    let toy = &config.data.toy;
    let files = config.data.sources.iter().map(|source| source.path.display().to_string());
    let what = match config.data.sources.is_empty() {
        true => format!(
            "toy problems with {} to {} operations, start values up to {}, operands up to {}",
            toy.operations.0, toy.operations.1, toy.start, toy.operand
        ),
        false => files.collect::<Vec<_>>().join(" + "),
    };
    let shares = summary.mixture.sources.iter().filter(|source| source.rows > 0);
    let rows = prepared.mixture.pairs().len().max(1) as f64;
    let shares = shares
        .map(|s| format!("{:.0}% {}", 100.0 * s.rows as f64 / rows, s.name))
        .collect::<Vec<_>>();
    PretrainedStudent {
        student: student.to_owned(),
        data: format!("{what}; answers: {}", shares.join(", ")),
        problems: prepared.mixture.pairs().len(),
        updates: summary.outcome.step,
        trained_tokens: summary.trained_tokens,
        asked,
        right,
        seconds: summary.training_seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_what_decides_the_student_and_differs_from_the_defaults() {
        let toy = RunConfig::toy();
        // Just `{}`: settings at their defaults are left out.
        let empty: String =
            Sha256::digest(b"{}").iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest(&toy, None), empty);
        let mut same = RunConfig { out: "elsewhere".into(), ..toy.clone() };
        same.generate.batch_size = 7;
        assert_eq!(digest(&same, None), empty);
        let mut others = [RunConfig { seed: 2, ..toy.clone() }, toy.clone(), toy.clone()];
        others[1].train.learning_rate = 1.0;
        others[2].data.toy.operations = (1, 2);
        let mut digests: Vec<String> = others.iter().map(|other| digest(other, None)).collect();
        digests.push(empty);
        // The initial weights are part of the digest.
        digests.extend(["a", "b"].map(|weights| digest(&toy, Some(weights.into()))));
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), 6);
    }
}
