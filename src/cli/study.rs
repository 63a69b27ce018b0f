//! `mixdistill study`: students, mixtures and seeds, and a report.

use super::common::{Ended, Json, Session, say, this_call};
use super::run_flags::add_assignments;
use clap::Args;
use mixdistill::eval::Estimate;
use mixdistill::settings::Layers;
use mixdistill::study::{ArmDifference, ArmKind, Study, StudyConfig, study};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  mixdistill study --config examples/study.toml            a quick one, on the toy corpus
  mixdistill study --config study.toml --set seeds=1,2,3,4,5 --out study5
  mixdistill study --config study.toml --json > study.json

Finished runs are kept: the same call goes on where one was stopped.";

/// Train students on long, short and mixed answers, and report the learnability gap
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// The study as TOML; examples/study.toml shows what there is
    #[arg(long, value_name = "FILE", help_heading = "Study")]
    config: PathBuf,
    /// Any setting of the study, such as seeds=1,2 or run.train.steps=100; may be given more than
    /// once and counts most
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Study")]
    set: Vec<String>,
    /// Directory of the study [default: that of the settings, or study]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let mut layers = Layers::<StudyConfig>::new()?;
    layers.file(&flags.config)?;
    if let Some(out) = &flags.out {
        layers.set_value("out", out.to_string_lossy().into_owned())?;
    }
    if let Some(backend) = &session.global.backend {
        layers.set_value("run.backend", backend.as_str())?;
    }
    add_assignments(&mut layers, &flags.set)?;
    layers.notices().iter().for_each(|notice| session.warn(notice));
    let config = layers.settings()?;
    let made = study(&config, &this_call(), &session.context);
    let made = made.map_err(|error| layers.locate(error))?;
    tell(&made, &config.out, session);
    session.result(&made)?;
    Ok(())
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
