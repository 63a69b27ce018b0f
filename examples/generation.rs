//! Generates answers with a model in a folder: one answer token by token, then several in a batch.
//!
//! ```text
//! cargo run --example train_mix
//! cargo run --example generation -- run
//! cargo run --example generation -- SmolLM2-135M-Instruct "Why is the sky blue?" "What is 7 times 6?"
//! ```
//!
//! The commands `mixdistill chat` and `mixdistill generate` are built from this.

use mixdistill::eval::final_answer;
use mixdistill::model::{EndReason, LoadOptions, StopConditions, TextModel};
use mixdistill::prelude::*;
use std::io::Write;
use std::ops::ControlFlow;

fn main() -> Result<()> {
    // Call this first. The main thread then computes too, which makes every token faster.
    mixdistill::device::use_threads(None)?;
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or("run".into());
    let mut problems: Vec<String> = arguments.collect();
    if problems.is_empty() {
        let asked = ["What is 9 + 6 - 5?", "What is 3 + 4 + 5?", "What is 8 - 2?"];
        problems = asked.map(str::to_owned).into();
    }

    // A Hugging Face folder or a run directory: weights, tokenizer, chat template, and end tokens. The
    // options name an adapter, another template, a system message, or a backend.
    let loaded = TextModel::load(&name, &LoadOptions::default(), &Context::default())?;
    let text = loaded.text_interface();
    let stop = StopConditions { tokens: text.end_tokens, tokenizer: text.tokenizer };

    // The template formats a prompt the way the model was trained.
    let prompt = |problem: &String| text.template.prompt(text.tokenizer, problem.into());
    let prompts: Vec<Vec<u32>> = problems.iter().map(prompt).collect::<Result<_>>()?;

    // Stream one answer. The observer sees each new token and can end the answer.
    println!("> {}", problems[0]);
    let drawn = GenerateConfig { temperature: 0.7, top_p: 0.95, seed: 1, ..Default::default() };
    let mut shown = 0;
    let first = loaded.model.generate(&prompts[..1], stop, &drawn, &mut |token| {
        // A token can end inside a character. That character waits for the next token.
        if let Ok(answer) = text.tokenizer.decode(token.tokens)
            && let Some(new) = answer.trim_end_matches('\u{FFFD}').get(shown..)
        {
            print!("{new}");
            shown += new.len();
        }
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    match &first[0].end {
        EndReason::Limit => println!(" [truncated at {} tokens]\n", drawn.max_new_tokens),
        _ => println!("\n"),
    }

    // Several answers: a batch takes little longer than one row. At temperature 0, the most likely
    // token wins. With sampling, `generate_as` numbers the prompts, so that answers do not depend on
    // the batch.
    let greedy = GenerateConfig::default();
    let answers =
        loaded.model.generate(&prompts, stop, &greedy, &mut |_| ControlFlow::Continue(()))?;
    for (problem, answer) in problems.iter().zip(answers) {
        let answer_text = answer.text(text.tokenizer)?;
        // What a grader compares with the reference answer.
        let stated = final_answer(&answer_text).unwrap_or("nothing".into());
        println!("> {problem}\n{answer_text}");
        println!("  states {stated}, in {} tokens\n", answer.tokens.len());
    }
    Ok(())
}
