//! Mix Distillation, stage by stage: from two lists of answers to a graded student.
//!
//! ```text
//! cargo run --example train_mix                              the built-in corpus of arithmetic
//! cargo run --example train_mix -- --share 0.5 --out half
//! cargo run --example train_mix -- --model DIR --long L.jsonl --short S.jsonl --out run2
//! cargo run --example train_mix -- --resume --out run2       goes on with a run that was stopped
//! ```
//!
//! Read this file, then `data.rs` (sources, pairs, the mixture), `training.rs` (the student and its
//! learner), and `results.rs` (its grade, and its folder). The program `mixdistill train` does the same by
//! `mixdistill::recipe::run`, with every setting there is; the same settings give the same numbers.

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
    // Before anything else: the main thread then computes too, instead of handing each operation
    // over to others.
    match mixdistill::device::use_threads(None).and_then(|()| work(&Flags::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        // As the program `mixdistill`: 75 tells a script that the same run can go on.
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

    // Long calls tell a context what happens, and ask it whether to stop. The library prints
    // nothing; a terminal does, or an observer of your own (own_observer.rs).
    let stop = StopFlag::default();
    let context = Context::new(Terminal::default(), &stop);
    ctrlc::set_handler(move || {
        // Pressed again, it ends at once.
        if stop.request() {
            std::process::exit(130);
        }
    })
    .expect("no other handler is set");

    // Written last, so that nothing is left to do where it is there.
    if flags.mode().resumes() && config.out.join("model").exists() {
        return context.notice("this run is finished");
    }
    // Whatever is wrong with the data shows before anything is made or replaced. The directory is
    // then this process's alone.
    let data = Data::new(&config, &context)?;
    let (ledger, mixture) = (&data.ledger, &data.mixture.report());
    let warnings = &mixture.shortfalls;
    let data_name = "long and short answers";
    let overview = RunOverview { data: data_name, ledger, mixture, lines: &[], warnings };
    context.emit(&Event::Overview(&overview))?;
    let directory = RunDirectory::open(&config.out, flags.mode())?;
    training::train(&config, flags.mode(), &directory, &data, &context)
}
