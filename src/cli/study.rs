//! `mixdistill study`: students, mixtures and seeds, and a report.

use super::common::{Ended, Failure, Json, Session, say, this_call};
use super::run_flags::add_assignments;
use clap::Args;
use mixdistill::eval::Estimate;
use mixdistill::settings::Layers;
use mixdistill::study::{
    ArmDifference, ArmKind, Sharing, Study, StudyConfig, StudyPart, join, settings_of, study,
    study_part, study_shared,
};
use mixdistill::{Error, Part};
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  mixdistill study --config examples/study.toml            a quick one, on the toy corpus
  mixdistill study --config study.toml --set seeds=1,2,3,4,5 --out study5
  mixdistill study --config study.toml --json > study.json

Several processes or machines (docs/studies.md, \"Many machines\"; scripts in examples/cluster):
  mixdistill study --config study.toml --share             as often as you like, on one directory
  mixdistill study --config study.toml --part 2/8 --out part2   the second of eight, by itself
  mixdistill study --report part* --out study              the report of all parts

Finished runs are kept: the same call goes on where one was stopped.";

/// Train students on long, short and mixed answers, and report the learnability gap
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// The study as TOML; examples/study.toml shows what there is
    #[arg(long, value_name = "FILE", help_heading = "Study", required_unless_present = "report")]
    config: Option<PathBuf>,
    /// Any setting of the study, such as seeds=1,2 or run.train.steps=100; may be given more than
    /// once and counts most
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Study")]
    set: Vec<String>,
    /// Directory of the study [default: that of the settings, or study]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Work on the study beside other processes that are started with the same call: each takes cells
    /// that nobody works on
    #[arg(long, help_heading = "Many machines", conflicts_with_all = ["part", "report"])]
    share: bool,
    /// With --share: a process without a sign of life for so many seconds is dead, and others take over
    /// what it worked on [default: 120]
    #[arg(long, value_name = "SECONDS", help_heading = "Many machines", requires = "share",
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    dead_after: Option<u32>,
    /// Make one part of the study by itself, such as 2/8, in a directory of its own; array takes it
    /// from the environment of a Slurm job array
    #[arg(long, value_name = "N/OF", help_heading = "Many machines", conflicts_with = "report")]
    part: Option<Part>,
    /// Put parts that are done together, by their directories, and make the report; trains nothing.
    /// Without --config, their own settings count
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "Many machines")]
    report: Vec<PathBuf>,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let mut layers = Layers::<StudyConfig>::new()?;
    match &flags.config {
        Some(file) => layers.file(file)?,
        None => take_settings(flags, &mut layers)?,
    }
    if let Some(out) = &flags.out {
        layers.set_value("out", out.to_string_lossy().into_owned())?;
    }
    if let Some(backend) = &session.global.backend {
        layers.set_value("run.backend", backend.as_str())?;
    }
    add_assignments(&mut layers, &flags.set)?;
    layers.notices().iter().for_each(|notice| session.warn(notice));
    let config = layers.settings()?;
    let (call, context) = (this_call(), &session.context);
    let in_array = std::env::var_os("SLURM_ARRAY_TASK_ID").is_some();
    if in_array && flags.part.is_none() && !flags.share && flags.report.is_empty() {
        session.warn(
            "this is a task of a Slurm job array, and it makes the whole study: with --part array it \
             makes its part of it",
        );
    }
    if let Some(part) = flags.part {
        let made = study_part(&config, part, context).map_err(|error| layers.locate(error))?;
        tell_part(&made, session);
        session.result(&made)?;
        return Ok(());
    }
    let made = match (flags.share, flags.report.is_empty()) {
        (true, _) => {
            let usual = Sharing::default();
            let dead_after = flags.dead_after.map(|seconds| Duration::from_secs(seconds.into()));
            let sharing = Sharing { dead_after: dead_after.unwrap_or(usual.dead_after) };
            study_shared(&config, &sharing, &call, context)
        }
        (false, true) => study(&config, &call, context),
        (false, false) => join(&config, &flags.report, &call, context),
    };
    let made = made.map_err(|error| layers.locate(error))?;
    tell(&made, &config.out, session);
    session.result(&made)?;
    Ok(())
}

/// The settings of parts that are put together without a file of settings.
fn take_settings(flags: &Flags, layers: &mut Layers<StudyConfig>) -> Ended {
    if flags.out.is_none() {
        let hint =
            "Name the directory of the report with --out, or the study's settings with --config";
        let what = "the settings of the parts name the directory of a part";
        return Err(Failure::Usage(Error::config("out", what, hint)));
    }
    settings_of(&flags.report)?;
    let first = flags.report.first().map(|path| path.join("settings.toml"));
    Ok(first.map_or(Ok(()), |file| layers.file(&file))?)
}

/// What was made of a part, and how the parts become a report.
fn tell_part(made: &StudyPart, session: &Session) {
    let StudyPart { part, out, cells, all_cells, untuned, all_untuned } = made;
    say!(
        session,
        "part {part} is done: {cells} of {all_cells} cells, and {untuned} of {all_untuned} students before \
         any training, in {}",
        out.display()
    );
    say!(
        session,
        "the report, once all {} parts are done: mixdistill study --report DIR... --out STUDY, with the \
         directories of all parts",
        part.of()
    );
}

/// Whether it tells a choice from its share.
fn is_decisive(difference: &ArmDifference) -> bool {
    matches!((difference.arm, difference.other), (ArmKind::Choice(_), ArmKind::Control(_)))
}

/// What came of it, in short; the study has told its warnings once more.
fn tell(study: &Study, out: &Path, session: &Session) {
    for comparison in &study.comparisons {
        say!(session, "\n{} against {} answers:", comparison.strong, comparison.weak);
        for result in &comparison.students {
            let gap = &result.gap;
            say!(
                session,
                "  {:12} gap {:+.1} points (95 % interval {:+.1} to {:+.1})",
                result.student,
                100.0 * gap.value,
                100.0 * gap.low,
                100.0 * gap.high
            );
            for difference in result.differences.iter().filter(|d| is_decisive(d)) {
                let Estimate { value, low, high } = difference.estimate;
                say!(
                    session,
                    "  {:12} {} {:+.1} points ({:+.1} to {:+.1}; p {:.4}, Holm {:.4})",
                    "",
                    difference.name,
                    100.0 * value,
                    100.0 * low,
                    100.0 * high,
                    difference.p,
                    difference.p_holm
                );
            }
        }
    }
    let out = out.display();
    say!(session, "\nthe report: {out}/report.html, {out}/report.md, {out}/study.json");
}
