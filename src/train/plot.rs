//! `loss.svg`: the training loss and the held-out loss of each source.

use super::metrics::{Metric, read_metrics};
use super::observer::{Event, Observer};
use crate::error::{Error, Result};
use plotters::prelude::*;
use std::path::{Path, PathBuf};

/// Steps that the smoothed line averages over, about.
const SMOOTHING: f64 = 20.0;

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
    /// Whether the points are drawn too, and not the line alone.
    pub marked: bool,
}

/// Draws curves into an SVG file.
///
/// # Errors
/// [`Error::Io`] where the file cannot be written.
pub fn draw_curves(
    path: &Path,
    title: &str,
    [x_name, y_name]: [&str; 2],
    curves: &[Curve],
) -> Result<()> {
    let mut svg = String::new();
    let drawn = draw(&mut svg, title, [x_name, y_name], curves);
    drawn.map_err(|e| Error::io("draw", path, std::io::Error::other(e.to_string())))?;
    std::fs::write(path, svg).map_err(|e| Error::io("write", path, e))
}

fn draw(
    svg: &mut String,
    title: &str,
    [x_name, y_name]: [&str; 2],
    curves: &[Curve],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let finite = |x: &f64| x.is_finite();
    let x_max = points().map(|p| p.0).filter(finite).fold(1.0, f64::max);
    let x_min = points().map(|p| p.0).filter(finite).fold(x_max, f64::min);
    let y_max = points().map(|p| p.1).filter(finite).fold(1e-3, f64::max);
    let root = SVGBackend::with_string(svg, (860, 500)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(x_min..x_max.max(x_min + 1e-9), 0.0..y_max * 1.05)?;
    chart.configure_mesh().x_desc(x_name).y_desc(y_name).light_line_style(WHITE).draw()?;
    for (index, curve) in curves.iter().enumerate() {
        // Colours that stay apart for colour-blind readers (Okabe and Ito).
        let palette = [
            (0, 114, 178),
            (213, 94, 0),
            (0, 158, 115),
            (204, 121, 167),
            (86, 180, 233),
            (0, 0, 0),
        ];
        let (r, g, b) = palette[index % palette.len()];
        let color = RGBColor(r, g, b);
        let line = color.stroke_width(2);
        chart
            .draw_series(LineSeries::new(curve.points.iter().copied(), line))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], line));
        if curve.marked {
            let marks = curve.points.iter().map(|point| Circle::new(*point, 3, color.filled()));
            chart.draw_series(marks)?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}

/// The curves of a metrics file: training loss, smoothed, and each source's held-out loss.
pub fn loss_curves(metrics: &[Metric]) -> Vec<Curve> {
    let mut smoothed: Option<f64> = None;
    let mut training = Curve { name: "training, smoothed".into(), points: vec![], marked: false };
    let mut sources: Vec<Curve> = vec![];
    for metric in metrics {
        match metric {
            Metric::Step(step) => {
                let keep = 1.0 - 1.0 / SMOOTHING.min(step.step as f64);
                let loss = smoothed.map_or(step.loss, |old| keep * old + (1.0 - keep) * step.loss);
                smoothed = Some(loss);
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

/// Draws the losses of a metrics file after each evaluation and at the end.
#[derive(Clone, Debug)]
pub struct LossPlot {
    metrics: PathBuf,
    plot: PathBuf,
}

impl LossPlot {
    /// Draws `metrics` into `plot`. Must stand behind the observer that writes `metrics`.
    pub fn new(metrics: impl Into<PathBuf>, plot: impl Into<PathBuf>) -> Self {
        Self { metrics: metrics.into(), plot: plot.into() }
    }
}

impl Observer for LossPlot {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if !matches!(event, Event::Evaluation(_) | Event::End(_)) {
            return Ok(());
        }
        // Removed by someone else; the next line of it begins it anew.
        if !self.metrics.exists() {
            return Ok(());
        }
        let curves = loss_curves(&read_metrics(&self.metrics)?);
        draw_curves(&self.plot, "Loss", ["optimizer step", "cross-entropy (nats)"], &curves)
    }
}
