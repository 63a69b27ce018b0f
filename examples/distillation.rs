//! Distillation of logits: a larger model is trained, what it finds likely is written to files, and a
//! smaller one learns that beside the answers.
//!
//! ```text
//! cargo run --example distillation                writes the folder logits
//! cargo run --example distillation -- elsewhere
//! ```
//!
//! `mixdistill logits` and `mixdistill train --set teacher.path=...` do so with models in folders.

use burn::module::Module;
use mixdistill::ops::Distillation;
use mixdistill::prelude::*;
use mixdistill::recipe::Prepared;
use mixdistill::terminal::Terminal;
use mixdistill::train::{
    DistillationRows, LogitTeacher, ModelTeacher, TeacherLogits, TeacherLogitsHeader,
    TeacherLogitsWriter,
};
use std::path::PathBuf;

/// Tokens that are kept at each position: nearly all of the probability. The others share one bucket.
const TOP_K: usize = 16;
/// What logits are divided by, in the files and in the loss.
const TEMPERATURE: f64 = 2.0;

fn main() -> Result<()> {
    let context = Context::new(Terminal::default(), &StopFlag::default());
    let device = mixdistill::device::by_name("auto")?;
    let mut config = RunConfig::toy();
    let problems = std::env::var("PROBLEMS").ok().and_then(|count| count.parse().ok());
    config.data.toy_problems = problems.unwrap_or(2000);
    let data = Prepared::new(&config, &context)?;

    // The teacher has the student's tokens: logits can be held against each other only so.
    let teacher = data.model.init(config.seed, &device.clone().autodiff())?;
    let mut learner = Learner::new(teacher, config.train.clone())?;
    learner.fit(
        &mut data.rows(),
        FitOptions { observer: Some(&mut &context), ..Default::default() },
    )?;
    let teacher = learner.into_model();

    // Its likeliest tokens are computed once, for the rows that training will see. A process that
    // was ended goes on where it was: `holds` says what is there.
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or("logits".into()));
    let vocabulary = data.tokenizer.vocabulary_size();
    let fingerprint = teacher.fingerprint()?;
    let header =
        TeacherLogitsHeader::new("distillation", fingerprint, vocabulary, TOP_K, TEMPERATURE)?;
    let mut writer = TeacherLogitsWriter::open(&folder, header)?;
    let mut rows = data.used_rows(&config)?;
    rows.retain(|row| !writer.holds(row));
    // Gradients are not needed any more, so the model leaves the autodiff device.
    let mut model = ModelTeacher::new(teacher.valid(), TOP_K, TEMPERATURE, vocabulary);
    for part in rows.chunks(256) {
        let likely = model.top_tokens(part)?;
        writer.write(&part.iter().cloned().zip(likely).collect::<Vec<_>>())?;
    }
    drop(writer);

    // Half of the loss is the answers' cross-entropy, half the divergence from the teacher. With
    // `model` in place of `logits` the teacher runs beside the training, and the numbers are the same.
    let logits = TeacherLogits::open(&folder)?;
    println!("{} rows of logits in {}", logits.len(), folder.display());
    let small = DecoderConfig { hidden_size: 64, intermediate_size: 176, ..data.model.clone() };
    let distillation = Distillation { weight: 0.5, temperature: TEMPERATURE, ..Default::default() };
    for with_teacher in [false, true] {
        let mut train = config.train.clone();
        train.objective.distillation = with_teacher.then_some(distillation);
        // Both students start from the same weights and see the same rows.
        let student = small.init(config.seed, &device.clone().autodiff())?;
        let mut learner = Learner::new(student, train)?;
        let options = FitOptions { observer: Some(&mut &context), ..FitOptions::default() };
        if with_teacher {
            let logits = TeacherLogits::open(&folder)?;
            learner.fit(&mut DistillationRows::new(data.rows(), logits), options)?;
        } else {
            learner.fit(&mut data.rows(), options)?;
        }
        // The held-out loss is the answers' cross-entropy alone, so that the two can be compared.
        let report = learner.evaluate(&data.held_out, &Context::default())?;
        let losses =
            report.sources.iter().map(|source| format!("{} {:.4}", source.name, source.loss));
        let who = if with_teacher { "with the teacher" } else { "answers alone" };
        println!("{who}: held-out loss {}", losses.collect::<Vec<_>>().join(", "));
    }
    Ok(())
}
