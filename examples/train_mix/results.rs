//! Grades the student and saves it.

use crate::data::Data;
use mixdistill::context::{Accuracy, Moment};
use mixdistill::eval::ask;
use mixdistill::model::{SaveFolder, TextInterface};
use mixdistill::prelude::*;
use mixdistill::recipe::RunDirectory;

/// Lets the student answer the held-out problems and counts correct answers.
pub fn grade(
    config: &RunConfig,
    model: &DecoderLm,
    data: &Data,
    moment: Moment,
    directory: &RunDirectory,
    context: &Context<'_>,
) -> Result<Option<Accuracy>> {
    let text = TextInterface {
        tokenizer: &data.tokenizer,
        template: &*data.template,
        end_tokens: &data.end_tokens,
    };
    let kind = config.evaluation.kind;
    let answers = ask(model, &text, &data.questions, kind, &config.generate, context)?;
    let file = match moment {
        Moment::Before => "before.jsonl",
        Moment::After => "after.jsonl",
    };
    directory.write_jsonl(file, &answers)?;
    let accuracy = (!answers.is_empty()).then(|| Accuracy::of(&answers));
    if let Some(accuracy) = &accuracy {
        context.emit(&Event::Accuracy { moment, accuracy })?;
    }
    Ok(accuracy)
}

/// Writes a Hugging Face folder, which this library, transformers, vLLM, and others read.
pub fn save(
    model: &DecoderLm,
    data: &Data,
    directory: &RunDirectory,
    context: &Context<'_>,
) -> Result<()> {
    // A student trained from scratch gets its prompt format as a chat template.
    let layout = PlainTemplate::default().to_jinja(&data.tokenizer, false);
    let how = SaveFolder {
        base: data.base.as_ref(),
        end_tokens: &data.end_tokens,
        chat_template: data.base.is_none().then_some(&layout),
        ..SaveFolder::new(&data.tokenizer)
    };
    let place = directory.path("model");
    model.save(&place, &how)?;
    context.emit(&Event::Written { what: "the student", path: &place })
}
