//! `mixdistill study`: students, mixtures, and seeds, and a report.

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
  mixdistill study --config examples/study.toml            a quick study on the toy corpus
  mixdistill study --config study.toml --set seeds=1,2,3,4,5 --out study5
  mixdistill study --config study.toml --json > study.json

Several processes or machines (docs/studies.md, \"Many machines\"; scripts in examples/cluster):
  mixdistill study --config study.toml --share             any number of times, on one directory
  mixdistill study --config study.toml --part 2/8 --out part2   part 2 of 8, on its own
  mixdistill study --report part* --out study              the report of all parts

Finished runs are kept. To resume a stopped study, run the same command again.";

/// Train students on long, short, and mixed answers, and report the learnability gap
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// TOML file of the study's settings; examples/study.toml shows the available ones
    #[arg(long, value_name = "FILE", help_heading = "Study", required_unless_present = "report")]
    config: Option<PathBuf>,
    /// Set any setting of the study, such as seeds=1,2 or run.train.steps=100. Overrides flags and
    /// --config; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Study")]
    set: Vec<String>,
    /// Directory of the study [default: out from the settings, or study]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Share the study with other processes that run the same command: each one works on cells that
    /// no other process has claimed
    #[arg(long, help_heading = "Many machines", conflicts_with_all = ["part", "report"])]
    share: bool,
    /// With --share: after this many seconds without a heartbeat, a process is considered dead and others
    /// take over its work [default: 120]
    #[arg(long, value_name = "SECONDS", help_heading = "Many machines", requires = "share",
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    dead_after: Option<u32>,
    /// Run only this part of the study, such as 2/8, in its own directory; array takes the part from
    /// the environment of a Slurm job array
    #[arg(long, value_name = "N/OF", help_heading = "Many machines", conflicts_with = "report")]
    part: Option<Part>,
    /// Join the directories of finished parts and write the report, without training. Without
    /// --config, uses the settings of the parts
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
            "this task of a Slurm job array runs the whole study; use --part array to run only its \
             part",
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

/// Takes the settings from the parts if no settings file is given.
fn take_settings(flags: &Flags, layers: &mut Layers<StudyConfig>) -> Ended {
    if flags.out.is_none() {
        let hint = "Set the directory of the report with --out, or give the study's settings with --config";
        let what = "the settings of the parts set it to the directory of one part";
        return Err(Failure::Usage(Error::config("out", what, hint)));
    }
    settings_of(&flags.report)?;
    let first = flags.report.first().map(|path| path.join("settings.toml"));
    Ok(first.map_or(Ok(()), |file| layers.file(&file))?)
}

/// Prints the results of a part and how to make the report from all parts.
fn tell_part(made: &StudyPart, session: &Session) {
    let StudyPart { part, out, cells, all_cells, untuned, all_untuned } = made;
    say!(
        session,
        "part {part} is done: {cells} of {all_cells} cells and {untuned} of {all_untuned} untuned \
         students, in {}",
        out.display()
    );
    say!(
        session,
        "when all {} parts are done, write the report: mixdistill study --report DIR... --out STUDY, with \
         the directories of all parts",
        part.of()
    );
}

/// Returns whether this compares a choice with its control, the same share chosen at random.
fn is_decisive(difference: &ArmDifference) -> bool {
    matches!((difference.arm, difference.other), (ArmKind::Choice(_), ArmKind::Control(_)))
}

/// Prints a summary of the results. The study has already repeated its warnings.
fn tell(study: &Study, out: &Path, session: &Session) {
    for comparison in &study.comparisons {
        say!(session, "\n{} vs. {} answers:", comparison.strong, comparison.weak);
        for result in &comparison.students {
            let gap = &result.gap;
            say!(
                session,
                "  {:12} gap {:+.1} points (95% interval {:+.1} to {:+.1})",
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
    say!(session, "\nreport: {out}/report.html, {out}/report.md, {out}/study.json");
}
