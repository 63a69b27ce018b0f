//! A document that can be rendered as HTML and as Markdown.

use crate::chart::escaped;
use crate::text::{Table, markdown_escaped};
use std::fmt::Write;

/// A part of a document.
#[derive(Clone, Debug)]
pub(super) enum Block {
    /// A heading with a level from 1 to 3.
    Heading(u8, String),
    Paragraph(String),
    List(Vec<String>),
    Table {
        caption: String,
        table: Table,
    },
    /// An SVG figure and its file name.
    Figure {
        caption: String,
        name: String,
        svg: String,
    },
    Code(String),
}

/// A document.
#[derive(Clone, Debug, Default)]
pub(super) struct Document {
    pub blocks: Vec<Block>,
}

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: .4rem 0 1.2rem; font-variant-numeric: tabular-nums; }
div.wide { overflow-x: auto; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody tr:nth-child(even) { background: var(--soft); }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; background: #fff; }
figcaption { font-size: .9rem; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; }
";

impl Document {
    pub fn heading(&mut self, level: u8, text: impl Into<String>) {
        self.blocks.push(Block::Heading(level, text.into()));
    }

    pub fn paragraph(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Paragraph(text.into()));
    }

    pub fn table(&mut self, caption: &str, header: &[&str], rows: Vec<Vec<String>>) {
        debug_assert!(
            rows.iter().all(|row| row.len() == header.len()),
            "{caption}: a row has too few or too many cells"
        );
        let mut table = Table::new(header.iter().copied());
        rows.into_iter().for_each(|row| table.row(row));
        self.blocks.push(Block::Table { caption: caption.to_owned(), table });
    }

    pub fn figure(&mut self, caption: &str, name: &str, svg: String) {
        let (caption, name) = (caption.to_owned(), name.to_owned());
        self.blocks.push(Block::Figure { caption, name, svg });
    }

    /// Renders a self-contained HTML file.
    pub fn to_html(&self, title: &str) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = self.write_html(&mut out, title);
        out
    }

    fn write_html(&self, out: &mut String, title: &str) -> std::fmt::Result {
        writeln!(out, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
        writeln!(out, "<meta name=\"viewport\" content=\"width=device-width\">")?;
        writeln!(out, "<title>{}</title>\n<style>{STYLE}</style>", escaped(title))?;
        writeln!(out, "</head>\n<body>")?;
        for block in &self.blocks {
            match block {
                Block::Heading(level, text) => {
                    writeln!(out, "<h{level}>{}</h{level}>", escaped(text))?;
                }
                Block::Paragraph(text) => writeln!(out, "<p>{}</p>", escaped(text))?,
                Block::Code(text) => writeln!(out, "<pre>{}</pre>", escaped(text))?,
                Block::List(items) => {
                    writeln!(out, "<ul>")?;
                    for item in items {
                        writeln!(out, "<li>{}</li>", escaped(item))?;
                    }
                    writeln!(out, "</ul>")?;
                }
                Block::Table { caption, table } => {
                    writeln!(out, "<div class=\"wide\"><table>")?;
                    writeln!(out, "<caption>{}</caption>", escaped(caption))?;
                    let cells = |kind: &str, cells: &[String]| -> String {
                        let cell = |text: &String| format!("<{kind}>{}</{kind}>", escaped(text));
                        cells.iter().map(cell).collect()
                    };
                    writeln!(
                        out,
                        "<thead><tr>{}</tr></thead>\n<tbody>",
                        cells("th", table.header())
                    )?;
                    for row in table.rows() {
                        writeln!(out, "<tr>{}</tr>", cells("td", row))?;
                    }
                    writeln!(out, "</tbody></table></div>")?;
                }
                Block::Figure { caption, svg, .. } => {
                    writeln!(out, "<figure>\n{}", svg.trim_end())?;
                    writeln!(out, "<figcaption>{}</figcaption>\n</figure>", escaped(caption))?;
                }
            }
        }
        writeln!(out, "</body>\n</html>")
    }

    /// Renders Markdown with links to figures in `figures/`.
    pub fn to_markdown(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = self.write_markdown(&mut out);
        out
    }

    fn write_markdown(&self, out: &mut String) -> std::fmt::Result {
        for block in &self.blocks {
            match block {
                Block::Heading(level, text) => {
                    writeln!(
                        out,
                        "{} {}\n",
                        "#".repeat(usize::from(*level)),
                        markdown_escaped(text)
                    )?;
                }
                Block::Paragraph(text) => writeln!(out, "{}\n", markdown_escaped(text))?,
                Block::Code(text) => {
                    // The fence is longer than any in the text.
                    let mut fence = "```".to_owned();
                    while text.contains(&fence) {
                        fence.push('`');
                    }
                    writeln!(out, "{fence}text\n{}\n{fence}\n", text.trim_end())?;
                }
                Block::List(items) => {
                    for item in items {
                        writeln!(out, "- {}", markdown_escaped(item))?;
                    }
                    writeln!(out)?;
                }
                Block::Table { caption, table } => {
                    writeln!(out, "**{}**\n", markdown_escaped(caption))?;
                    writeln!(out, "{}", table.to_markdown())?;
                }
                Block::Figure { caption, name, .. } => {
                    writeln!(out, "![{}](figures/{name}.svg)\n", markdown_escaped(caption))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Document;

    #[test]
    fn what_is_written_comes_out_as_text() {
        let mut document = Document::default();
        document.heading(1, "A & B <script>");
        document.table("c", &["a|b", "x"], vec![vec!["<b>".into(), "1".into()]]);
        document.figure("f", "f", "<svg></svg>".into());
        let html = document.to_html("<t>");
        assert!(html.contains("A &amp; B &lt;script&gt;") && html.contains("<td>&lt;b&gt;</td>"));
        assert!(!html.contains("<script>") && html.contains("<svg>"));
        let markdown = document.to_markdown();
        assert!(markdown.contains("| a\\|b | x |\n| --- | ---: |\n| &lt;b> | 1 |"), "{markdown}");
    }
}
