//! `loss.svg`: the training loss and the held-out loss of each source.

use super::metrics::{Metric, read_metrics};
use crate::chart::{Axis, Chart, Point, Scale, Series};
use crate::context::{Event, Observer};
use crate::error::Result;
use crate::files::write_text;
use std::path::{Path, PathBuf};

/// Approximate number of steps in the moving average.
const SMOOTHING: f64 = 20.0;

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
    /// Whether to mark the points, not only the line.
    pub marked: bool,
}

/// Draws curves into an SVG file. The x-axis has integer ticks if all x values are integers. Values that are
/// not finite are omitted, and the drawing states how many.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) if the file cannot be written.
pub fn draw_curves(
    path: &Path,
    title: &str,
    [x_name, y_name]: [&str; 2],
    curves: &[Curve],
) -> Result<()> {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let scale = match all().all(|(x, _)| !x.is_finite() || x.fract() == 0.0) {
        true => Scale::Whole,
        false => Scale::Linear,
    };
    let series = curves.iter().map(|curve| {
        let points = curve.points.iter().map(|(x, y)| Point { x: *x, y: *y, interval: None });
        Series { name: curve.name.clone(), points: points.collect(), marked: curve.marked }
    });
    let chart = Chart {
        title: title.to_owned(),
        x: Axis { name: x_name.to_owned(), scale },
        y: Axis { name: y_name.to_owned(), scale: Scale::Linear },
        series: series.collect(),
    };
    write_text(path, &chart.svg())
}

/// Curves of a metrics file: the smoothed training loss and the held-out loss of each source.
pub fn loss_curves(metrics: &[Metric]) -> Vec<Curve> {
    let mut smoothed: Option<f64> = None;
    let mut training = Curve { name: "training, smoothed".into(), points: vec![], marked: false };
    let mut sources: Vec<Curve> = vec![];
    for metric in metrics {
        match metric {
            Metric::Step(step) => {
                let keep = 1.0 - 1.0 / SMOOTHING.min(step.step as f64);
                let loss = smoothed.map_or(step.loss, |old| keep * old + (1.0 - keep) * step.loss);
                // A non-finite loss must not spoil the average of later steps.
                smoothed = Some(loss).filter(|loss| loss.is_finite()).or(smoothed);
                training.points.push((step.step as f64, loss));
            }
            Metric::Evaluation(evaluation) => {
                for source in &evaluation.sources {
                    let name = format!("held out: {}", source.name);
                    let point = (evaluation.step as f64, source.loss);
                    match sources.iter_mut().find(|curve| curve.name == name) {
                        Some(curve) => curve.points.push(point),
                        None => sources.push(Curve { name, points: vec![point], marked: true }),
                    }
                }
            }
            Metric::Graded(_) => {}
        }
    }
    let mut curves = vec![training];
    curves.extend(sources);
    curves
}

/// Redraws the losses of a metrics file after each evaluation and at the end.
#[derive(Clone, Debug)]
pub struct LossPlot {
    metrics: PathBuf,
    plot: PathBuf,
}

impl LossPlot {
    /// Draws `metrics` into `plot`. Must come after the observer that writes `metrics`.
    pub fn new(metrics: impl Into<PathBuf>, plot: impl Into<PathBuf>) -> Self {
        Self { metrics: metrics.into(), plot: plot.into() }
    }
}

impl Observer for LossPlot {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if !matches!(event, Event::Evaluation(_) | Event::End(_)) {
            return Ok(());
        }
        // The file was removed; the next line creates it again.
        if !self.metrics.exists() {
            return Ok(());
        }
        let curves = loss_curves(&read_metrics(&self.metrics)?);
        draw_curves(&self.plot, "Loss", ["optimizer step", "cross-entropy (nats)"], &curves)
    }
}
