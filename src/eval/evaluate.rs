//! Asks a model the problems of a benchmark. Each answer is saved when it is complete, so a later process can
//! resume.

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

/// Settings for asking a benchmark.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateConfig {
    /// Number of answers per problem; 0 counts as 1. More than 1 requires a temperature above 0.
    pub samples: usize,
    /// Number of problems to ask from each benchmark, from the first one. If unset, all are asked.
    pub limit: Option<usize>,
    /// Whether to append the instruction to reason step by step and to put the final answer in a box. Turn it
    /// off for models that should get only the problem.
    pub instruct: bool,
    /// How answers are generated.
    pub generate: GenerateConfig,
}

impl Settings for EvaluateConfig {
    fn defaults(_given: &toml::Table) -> Result<toml::Table> {
        // Benchmarks need the instruction and room for reasoning.
        let generate =
            GenerateConfig { max_new_tokens: 1024, batch_size: 16, ..Default::default() };
        table_of(&Self { samples: 1, limit: None, instruct: true, generate })
    }
}

impl EvaluateConfig {
    /// Validates the settings.
    ///
    /// # Errors
    /// [`Error::Config`] for the first invalid setting.
    pub fn validate(&self) -> Result<()> {
        self.generate.validate()?;
        if self.samples > 1 && self.generate.temperature == 0.0 {
            return Err(Error::config(
                "samples",
                format!("{} greedy answers to a problem would be identical", self.samples),
                "Set a temperature above 0, or set samples to 1",
            ));
        }
        Ok(())
    }
}

/// One graded answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GradedAnswer {
    /// The problem's id in its benchmark.
    pub id: String,
    /// The problem.
    pub problem: String,
    /// Index of the answer among the answers to the same problem, from 0.
    pub sample: usize,
    /// The reference answer.
    pub reference: String,
    /// The text of the model.
    pub text: String,
    /// Whether the prompt opened the reasoning, so that the text starts inside it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reasoning_opened: bool,
    /// Number of tokens without the end token; 0 if unknown.
    pub tokens: usize,
    /// Whether the length limit truncated the answer.
    pub hit_limit: bool,
    /// The final answer that the text states, if any.
    pub stated: Option<String>,
    /// Whether the stated answer equals the reference.
    pub correct: bool,
    /// The judge's verdict, if a judge was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_judge: Option<bool>,
    /// Seconds since the previous answer ended. The sum is the wall time of all answers.
    pub seconds: f64,
}

impl GradedAnswer {
    /// Grades a text. `reasoning_opened` says whether the prompt opened the reasoning.
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

/// The problems of a benchmark that are asked, within the limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Portion {
    /// The part of the problems. Without it, all are asked.
    pub part: Option<Part>,
    /// Number of problems of earlier benchmarks, since parts are counted over all benchmarks.
    pub before: usize,
}

impl Portion {
    /// Returns whether the portion has the problem with this index in its benchmark.
    pub(super) fn holds(self, index: usize) -> bool {
        self.part.is_none_or(|part| part.holds(self.before + index))
    }
}

/// Lets a model answer a benchmark. Appends each complete answer to `store` and does not repeat answers that
/// it already has. Returns the answers in the order of problems and samples. A problem that leaves no room
/// for an answer gets an empty, truncated one.
///
/// # Errors
/// [`Error::Stopped`]: complete answers are in `store`. [`Error::Config`] for several samples at temperature
/// 0; [`Error::Io`]; [`Error::Data`] if `store` holds something else, which then stays unchanged; errors of
/// generation.
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

/// Same as [`evaluate`] for some of the problems, with the random draws that they have in the whole
/// benchmark.
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
            // If this process was suspended, another one may own the store by now.
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
            Err(Error::stopped(format!("{} answers are saved", answers.len())))
        }
        Some(error) => Err(error),
    }
}

/// A prompt to answer.
struct Asked {
    /// Index of the problem.
    index: usize,
    sample: usize,
    prompt: Vec<u32>,
}

impl Asked {
    /// Returns the number of the answer's random stream, which does not depend on its batch or on the number
    /// of samples.
    fn number(&self) -> u64 {
        (self.sample as u64) << 32 | self.index as u64
    }
}

/// Returns the tokens of a problem's prompt.
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

/// Returns the maximum number of tokens of a prompt and its answer in these benchmarks.
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

/// Returns the missing prompts, and empty answers to prompts that leave no room for one.
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

/// Grades a complete answer.
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

/// Returns the answers in a store if it has all of them, so that no model is needed.
///
/// # Errors
/// Same as [`evaluate`].
pub fn stored_answers(
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    store: &Path,
) -> Result<Option<Vec<GradedAnswer>>> {
    stored_portion(benchmark, config, Portion::default(), store)
}

/// Same as [`stored_answers`] for some of the problems.
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

/// Returns the answers in a store to the problems of a benchmark. Ignores answers to other problems and
/// changes nothing.
///
/// # Errors
/// Same as [`evaluate`].
pub(super) fn answers_of(
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    store: &Path,
) -> Result<Vec<GradedAnswer>> {
    let portion = Portion::default();
    let (answers, _) = read_stored(store, benchmark, config, portion, Others::LeftOut)?;
    Ok(in_order(answers, benchmark))
}

/// Returns the indices of problems and samples without an answer.
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

/// Returns the answers in the order of problems and samples.
fn in_order(mut answers: Vec<GradedAnswer>, benchmark: &Benchmark) -> Vec<GradedAnswer> {
    let places: HashMap<&str, usize> =
        benchmark.problems.iter().enumerate().map(|(i, p)| (p.id.as_str(), i)).collect();
    answers.sort_by_key(|answer| (places.get(answer.id.as_str()).copied(), answer.sample));
    answers
}

/// Returns the requested answers in the file of an earlier process, graded again, and the file to append to.
/// Removes an incomplete last line if all other lines are answers.
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

/// How to treat answers to problems that are not in the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Refused,
    LeftOut,
}

/// Same as [`stored`], without changing the file.
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
            let hint = "Choose another directory, or remove this file to ask again";
            Error::data(Place::line(store, line.number), what, hint)
        };
        let old: GradedAnswer =
            line.parse().map_err(|e| failed(format!("it is not a saved answer: {e}")))?;
        let place = places.get(old.id.as_str()).copied().filter(|place| {
            let problem = &benchmark.problems[*place];
            problem.reference == old.reference && problem.problem == old.problem
        });
        let Some(place) = place else {
            return match others {
                Others::LeftOut => Ok(()),
                Others::Refused => {
                    Err(failed(format!("problem {} is not in {}", old.id, benchmark.name)))
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

/// A model that is loaded at most once, when it is needed.
pub(crate) struct LazyModel<'a, M> {
    load: &'a mut dyn FnMut() -> Result<M>,
    model: Option<M>,
}

impl<'a, M> LazyModel<'a, M> {
    /// Returns a model that `load` loads.
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

/// Same as [`evaluate`], with a model that is loaded only if an answer is missing.
///
/// # Errors
/// Same as [`evaluate`]; errors of loading.
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

/// Same as [`evaluate_lazily`] for some of the problems.
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
