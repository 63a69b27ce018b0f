//! `mixdistill logits`: a teacher's logits of a run's rows, to train on.

use super::common::{Ended, Failure, Json, Session, quoted, say, tell_part};
use super::run_flags::add_assignments;
use clap::Args;
use mixdistill::Part;
use mixdistill::recipe::{
    RunConfig, TeacherLogitsOptions, WrittenLogits, join_teacher_logits, write_teacher_logits,
};
use mixdistill::settings::Layers;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  mixdistill config --set base_model=STUDENT --set data.sources.long.path=long.jsonl \\
      --set data.sources.short.path=short.jsonl > run.toml
  mixdistill logits --config run.toml --teacher TEACHER --out logits
  mixdistill train --config run.toml --set teacher.path=logits
  mixdistill logits --config run.toml --teacher TEACHER --part 2/8 --out part2
  mixdistill logits --join part? --out logits

Rows are written about every half minute. To resume a stopped command, run it again. docs/parts.md
explains how to divide the rows among several machines.";

/// Write a teacher's most likely tokens at each trained token of a run, to train on its logits
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Teacher: a model folder with the student's vocabulary, or owner/name on the Hugging Face Hub
    #[arg(
        id = "teacher.path",
        long = "teacher",
        value_name = "MODEL",
        required_unless_present = "join",
        help_heading = "Teacher"
    )]
    teacher: Option<String>,
    /// Number of most likely tokens to store per trained token [default: the setting, or 64]
    #[arg(id = "teacher.top_k", long = "top-k", value_name = "N", help_heading = "Teacher")]
    top_k: Option<usize>,
    /// Temperature that the logits are divided by [default: the setting, or 1]
    #[arg(id = "temperature", long = "temperature", value_name = "T", help_heading = "Teacher")]
    temperature: Option<f64>,
    /// TOML file of the run's settings [default: those of the toy run]
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    config: Option<PathBuf>,
    /// Set any setting of the run, such as data.max_length=1024. Overrides flags and --config; may be
    /// repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Run")]
    set: Vec<String>,
    /// Read all answers, not only those that the mixture uses
    #[arg(long, help_heading = "Run")]
    all: bool,
    /// Read only this part of the rows, such as 2/8; array takes the part from the environment of a
    /// Slurm job array [default: all]
    #[arg(long, value_name = "I/N", help_heading = "Parts")]
    part: Option<Part>,
    /// Join the folders of all parts, without loading the teacher
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "Parts", conflicts_with_all = [
        "teacher.path", "teacher.top_k", "temperature", "config", "set", "all", "part",
    ])]
    join: Vec<PathBuf>,
    /// Folder to write; an existing one is resumed
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let Some(teacher) = flags.teacher.as_ref().filter(|_| flags.join.is_empty()) else {
        let written = join_teacher_logits(&flags.join, &flags.out, &session.context)?;
        say!(session, "joined {} parts", flags.join.len());
        return tell(flags, &written, session);
    };
    let mut layers = Layers::<RunConfig>::new()?;
    if let Some(path) = &flags.config {
        layers.file(path)?;
    }
    if let Some(backend) = &session.global.backend {
        layers.set_value("backend", backend.as_str()).map_err(Failure::Usage)?;
    }
    add_assignments(&mut layers, &flags.set)?;
    layers.notices().iter().for_each(|notice| session.warn(notice));
    let config = layers.settings()?;
    let options = TeacherLogitsOptions {
        top_k: flags.top_k,
        temperature: flags.temperature,
        all_answers: flags.all,
        part: flags.part,
        ..TeacherLogitsOptions::new(&flags.out)
    };
    let written = write_teacher_logits(&config, teacher, &options, &session.context);
    tell(flags, &written.map_err(|error| layers.locate(error))?, session)
}

/// Prints what was written and the next command.
fn tell(flags: &Flags, written: &WrittenLogits, session: &Session) -> Ended {
    let out = flags.out.display();
    say!(session, "{} rows in {out}, {} from an earlier call", written.rows, written.before);
    if let Some(part) = flags.part {
        tell_part(part, session);
        let told = serde_json::json!({ "out": flags.out, "part": part, "written": written });
        return Ok(session.result(&told)?);
    }
    let settings = flags.config.as_ref().map(|path| quoted(&path.to_string_lossy()));
    let settings = settings.map_or(String::new(), |path| format!(" --config {path}"));
    let path = quoted(&flags.out.to_string_lossy());
    say!(session, "\nnext:\n  mixdistill train{settings} --set teacher.path={path}");
    session.result(&serde_json::json!({ "out": flags.out, "written": written }))?;
    Ok(())
}
