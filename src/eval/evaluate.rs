//! A model's answers to a benchmark: asked and stored in batches of similar length, and taken up where a
//! process ended.

use super::benchmark::{AnswerKind, Benchmark, BenchmarkProblem, CHOICE_INSTRUCTION, INSTRUCTION};
use super::grade::opens_reasoning;
use super::math::same_answer;
use crate::data::{Prompt, PromptTemplate, TextTokenizer};
use crate::error::{Error, Place, Result};
use crate::files::write_whole;
use crate::model::{DecoderLm, EndReason, Endings, GenerateConfig, Generation};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::io::Write;
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

impl EvaluateConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] with the first one that cannot be.
    pub fn validate(&self) -> Result<()> {
        self.generate.validate()?;
        if self.samples > 1 && self.generate.temperature == 0.0 {
            return Err(Error::config(
                "evaluate.samples",
                format!("{} greedy answers to a problem are all the same", self.samples),
                "Set a temperature, or ask once",
            ));
        }
        Ok(())
    }
}

/// What a model answers with.
#[derive(Clone, Copy)]
pub struct Answering<'a> {
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// The layout of prompts.
    pub template: &'a dyn PromptTemplate,
    /// Tokens that end an answer.
    pub end_tokens: &'a [u32],
}

/// One graded answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
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
    /// Wall time of its batch, shared out among the batch's answers.
    pub seconds: f64,
}

impl Judged {
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

/// Lets a model answer a benchmark; answers are appended to `store` batch by batch, and those that it
/// holds already are not asked again. The result is in the order of problems and samples; `None`
/// where `progress`, which is called with the answers there are so far, broke it off. A problem that
/// leaves the model no position for an answer has an empty one, at the length limit.
///
/// # Errors
/// [`Error::Config`] for several samples without a temperature; [`Error::Io`]; [`Error::Data`] where
/// `store` holds something else, which is then left as it is; what generation gives.
pub fn evaluate(
    model: &DecoderLm,
    answering: &Answering<'_>,
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    store: &Path,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<Judged>>> {
    config.validate()?;
    let mut answers = stored(store, benchmark, config)?;
    let (mut missing, mut too_long) = (vec![], vec![]);
    for (index, sample) in not_answered(benchmark, config, &answers) {
        let problem = &benchmark.problems[index];
        let asked = match (config.instruct, problem.kind) {
            (false, _) => problem.problem.clone(),
            (true, AnswerKind::Choice) => format!("{}\n{CHOICE_INSTRUCTION}", problem.problem),
            (true, _) => format!("{}\n{INSTRUCTION}", problem.problem),
        };
        let asked = Prompt { system: problem.system.as_deref(), problem: &asked };
        let prompt = answering.template.prompt(answering.tokenizer, asked)?;
        if prompt.len() < model.config().max_position_embeddings {
            missing.push((index, sample, prompt));
        } else {
            let empty = Judged::of(problem, sample, String::new(), false);
            too_long.push(Judged { hit_limit: true, ..empty });
        }
    }
    // The longest first: a batch then pads little, and what takes most memory comes first.
    missing
        .sort_by_key(|(index, sample, prompt)| (std::cmp::Reverse(prompt.len()), *index, *sample));
    let mut file = None;
    let mut append = |new: &[Judged]| -> Result<()> {
        let failed = |e| Error::io("write", store, e);
        let mut lines = vec![];
        for answer in new {
            serde_json::to_writer(&mut lines, answer).map_err(|e| failed(e.into()))?;
            lines.push(b'\n');
        }
        if file.is_none() && !lines.is_empty() {
            let opened = OpenOptions::new().append(true).create(true).open(store);
            file = Some(opened.map_err(|e| Error::io("open", store, e))?);
        }
        file.as_mut().map_or(Ok(()), |file| file.write_all(&lines).map_err(failed))
    };
    append(&too_long)?;
    answers.append(&mut too_long);
    let mut flow = progress(answers.len());
    for batch in missing.chunks(config.generate.batch_size.max(1)) {
        if flow.is_break() {
            return Ok(None);
        }
        let start = Instant::now();
        let before = answers.len();
        let prompts: Vec<Vec<u32>> = batch.iter().map(|(_, _, prompt)| prompt.clone()).collect();
        // Each answer has a stream of its own, whatever it is batched with and however many there
        // are to a problem.
        let number = |index: usize, sample: usize| (sample as u64) << 32 | index as u64;
        let numbers: Vec<u64> = batch.iter().map(|(i, sample, _)| number(*i, *sample)).collect();
        let endings = Endings { tokens: answering.end_tokens, tokenizer: answering.tokenizer };
        let generated =
            model.generate_as(&prompts, &numbers, endings, &config.generate, &mut |token| {
                flow = progress(before + token.finished);
                flow
            })?;
        let seconds = start.elapsed().as_secs_f64() / batch.len() as f64;
        let mut new = vec![];
        // What had ended before a stop is kept; the rest is asked again.
        let broken = generated.iter().any(|g| g.end == EndReason::Interrupted);
        let whole = |g: &Generation| g.end != EndReason::Interrupted;
        for ((index, sample, prompt), generation) in
            batch.iter().zip(generated).filter(|(_, generation)| whole(generation))
        {
            let text = generation.text(answering.tokenizer)?;
            let opened = opens_reasoning(answering.tokenizer, prompt)?;
            let mut answer = Judged::of(&benchmark.problems[*index], *sample, text, opened);
            answer.tokens = generation.tokens.len();
            answer.hit_limit = generation.hit_limit();
            answer.seconds = seconds;
            new.push(answer);
        }
        append(&new)?;
        answers.append(&mut new);
        if broken {
            return Ok(None);
        }
    }
    Ok(Some(in_order(answers, benchmark)))
}

/// The answers in a store where it holds all that are asked for; no model is needed then.
///
/// # Errors
/// As [`evaluate`].
pub fn stored_answers(
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    store: &Path,
) -> Result<Option<Vec<Judged>>> {
    let answers = stored(store, benchmark, config)?;
    let whole = not_answered(benchmark, config, &answers).is_empty();
    Ok(whole.then(|| in_order(answers, benchmark)))
}

/// Problems and samples that are asked for and not answered.
fn not_answered(
    benchmark: &Benchmark,
    config: &EvaluateConfig,
    answers: &[Judged],
) -> Vec<(usize, usize)> {
    let done: BTreeSet<(&str, usize)> =
        answers.iter().map(|answer| (answer.id.as_str(), answer.sample)).collect();
    let asked = 0..benchmark.problems.len().min(config.limit.unwrap_or(usize::MAX));
    asked
        .flat_map(|index| (0..config.samples.max(1)).map(move |sample| (index, sample)))
        .filter(|(index, sample)| {
            !done.contains(&(benchmark.problems[*index].id.as_str(), *sample))
        })
        .collect()
}

/// The answers in the order of problems and samples.
fn in_order(mut answers: Vec<Judged>, benchmark: &Benchmark) -> Vec<Judged> {
    let places: HashMap<&str, usize> =
        benchmark.problems.iter().enumerate().map(|(i, p)| (p.id.as_str(), i)).collect();
    answers.sort_by_key(|answer| (places.get(answer.id.as_str()).copied(), answer.sample));
    answers
}

/// The answers in a file that an earlier process has begun, graded anew, of the problems and samples
/// that are asked for. A line that was cut off is removed, where all others are answers.
fn stored(store: &Path, benchmark: &Benchmark, config: &EvaluateConfig) -> Result<Vec<Judged>> {
    let bytes = match std::fs::read(store) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::io("read", store, e)),
    };
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let places: HashMap<&str, usize> =
        benchmark.problems.iter().enumerate().map(|(i, p)| (p.id.as_str(), i)).collect();
    let (samples, limit) = (config.samples.max(1), config.limit.unwrap_or(usize::MAX));
    let mut answers = vec![];
    let mut seen = BTreeSet::new();
    let lines = bytes[..whole].split(|byte| *byte == b'\n').enumerate();
    for (index, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let failed = |what: String| {
            let hint = "Name another directory, or remove this file to ask again";
            Error::data(Place::line(store, index + 1), what, hint)
        };
        let old: Judged = serde_json::from_slice(line)
            .map_err(|e| failed(format!("it is no answer that was stored: {e}")))?;
        let place = places.get(old.id.as_str()).copied().filter(|place| {
            let problem = &benchmark.problems[*place];
            problem.reference == old.reference && problem.problem == old.problem
        });
        let Some(place) = place else {
            return Err(failed(format!("problem {} is not of {}", old.id, benchmark.name)));
        };
        if !seen.insert((old.id.clone(), old.sample)) {
            return Err(failed(format!("problem {} has answer {} twice", old.id, old.sample)));
        }
        if old.sample < samples && place < limit {
            let problem = &benchmark.problems[place];
            let new = Judged::of(problem, old.sample, old.text.clone(), old.reasoning_opened);
            answers.push(Judged { stated: new.stated, correct: new.correct, ..old });
        }
    }
    if whole < bytes.len() {
        if whole == 0 {
            let hint = "If it is of an evaluation that was killed at its beginning, remove it";
            return Err(Error::data(Place::file(store), "it holds no whole line", hint));
        }
        write_whole(store, |file| {
            file.write_all(&bytes[..whole]).map_err(|e| Error::io("write", store, e))
        })?;
    }
    Ok(answers)
}
