//! Trains on your own data: turns a program's structs into records and mixes them, without any file.
//!
//! ```text
//! cargo run --example own_data
//! ```
//!
//! Files are easier: `Source::read` reads JSONL, JSON, CSV, TSV, and Parquet and finds the columns.

use mixdistill::data::RowStream;
use mixdistill::prelude::*;
use std::sync::Arc;

/// This program's data: support tickets, each with the answers of two people.
struct Ticket {
    number: u32,
    question: String,
    /// The expert reasons step by step.
    expert: String,
    /// The help desk answers in one line, and not every ticket.
    desk: Option<String>,
}

fn tickets() -> Vec<Ticket> {
    let ticket = |number: u32| {
        let (hours, minutes) = (number % 9 + 1, (number % 9 + 1) * 60);
        Ticket {
            number,
            question: format!("Ticket {number}: how many minutes are {hours} hours?"),
            expert: format!(
                "An hour has 60 minutes. {hours} x 60 = {minutes}. So \\boxed{{{minutes}}}."
            ),
            desk: (!number.is_multiple_of(10)).then(|| format!("\\boxed{{{minutes}}} minutes.")),
        }
    };
    (1..=200).map(ticket).collect()
}

fn main() -> Result<()> {
    // A source has the answers of one teacher. Sources are paired by the records' ids, or, without
    // ids, by the text of the problem. `answer` is the reference for grading.
    let tickets = tickets();
    let record = |ticket: &Ticket, solution: &str| CotRecord {
        id: Some(ticket.number.to_string()),
        problem: ticket.question.clone(),
        solution: solution.to_owned(),
        answer: Some((60 * (ticket.number % 9 + 1)).to_string()),
        ..CotRecord::default()
    };
    let expert = tickets.iter().map(|ticket| record(ticket, &ticket.expert)).collect();
    let desk = tickets.iter().filter_map(|ticket| Some(record(ticket, ticket.desk.as_ref()?)));
    let sources = vec![Source::new("expert", expert), Source::new("desk", desk.collect())];

    // `Inner` keeps the problems that every source answers, `Outer` those that any source answers.
    let (pairs, mut ledger) = Pairs::join(sources, Join::Outer)?;

    // The built-in tokenizer knows every character, and each of these words as one token. For a
    // model's own tokenizer, use `TextTokenizer::from_folder`.
    let words = tickets.iter().flat_map(|t| [t.question.as_str(), t.expert.as_str()]);
    let tokenizer = TextTokenizer::builtin(words)?;
    // How a prompt and its answer are formatted. For your own format, implement `PromptTemplate`.
    let template = PlainTemplate { before: "Q: ".into(), between: "\nA: ".into() };
    let limit = LengthLimit::drop_beyond(128);
    let encoded = Encoded::encode(&pairs, &tokenizer, &template, limit, &Context::default())?;
    let pairs = encoded.fitting(&pairs, &mut ledger);
    // The ledger accounts for every record: read, matched, too long, held out.
    println!("{ledger}\n");

    // One answer per ticket, 30% of them by the expert. If a source lacks an answer, another source's
    // answer is used. The shares are exact as long as there are enough answers.
    let weights = [("expert".to_owned(), 0.3), ("desk".to_owned(), 0.7)].into();
    let config = MixtureConfig { weights, ..MixtureConfig::default() };
    let lengths = Some(Arc::new(encoded.lengths()));
    let options = MixtureOptions { seed: 1, lengths, ..MixtureOptions::default() };
    let mixture = MixDistillation::new(Arc::new(pairs), config, options)?;
    println!("{}\n", mixture.report());

    // A learner takes any `RowStream`, which returns rows by their number in training order.
    let mut rows = MixedRows::new(mixture, Arc::new(encoded));
    let first = &rows.rows(0..1)?[0];
    println!("the first row, {}:\n{}\n", first.label, tokenizer.decode(&first.tokens)?);

    let device = mixdistill::device::by_name("auto")?.autodiff();
    let vocab_size = tokenizer.vocabulary_size();
    let student = DecoderConfig { vocab_size, hidden_size: 64, ..DecoderConfig::default() };
    let steps = std::env::var("STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(60);
    let config = TrainConfig { steps: Some(steps), learning_rate: 3e-3, ..TrainConfig::default() };
    let mut learner = Learner::new(student.init(1, &device)?, config)?;
    let outcome = learner.fit(&mut rows, FitOptions::default())?;
    println!("{} steps, {} tokens trained", outcome.step, outcome.trained_tokens);
    Ok(())
}
