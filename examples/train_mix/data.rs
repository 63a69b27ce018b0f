//! From answers to a mixture: sources, pairs, tokens, held-out problems, one answer per problem.

use mixdistill::data::{ChatFormat, Ledger, arith};
use mixdistill::eval::Question;
use mixdistill::model::{ModelFolder, model_folder};
use mixdistill::prelude::*;
use mixdistill::recipe::{held_out_rows, questions};
use mixdistill::train::HeldOut;
use std::sync::Arc;

/// The data that training needs.
pub struct Data {
    /// The model to fine-tune. Without one, the student starts from random weights.
    pub base: Option<ModelFolder>,
    /// Turns text into tokens.
    pub tokenizer: TextTokenizer,
    /// Formats a prompt and its answer.
    pub template: Box<dyn PromptTemplate>,
    /// The tokens that end an answer.
    pub end_tokens: Vec<u32>,
    /// Accounts for every record.
    pub ledger: Ledger,
    /// One answer per problem.
    pub mixture: MixDistillation,
    /// All answers as tokens.
    pub encoded: Arc<Encoded>,
    /// Rows of problems that training never sees, by source.
    pub held_out: Vec<HeldOut>,
    /// The same problems, for the student to answer.
    pub questions: Vec<Question>,
}

impl Data {
    pub fn new(config: &RunConfig, context: &Context<'_>) -> Result<Self> {
        // A model comes with its tokenizer and its chat template.
        let base = match &config.base_model {
            Some(name) => {
                Some(ModelFolder::open(&model_folder(name, context)?)?.for_training(context)?)
            }
            None => None,
        };
        let tokenizer = match &base {
            Some(base) => base.tokenizer(None)?,
            None => TextTokenizer::builtin(arith::vocabulary().iter().map(String::as_str))?,
        };
        let chat = base.as_ref().map(ModelFolder::chat_template).transpose()?.flatten();
        let template: Box<dyn PromptTemplate> = match chat {
            Some(chat) => Box::new(ChatFormat::new(chat, &tokenizer, None)?),
            None => Box::new(PlainTemplate::default()),
        };
        let end_tokens = match &base {
            Some(base) => base.answer_ends(&tokenizer, &*template),
            None => vec![tokenizer.end_token()],
        };

        // A source has the answers of one teacher. There can be any number of sources.
        let (sources, test) = if config.data.sources.is_empty() {
            let data = &config.data;
            let (count, tests) = (data.toy_problems, data.toy_test_problems);
            let corpus = arith::ArithCorpus::generate(&data.toy, count, tests, config.seed);
            (arith::sources(&corpus.train), Some(arith::sources(&corpus.test)))
        } else {
            let read = config.data.sources.iter().map(|file| {
                Source::read(&file.name, &file.path, &file.columns, config.data.max_left_out)
            });
            (read.collect::<Result<Vec<Source>>>()?, None)
        };

        // Pair the answers by problem and encode them. Only the answer and its end token are
        // trained. The ledger counts what cannot be used, so nothing is lost silently.
        let limit = LengthLimit::drop_beyond(config.data.max_length);
        let encode = |sources| -> Result<_> {
            let (pairs, mut ledger) = Pairs::join(sources, Join::Inner)?;
            let encoded = Encoded::encode(&pairs, &tokenizer, &*template, limit, context)?;
            let pairs = encoded.fitting(&pairs, &mut ledger);
            ledger.check_sources()?;
            Ok((pairs, Arc::new(encoded), ledger))
        };
        let (pairs, encoded, mut ledger) = encode(sources)?;

        // The toy corpus has a test set. From files, hold out a share of the problems.
        let (training, held, held_encoded) = if let Some(test) = test {
            let (held, held_encoded, _) = encode(test)?;
            (pairs, held, held_encoded)
        } else {
            let count = (config.data.hold_out * pairs.len() as f64).round() as usize;
            let (training, held) = pairs.split(count.min(pairs.len() - 1), config.seed);
            (ledger.training, ledger.held_out) = (training.len(), held.len());
            (training, held, encoded.clone())
        };
        let held_out = held_out_rows(&held, &held_encoded, config.evaluation.loss_problems);
        let questions = questions(&held, config.evaluation.questions);

        // One answer per problem, in exact shares. The mixture is also a Burn `Dataset`.
        let options = MixtureOptions {
            seed: config.seed,
            lengths: Some(Arc::new(encoded.lengths())),
            planned_rows: Some(config.train.total_rows(training.len())),
            ..MixtureOptions::default()
        };
        let mixture = MixDistillation::new(Arc::new(training), config.mixture.clone(), options)?;
        Ok(Self {
            base,
            tokenizer,
            template,
            end_tokens,
            ledger,
            mixture,
            encoded,
            held_out,
            questions,
        })
    }
}
