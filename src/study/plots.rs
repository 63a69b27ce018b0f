//! The report's charts: points with intervals, joined by lines.

use crate::error::{Error, Result};
use crate::eval::Estimate;
use plotters::prelude::*;
use std::path::Path;

/// One line of a chart.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub name: String,
    /// Points in order; an interval of no width is not drawn.
    pub points: Vec<(f64, Estimate)>,
}

/// A chart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub title: String,
    pub x: String,
    pub y: String,
    pub series: Vec<Series>,
    /// Whether the x axis is logarithmic.
    pub log_x: bool,
    /// Whether 0 is marked by a line.
    pub zero: bool,
}

/// Colours that stay apart for colour-blind readers (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(110, 110, 110),
    RGBColor(0, 0, 0),
];

/// A number without an interval.
pub(super) fn exact(value: f64) -> Estimate {
    Estimate { value, low: value, high: value }
}

impl Chart {
    /// The chart as SVG.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be drawn; `name` says which it is.
    pub fn svg(&self, name: &str) -> Result<String> {
        let mut svg = String::new();
        let drawn = self.draw(&mut svg);
        let failed = |e: Box<dyn std::error::Error>| {
            Error::io("draw", Path::new(name), std::io::Error::other(e.to_string()))
        };
        drawn.map_err(failed)?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let scaled = |x: f64| if self.log_x { x.max(1.0).log10() } else { x };
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (mut x_low, mut x_high) = (f64::INFINITY, f64::NEG_INFINITY);
        let (mut y_low, mut y_high) =
            if self.zero { (0.0, 0.0) } else { (f64::INFINITY, f64::NEG_INFINITY) };
        for (x, y) in points().filter(|(x, y)| x.is_finite() && y.value.is_finite()) {
            (x_low, x_high) = (x_low.min(scaled(*x)), x_high.max(scaled(*x)));
            (y_low, y_high) = (y_low.min(y.low), y_high.max(y.high));
        }
        if !x_low.is_finite() || !y_low.is_finite() {
            ((x_low, x_high), (y_low, y_high)) = ((0.0, 1.0), (0.0, 1.0));
        }
        let margin = |low: f64, high: f64| ((high - low) * 0.06).max(1e-6);
        let (x_margin, y_margin) = (margin(x_low, x_high), margin(y_low, y_high));
        let longest = self.series.iter().map(|series| series.name.chars().count()).max();
        let legend = match self.series.len() {
            0 | 1 => 0.0,
            _ => 0.1 + 0.011 * longest.unwrap_or(0) as f64,
        };
        let root = SVGBackend::with_string(svg, (860, 440)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 19))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(
                // Room for the legend, beside the data.
                x_low - x_margin..x_high + x_margin + legend * (x_high - x_low),
                y_low - y_margin..y_high + y_margin,
            )?;
        let label = |x: &f64| match self.log_x {
            true => short(10f64.powf(*x)),
            false => short(*x),
        };
        chart
            .configure_mesh()
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_label_formatter(&label)
            .y_label_formatter(&|y| short(*y))
            .light_line_style(WHITE)
            .draw()?;
        if self.zero {
            let ends = [(x_low - x_margin, 0.0), (x_high + x_margin, 0.0)];
            chart.draw_series(LineSeries::new(ends, BLACK.mix(0.6)))?;
        }
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            // Side by side, so that intervals at the same place are told apart.
            let shift =
                (index as f64 - (self.series.len() - 1) as f64 / 2.0) * (x_high - x_low) * 0.006;
            let place = |x: f64| scaled(x) + shift;
            let line = series.points.iter().map(|(x, y)| (place(*x), y.value));
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
                .label(&series.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
            let marks = series.points.iter().map(|(x, y)| (place(*x), y.value));
            chart.draw_series(marks.map(|point| Circle::new(point, 3, colour.filled())))?;
            let intervals = series.points.iter().filter(|(_, y)| y.high > y.low);
            chart.draw_series(intervals.map(|(x, y)| {
                PathElement::new([(place(*x), y.low), (place(*x), y.high)], colour.stroke_width(1))
            }))?;
        }
        if self.series.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .border_style(BLACK.mix(0.3))
                .draw()?;
        }
        root.present()?;
        drop(chart);
        drop(root);
        Ok(())
    }
}

/// A number with few digits.
fn short(x: f64) -> String {
    match x.abs() {
        a if a >= 1e9 => format!("{:.1}B", x / 1e9),
        a if a >= 1e6 => format!("{:.1}M", x / 1e6),
        a if a >= 1e3 => format!("{:.0}k", x / 1e3),
        // The labels of an axis have as many digits as they need.
        _ => {
            let text = format!("{x:.2}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}
