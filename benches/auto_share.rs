//! Compares the shares that pilots propose (`mixture.share = "auto"`) with a sweep of all shares.
//!
//! ```text
//! cargo run --example auto_share -- docs/auto-share.toml
//! ```
//!
//! The file is a study whose cells are the sweep. For each student and seed, pilots propose a share for the
//! run with that seed. The regret is the score of the share that is best on average over the seeds, minus the
//! score of the proposed shares, each with its own seed. Its interval is a paired bootstrap over seeds and
//! problems. `OUT/auto.md` reports the regret and the cost. The same command resumes an interrupted run.
//!
//! `KEY=VALUE` arguments override settings of the study, and `pilots.KEY=VALUE` arguments those of the pilots.
//! `name=NAME` keeps the proposals separate from others, in `OUT/NAME` and `OUT/NAME.md`.

use mixdistill::context::{Context, StopFlag};
use mixdistill::data::Share;
use mixdistill::eval::{Answer, Arm, Bootstrap, Estimate, Hits, score};
use mixdistill::recipe::{FALLBACK_SHARE, RunConfig, ShareProposal, Summary, propose_share};
use mixdistill::settings::Layers;
use mixdistill::study::{ArmKind, Cell, StudyConfig, study};
use mixdistill::terminal::Terminal;
use mixdistill::text::{Table, duration};
use mixdistill::{Error, Result};
use std::fmt::Write;
use std::path::Path;

/// The arguments of the program.
struct Call {
    config: StudyConfig,
    /// Settings of the pilots, which the sweep does not use.
    pilots: Vec<String>,
    name: String,
}

fn call() -> Result<Call> {
    let mut layers = Layers::<StudyConfig>::new()?;
    let (mut pilots, mut name) = (vec![], "auto".to_owned());
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            None => layers.file(Path::new(&argument))?,
            Some(("name", value)) => value.clone_into(&mut name),
            Some((key, _)) if key.starts_with("pilots.") => pilots.push(argument),
            Some(_) => layers.set(&argument)?,
        }
    }
    let config = layers.settings()?;
    config.validate()?;
    let call = Call { config, pilots, name };
    call.check()?;
    Ok(call)
}

impl Call {
    /// Rejects arguments that would fail only after hours of study.
    ///
    /// # Errors
    /// [`Error::Config`]: the name is not a folder name, or the study uses it; the sweep lacks a share that
    /// pilots may propose; the settings of the pilots are invalid.
    fn check(&self) -> Result<()> {
        /// Names that a study uses in its output folder.
        const TAKEN: [&str; 8] =
            ["cells", "scores", "pretrained", "untuned", "results", "figures", "report", "study"];
        let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
        let name = &self.name;
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            let what = format!("\"{name}\" is not the name of a folder");
            return Err(Error::config("name", what, "Use letters, digits, -, _, and ."));
        }
        if TAKEN.contains(&name.to_lowercase().as_str()) {
            let what = format!("the study itself writes \"{name}\"");
            return Err(Error::config("name", what, "Use another name, such as auto"));
        }
        let swept = self.config.comparisons[0].shares();
        for student in 0..self.config.students.len() {
            for seed in &self.config.seeds {
                let run = self.run_config(student, *seed)?;
                run.validate()?;
                let mut shares = run.pilots.shares.into_iter().chain([FALLBACK_SHARE]);
                if let Some(share) = shares.find(|share| !swept.contains(share)) {
                    return Err(Error::config(
                        "pilots.shares",
                        format!("pilots may propose {share}, but the sweep has only {swept:?}"),
                        "Add it to `alphas` of the first comparison",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Returns the run of a student and seed, whose share the pilots find.
    fn run_config(&self, student: usize, seed: u64) -> Result<RunConfig> {
        let cell = Cell { student, comparison: 0, arm: ArmKind::Share(FALLBACK_SHARE), seed };
        let mut layers = Layers::new()?;
        let run = self.config.run_config(&cell)?;
        layers.table(&mixdistill::settings::table_of(&run)?)?;
        self.pilots.iter().try_for_each(|setting| layers.set(setting))?;
        let mut run: RunConfig = layers.settings()?;
        run.mixture.share = Share::Auto;
        let name = &self.config.students[student].name;
        run.out = self.config.out.join(&self.name).join(name).join(format!("seed-{seed}"));
        Ok(run)
    }
}

/// A cell of the sweep: its correct answers and its cost.
struct Swept {
    cell: Cell,
    hits: Hits,
    trained_tokens: u64,
    /// Seconds of training, and in total.
    seconds: [f64; 2],
}

fn swept(config: &StudyConfig, cell: Cell) -> Result<Swept> {
    let folder = config.cell_folder(&cell);
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).map_err(|e| Error::io("read", path, e))
    };
    let wrong = |e: serde_json::Error| Error::io("read", &folder, e.into());
    let answers = read("after.jsonl")?;
    let answers = answers.lines().map(serde_json::from_str::<Answer>);
    let answers = answers.collect::<std::result::Result<Vec<_>, _>>().map_err(wrong)?;
    let hits = answers.iter().map(|answer| f32::from(u8::from(answer.correct))).collect();
    let summary: Summary = serde_json::from_str(&read("summary.json")?).map_err(wrong)?;
    let (trained_tokens, seconds) =
        (summary.trained_tokens, [summary.training_seconds, summary.seconds]);
    Ok(Swept { cell, hits: vec![hits], trained_tokens, seconds })
}

/// One student's sweep and proposals.
struct Judged<'a> {
    student: &'a str,
    alphas: Vec<f64>,
    /// For each share, one cell per seed.
    sweep: Vec<Vec<&'a Swept>>,
    proposals: Vec<ShareProposal>,
    bootstrap: Bootstrap,
}

fn points(estimate: &Estimate) -> String {
    let [value, low, high] =
        [estimate.value, estimate.low, estimate.high].map(|x| format!("{:+.1}", 100.0 * x));
    format!("{value} ({low} to {high})")
}

impl<'a> Judged<'a> {
    fn arm(&self, share: usize) -> Arm<'a> {
        self.sweep[share].iter().map(|swept| &swept.hits).collect()
    }

    fn mean(&self, share: usize) -> f64 {
        self.arm(share).iter().map(|hits| score(hits)).sum::<f64>() / self.proposals.len() as f64
    }

    fn index(&self, share: f64) -> usize {
        self.alphas
            .iter()
            .position(|alpha| *alpha == share)
            .expect("Call::check has checked every share")
    }

    fn best(&self) -> usize {
        let shares = 0..self.alphas.len();
        shares.max_by(|a, b| self.mean(*a).total_cmp(&self.mean(*b))).unwrap_or_default()
    }

    /// Returns the score of the best share minus the score of `shares`, one per seed.
    fn regret(&self, shares: &[f64]) -> Estimate {
        let of = |(seed, share): (usize, &f64)| &self.sweep[self.index(*share)][seed].hits;
        let taken: Arm = shares.iter().enumerate().map(of).collect();
        self.bootstrap.difference(&self.arm(self.best()), &taken)
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "## {}\n", self.student)?;
        let scores = self.alphas.iter().enumerate().map(|(index, alpha)| {
            let estimate = self.bootstrap.score(&self.arm(index));
            let [value, low, high] =
                [estimate.value, estimate.low, estimate.high].map(|x| format!("{:.1}", 100.0 * x));
            [alpha.to_string(), format!("{value} ({low} to {high})")]
        });
        let mut table = Table::new(["share", "score, %"]);
        scores.for_each(|row| table.row(row));
        writeln!(out, "{}", table.to_markdown())?;
        let mut table =
            Table::new(["seed", "proposed", "best pilot", "its gain over 0.2", "confidence, %"]);
        for (swept, proposal) in self.sweep[0].iter().zip(&self.proposals) {
            table.row([
                swept.cell.seed.to_string(),
                proposal.share.to_string(),
                proposal.best.to_string(),
                points(&proposal.gain),
                format!("{:.0}", 100.0 * proposal.sure()),
            ]);
        }
        writeln!(out, "{}", table.to_markdown())?;
        let shares: Vec<f64> = self.proposals.iter().map(|proposal| proposal.share).collect();
        let always = vec![FALLBACK_SHARE; shares.len()];
        let best: Vec<f64> = self.proposals.iter().map(|proposal| proposal.best).collect();
        let mut table = Table::new(["shares", "regret, points"]);
        for (name, shares) in [
            ("the proposals", &shares),
            ("always 0.2", &always),
            ("the best pilot, without the fallback", &best),
        ] {
            table.row([name.to_owned(), points(&self.regret(shares))]);
        }
        let best = self.alphas[self.best()];
        writeln!(
            out,
            "Regret against the share with the best mean score, {best}. That share is selected with the same \
             answers that measure the regret. The selection biases its score, and with it every regret, \
             upward, and the interval does not account for it.\n\n{}",
            table.to_markdown()
        )?;
        self.write_cost(out)
    }

    fn write_cost(&self, out: &mut String) -> std::fmt::Result {
        let cells = || self.sweep.iter().flatten();
        let pilots = || self.proposals.iter().flat_map(ShareProposal::pilots);
        let tokens = [
            cells().map(|swept| swept.trained_tokens).sum::<u64>() as f64,
            pilots().map(|pilot| pilot.trained_tokens).sum::<u64>() as f64,
        ];
        let training = [
            cells().map(|swept| swept.seconds[0]).sum::<f64>(),
            pilots().map(|pilot| pilot.seconds).sum::<f64>(),
        ];
        let whole = [
            cells().map(|swept| swept.seconds[1]).sum::<f64>(),
            pilots().map(|pilot| pilot.seconds + pilot.evaluation_seconds).sum::<f64>(),
        ];
        let mut table = Table::new(["cost", "sweep", "pilots", "ratio"]);
        let mut row = |name: &str, of: [f64; 2], text: &dyn Fn(f64) -> String| {
            let share = format!("{:.3}", of[1] / of[0].max(1e-9));
            table.row([name.to_owned(), text(of[0]), text(of[1]), share]);
        };
        row("trained tokens", tokens, &|tokens| format!("{tokens:.0}"));
        row("training time", training, &duration);
        row("training and evaluation time", whole, &duration);
        writeln!(out, "{}", table.to_markdown())
    }
}

fn main() -> Result<()> {
    let call = call()?;
    let (config, stop) = (&call.config, StopFlag::default());
    let context = Context::new(Terminal::default(), &stop);
    study(config, "see the file", &context)?;
    let sweep = config.cells().into_iter().filter(|cell| cell.comparison == 0);
    let sweep = sweep.map(|cell| swept(config, cell)).collect::<Result<Vec<_>>>()?;
    let mut text = String::new();
    for (number, student) in config.students.iter().enumerate() {
        let proposals = config
            .seeds
            .iter()
            .map(|seed| propose_share(&call.run_config(number, *seed)?, &context));
        let proposals = proposals.collect::<Result<Vec<_>>>()?;
        let alphas = config.comparisons[0].shares();
        let of_share = |alpha: &f64| {
            let is = |cell: &Cell| cell.student == number && cell.arm == ArmKind::Share(*alpha);
            sweep.iter().filter(|swept| is(&swept.cell)).collect()
        };
        let judged = Judged {
            student: &student.name,
            sweep: alphas.iter().map(of_share).collect(),
            alphas,
            proposals,
            bootstrap: Bootstrap { resamples: config.resamples, seed: config.data_seed },
        };
        // Writing to a String cannot fail.
        let _ = judged.write(&mut text);
    }
    let path = config.out.join(format!("{}.md", call.name));
    std::fs::write(&path, &text).map_err(|e| Error::io("write", &path, e))?;
    println!("{text}\nreport: {}", path.display());
    Ok(())
}
