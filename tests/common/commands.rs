//! The commands that documents show.
#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

/// A command as a document shows it.
#[derive(Debug)]
pub struct Shown {
    /// The document and the line, as in `docs/data.md:12`.
    pub place: String,
    /// The command in words, as a shell divides it.
    pub words: Vec<String>,
    /// Whether it stands in running text and not in a block.
    pub is_in_text: bool,
}

impl Shown {
    /// The words for the program, which begin with its name; of a command such as `mpirun -np 2 mixdistill train`
    /// those from the name on.
    pub fn of_program(&self) -> Option<Vec<String>> {
        let first = self.words.first()?.as_str();
        let started_by = ["mpirun", "srun", "nohup", "time"].contains(&first);
        let at = match first {
            "cargo"
                if self.words.get(1)? == "run"
                    && !self.words.iter().any(|word| word == "--example") =>
            {
                let at = self.words.iter().position(|word| word == "--")?;
                let rest = self.words[at + 1..].iter().cloned();
                return Some(std::iter::once("mixdistill".to_owned()).chain(rest).collect());
            }
            _ if started_by => self.words.iter().position(|word| word == "mixdistill")?,
            "mixdistill" => 0,
            _ => return None,
        };
        Some(self.words[at..].to_vec())
    }
}

/// The folder of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The documents that people read: those in Markdown, but for the changelog, whose tables have patterns of
/// commands.
pub fn documents() -> Vec<PathBuf> {
    let mut found = vec![repository().join("README.md"), repository().join("CONTRIBUTING.md")];
    below(&repository().join("docs"), &mut found);
    below(&repository().join("tests/parity"), &mut found);
    found.sort();
    assert!(found.len() > 25, "{found:?}");
    found
}

fn below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // The folders of a study that is running have documents of their own.
        if path.is_dir() && !path.ends_with("cells") {
            below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// A document's name within the repository.
pub fn name_of(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string().replace('\\', "/")
}

/// The blocks of a document that are marked with a language, each with the line at which it begins.
pub fn blocks(text: &str, language: &str) -> Vec<(usize, String)> {
    let mut found = vec![];
    let mut open: Option<(String, usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        let mark = line.trim_start().strip_prefix("```");
        match (mark, &mut open) {
            (Some(_), Some(_)) => {
                let (marked, at, block) = open.take().unwrap();
                if marked == language {
                    found.push((at, block));
                }
            }
            (Some(marked), None) => open = Some((marked.to_owned(), number + 2, String::new())),
            (None, Some((_, _, block))) => block.push_str(&format!("{line}\n")),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    found
}

/// The commands of all documents: those of blocks marked `sh`, and those of the program in running text.
pub fn shown() -> Vec<Shown> {
    let mut found = vec![];
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let name = name_of(&path);
        for (at, block) in blocks(&text, "sh") {
            for (line, command) in lines(&block) {
                found.extend(commands(&format!("{name}:{}", at + line), &command));
            }
        }
        found.extend(in_text(&name, &text));
    }
    found
}

/// The lines of a script, those that go on behind a `\` as one.
fn lines(script: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = vec![];
    let mut goes_on = false;
    for (number, line) in script.lines().enumerate() {
        let (line, more) = match line.trim_end().strip_suffix('\\') {
            Some(line) => (line, true),
            None => (line, false),
        };
        match (goes_on, found.last_mut()) {
            (true, Some((_, last))) => last.push_str(line.trim_start()),
            _ => found.push((number, line.to_owned())),
        }
        goes_on = more;
    }
    found
}

/// The commands of a line: several where it has `&&` or `|`, none of what it sets or where it sends output.
pub fn commands(place: &str, line: &str) -> Vec<Shown> {
    let words =
        shlex::split(line).unwrap_or_else(|| panic!("{place}: quotes without an end: {line}"));
    let mut found = vec![];
    for part in words.split(|word| ["&&", "|", "||", ";", "&"].contains(&word.as_str())) {
        let mut words: Vec<String> = vec![];
        for word in part {
            let is_redirection = word.trim_start_matches(['1', '2', '&']).starts_with(['>', '<']);
            if is_redirection {
                break;
            }
            // Variables that are set for the command.
            let is_setting = word.split_once('=').is_some_and(|(name, _)| {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            });
            if !(words.is_empty() && is_setting) {
                words.push(word.clone());
            }
        }
        if !words.is_empty() {
            found.push(Shown { place: place.to_owned(), words, is_in_text: false });
        }
    }
    found
}

/// The program's commands in running text: `` `mixdistill plan --json` ``.
fn in_text(name: &str, text: &str) -> Vec<Shown> {
    let mut found = vec![];
    let mut is_block = false;
    let mut paragraph = String::new();
    let mut at = 1;
    for (number, line) in text.lines().chain([""]).enumerate() {
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
        }
        // A span may go over the end of a line, but not over that of a paragraph.
        if !line.trim().is_empty() && !is_block && !line.trim_start().starts_with("```") {
            paragraph.push_str(&format!("{} ", line.trim()));
            continue;
        }
        for span in paragraph.split('`').skip(1).step_by(2) {
            if span.starts_with("mixdistill ") && !span.starts_with("mixdistill = ") {
                let commands = commands(&format!("{name}:{at}"), span);
                found.extend(commands.into_iter().map(|one| Shown { is_in_text: true, ..one }));
            }
        }
        paragraph.clear();
        at = number + 2;
    }
    found
}
