//! A student trained on long answers with thinking on and short answers with thinking off obeys the switch.

mod common;

use mixdistill::context::Context;
use mixdistill::data::TextTokenizer;
use mixdistill::data::arith::{self, ArithConfig, ArithCorpus, ArithProblem};
use mixdistill::model::{
    DecoderConfig, GenerateConfig, LoadOptions, StopConditions, TextModel, TextModelFiles,
};
use mixdistill::recipe::{RunConfig, RunMode, run};
use mixdistill::settings::Layers;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::Path;

/// As models have them that can switch: the prompt opens the reasoning or closes an empty one, and
/// earlier answers stand there without theirs.
const TEMPLATE: &str = "\
{%- for m in messages %}
{%- if m.role == 'user' %}{{ 'Problem:\\n' + m.content + '\\n\\n' }}
{%- else %}{{ 'Solution:\\n' + m.content.split('</think>')[-1] + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Solution:\\n<think>\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '\\n</think>\\n\\n' }}{% endif %}
{%- endif %}";

/// The toy corpus in files: the long answers reason first, the short ones do not.
fn write_files(folder: &Path, problems: &[ArithProblem]) {
    let long = |p: &ArithProblem| {
        let answer = format!("The answer is \\boxed{{{}}}.", p.answer);
        json!({"messages": [
            {"role": "user", "content": p.problem},
            {"role": "assistant", "reasoning_content": p.long.replace(&answer, ""), "content": answer},
        ]})
    };
    let short = |p: &ArithProblem| json!({"problem": p.problem, "solution": p.short});
    let lines = |row: &dyn Fn(&ArithProblem) -> Value| -> String {
        problems.iter().map(|problem| format!("{}\n", row(problem))).collect()
    };
    std::fs::write(folder.join("long.jsonl"), lines(&long)).unwrap();
    std::fs::write(folder.join("short.jsonl"), lines(&short)).unwrap();
    let words = arith::vocabulary();
    let words = words.iter().map(String::as_str).chain(["think"]);
    let tokenizer = TextTokenizer::builtin(words).unwrap().to_json().unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    std::fs::write(folder.join("switch.jinja"), TEMPLATE).unwrap();
}

/// A run of a few seconds.
fn config(folder: &Path) -> RunConfig {
    let path = |name: &str| format!("{:?}", folder.join(name));
    let mut layers = Layers::<RunConfig>::new().unwrap();
    let text = format!(
        "out = {}\n[data]\ntokenizer = {}\nchat_template = {}\nhold_out = 0.02\n\
         [data.sources.long]\npath = {}\ntemplate_variables = {{ enable_thinking = true }}\n\
         [data.sources.short]\npath = {}\ntemplate_variables = {{ enable_thinking = false }}\n\
         [mixture]\nweights = {{ long = 0.5, short = 0.5 }}\n",
        path("run"),
        path("tokenizer.json"),
        path("switch.jinja"),
        path("long.jsonl"),
        path("short.jsonl")
    );
    layers.text(&text).unwrap();
    let mut config = layers.settings().unwrap();
    config.model = DecoderConfig {
        hidden_size: 64,
        intermediate_size: 160,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        ..config.model
    };
    config.train.steps = Some(250);
    config.train.learning_rate = 4e-3;
    config.train.evaluate_every = 0;
    config.train.checkpoint_every = 0;
    config.evaluation.questions = 0;
    config
}

/// The texts that a student answers with thinking on or off, and their tokens.
fn answers(
    model: &TextModel,
    thinks: bool,
    folder: &Path,
    problems: &[ArithProblem],
) -> Vec<(String, usize)> {
    let template_variables = [("enable_thinking".to_owned(), thinks.into())].into();
    let options = LoadOptions { template_variables, ..LoadOptions::default() };
    let name = folder.join("run").display().to_string();
    let files = TextModelFiles::open(&name, &options, &Context::default()).unwrap();
    let text = files.text_interface();
    let prompts: Vec<Vec<u32>> = problems
        .iter()
        .map(|problem| text.template.prompt(text.tokenizer, (&problem.problem).into()).unwrap())
        .collect();
    let stop = StopConditions { tokens: text.end_tokens, tokenizer: text.tokenizer };
    let config = GenerateConfig { max_new_tokens: 300, ..GenerateConfig::default() };
    let answers = model.model.generate(&prompts, stop, &config, &mut |_| ControlFlow::Continue(()));
    let answers = answers.unwrap();
    answers.iter().map(|a| (a.text(text.tokenizer).unwrap(), a.tokens.len())).collect()
}

#[test]
fn a_student_thinks_where_it_is_told_to_and_answers_at_once_where_not() {
    let folder = tempfile::tempdir().unwrap();
    let toy = ArithConfig { operations: (1, 2), ..ArithConfig::default() };
    let corpus = ArithCorpus::generate(&toy, 2500, 24, 5);
    write_files(folder.path(), &corpus.train);
    run(&config(folder.path()), RunMode::New, &Context::default()).unwrap();
    // Who finds the student is told how its sources were laid out.
    let card = std::fs::read_to_string(folder.path().join("run/model/README.md")).unwrap();
    assert!(card.contains(r"| template variables of short | enable\_thinking = false |"), "{card}");
    let name = folder.path().join("run").display().to_string();
    let model = TextModel::load(&name, &LoadOptions::default(), &Context::default()).unwrap();
    let [on, off] = [true, false].map(|on| answers(&model, on, folder.path(), &corpus.test));
    let mean = |answers: &[(String, usize)]| {
        answers.iter().map(|(_, tokens)| *tokens as f64).sum::<f64>() / answers.len() as f64
    };
    let thinks = |answers: &[(String, usize)]| {
        // The prompt has opened the reasoning: the answer begins within it.
        answers.iter().filter(|(text, _)| text.contains("\n</think>\n\nThe answer is")).count()
    };
    println!("tokens: {} thinking, {} not; {:?} {:?}", mean(&on), mean(&off), on[0], off[0]);
    // Of 24; all of them as measured, with five times the tokens.
    assert!(thinks(&on) >= 20, "{on:?}");
    assert_eq!(off.iter().filter(|(text, _)| text.contains("think>")).count(), 0, "{off:?}");
    assert!(mean(&on) > 2.5 * mean(&off), "{} {}", mean(&on), mean(&off));
}
