//! Measures the learnability gap: students x mixtures x seeds, with intervals and a report.
//!
//! ```text
//! cargo run --example study -- --config examples/study.toml      a quick one, on the toy corpus
//! ```
//!
//! A study that is stopped (Ctrl-C) or killed goes on where it ended when it is called again.

use clap::Parser;
use mixdistill::study::{StudyConfig, study};
use mixdistill::train::StopFlag;
use mixdistill::{Error, Result};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Trains students on long, short and mixed answers, and reports what came of it.
#[derive(Parser)]
struct Flags {
    /// The study as TOML; examples/study.toml shows what there is
    #[arg(long)]
    config: PathBuf,
    /// Directory of the study
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The exit status after a stop that was asked for.
const STOPPED: u8 = 75;

fn main() -> ExitCode {
    let flags = Flags::parse();
    match mixdistill::device::use_threads(None).and_then(|()| work(&flags)) {
        Ok(status) => status,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(flags: &Flags) -> Result<ExitCode> {
    let mut config = StudyConfig::read(&flags.config)?;
    if let Some(out) = &flags.out {
        config.out.clone_from(out);
    }
    let stop = StopFlag::default();
    let flag = stop.clone();
    let installed = ctrlc::set_handler(move || {
        if flag.request() {
            std::process::exit(130);
        }
        let _ = writeln!(std::io::stderr(), "stopping after this step; once more to stop at once");
    });
    installed.map_err(|e| Error::Training {
        what: format!("the handler for Ctrl-C cannot be installed: {e}"),
        hint: "Run the program in a terminal of its own".into(),
    })?;
    let mut say = |line: &str| {
        let _ = writeln!(std::io::stdout(), "{line}");
    };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("cargo run --example study -- {}", arguments.join(" "));
    let Some(study) = study(&config, &command, &stop, &mut say)? else {
        say("stopped; the same command goes on with it");
        return Ok(ExitCode::from(STOPPED));
    };
    for comparison in &study.comparisons {
        say(&format!("\n{} against {} answers:", comparison.strong, comparison.weak));
        for result in &comparison.students {
            let gap = &result.gap;
            say(&format!(
                "  {:12} gap {:+.1} points (95 % interval {:+.1} to {:+.1})",
                result.student,
                100.0 * gap.value,
                100.0 * gap.low,
                100.0 * gap.high
            ));
        }
    }
    let out = config.out.display();
    say(&format!("\nthe report: {out}/report.html, {out}/report.md, {out}/study.json"));
    Ok(ExitCode::SUCCESS)
}
