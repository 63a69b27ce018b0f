//! Mix Distillation step by step: from two lists of answers to a graded student.
//!
//! ```text
//! cargo run --example train_mix                              the built-in arithmetic corpus
//! cargo run --example train_mix -- --share 0.5 --out half
//! cargo run --example train_mix -- --model DIR --long L.jsonl --short S.jsonl --out run2
//! cargo run --example train_mix -- --resume --out run2       resumes a stopped run
//! ```
//!
//! Read this file, then `data.rs` (sources, pairs, the mixture), `training.rs` (the student and its
//! learner), and `results.rs` (grading and saving). The command `mixdistill train` does the same with
//! `mixdistill::recipe::run`, supports every setting, and gives the same numbers for the same settings.

mod data;
mod flags;
mod results;
mod training;

use clap::Parser;
use data::Data;
use flags::Flags;
use mixdistill::context::RunOverview;
use mixdistill::prelude::*;
use mixdistill::recipe::RunDirectory;
use mixdistill::terminal::Terminal;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Call this first. The main thread then computes too, instead of handing each operation to
    // other threads.
    match mixdistill::device::use_threads(None).and_then(|()| work(&Flags::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        // Like the program `mixdistill`, exit with 75, so that a script knows the run can resume.
        Err(error @ Error::Stopped { .. }) => {
            eprintln!("{error}");
            ExitCode::from(75)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(flags: &Flags) -> Result<()> {
    let config = flags.settings()?;

    // Long calls report to a context and check it for a stop. The library prints nothing; this
    // terminal does, or your own observer (own_observer.rs).
    let stop = StopFlag::default();
    let context = Context::new(Terminal::default(), &stop);
    ctrlc::set_handler(move || {
        // A second Ctrl-C exits at once.
        if stop.request() {
            std::process::exit(130);
        }
    })
    .expect("no other handler is set");

    // The model folder is written last. If it exists, nothing is left to do.
    if flags.mode().resumes() && config.out.join("model").exists() {
        return context.notice("this run is finished");
    }
    // Problems with the data appear before anything is created or replaced. After `open`, no other
    // process can use the directory.
    let data = Data::new(&config, &context)?;
    let (ledger, mixture) = (&data.ledger, &data.mixture.report());
    let warnings = &mixture.shortfalls;
    let data_name = "long and short answers";
    let overview = RunOverview { data: data_name, ledger, mixture, lines: &[], warnings };
    context.emit(&Event::Overview(&overview))?;
    let directory = RunDirectory::open(&config.out, flags.mode())?;
    training::train(&config, flags.mode(), &directory, &data, &context)
}
