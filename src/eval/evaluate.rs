//! A model's answers to a benchmark: stored as each of them ends, and taken up where a process ended.

use super::benchmark::{AnswerKind, Benchmark, BenchmarkProblem, CHOICE_INSTRUCTION, INSTRUCTION};
use super::grade::opens_reasoning;
use super::math::same_answer;
use crate::context::{Context, Task};
use crate::data::Prompt;
use crate::error::{Error, Place, Result};
use crate::files::JsonlLog;
use crate::model::{Generate, GenerateConfig, Generation, NewToken, StopConditions, TextInterface};
use crate::part::Part;
use crate::settings::{Settings, table_of};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

/// How a benchmark is asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateConfig {
    /// Answers to each problem; 0 and 1 are one. More than one need a temperature above 0.
    pub samples: usize,
    /// Problems that are asked, from the first on; without it all.
    pub limit: Option<usize>,
    /// Whether the problem is followed by the instruction to reason and to box the answer.
    pub instruct: bool,
    /// How answers are drawn.
    pub generate: GenerateConfig,
}

impl Settings for EvaluateConfig {
    fn defaults(_given: &toml::Table) -> Result<toml::Table> {
        // Those of the program: benchmarks want the instruction, and room for reasoning.
        let generate = GenerateConfig { max_new_tokens: 1024, batch_size: 16, ..Default::default() };
        table_of(&Self { samples: 1, limit: None, instruct: true, generate })
    }
}

impl EvaluateConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] with the first one that cannot be.
    pub fn validate(&self) -> Result<()> {
        self.generate.validate()?;
        if self.samples > 1 && self.generate.temperature == 0.0 {
            return Err(Error::config(
                "samples",
                format!("{} greedy answers to a problem are all the same", self.samples),
                "Set a temperature, or ask once",
            ));
        }
        Ok(())
    }
}

/// One graded answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GradedAnswer {
    /// The problem's name in its benchmark.
    pub id: String,
    /// The problem.
    pub problem: String,
    /// Number of the answer among those to the same problem, from 0.
    pub sample: usize,
    /// The reference answer.
    pub reference: String,
    /// What the model wrote.
    pub text: String,
    /// Whether the prompt had opened its reasoning, so that the text begins within it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reasoning_opened: bool,
    /// Its tokens, the end token left out; 0 where that is not known.
    pub tokens: usize,
    /// Whether the length limit ended it.
    pub hit_limit: bool,
    /// The final answer that it states, if any.
    pub stated: Option<String>,
    /// Whether that is the reference answer.
    pub correct: bool,
    /// What a judge said of it, where one was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_judge: Option<bool>,
    /// Wall time between the end of the answer before it and its own; together they are that of all.
    pub seconds: f64,
}

impl GradedAnswer {
    /// Grades a text; `reasoning_opened` says that the prompt had opened its reasoning.
    pub fn of(
        problem: &BenchmarkProblem,
        sample: usize,
        text: String,
        reasoning_opened: bool,
    ) -> Self {
        let stated = problem.kind.answer_after(&text, reasoning_opened);
        let correct = stated.as_ref().is_some_and(|stated| same_answer(&problem.reference, stated));
        Self {
            id: problem.id.clone(),
            problem: problem.problem.clone(),
            sample,
            reference: problem.reference.clone(),
            text,
            reasoning_opened,
            tokens: 0,
            hit_limit: false,
            stated,
            correct,
            by_judge: None,
            seconds: 0.0,
        }
    }
}

/// Which of a benchmark's problems are asked, within the limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Portion {
    /// The part of all problems; without one all are.
    pub part: Option<Part>,
    /// Problems of other benchmarks before the first of this one, where parts are counted over several.
    pub before: usize,
}

impl Portion {
    /// Whether a problem is one of them, by its number in its benchmark.
    pub(super) fn holds(self, index: usize) -> bool {
        self.part.is_none_or(|part| part.holds(self.before + index))
    }
}

/// Lets a model answer a benchmark; each answer is appended to `store` when it ends, and those that it
/// holds already are not asked again. The result is in the order of problems and samples. A problem
/// that leaves the model no position for an answer has an empty one, at the length limit.
///
/// # Errors
/// [`Error::Stopped`]: what had ended is in `store`; [`Error::Config`] for several samples without a
/// temperature; [`Error::Io`]; [`Error::Data`] where `store` holds something else, which is then left
/// as it is; what generation gives.
pub fn evaluate(
    model: &dyn Generate,
    text: &TextInterface<'_>,
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    store: &Path,
    context: &Context<'_>,
) -> Result<Vec<GradedAnswer>> {
    evaluate_portion(model, text, benchmark, config, Portion::default(), store, context)
}

/// As [`evaluate`], of some of the problems; each has the draws that it has in the whole benchmark.
fn evaluate_portion(
    model: &dyn Generate,
    text: &TextInterface<'_>,
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    portion: Portion,
    store: &Path,
    context: &Context<'_>,
) -> Result<Vec<GradedAnswer>> {
    config.validate()?;
    let (mut answers, mut store) = stored(store, benchmark, config, portion)?;
    let missing = not_answered(benchmark, config, portion, &answers);
    let mut progress = context.resumed_task(
        Task::Answer,
        (answers.len() + missing.len()) as u64,
        answers.len() as u64,
    );
    let (missing, mut too_long) = prompts(model, text, benchmark, config, missing)?;
    progress.tell()?;
    store.append(&too_long)?;
    answers.append(&mut too_long);
    progress.update(answers.len() as u64)?;
    let conditions = StopConditions { tokens: text.end_tokens, tokenizer: text.tokenizer };
    let tokens: Vec<Vec<u32>> = missing.iter().map(|asked| asked.prompt.clone()).collect();
    let numbers: Vec<u64> = missing.iter().map(Asked::number).collect();
    let before = answers.len();
    let mut last_end = Instant::now();
    let mut take = |token: &NewToken<'_>| -> Result<()> {
        if let Some(end) = token.end {
            let generation = Generation { tokens: token.tokens.to_vec(), end: end.clone() };
            let mut answer = graded(text, benchmark, &missing[token.prompt], &generation)?;
            answer.seconds = last_end.elapsed().as_secs_f64();
            last_end = Instant::now();
            // The store may be another process's by now, where this one was suspended.
            progress.tell()?;
            store.append(std::slice::from_ref(&answer))?;
            answers.push(answer);
        }
        progress.add_tokens(1);
        progress.update((before + token.finished) as u64)
    };
    let mut given_up = None;
    let mut observe = |token: &NewToken<'_>| match take(token) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            given_up = Some(error);
            ControlFlow::Break(())
        }
    };
    model.generate_as(&tokens, &numbers, conditions, &config.generate, &mut observe)?;
    match given_up.or_else(|| context.check().err()) {
        None => Ok(in_order(answers, benchmark)),
        Some(Error::Stopped { .. }) => {
            Err(Error::stopped(format!("{} answers are stored", answers.len())))
        }
        Some(error) => Err(error),
    }
}

/// A prompt that is to be answered.
struct Asked {
    /// Number of the problem.
    index: usize,
    sample: usize,
    prompt: Vec<u32>,
}

impl Asked {
    /// Each answer has a stream of its own, whatever it is batched with and however many there are to
    /// a problem.
    fn number(&self) -> u64 {
        (self.sample as u64) << 32 | self.index as u64
    }
}

/// The tokens of a problem as the model is asked it.
fn prompt_tokens(
    text: &TextInterface<'_>,
    problem: &BenchmarkProblem,
    config: &EvaluateConfig,
) -> Result<Vec<u32>> {
    let body = match (config.instruct, problem.kind) {
        (false, _) => problem.problem.clone(),
        (true, AnswerKind::Choice) => format!("{}\n{CHOICE_INSTRUCTION}", problem.problem),
        (true, _) => format!("{}\n{INSTRUCTION}", problem.problem),
    };
    let prompt = Prompt { system: problem.system.as_deref(), ..(&body).into() };
    text.template.prompt(text.tokenizer, prompt)
}

/// Tokens of the longest row that these benchmarks may make, prompt and answer together.
pub(super) fn longest_row(
    text: &TextInterface<'_>,
    benchmarks: &[Benchmark],
    config: &EvaluateConfig,
) -> Result<usize> {
    let limit = config.limit.unwrap_or(usize::MAX);
    let problems = benchmarks.iter().flat_map(|benchmark| benchmark.problems.iter().take(limit));
    let lengths = problems.map(|problem| Ok(prompt_tokens(text, problem, config)?.len()));
    let longest = lengths.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
    Ok(longest + config.generate.max_new_tokens)
}

/// The prompts that are missing, and answers to those that leave no room for one.
fn prompts(
    model: &dyn Generate,
    text: &TextInterface<'_>,
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    missing: Vec<(usize, usize)>,
) -> Result<(Vec<Asked>, Vec<GradedAnswer>)> {
    let (mut asked, mut too_long) = (vec![], vec![]);
    for (index, sample) in missing {
        let problem = &benchmark.problems[index];
        let prompt = prompt_tokens(text, problem, config)?;
        if prompt.len() < model.limits().context {
            asked.push(Asked { index, sample, prompt });
        } else {
            let empty = GradedAnswer::of(problem, sample, String::new(), false);
            too_long.push(GradedAnswer { hit_limit: true, ..empty });
        }
    }
    Ok((asked, too_long))
}

/// A whole answer, graded.
fn graded(
    text: &TextInterface<'_>,
    benchmark: &Benchmark,
    asked: &Asked,
    generation: &Generation,
) -> Result<GradedAnswer> {
    let answer = generation.text(text.tokenizer)?;
    let opened = opens_reasoning(text.tokenizer, &asked.prompt)?;
    let problem = &benchmark.problems[asked.index];
    let answer = GradedAnswer::of(problem, asked.sample, answer, opened);
    let (tokens, hit_limit) = (generation.tokens.len(), generation.hit_limit());
    Ok(GradedAnswer { tokens, hit_limit, ..answer })
}

/// The answers in a store where it holds all that are asked for; no model is needed then.
///
/// # Errors
/// As [`evaluate`].
pub fn stored_answers(
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    store: &Path,
) -> Result<Option<Vec<GradedAnswer>>> {
    stored_portion(benchmark, config, Portion::default(), store)
}

/// As [`stored_answers`], of some of the problems.
fn stored_portion(
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    portion: Portion,
    store: &Path,
) -> Result<Option<Vec<GradedAnswer>>> {
    let (answers, _) = stored(store, benchmark, config, portion)?;
    let whole = not_answered(benchmark, config, portion, &answers).is_empty();
    Ok(whole.then(|| in_order(answers, benchmark)))
}

/// The answers in a store to the problems of a benchmark, which may be some of those that were asked; nothing is
/// changed, and other answers do not count.
///
/// # Errors
/// As [`evaluate`].
pub(super) fn answers_of(
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    store: &Path,
) -> Result<Vec<GradedAnswer>> {
    let portion = Portion::default();
    let (answers, _) = read_stored(store, benchmark, config, portion, Others::LeftOut)?;
    Ok(in_order(answers, benchmark))
}

/// Problems and samples that are asked for and not answered.
fn not_answered(
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    portion: Portion,
    answers: &[GradedAnswer],
) -> Vec<(usize, usize)> {
    let done: BTreeSet<(&str, usize)> =
        answers.iter().map(|answer| (answer.id.as_str(), answer.sample)).collect();
    let asked = 0..benchmark.problems.len().min(config.limit.unwrap_or(usize::MAX));
    asked
        .filter(|index| portion.holds(*index))
        .flat_map(|index| (0..config.samples.max(1)).map(move |sample| (index, sample)))
        .filter(|(index, sample)| {
            !done.contains(&(benchmark.problems[*index].id.as_str(), *sample))
        })
        .collect()
}

/// The answers in the order of problems and samples.
fn in_order(mut answers: Vec<GradedAnswer>, benchmark: &Benchmark) -> Vec<GradedAnswer> {
    let places: HashMap<&str, usize> =
        benchmark.problems.iter().enumerate().map(|(i, p)| (p.id.as_str(), i)).collect();
    answers.sort_by_key(|answer| (places.get(answer.id.as_str()).copied(), answer.sample));
    answers
}

/// The answers in a file that an earlier process has begun, graded anew, of the problems and samples
/// that are asked for, and the file to go on with. A line that was cut off is removed, where all others
/// are answers.
fn stored(
    store: &Path,
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    portion: Portion,
) -> Result<(Vec<GradedAnswer>, JsonlLog)> {
    let (answers, mut log) = read_stored(store, benchmark, config, portion, Others::Refused)?;
    log.refuse_without_whole_line()?;
    log.cut_torn()?;
    Ok((answers, log))
}

/// What becomes of answers to problems that a benchmark does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Refused,
    LeftOut,
}

/// As [`stored`], without a change to the file.
fn read_stored(
    store: &Path,
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    portion: Portion,
    others: Others,
) -> Result<(Vec<GradedAnswer>, JsonlLog)> {
    let places: HashMap<&str, usize> =
        benchmark.problems.iter().enumerate().map(|(i, p)| (p.id.as_str(), i)).collect();
    let (samples, limit) = (config.samples.max(1), config.limit.unwrap_or(usize::MAX));
    let mut answers = vec![];
    let mut seen = BTreeSet::new();
    let log = JsonlLog::open(store, &mut |line| {
        let failed = |what: String| {
            let hint = "Name another directory, or remove this file to ask again";
            Error::data(Place::line(store, line.number), what, hint)
        };
        let old: GradedAnswer =
            line.parse().map_err(|e| failed(format!("it is no answer that was stored: {e}")))?;
        let place = places.get(old.id.as_str()).copied().filter(|place| {
            let problem = &benchmark.problems[*place];
            problem.reference == old.reference && problem.problem == old.problem
        });
        let Some(place) = place else {
            return match others {
                Others::LeftOut => Ok(()),
                Others::Refused => {
                    Err(failed(format!("problem {} is not of {}", old.id, benchmark.name)))
                }
            };
        };
        if !seen.insert((old.id.clone(), old.sample)) {
            return Err(failed(format!("problem {} has answer {} twice", old.id, old.sample)));
        }
        if old.sample < samples && place < limit && portion.holds(place) {
            let problem = &benchmark.problems[place];
            let new = GradedAnswer::of(problem, old.sample, old.text.clone(), old.reasoning_opened);
            answers.push(GradedAnswer { stated: new.stated, correct: new.correct, ..old });
        }
        Ok(())
    })?;
    Ok((answers, log))
}

/// A model that is loaded where it is needed, and then once.
pub(crate) struct LazyModel<'a, M> {
    load: &'a mut dyn FnMut() -> Result<M>,
    model: Option<M>,
}

impl<'a, M> LazyModel<'a, M> {
    /// The model that `load` gives.
    pub(crate) fn new(load: &'a mut dyn FnMut() -> Result<M>) -> Self {
        Self { load, model: None }
    }

    fn get(&mut self) -> Result<&M> {
        let model = match self.model.take() {
            Some(model) => model,
            None => (self.load)()?,
        };
        Ok(self.model.insert(model))
    }
}

/// As [`evaluate`], with a model that is loaded where an answer is missing.
///
/// # Errors
/// As [`evaluate`]; what loading gives.
pub(crate) fn evaluate_lazily<M: Generate>(
    model: &mut LazyModel<'_, M>,
    text: &TextInterface<'_>,
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    store: &Path,
    context: &Context<'_>,
) -> Result<Vec<GradedAnswer>> {
    evaluate_portion_lazily(model, text, benchmark, config, Portion::default(), store, context)
}

/// As [`evaluate_lazily`], of some of the problems.
pub(super) fn evaluate_portion_lazily<M: Generate>(
    model: &mut LazyModel<'_, M>,
    text: &TextInterface<'_>,
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    portion: Portion,
    store: &Path,
    context: &Context<'_>,
) -> Result<Vec<GradedAnswer>> {
    match stored_portion(benchmark, config, portion, store)? {
        Some(answers) => Ok(answers),
        None => evaluate_portion(model.get()?, text, benchmark, config, portion, store, context),
    }
}
