//! Your own observer: it writes a table of losses and stops the training once the loss is flat.
//!
//! ```text
//! cargo run --example own_observer                writes losses.csv
//! cargo run --example own_observer -- other.csv
//! ```
//!
//! The library prints nothing. Programs build everything that they show, draw, or send from events.

use mixdistill::prelude::*;
use mixdistill::recipe::Prepared;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// The mean loss of this many steps is compared with that of as many steps before them.
const WINDOW: usize = 25;

/// Writes every step to a file, and requests a stop once the loss is flat.
struct Plateau {
    path: PathBuf,
    file: File,
    losses: Vec<f64>,
    stop: StopFlag,
}

impl Plateau {
    fn new(path: PathBuf, stop: &StopFlag) -> Result<Self> {
        // Never overwrite an existing table.
        match File::create_new(&path) {
            Ok(file) => Ok(Self { path, file, losses: vec![], stop: stop.clone() }),
            Err(source) => Err(Error::Io { action: "create", path, source }),
        }
    }

    /// Returns the mean losses of the last two windows.
    fn windows(&self) -> Option<[f64; 2]> {
        let start = self.losses.len().checked_sub(2 * WINDOW)?;
        let (older, newer) = self.losses[start..].split_at(WINDOW);
        Some([older, newer].map(|losses| losses.iter().sum::<f64>() / WINDOW as f64))
    }
}

impl Observer for Plateau {
    /// Called in order, between steps. An error ends the training and leaves files as they are.
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Start { total_steps, .. } => println!("at most {total_steps} steps"),
            Event::Step(step) => {
                writeln!(self.file, "{},{},{}", step.step, step.loss, step.learning_rate).map_err(
                    |e| Error::Io { action: "write", path: self.path.clone(), source: e },
                )?;
                self.losses.push(step.loss);
                if let Some([older, newer]) = self.windows()
                    && newer > 0.97 * older
                {
                    println!("flat at step {}: {older:.3}, then {newer:.3}", step.step);
                    // A stop is not an error. The training ends in order, with a checkpoint if
                    // checkpoints are on.
                    self.stop.request();
                }
            }
            Event::End(outcome) => println!("ended after {} steps", outcome.step),
            // There are more events, and later versions may add others.
            _ => {}
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    // The data and settings of the toy run, with a tiny student that soon stops improving.
    let mut config = RunConfig::toy();
    config.data.toy_problems = 2000;
    config.model.hidden_size = 32;
    config.model.num_hidden_layers = 1;
    let data = Prepared::new(&config, &Context::default())?;
    let device = mixdistill::device::by_name("auto")?.autodiff();
    let mut learner = Learner::new(data.model.init(config.seed, &device)?, config.train)?;

    let stop = StopFlag::default();
    let path = std::env::args().nth(1).unwrap_or("losses.csv".into());
    let mut plateau = Plateau::new(path.into(), &stop)?;
    // To combine observers, put them in a `Vec<Box<dyn Observer>>`. `LossPlot`, `MetricsFile`, and
    // `TensorBoard` are observers too.
    let options = FitOptions { observer: Some(&mut plateau), stop, ..FitOptions::default() };
    let outcome = learner.fit(&mut data.rows(), options)?;
    println!(
        "{}",
        if outcome.stopped { "stopped by the observer" } else { "reached the end of the data" }
    );
    Ok(())
}
