//! Logit distillation: trains a teacher, writes its most likely tokens to files, and trains a smaller
//! student on them and on the answers.
//!
//! ```text
//! cargo run --example distillation                writes the folder logits
//! cargo run --example distillation -- elsewhere
//! ```
//!
//! The commands `mixdistill logits` and `mixdistill train --set teacher.path=...` do the same for
//! models in folders.

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

/// Tokens to keep at each position. They have nearly all of the probability; one bucket holds the rest.
const TOP_K: usize = 16;
/// Divides the logits, in the files and in the loss.
const TEMPERATURE: f64 = 2.0;

fn main() -> Result<()> {
    let context = Context::new(Terminal::default(), &StopFlag::default());
    let device = mixdistill::device::by_name("auto")?;
    let mut config = RunConfig::toy();
    let problems = std::env::var("PROBLEMS").ok().and_then(|count| count.parse().ok());
    config.data.toy_problems = problems.unwrap_or(2000);
    let data = Prepared::new(&config, &context)?;

    // The teacher uses the student's tokenizer. Without that, their logits cannot be compared.
    let teacher = data.model.init(config.seed, &device.clone().autodiff())?;
    let mut learner = Learner::new(teacher, config.train.clone())?;
    learner.fit(
        &mut data.rows(),
        FitOptions { observer: Some(&mut &context), ..Default::default() },
    )?;
    let teacher = learner.into_model();

    // Compute the teacher's most likely tokens once, for the rows that training will see. After an
    // interruption, `holds` tells which rows are already written.
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or("logits".into()));
    let vocabulary = data.tokenizer.vocabulary_size();
    let fingerprint = teacher.fingerprint()?;
    let header =
        TeacherLogitsHeader::new("distillation", fingerprint, vocabulary, TOP_K, TEMPERATURE)?;
    let mut writer = TeacherLogitsWriter::open(&folder, header)?;
    let mut rows = data.used_rows(&config)?;
    rows.retain(|row| !writer.holds(row));
    // No more gradients are needed, so take the model off the autodiff device.
    let mut model = ModelTeacher::new(teacher.valid(), TOP_K, TEMPERATURE, vocabulary);
    for part in rows.chunks(256) {
        let likely = model.top_tokens(part)?;
        writer.write(&part.iter().cloned().zip(likely).collect::<Vec<_>>())?;
    }
    drop(writer);

    // Half of the loss is the cross-entropy of the answers, half the divergence from the teacher.
    // With `model` instead of `logits`, the teacher runs during training, and the results are the same.
    let logits = TeacherLogits::open(&folder)?;
    println!("{} rows of logits in {}", logits.len(), folder.display());
    let small = DecoderConfig { hidden_size: 64, intermediate_size: 176, ..data.model.clone() };
    let distillation = Distillation { weight: 0.5, temperature: TEMPERATURE, ..Default::default() };
    for with_teacher in [false, true] {
        let mut train = config.train.clone();
        train.objective.distillation = with_teacher.then_some(distillation);
        // Both students start from the same weights and train on the same rows.
        let student = small.init(config.seed, &device.clone().autodiff())?;
        let mut learner = Learner::new(student, train)?;
        let options = FitOptions { observer: Some(&mut &context), ..FitOptions::default() };
        if with_teacher {
            let logits = TeacherLogits::open(&folder)?;
            learner.fit(&mut DistillationRows::new(data.rows(), logits), options)?;
        } else {
            learner.fit(&mut data.rows(), options)?;
        }
        // The held-out loss is only the cross-entropy of the answers, so the two are comparable.
        let report = learner.evaluate(&data.held_out, &Context::default())?;
        let losses =
            report.sources.iter().map(|source| format!("{} {:.4}", source.name, source.loss));
        let who = if with_teacher { "with the teacher" } else { "answers only" };
        println!("{who}: held-out loss {}", losses.collect::<Vec<_>>().join(", "));
    }
    Ok(())
}
