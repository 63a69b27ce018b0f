//! Draws the training losses of several runs in one figure.
//!
//! ```sh
//! cargo run --example loss_curves -- OUT.svg "TITLE" NAME=RUN ...
//! ```
//!
//! Each `RUN` is a run directory of `mixdistill train`. The lines are smoothed over about 20 steps. The program
//! also prints the largest and the mean difference between the unsmoothed losses of each run and the first.

use mixdistill::train::{Metric, draw_curves, loss_curves, read_metrics};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(out), Some(title)) = (arguments.next(), arguments.next()) else {
        return Err("usage: loss_curves OUT.svg TITLE NAME=RUN ...".into());
    };
    let (mut curves, mut runs): (Vec<_>, Vec<(String, Vec<f64>)>) = (vec![], vec![]);
    for argument in arguments {
        let (name, run) = argument.split_once('=').ok_or("give each run as NAME=RUN")?;
        let metrics = read_metrics(&Path::new(run).join("metrics.jsonl"))?;
        let mut curve = loss_curves(&metrics).swap_remove(0);
        curve.name = name.to_owned();
        curves.push(curve);
        let losses = metrics.iter().filter_map(|metric| match metric {
            Metric::Step(step) => Some(step.loss),
            _ => None,
        });
        runs.push((name.to_owned(), losses.collect()));
    }
    draw_curves(Path::new(&out), &title, ["optimizer step", "cross-entropy (nats)"], &curves)?;
    let Some(((_, first), others)) = runs.split_first() else { return Ok(()) };
    for (name, losses) in others {
        let distances: Vec<f64> = losses.iter().zip(first).map(|(a, b)| (a - b).abs()).collect();
        let largest = distances.iter().copied().fold(0.0, f64::max);
        let mean = distances.iter().sum::<f64>() / distances.len().max(1) as f64;
        println!(
            "{name}: {} steps, difference at most {largest:.4}, {mean:.4} on average",
            losses.len()
        );
    }
    Ok(())
}
