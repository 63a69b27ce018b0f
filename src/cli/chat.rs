//! `mixdistill chat`: a conversation in the terminal.

use super::common::{Ended, Session};
use super::lines::{Line, Lines};
use super::speaker::{ModelFlags, SamplingFlags, Speaker, context_length, conversation_tokens};
use clap::Args;
use mixdistill::Result;
use mixdistill::data::Message;

const EXAMPLES: &str = "\
Examples:
  mixdistill chat --model DIR
  mixdistill chat --model DIR --adapter run/adapter --temperature 0.7
  mixdistill chat --model DIR --system \"Answer in one sentence.\" < questions.txt";

/// Chat with a model
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Do not save the typed messages to a history file
    #[arg(long, help_heading = "Answers")]
    no_history: bool,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    // One conversation has one answer at a time.
    let config = flags.sampling.config(1)?;
    session.go_on_with_nothing();
    let files = flags.model.open(false, session)?;
    let files = files.for_length(config.max_new_tokens, &session.context)?;
    let speaker = Speaker::load(files, config, session)?;
    session.screen.rest();
    session.interrupts.idle();
    let (mut lines, trouble) = Lines::open(!flags.no_history);
    if let Some(trouble) = trouble {
        session.warn(&trouble);
    }
    let mut chat = Chat { speaker, session, messages: vec![] };
    chat.header(lines.is_edited());
    let ended = chat.talk(&mut lines);
    if let Some(trouble) = lines.close() {
        session.warn(&trouble);
    }
    ended?;
    Ok(())
}

struct Chat<'a> {
    speaker: Speaker,
    session: &'a Session,
    messages: Vec<Message>,
}

impl Chat<'_> {
    /// Prints which model answers, and how to stop an answer and the chat.
    fn header(&self, is_edited: bool) {
        if self.session.global.quiet {
            return;
        }
        let note = |text: &str| self.session.screen.error_line(text);
        let files = &self.speaker.loaded.files;
        let adapter = files.adapter().map(|path| format!(" with {}", path.display()));
        note(&format!(
            "{}{}, at most {} tokens of conversation",
            files.folder().path().display(),
            adapter.unwrap_or_default(),
            context_length(files)
        ));
        if files.chat_template().is_none() {
            note("no chat template: the model sees only the latest message");
        }
        if is_edited {
            note("Ctrl-C stops an answer, /new starts a new conversation, Ctrl-D or /quit exits");
        }
    }

    /// Reads messages and answers them until the end.
    fn talk(&mut self, lines: &mut Lines) -> Result<()> {
        loop {
            match lines.read()? {
                Line::End => return Ok(()),
                Line::Unusable(why) => self.session.warn(&why),
                Line::Text(text) => match text.trim() {
                    "" => {}
                    "/quit" => return Ok(()),
                    "/new" => {
                        self.messages.clear();
                        self.session.screen.error_line("started a new conversation");
                    }
                    command if is_command(command) => {
                        let known = "/new starts a new conversation, /quit exits";
                        self.session.warn(&format!("unknown command {command}: {known}"));
                    }
                    text => self.answer(text)?,
                },
            }
        }
    }

    /// Answers a message if it fits.
    fn answer(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::new("user", text));
        let prompt = match conversation_tokens(&self.speaker.loaded.files, &self.messages) {
            Ok(prompt) => prompt,
            Err(error) => {
                self.messages.pop();
                self.session.warn(&format!("not sent: {error}"));
                return Ok(());
            }
        };
        let context = context_length(&self.speaker.loaded.files);
        if prompt.len() >= context {
            self.messages.pop();
            let earlier = self.messages.len() / 2;
            let advice = match earlier {
                0 => "Shorten it".into(),
                _ => format!("Shorten it, or drop the {earlier} earlier answers with /new"),
            };
            self.session.warn(&format!(
                "not sent: with this message the conversation has {} tokens, but the model takes \
                 fewer than {context}. {advice}",
                prompt.len()
            ));
            return Ok(());
        }
        let shown = self.speaker.stream(&prompt, self.session)?;
        match shown.emptiness() {
            // An empty turn would only confuse the model.
            Some(why) => {
                self.messages.pop();
                self.session.warn(why);
            }
            None => self.messages.push(Message::new("assistant", shown.text)),
        }
        // Each answer has its own random draws.
        self.speaker.config.seed = self.speaker.config.seed.wrapping_add(1);
        Ok(())
    }
}

/// Returns whether a message is a slash and one word, and so a command rather than a message for the model.
fn is_command(text: &str) -> bool {
    let word = text.strip_prefix('/');
    word.is_some_and(|word| !word.is_empty() && word.chars().all(char::is_alphanumeric))
}
