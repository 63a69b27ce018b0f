//! `mixdistill evaluate`: scores a model, or answers of another program, on benchmarks.

use super::common::{Ended, Failure, Json, Session, TemplateVariable, say, tell_part, usual_out};
use super::run_flags::add_assignments;
use super::speaker::BaseFlags;
use clap::Args;
use mixdistill::data::ColumnMap;
use mixdistill::eval::{
    AnswerOptions, Benchmark, EvaluateConfig, EvaluationDirectory, GradedAnswer, JoinedEvaluation,
    Scores, ScoresTable, join_evaluations, read_benchmarks,
};
use mixdistill::model::{LoadOptions, TextModelFiles};
use mixdistill::settings::Layers;
use mixdistill::terminal::Terminal;
use mixdistill::{Error, Part, Result};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  mixdistill evaluate --model DIR --bench gsm8k.jsonl math500.jsonl --out scores1
  mixdistill evaluate --model DIR --adapter run/adapter --bench aime24.jsonl \\
      --samples 16 --temperature 0.6 --set generate.top_p=0.95 --max-new-tokens 8192
  mixdistill evaluate --bench math500.jsonl --answers vllm.jsonl
  mixdistill evaluate --model DIR --bench math500.jsonl --part 2/8 --out part2
  mixdistill evaluate --join part? --out scores1

Each answer is saved when it is complete. To resume a stopped command, run it again. docs/parts.md
explains how to divide the problems among several machines.";

/// Share of truncated answers from which a higher length limit is advised.
const MANY_AT_LIMIT: f64 = 0.1;

/// Score a model, or answers of another program, on benchmarks
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Model: a folder in Hugging Face format, a GGUF file, a run, or owner/name on the Hugging Face Hub
    #[arg(long, value_name = "MODEL", required_unless_present_any = ["answers", "join"],
        help_heading = "Model")]
    model: Option<String>,
    /// Adapter in PEFT format, or a run that trained one [default: the run's adapter, if any]
    #[arg(long, value_name = "DIR", requires = "model", help_heading = "Model")]
    adapter: Option<PathBuf>,
    /// Chat template file, or none for the built-in layout [default: the adapter's, else the model's]
    #[arg(long, value_name = "FILE", requires = "model", help_heading = "Model")]
    chat_template: Option<PathBuf>,
    /// Variable for the chat template, such as enable_thinking=false; may be repeated [default: none]
    #[arg(
        id = "template_variables",
        long = "template-variable",
        value_name = "NAME=VALUE",
        requires = "model",
        help_heading = "Model"
    )]
    template_variables: Vec<TemplateVariable>,
    /// System message [default: the chat template's own, if any]
    #[arg(long, value_name = "TEXT", requires = "model", help_heading = "Model")]
    system: Option<String>,
    #[command(flatten, next_help_heading = "Model")]
    base: BaseFlags,
    /// Benchmarks: files of problems with answers (JSONL, a JSON array, CSV, TSV, or Parquet), or datasets on
    /// the Hugging Face Hub, such as owner/name:test
    #[arg(id = "benchmarks", long = "bench", value_name = "FILE", required_unless_present = "join",
        num_args = 1.., help_heading = "Benchmarks")]
    benchmarks: Vec<PathBuf>,
    /// Column names that are not recognized automatically, as problem=NAME,answer=NAME. Keys: problem,
    /// answer, id, context, options, system, solution
    #[arg(long, value_name = "MAP", help_heading = "Benchmarks")]
    bench_columns: Option<String>,
    /// Ask only the first N problems of each benchmark [default: all]
    #[arg(long, value_name = "N", help_heading = "Benchmarks")]
    limit: Option<u64>,
    /// Grade the answers in this file instead of asking a model; needs exactly one benchmark. Also reads
    /// the output of generate and the samples that lm-evaluation-harness logs
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "model",
        help_heading = "Answers from a file"
    )]
    answers: Option<PathBuf>,
    /// Column names that are not recognized automatically, as solution=NAME. Keys: solution, problem, id
    #[arg(long, value_name = "MAP", requires = "answers", help_heading = "Answers from a file")]
    answer_columns: Option<String>,
    /// The prompts ended with an opening <think>, so every answer starts inside the reasoning
    #[arg(long, requires = "answers", help_heading = "Answers from a file")]
    reasoning_opened: bool,
    /// Number of answers per problem [default: 1]
    #[arg(long, value_name = "N", help_heading = "Asking")]
    samples: Option<u64>,
    /// Sampling temperature; 0 always takes the most likely token [default: 0]
    #[arg(
        id = "generate.temperature",
        long = "temperature",
        allow_negative_numbers = true,
        value_name = "T",
        help_heading = "Asking"
    )]
    temperature: Option<f64>,
    /// Maximum length of an answer in tokens [default: 1024]
    #[arg(
        id = "generate.max_new_tokens",
        long = "max-new-tokens",
        value_name = "TOKENS",
        help_heading = "Asking"
    )]
    max_new_tokens: Option<u64>,
    /// Number of answers to generate at the same time [default: 16]
    #[arg(
        id = "generate.batch_size",
        long = "batch-size",
        value_name = "N",
        help_heading = "Asking"
    )]
    batch_size: Option<u64>,
    /// Ask only the problem, without the instruction to reason step by step and box the answer
    #[arg(id = "instruct", long = "no-instruction", help_heading = "Asking")]
    no_instruction: bool,
    /// Set any setting of the evaluation, such as generate.top_p=0.95. Overrides flags; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Asking")]
    set: Vec<String>,
    #[cfg(feature = "teacher")]
    #[command(flatten)]
    judge: JudgeFlags,
    /// Ask only this part of the problems, such as 2/8; array takes the part from the environment of a
    /// Slurm job array [default: all]
    #[arg(long, value_name = "I/N", conflicts_with = "answers", help_heading = "Parts")]
    part: Option<Part>,
    /// Join the directories of all parts and score the answers, without loading the model
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "Parts", conflicts_with_all = [
        "model", "adapter", "chat_template", "template_variables", "system", "BaseFlags", "benchmarks",
        "bench_columns", "limit", "answers", "answer_columns", "reasoning_opened", "samples",
        "generate.temperature", "generate.max_new_tokens", "generate.batch_size", "instruct", "set",
        "part",
    ])]
    join: Vec<PathBuf>,
    /// Directory of answers and scores [default: scores, or with --part scores-part-I-of-N]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    pub json: Json,
}

/// The judge, if any.
#[cfg(feature = "teacher")]
#[derive(Args, Debug)]
#[command(next_help_heading = "Judge")]
struct JudgeFlags {
    /// Ask a judge model about answers that were graded wrong: base URL of a server with
    /// OpenAI-compatible chat completions, such as http://localhost:8000/v1 [default: no judge]
    #[arg(
        id = "url",
        long = "judge",
        value_name = "URL",
        requires = "judge_model",
        conflicts_with = "part"
    )]
    url: Option<String>,
    /// Name of the judge model on that server
    #[arg(id = "judge_model", long = "judge-model", value_name = "NAME", requires = "url")]
    model: Option<String>,
    /// Environment variable that holds the API key for the judge [default: OPENAI_API_KEY for
    /// api.openai.com]
    #[arg(id = "key_variable", long = "judge-key-variable", value_name = "NAME", requires = "url")]
    key_variable: Option<String>,
    /// Request field that limits the length of the judge's reply, such as max_completion_tokens
    /// [default: max_tokens]
    #[arg(
        id = "max_tokens_field",
        long = "judge-max-tokens-field",
        value_name = "NAME",
        requires = "url"
    )]
    max_tokens_field: Option<String>,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    if !flags.join.is_empty() {
        let joined = join_evaluations(&flags.join, &flags.out())?;
        let JoinedEvaluation { directory, benchmarks, mut answers } = joined;
        say!(session, "joined {} parts\n", flags.join.len());
        score(flags, &directory, &benchmarks, &mut answers, None, session)?;
        return Ok(());
    }
    let config = flags.config()?;
    let context = &session.context;
    let out = flags.out();
    // Checks the files before reading the weights.
    let columns = columns(flags.bench_columns.as_deref(), "bench_columns")?;
    let benchmarks = read_benchmarks(&flags.benchmarks, &columns, &out, context)?;
    EvaluationDirectory::check(&out)?;
    for [_, read] in benchmarks.iter().filter_map(|benchmark| benchmark.read_as.as_ref()) {
        say!(session, "read {}", read.display());
    }
    let (directory, mut answers) = match (&flags.answers, &flags.model) {
        (Some(path), _) => {
            let [benchmark] = benchmarks.as_slice() else {
                let what = format!("there are {} benchmarks", benchmarks.len());
                let error = Error::config("answers", what, "Give --bench one benchmark");
                return Err(Failure::Usage(error));
            };
            graded(flags, benchmark, path, &config, session)?
        }
        (None, Some(model)) => asked(flags, model, &benchmarks, &config, session)?,
        // Ruled out by the flags.
        (None, None) => return Ok(()),
    };
    if let Some(part) = flags.part {
        return tell_answers(part, &directory, &benchmarks, &answers, &config, session);
    }
    let scores = score(flags, &directory, &benchmarks, &mut answers, config.limit, session)?;
    if flags.answers.is_none() {
        advise(&scores.scores, &config, session);
    }
    Ok(())
}

/// Returns a model's answers and their directory.
fn asked(
    flags: &Flags,
    model: &str,
    benchmarks: &[Benchmark],
    config: &EvaluateConfig,
    session: &Session,
) -> Result<(EvaluationDirectory, Vec<Vec<GradedAnswer>>)> {
    let options = LoadOptions {
        adapter: flags.adapter.clone(),
        chat_template: flags.chat_template.clone(),
        template_variables: TemplateVariable::by_name(&flags.template_variables),
        system: flags.system.clone(),
        max_length: None,
        base: flags.base.weights(),
        backend: session.global.backend().to_owned(),
    };
    let files = TextModelFiles::open(model, &options, &session.context)?;
    let directory = match flags.part {
        Some(part) => EvaluationDirectory::open_part(&flags.out(), part)?,
        None => EvaluationDirectory::open(&flags.out())?,
    };
    let answers =
        directory.evaluate_text_model(&files, &options, benchmarks, config, &session.context)?;
    Ok((directory, answers))
}

/// Scores answers and prints the scores.
fn score(
    flags: &Flags,
    out: &EvaluationDirectory,
    benchmarks: &[Benchmark],
    answers: &mut [Vec<GradedAnswer>],
    limit: Option<usize>,
    session: &Session,
) -> Result<ScoresTable> {
    // First by the rules, so that these scores remain if the judge fails.
    let mut scores = out.write_scores(benchmarks, answers, limit)?;
    show(&scores, session);
    if judged(flags, out, benchmarks, answers, session)? {
        scores = out.write_scores(benchmarks, answers, limit)?;
        show(&scores, session);
    }
    tell_where(flags, out, benchmarks, session);
    session.result(&serde_json::json!({ "out": out.path(), "scores": scores.scores }))?;
    Ok(scores)
}

/// Prints the progress of a part. A part has no scores of its own.
fn tell_answers(
    part: Part,
    out: &EvaluationDirectory,
    benchmarks: &[Benchmark],
    answers: &[Vec<GradedAnswer>],
    config: &EvaluateConfig,
    session: &Session,
) -> Ended {
    let scores = benchmarks.iter().zip(answers);
    let scores =
        scores.map(|(benchmark, answers)| Scores::of(&benchmark.first(config.limit), answers));
    let scores: Vec<Scores> = scores.collect();
    let mut parts = vec![];
    for (score, answers) in scores.iter().zip(answers) {
        let Scores { benchmark, problems, of, .. } = score;
        say!(session, "{benchmark}: {problems} of {of} problems are answered");
        parts.push(serde_json::json!({
            "benchmark": benchmark, "problems": problems, "of": of, "answers": answers.len(),
        }));
    }
    say!(session, "answers: {}", out.path().display());
    tell_part(part, session);
    advise(&scores, config, session);
    let told = serde_json::json!({ "out": out.path(), "part": part, "benchmarks": parts });
    Ok(session.result(&told)?)
}

impl Flags {
    /// Returns the directory of answers and scores.
    fn out(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| usual_out("scores", self.part))
    }

    /// Returns the evaluation settings: flags, then `--set`.
    fn config(&self) -> Result<EvaluateConfig, Failure> {
        let mut layers = Layers::<EvaluateConfig>::new()?;
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        if self.no_instruction {
            layers.set_value("instruct", false)?;
        }
        let given = [
            ("generate.max_new_tokens", self.max_new_tokens),
            ("generate.batch_size", self.batch_size),
            ("samples", self.samples),
            ("limit", self.limit),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                layers.set_value(key, whole(value)).map_err(Failure::Usage)?;
            }
        }
        if let Some(temperature) = self.temperature {
            layers.set_value("generate.temperature", temperature).map_err(Failure::Usage)?;
        }
        add_assignments(&mut layers, &self.set)?;
        let config = layers.settings()?;
        config.validate()?;
        Ok(config)
    }
}

/// Returns the columns that a flag gives.
fn columns(text: Option<&str>, key: &str) -> Result<ColumnMap, Failure> {
    let map = text.map(ColumnMap::parse).transpose();
    let map = map.map_err(|error| match error {
        Error::Config { what, hint, .. } => Failure::Usage(Error::config(key, what, hint)),
        error => error.into(),
    });
    Ok(map?.unwrap_or_default())
}

/// Returns the graded answers of a file to one benchmark, and their directory.
fn graded(
    flags: &Flags,
    benchmark: &Benchmark,
    path: &Path,
    config: &EvaluateConfig,
    session: &Session,
) -> Result<(EvaluationDirectory, Vec<Vec<GradedAnswer>>), Failure> {
    let options = AnswerOptions {
        columns: columns(flags.answer_columns.as_deref(), "answer_columns")?,
        reasoning_opened: flags.reasoning_opened,
    };
    let out = EvaluationDirectory::open(&flags.out())?;
    let answers = out.grade(benchmark, path, &options, config.limit, &session.context)?;
    Ok((out, vec![answers]))
}

/// Asks the judge, if any, about the misses. Returns whether there is a judge.
#[cfg(feature = "teacher")]
fn judged(
    flags: &Flags,
    out: &EvaluationDirectory,
    benchmarks: &[Benchmark],
    answers: &mut [Vec<GradedAnswer>],
    session: &Session,
) -> Result<bool> {
    use mixdistill::teacher::{ChatClient, ChatConfig};
    let judge = &flags.judge;
    let (Some(url), Some(model)) = (&judge.url, &judge.model) else { return Ok(false) };
    let mut config = ChatConfig { url: url.clone(), model: model.clone(), ..Default::default() };
    config.key_variable = judge.key_variable.clone().unwrap_or_default();
    if let Some(field) = &judge.max_tokens_field {
        config.max_tokens_field.clone_from(field);
    }
    let mut judge = ChatClient::new(config)?;
    for (benchmark, answers) in benchmarks.iter().zip(answers) {
        out.judge(benchmark, answers, &mut judge, &session.context)?;
    }
    if let Some(notice) = judge.notice() {
        session.warn(&notice);
    }
    Ok(true)
}

#[cfg(not(feature = "teacher"))]
fn judged(
    _: &Flags,
    _: &EvaluationDirectory,
    _: &[Benchmark],
    _: &mut [Vec<GradedAnswer>],
    _: &Session,
) -> Result<bool> {
    Ok(false)
}

fn show(scores: &ScoresTable, session: &Session) {
    say!(session, "{}", scores.to_text(Terminal::width()));
}

/// Prints the paths of the results.
fn tell_where(
    flags: &Flags,
    out: &EvaluationDirectory,
    benchmarks: &[Benchmark],
    session: &Session,
) {
    let ending = if flags.answers.is_some() { "graded.jsonl" } else { "jsonl" };
    let files = benchmarks.iter().map(|benchmark| {
        out.path().join(format!("{}.{ending}", benchmark.name)).display().to_string()
    });
    say!(session, "\nanswers: {}", files.collect::<Vec<_>>().join(", "));
    let table = |name: &str| out.path().join(name).display().to_string();
    say!(session, "scores: {}, {}", table("scores.md"), table("scores.json"));
}

/// Advises a higher length limit if many answers were truncated.
fn advise(scores: &[Scores], config: &EvaluateConfig, session: &Session) {
    for score in scores.iter().filter(|score| score.hit_limit >= MANY_AT_LIMIT) {
        session.warn(&format!(
            "{}: {:.0}% of the answers were truncated at {} tokens, and most of them count as wrong; \
             raise generate.max_new_tokens and use another --out directory",
            score.benchmark,
            100.0 * score.hit_limit,
            config.generate.max_new_tokens
        ));
    }
}
