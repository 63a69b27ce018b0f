//! From a mixture to a trained student.

use crate::data::Data;
use crate::results::{grade, save};
use mixdistill::context::Moment;
use mixdistill::prelude::*;
use mixdistill::recipe::RunDirectory;
use mixdistill::train::{
    CheckpointStore, LossPlot, Metric, MetricsFile, ResumePoint, TensorBoard, read_metrics,
};
use serde_json::json;

/// Grades a student, trains it on the mixture, grades it again, and saves it.
pub fn train(
    config: &RunConfig,
    mode: RunMode,
    directory: &RunDirectory,
    data: &Data,
    context: &Context<'_>,
) -> Result<()> {
    // Training needs an autodiff device. Everything else takes any Burn device.
    let device = mixdistill::device::by_name(&config.backend)?.autodiff();
    let model = match &data.base {
        Some(base) => base.load_with(&device, context)?,
        None => {
            let vocab_size = data.tokenizer.vocabulary_size();
            DecoderConfig { vocab_size, ..config.model.clone() }.init(config.seed, &device)?
        }
    };
    let mut learner = Learner::new(model, config.train.clone())?;

    let report = data.mixture.report();
    if !mode.resumes() {
        directory.clear()?;
        directory.write("config.toml", &config.to_toml()?)?;
        directory.write_json("ledger.json", &data.ledger)?;
        directory.write_json("mixture.json", &report)?;
    }
    let before = grade(config, learner.model(), data, Moment::Before, directory, context)?;

    // Checkpoints store the settings. Resuming with different ones is an error.
    let settings = json!({ "mixture": report, "train": config.train, "seed": config.seed });
    let checkpoints = directory.path("checkpoints");
    let store = CheckpointStore::new(checkpoints, config.train.keep_checkpoints, settings);
    if mode.resumes() {
        let (path, skipped) = learner.resume(&store)?;
        context.emit(&Event::Resuming { path: &path, skipped: &skipped })?;
    }

    // Observers see every step: they write metrics, draw the loss, and show progress.
    let (step, evaluation_due) = (learner.step(), learner.evaluation_due());
    let metrics = directory.path("metrics.jsonl");
    let mut observers: Vec<Box<dyn Observer + '_>> = vec![
        Box::new(MetricsFile::resume(&metrics, ResumePoint { step, evaluation_due })?),
        Box::new(TensorBoard::new(&directory.path("tensorboard"), step)?),
        Box::new(LossPlot::new(&metrics, directory.path("loss.svg"))),
        Box::new(context),
    ];
    if step == 0 {
        let told = Context::new(&mut observers, context.stop_flag());
        learner.evaluate(&data.held_out, &told)?;
    }
    let options = FitOptions {
        held_out: &data.held_out,
        observer: Some(&mut observers),
        stop: context.stop_flag().clone(),
        checkpoints: Some(&store),
        ..FitOptions::default()
    };
    let mut rows = MixedRows::new(data.mixture.clone(), data.encoded.clone());
    let outcome = learner.fit(&mut rows, options)?;
    drop(observers);
    if outcome.stopped {
        return Err(Error::stopped(
            "a checkpoint is saved; to continue, run the same command with --resume",
        ));
    }

    let model = learner.into_model();
    let after = grade(config, &model, data, Moment::After, directory, context)?;
    let mut evaluations = read_metrics(&metrics)?;
    evaluations.retain(|metric| matches!(metric, Metric::Evaluation(_)));
    let summary = json!({
        "config": config, "ledger": data.ledger, "mixture": report,
        "before": before, "after": after, "evaluations": evaluations, "outcome": outcome,
    });
    directory.write_json("summary.json", &summary)?;
    save(&model, data, directory, context)
}
