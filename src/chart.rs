//! SVG charts: curves with marks and intervals, axes, and a legend.
//!
//! All figures use this module: `loss.svg`, `compare.svg`, and the figures of a study. Any data can be drawn.
//! Values without a place on an axis, such as NaN, are left out, and the chart says how many there are.

mod axis;
mod svg;

pub(crate) use axis::Scale;
use axis::{Direction, Ruler, Tick};
pub(crate) use svg::escaped;
use svg::{Svg, TextStyle, text_width};

/// Colors that color-blind readers can distinguish (Okabe and Ito).
const COLORS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6e6e6e", "#000000"];

/// Dash patterns for lines once all colors are used.
const DASHES: [&str; 4] = ["", "7 4", "2 3", "9 3 2 3"];

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
/// The margin along the edges.
const EDGE: f64 = 14.0;
/// The padding within the frame, so that marks at the ends of an axis are complete.
const INSET: f64 = 9.0;
/// Text sizes of the title, names of axes and curves, and numbers.
const TITLE: f64 = 18.0;
const NAME: f64 = 13.0;
const NUMBER: f64 = 12.0;
/// The height of a legend line.
const LEGEND_LINE: f64 = 19.0;
/// The length of the line next to a name in the legend.
const KEY: f64 = 34.0;
/// The maximum width of names in the legend.
const LONGEST_NAME: f64 = 230.0;
/// The maximum number of marks. More would hide the line.
const MOST_MARKS: usize = 200;

/// An axis.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// The quantity and its unit.
    pub name: String,
    pub scale: Scale,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub x: f64,
    pub y: f64,
    /// The lower and upper end of the interval of `y`.
    pub interval: Option<(f64, f64)>,
}

/// A curve.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// The name in the legend.
    pub name: String,
    /// The points, in the order in which the line connects them.
    pub points: Vec<Point>,
    /// Whether points are marked in addition to the line.
    pub marked: bool,
}

/// A chart.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

/// The layout of a chart, in pixels.
struct Layout {
    height: f64,
    /// Left, top, right, and bottom of the frame.
    frame: [f64; 4],
    x: Ruler,
    y: Ruler,
    /// The distance from the first to the last curve at the same position.
    spread: f64,
}

impl Layout {
    fn new(chart: &Chart) -> Self {
        let points = || chart.series.iter().flat_map(|series| &series.points);
        let points = || points().filter_map(|point| chart.usable(point));
        let xs = points().map(|point| point.x);
        let ys = points().flat_map(|point| {
            let (low, high) = point.interval.unwrap_or((point.y, point.y));
            [point.y, low, high]
        });
        let y = Ruler::new(chart.y.scale, Direction::Up, ys, 8);
        let longest = |names: &mut dyn Iterator<Item = &str>, size: f64| {
            names.map(|name| text_width(name, size)).fold(0.0, f64::max)
        };
        let numbers = longest(&mut y.ticks.iter().map(|tick| tick.label.as_str()), NUMBER);
        let names = longest(&mut chart.series.iter().map(|series| series.name.as_str()), NAME);
        let legend = match chart.series.len() {
            0 => 0.0,
            _ => names.min(LONGEST_NAME) + KEY + 22.0,
        };
        let top = EDGE + TITLE + 12.0;
        let lines = LEGEND_LINE * chart.series.len() as f64;
        let height = HEIGHT.max(top + lines + EDGE);
        let left = EDGE + NAME + 12.0 + numbers + 8.0;
        let right = WIDTH - EDGE - legend;
        // As many ticks as there is room for their numbers.
        let counts = [8, 6, 4, 3, 2, 1];
        let rulers =
            counts.map(|count| Ruler::new(chart.x.scale, Direction::Across, xs.clone(), count));
        let has_room = |ruler: &Ruler| {
            let widths = ruler.ticks.iter().map(|tick| text_width(&tick.label, NUMBER) + 14.0);
            widths.sum::<f64>() <= right - left
        };
        let [.., last] = &rulers;
        let x = rulers.iter().find(|ruler| has_room(ruler)).unwrap_or(last).clone();
        let with_intervals = points().any(|point| point.interval.is_some());
        let spread = match with_intervals && chart.series.len() > 1 {
            true => (4.0 * (chart.series.len() - 1) as f64).min(24.0),
            false => 0.0,
        };
        Self { height, frame: [left, top, right, height - EDGE - NAME - 34.0], x, y, spread }
    }

    /// Returns the position of a point of curve `number` among `of` curves.
    ///
    /// Curves with intervals are drawn side by side. The axis is narrower for them, so that all curves stay
    /// within it: at its start, the first curve is in its exact position, and at its end, the last one.
    fn place(&self, x: f64, y: f64, number: usize, of: usize) -> (f64, f64) {
        let [left, top, right, bottom] = self.frame;
        let shift = self.spread * number as f64 / of.saturating_sub(1).max(1) as f64;
        let width = right - left - 2.0 * INSET - self.spread;
        let height = bottom - top - 2.0 * INSET;
        let across = left + INSET + width * self.x.place(x) + shift;
        (across, bottom - INSET - height * self.y.place(y))
    }

    /// Returns the position of a tick on the x axis.
    fn tick(&self, x: f64) -> f64 {
        let [left, _, right, _] = self.frame;
        left + INSET + (right - left - 2.0 * INSET) * self.x.place(x)
    }
}

impl Chart {
    /// Returns the point to draw, or `None` if it has no place on the axes.
    fn usable(&self, point: &Point) -> Option<Point> {
        let (x, y) = (self.x.scale.usable(point.x)?, self.y.scale.usable(point.y)?);
        let interval = point
            .interval
            .and_then(|(low, high)| Some((self.y.scale.usable(low)?, self.y.scale.usable(high)?)));
        Some(Point { x, y, interval: interval.filter(|(low, high)| low < high) })
    }

    /// Renders the chart as SVG.
    pub(crate) fn svg(&self) -> String {
        let layout = Layout::new(self);
        let mut svg = Svg::new(WIDTH, layout.height, &self.title);
        let title = TextStyle { size: TITLE, anchor: "middle", turned: false };
        let room = WIDTH - 2.0 * EDGE;
        svg.text((WIDTH / 2.0, EDGE + TITLE * 0.8), &self.title, room, title);
        self.draw_axes(&mut svg, &layout);
        for (number, series) in self.series.iter().enumerate() {
            self.draw_series(&mut svg, &layout, number, series);
        }
        self.draw_legend(&mut svg, &layout);
        self.draw_notes(&mut svg, &layout);
        svg.finish()
    }

    fn draw_axes(&self, svg: &mut Svg, layout: &Layout) {
        let [left, top, right, bottom] = layout.frame;
        let style = |anchor| TextStyle { size: NUMBER, anchor, turned: false };
        svg.group("y-ticks", "");
        svg.group("grid", "stroke=\"#dddddd\"");
        let height = |tick: &Tick| layout.place(layout.x.low, tick.value, 0, 1).1;
        for y in layout.y.ticks.iter().map(height) {
            svg.stroke((left, y), (right, y));
        }
        svg.end();
        for tick in &layout.y.ticks {
            let place = (left - 7.0, height(tick) + NUMBER * 0.35);
            svg.text(place, &tick.label, f64::INFINITY, style("end"));
        }
        svg.end();
        svg.group("x-ticks", "");
        svg.group("grid", "stroke=\"#888888\"");
        for x in layout.x.ticks.iter().map(|tick| layout.tick(tick.value)) {
            svg.stroke((x, bottom), (x, bottom + 5.0));
        }
        svg.end();
        for tick in &layout.x.ticks {
            let place = (layout.tick(tick.value), bottom + 6.0 + NUMBER);
            svg.text(place, &tick.label, f64::INFINITY, style("middle"));
        }
        svg.end();
        if self.y.scale == Scale::AroundZero {
            let (_, y) = layout.place(layout.x.low, 0.0, 0, 1);
            svg.group("zero", "stroke=\"#444444\"");
            svg.stroke((left, y), (right, y));
            svg.end();
        }
        svg.frame(layout.frame);
        let name = |turned| TextStyle { size: NAME, anchor: "middle", turned };
        let below = ((left + right) / 2.0, bottom + 24.0 + NUMBER + NAME * 0.5);
        svg.text(below, &self.x.name, right - left, name(false));
        let beside = (EDGE + NAME * 0.8, (top + bottom) / 2.0);
        svg.text(beside, &self.y.name, bottom - top, name(true));
    }

    fn draw_series(&self, svg: &mut Svg, layout: &Layout, number: usize, series: &Series) {
        let place = |x, y| layout.place(x, y, number, self.series.len());
        svg.group("series", &stroke(number));
        // A point without a place interrupts the line.
        for part in series.points.split(|point| self.usable(point).is_none()) {
            let part = part.iter().filter_map(|point| self.usable(point));
            let part: Vec<(f64, f64)> = part.map(|point| place(point.x, point.y)).collect();
            match part.as_slice() {
                [] => {}
                [alone] => svg.circle(*alone, 2.5),
                _ => svg.polyline(&thinned(&part)),
            }
        }
        svg.end();
        let points: Vec<Point> = series.points.iter().filter_map(|p| self.usable(p)).collect();
        if series.marked && points.len() <= MOST_MARKS {
            svg.group("marks", &format!("fill=\"{}\"", color(number)));
            points.iter().for_each(|point| svg.circle(place(point.x, point.y), 3.0));
            svg.end();
        }
        let intervals = points.iter().filter_map(|point| Some((point.x, point.interval?)));
        let intervals: Vec<(f64, (f64, f64))> = intervals.collect();
        if intervals.is_empty() {
            return;
        }
        svg.group("intervals", &format!("stroke=\"{}\"", color(number)));
        for (x, (low, high)) in intervals {
            let (low, high) = (place(x, low), place(x, high));
            svg.stroke(low, high);
            for (x, y) in [low, high] {
                svg.stroke((x - 3.0, y), (x + 3.0, y));
            }
        }
        svg.end();
    }

    /// Draws the names of the curves to the right of the frame.
    fn draw_legend(&self, svg: &mut Svg, layout: &Layout) {
        let [_, top, right, _] = layout.frame;
        let (from, to) = (right + 12.0, right + 12.0 + KEY);
        let style = TextStyle { size: NAME, anchor: "start", turned: false };
        svg.group("legend", "");
        for (number, series) in self.series.iter().enumerate() {
            let y = top + LEGEND_LINE * (number as f64 + 0.5);
            svg.group("key", &stroke(number));
            svg.stroke((from, y), (to, y));
            svg.end();
            if series.marked {
                svg.group("key", &format!("fill=\"{}\"", color(number)));
                svg.circle(((from + to) / 2.0, y), 3.0);
                svg.end();
            }
            svg.text((to + 6.0, y + NAME * 0.35), &series.name, LONGEST_NAME, style);
        }
        svg.end();
    }

    /// Draws notes about data that are not shown.
    fn draw_notes(&self, svg: &mut Svg, layout: &Layout) {
        let [left, top, right, bottom] = layout.frame;
        let points = || self.series.iter().flat_map(|series| &series.points);
        let all = points().count();
        let missing = points().filter(|point| self.usable(point).is_none()).count();
        if missing == all {
            let style = TextStyle { size: NAME, anchor: "middle", turned: false };
            let middle = ((left + right) / 2.0, (top + bottom) / 2.0);
            svg.text(middle, "no points", right - left, style);
        }
        if missing > 0 {
            let points = if missing == 1 { "point is" } else { "points are" };
            let why = match self.x.scale {
                Scale::Logarithmic => "not finite or not positive",
                _ => "not finite",
            };
            let note = format!("{missing} {points} not drawn: {why}");
            let style = TextStyle { size: NUMBER, anchor: "end", turned: false };
            svg.text((WIDTH - EDGE, layout.height - 6.0), &note, WIDTH, style);
        }
    }
}

fn color(number: usize) -> &'static str {
    COLORS[number % COLORS.len()]
}

/// Returns the line style of a curve.
fn stroke(number: usize) -> String {
    let dashes = match DASHES[number / COLORS.len() % DASHES.len()] {
        "" => String::new(),
        dashes => format!(" stroke-dasharray=\"{dashes}\""),
    };
    let color = color(number);
    format!("fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"{dashes} stroke-linejoin=\"round\"")
}

/// Thins a line without changing its look: at most four points per horizontal pixel, namely the first, the
/// lowest, the highest, and the last. This keeps the file small even for a million steps.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut kept = vec![];
    for column in points.chunk_by(|a, b| a.0.round() == b.0.round()) {
        if column.len() <= 4 {
            kept.extend_from_slice(column);
            continue;
        }
        let by_height = |a: &usize, b: &usize| column[*a].1.total_cmp(&column[*b].1);
        let last = column.len() - 1;
        let (low, high) = ((0..=last).min_by(by_height), (0..=last).max_by(by_height));
        let mut indices = [0, low.unwrap_or(0), high.unwrap_or(last), last];
        indices.sort_unstable();
        let mut previous = None;
        for index in indices {
            if previous.replace(index) != Some(index) {
                kept.push(column[index]);
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests;
