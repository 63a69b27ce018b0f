//! `mixdistill preview`: rows of each source, with the trained text marked.

use super::common::{Ended, Json, Session, say};
use super::run_flags::{Asked, RunFlags};
use super::speaker::harmless;
use clap::Args;
use mixdistill::recipe::{Preview, PreviewRow};
use mixdistill::text::with_middle_left_out;
use std::io::IsTerminal;

const EXAMPLES: &str = "\
Examples:
  mixdistill preview --model DIR --long L.jsonl --short S.jsonl
  mixdistill preview --config run.toml --rows 5
  mixdistill preview --model DIR --long L.jsonl --short S.jsonl \\
      --set data.sources.long.template_variables.enable_thinking=true";

/// Characters of a part to show at its beginning and at its end.
const SHOWN: [usize; 2] = [1200, 600];

/// Show rows of each source as they will be trained, with the trained text in color or in brackets
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Number of rows to show for each source
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Rows")]
    rows: usize,
    #[command(flatten)]
    run: RunFlags,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let Asked { config, layers, .. } = flags.run.asked(session)?;
    session.go_on_with_nothing();
    let preview = Preview::new(&config, flags.rows, &session.context);
    let preview = preview.map_err(|error| layers.locate(error))?;
    let marks = Marks::of(session);
    say!(session, "template: {}", preview.template);
    for source in &preview.sources {
        let variables: Vec<String> = source
            .template_variables
            .iter()
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        let with = match variables.is_empty() {
            true => String::new(),
            false => format!(", with {}", variables.join(", ")),
        };
        say!(session, "\n{}: {} answers{with}", source.name, source.answers);
        for row in &source.rows {
            say!(session, "\n{}: {}", row.label, figures(row));
            say!(session, "{}", marks.text(row));
        }
    }
    if let Some(question) = &preview.question {
        say!(session, "\n{}: prompt of {} tokens", question.label, question.tokens);
        say!(session, "{}", marks.text(question));
    }
    session.result(&preview)?;
    Ok(())
}

fn figures(row: &PreviewRow) -> String {
    format!("{} tokens, {} trained", row.tokens, row.trained_tokens)
}

/// The marks around trained text.
struct Marks {
    before: &'static str,
    after: &'static str,
}

impl Marks {
    /// Selects bold green if the terminal can show it, else brackets.
    fn of(session: &Session) -> Self {
        let is_terminal = match session.is_json() {
            true => std::io::stderr().is_terminal(),
            false => std::io::stdout().is_terminal(),
        };
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match is_terminal && !is_set("NO_COLOR") && !is_dumb {
            true => Self { before: "\u{1b}[1;32m", after: "\u{1b}[0m" },
            false => Self { before: "[", after: "]" },
        }
    }

    /// Returns the text of a row, with long parts shortened in the middle.
    fn text(&self, row: &PreviewRow) -> String {
        let part = |part: &mixdistill::recipe::PreviewPart| {
            let text = with_middle_left_out(&harmless(&part.text), SHOWN);
            match part.trained {
                true => format!("{}{text}{}", self.before, self.after),
                false => text,
            }
        };
        row.parts.iter().map(part).collect()
    }
}
