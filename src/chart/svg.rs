//! The few elements of SVG that charts need.

use crate::text::{columns_of, shortened};
use std::fmt::Write;

/// Escapes text for XML and HTML. Characters that XML forbids become U+FFFD.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(c),
            c if c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Returns the approximate width of a character in ems. Fonts differ, so it errs on the wide side.
fn ems(c: char) -> f64 {
    match c {
        'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '\'' | '|' | ' ' => 0.35,
        'm' | 'w' | 'M' | 'W' | '%' | '@' | '…' => 0.95,
        _ => match columns_of(c) {
            0 => 0.0,
            1 => 0.64,
            // Scripts with square characters.
            _ => 1.0,
        },
    }
}

/// Returns the approximate width of a text in pixels.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    size * text.chars().map(ems).sum::<f64>()
}

/// The size and placement of a text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TextStyle {
    /// Size in pixels.
    pub size: f64,
    /// `start`, `middle`, or `end`.
    pub anchor: &'static str,
    /// Whether it is rotated to read from bottom to top.
    pub turned: bool,
}

/// An SVG under construction. Positions are in pixels from the top left corner.
#[derive(Debug)]
pub(super) struct Svg(String);

impl Svg {
    /// Creates a white image with an accessible name.
    pub fn new(width: f64, height: f64, name: &str) -> Self {
        let name = escaped(name);
        let mut svg = Self(String::new());
        svg.line(&format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{name}\" \
             font-family=\"sans-serif\" fill=\"#222222\">"
        ));
        svg.line(&format!("<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"));
        svg
    }

    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    /// Starts a group of elements that share `attributes`, up to the matching [`end`](Self::end).
    pub fn group(&mut self, class: &str, attributes: &str) {
        let space = if attributes.is_empty() { "" } else { " " };
        self.line(&format!("<g class=\"{class}\"{space}{attributes}>"));
    }

    pub fn end(&mut self) {
        self.line("</g>");
    }

    pub fn stroke(&mut self, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.line(&format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"));
    }

    pub fn frame(&mut self, [left, top, right, bottom]: [f64; 4]) {
        let (width, height) = (right - left, bottom - top);
        self.line(&format!(
            "<rect class=\"frame\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" \
             height=\"{height:.1}\" fill=\"none\" stroke=\"#888888\"/>"
        ));
    }

    pub fn polyline(&mut self, points: &[(f64, f64)]) {
        let mut places = String::new();
        for (x, y) in points {
            // Writing to a String does not fail.
            let _ = write!(places, " {x:.1},{y:.1}");
        }
        self.line(&format!("<polyline points=\"{}\"/>", places.trim_start()));
    }

    pub fn circle(&mut self, (x, y): (f64, f64), radius: f64) {
        self.line(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>"));
    }

    /// Adds a text, shortened to `room` pixels. Hovering over it shows the full text.
    pub fn text(&mut self, (x, y): (f64, f64), text: &str, room: f64, style: TextStyle) {
        let TextStyle { size, anchor, turned } = style;
        let turn =
            if turned { format!(" transform=\"rotate(-90 {x:.1} {y:.1})\"") } else { "".into() };
        let shown = shortened(text, room / size, ems);
        let whole = match shown == text {
            true => String::new(),
            false => format!("<title>{}</title>", escaped(text)),
        };
        self.line(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\"{turn}>\
             {whole}{}</text>",
            escaped(&shown)
        ));
    }

    pub fn finish(mut self) -> String {
        self.line("</svg>");
        self.0
    }
}
