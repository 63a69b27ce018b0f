//! Tables as text of a given width and as Markdown.

use super::{columns, columns_of, shortened};

/// Spaces between two columns of a table.
const GAP: usize = 2;

/// Minimum width of a shortened name, which makes room for figures.
const SHORTEST_NAME: usize = 8;

/// A table whose first column has names, aligned left, and whose other columns have figures, aligned right.
///
/// ```
/// use mixdistill::text::Table;
///
/// let mut table = Table::new(["source", "rows", "tokens"]);
/// table.row(["long", "1800", "279675"]);
/// table.row(["short", "7200", "484216"]);
/// assert_eq!(
///     table.to_text(80),
///     "source  rows  tokens\nlong    1800  279675\nshort   7200  484216"
/// );
/// // Columns that do not fit follow below, with the names repeated.
/// assert_eq!(
///     table.to_text(14),
///     "source  rows\nlong    1800\nshort   7200\n\nsource  tokens\nlong    279675\nshort   484216"
/// );
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Whether the other columns are text as well.
    of_text: bool,
}

impl Table {
    /// Creates a table with these columns and no rows.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        let header = header.into_iter().map(Into::into).collect();
        Self { header, rows: vec![], of_text: false }
    }

    /// Aligns all columns left, as text.
    pub fn of_text(mut self) -> Self {
        self.of_text = true;
        self
    }

    /// Adds a row. Missing cells are empty. Extra cells add columns without a name.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        let count = cells.len().max(self.header.len());
        if count > self.header.len() {
            self.header.resize(count, String::new());
            self.rows.iter_mut().for_each(|row| row.resize(count, String::new()));
        }
        cells.resize(count, String::new());
        self.rows.push(cells);
    }

    /// Returns the names of the columns.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// Returns the rows, each with one cell per column.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// Formats the table in lines of at most `width` terminal columns. Columns that do not fit follow in
    /// further parts, each with the names repeated. Names are shortened in the middle if they leave no room
    /// for a figure; figures are never shortened.
    pub fn to_text(&self, width: usize) -> String {
        let rows: Vec<Vec<String>> =
            std::iter::once(&self.header).chain(&self.rows).map(|row| plain(row)).collect();
        let widest =
            |column: usize| rows.iter().map(|row| columns(&row[column])).max().unwrap_or_default();
        let widths: Vec<usize> = (0..self.header.len()).map(widest).collect();
        let [names, figures @ ..] = widths.as_slice() else { return String::new() };
        let whole = names + figures.iter().map(|figure| figure + GAP).sum::<usize>();
        let names = match whole <= width {
            true => *names,
            // Leave some room for figures, and enough for the widest one.
            false => {
                let largest = figures.iter().max().map_or(0, |figure| figure + GAP);
                let room = width.saturating_sub(largest).min(width * 2 / 5);
                (*names).min(room.max(SHORTEST_NAME))
            }
        };
        let name = |name: &str| shortened(name, names as f64, |c| columns_of(c) as f64);
        let mut parts = vec![];
        let mut first = 1;
        loop {
            // At least one column, even if it does not fit.
            let mut used = names;
            let more = |width_of: &&usize| {
                used += GAP + **width_of;
                used <= width
            };
            let count = figures[first - 1..].iter().take_while(more).count();
            let end = (first + count.max(1)).min(self.header.len());
            let lines = rows.iter().map(|row| {
                let mut line = padded(&name(&row[0]), names, false);
                for column in first..end {
                    line.push_str(&" ".repeat(GAP));
                    line.push_str(&padded(&row[column], widths[column], !self.of_text));
                }
                line.trim_end().to_owned()
            });
            parts.push(lines.collect::<Vec<_>>().join("\n"));
            first = end;
            if first >= self.header.len() {
                return parts.join("\n\n");
            }
        }
    }

    /// Formats the table as Markdown, with a line break at the end.
    pub fn to_markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> =
                cells.iter().map(|cell| markdown_escaped(cell.trim())).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule = |column: usize| match column == 0 || self.of_text {
            true => "---",
            false => "---:",
        };
        let rules: Vec<&str> = (0..self.header.len()).map(rule).collect();
        let mut out = line(&self.header);
        out.push_str(&format!("| {} |\n", rules.join(" | ")));
        self.rows.iter().for_each(|row| out.push_str(&line(row)));
        out
    }
}

/// Escapes text for a Markdown table or paragraph.
pub(crate) fn markdown_escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '|' | '`' | '*' | '_' | '[' => out.extend(['\\', c]),
            '<' => out.push_str("&lt;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Replaces control characters, which would break the line.
fn plain(row: &[String]) -> Vec<String> {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    row.iter().map(|cell| cell.chars().map(plain).collect()).collect()
}

fn padded(text: &str, width: usize, right: bool) -> String {
    let space = " ".repeat(width.saturating_sub(columns(text)));
    if right { space + text } else { text.to_owned() + &space }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["source", "read", "left out", "usable", "(cut)"]);
        table.row(["long", "291", "252", "39", "0"]);
        table.row(["a source with a name that is rather long", "9000", "", "9000", "12"]);
        table.row(["短い答え|x", "5", "0", "5", "0"]);
        table
    }

    #[test]
    fn no_line_is_wider_than_asked_and_no_figure_is_lost() {
        for width in 18..120 {
            let text = table().to_text(width);
            assert!(text.lines().all(|line| columns(line) <= width), "{width}:\n{text}");
            assert!(!text.lines().any(|line| line.ends_with(' ')), "{width}:\n{text}");
            for figure in ["291", "252", "39", "9000", "12", "read", "left out", "usable", "(cut)"]
            {
                assert!(text.contains(figure), "{width}:\n{text}");
            }
            // Each part names its rows.
            for part in text.split("\n\n") {
                assert_eq!(part.lines().count(), 4, "{width}:\n{text}");
                assert!(part.starts_with("source") && part.contains("\nlong"), "{width}:\n{text}");
            }
        }
        // A width of 0 still gives a table.
        assert_eq!(table().to_text(0).split("\n\n").count(), 4);
    }

    #[test]
    fn a_table_that_fits_is_one_part() {
        let text = table().to_text(80);
        assert_eq!(
            text,
            "source                                    read  left out  usable  (cut)\n\
             long                                       291       252      39      0\n\
             a source with a name that is rather long  9000              9000     12\n\
             短い答え|x                                   5         0       5      0"
        );
        let narrow = table().to_text(40);
        assert!(narrow.contains("a source…er long  9000"), "{narrow}");
    }

    #[test]
    fn rows_of_any_length_and_text_make_a_table() {
        let mut table = Table::new(["a", "b"]);
        table.row(["1"]);
        table.row(["1\n2", "x\ty", "3"]);
        assert_eq!(table.to_text(80), "a      b\n1\n1 2  x y  3");
        let markdown = "| a | b |  |\n| --- | ---: | ---: |\n| 1 |  |  |\n| 1 2 | x y | 3 |\n";
        assert_eq!(table.to_markdown(), markdown);
        assert_eq!(Table::default().to_text(80), "");
        let mut text = Table::new(["a", "b"]).of_text();
        text.row(["x", "<b> | `c`"]);
        assert_eq!(text.to_markdown(), "| a | b |\n| --- | --- |\n| x | &lt;b> \\| \\`c\\` |\n");
        assert_eq!(text.to_text(80), "a  b\nx  <b> | `c`");
    }
}
