//! Rows in a model's own chat format.
//!
//! ```text
//! <|im_start|>user            prompt: the template up to where an answer begins
//! 1 + 1?<|im_end|>
//! <|im_start|>assistant
//! 2<|im_end|>                 answer and end of turn: what the template adds for the answer
//! ```
//!
//! What is trained is found by position: the conversation with the answer must begin with the
//! conversation without it.

use super::chat_template::{ChatTemplate, Message};
use super::template::{Prompt, PromptTemplate, RowTokens};
use super::tokenizer::TextTokenizer;
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::sync::Arc;

/// A chat template with its tokenizer's end of turn and a system prompt.
#[derive(Clone, Debug)]
pub struct ChatFormat {
    template: ChatTemplate,
    system: Option<String>,
    /// What ends an answer: the tokens that the template puts after it, from the first special one
    /// on. Of these the first is trained, the others are left out. Empty where the template ends
    /// no answer; then the tokenizer's end token does.
    ending: Vec<u32>,
    /// A token that ends answers in place of those.
    end: Option<u32>,
    /// The text that all prompts begin with, up to where texts divide, and its tokens in a tokenizer.
    beginning: Arc<(Option<TextTokenizer>, String, Vec<u32>)>,
}

impl ChatFormat {
    /// Tries the template on a conversation, to find what ends an answer.
    ///
    /// # Errors
    /// [`Error::Template`] where the template cannot be used for training: it fails, or the
    /// conversation with an answer does not begin with the conversation without it.
    pub fn new(
        template: ChatTemplate,
        tokenizer: &TextTokenizer,
        system: Option<String>,
    ) -> Result<Self> {
        let mut format = Self::unprobed(template, system);
        format.ending = format.find_ending(tokenizer)?;
        format.find_beginning(tokenizer)?;
        Ok(format)
    }

    /// The same for a template that lays out prompts, whether it can be used for training or not. Where
    /// it cannot, what ends an answer is not known from it, and [`PromptTemplate::row`] says why.
    ///
    /// # Errors
    /// [`Error::Template`] where it fails, or has no place for the system's text.
    pub fn for_prompts(
        template: ChatTemplate,
        tokenizer: &TextTokenizer,
        system: Option<String>,
    ) -> Result<Self> {
        let mut format = Self::unprobed(template, system);
        format.ending = format.find_ending(tokenizer).unwrap_or_default();
        format.find_beginning(tokenizer)?;
        Ok(format)
    }

    fn unprobed(template: ChatTemplate, system: Option<String>) -> Self {
        Self { template, system, ending: vec![], end: None, beginning: Arc::default() }
    }

    /// What ends an answer, from two conversations that have an answer.
    fn find_ending(&self, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
        let probe = |answer| self.texts("A problem.".into(), answer).map(|(_, rest)| rest);
        let (first, second) = (probe("First answer")?, probe("Another one")?);
        // What the two have in common at their end does not depend on the answer.
        let common = first.chars().rev().zip(second.chars().rev()).take_while(|(a, b)| a == b);
        let length: usize = common.map(|(c, _)| c.len_utf8()).sum();
        let ending = tokenizer.encode_marked(&first[first.len() - length..])?;
        let special = ending.iter().position(|token| tokenizer.is_special(*token));
        Ok(special.map_or(vec![], |at| ending[at..].to_vec()))
    }

    /// Finds what all prompts begin with, and refuses a template that leaves the system's text out.
    fn find_beginning(&mut self, tokenizer: &TextTokenizer) -> Result<()> {
        let prompt = |problem: &str| self.template.render(&self.messages(problem.into()), true);
        let (first, second) = (prompt("A problem.")?, prompt("Other words?")?);
        if let Some(system) = self.system.as_deref().filter(|system| !holds(&first, system)) {
            return Err(Error::Template {
                name: self.template.name().to_owned(),
                what: format!("it leaves out the system text \"{}\"", shortened(system)),
                hint: "Ask without it, or give a template that has a place for it".into(),
            });
        }
        let common = first.chars().zip(second.chars()).take_while(|(a, b)| a == b);
        let common: usize = common.map(|(c, _)| c.len_utf8()).sum();
        let beginning = &first[..tokenizer.divided_at(&first[..common])];
        let tokens = tokenizer.encode_marked(beginning)?;
        self.beginning = Arc::new((Some(tokenizer.clone()), beginning.to_owned(), tokens));
        Ok(())
    }

    /// The tokens of a conversation, up to the next answer. The run's system prompt replaces that of
    /// the conversation.
    ///
    /// # Errors
    /// [`Error::Template`] where the template refuses the conversation; what the tokenizer gives.
    pub fn conversation(
        &self,
        tokenizer: &TextTokenizer,
        messages: &[Message],
    ) -> Result<Vec<u32>> {
        let own = |message: &&Message| message.role == "system" && self.system.is_some();
        let system = self.system.iter().map(|text| Message::new("system", text.clone()));
        let hidden = messages.iter().filter(|message| !own(message)).map(|message| {
            Message::new(message.role.clone(), tokenizer.hide_special(&message.content))
        });
        let text = self.template.render(&system.chain(hidden).collect::<Vec<_>>(), true)?;
        Ok(tokenizer.with_bos(tokenizer.encode_marked(&text)?))
    }

    /// The same format with another token in place of the end of turn.
    pub fn with_end_token(mut self, token: u32) -> Self {
        self.end = Some(token);
        self
    }

    /// The template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The conversation up to the answer. The run's system prompt replaces one of the row's own.
    fn messages(&self, prompt: Prompt<'_>) -> Vec<Message> {
        let system = self.system.as_deref().or(prompt.system);
        let system = system.into_iter().map(|text| Message::new("system", text));
        system.chain([Message::new("user", prompt.problem)]).collect()
    }

    /// The tokens of a text that ends where texts divide; its beginning, which all prompts have,
    /// is there already.
    fn encode_shared(&self, tokenizer: &TextTokenizer, text: &str) -> Result<Vec<u32>> {
        let (of, beginning, tokens) = &*self.beginning;
        match text.strip_prefix(beginning.as_str()) {
            Some(rest) if of.as_ref().is_some_and(|of| of.is_same(tokenizer)) => {
                let mut tokens = tokens.clone();
                tokens.extend(tokenizer.encode_marked(rest)?);
                Ok(tokens)
            }
            _ => tokenizer.encode_marked(text),
        }
    }

    /// The texts of prompts and of their conversations with the answer, one after the other.
    fn conversations(&self, answers: &[(Prompt<'_>, &str)]) -> Result<Vec<String>> {
        let with_answer = |(prompt, solution): &(Prompt<'_>, &str)| {
            let mut messages = self.messages(*prompt);
            messages.push(Message::new("assistant", *solution));
            messages
        };
        let all: Vec<Vec<Message>> = answers.iter().map(with_answer).collect();
        let both = |messages: &Vec<Message>| -> [(usize, bool); 2] {
            [(messages.len() - 1, true), (messages.len(), false)]
        };
        let wanted: Vec<(&[Message], bool)> = all
            .iter()
            .flat_map(|messages| both(messages).map(|(end, prompt)| (&messages[..end], prompt)))
            .collect();
        self.template.render_all(&wanted)
    }

    /// The text of the prompt, and that of the answer with all that follows it.
    fn texts(&self, prompt: Prompt<'_>, solution: &str) -> Result<(String, String)> {
        let texts = self.conversations(&[(prompt, solution)])?;
        let rest = self.rest(&texts[0], &texts[1], solution)?.to_owned();
        Ok((texts.into_iter().next().unwrap_or_default(), rest))
    }

    /// The text of the answer with all that follows it.
    fn rest<'a>(&self, prompt: &str, whole: &'a str, solution: &str) -> Result<&'a str> {
        let failed = |what: String, hint: &str| Error::Template {
            name: self.template.name().to_owned(),
            what,
            hint: hint.into(),
        };
        let Some(rest) = whole.strip_prefix(prompt) else {
            return Err(failed(
                format!(
                    "a conversation with its answer does not begin with the same conversation \
                     without it, so what is to be trained cannot be told. Without the answer: \
                     \"{}\". With the answer: \"{}\"",
                    shortened(prompt),
                    shortened(whole)
                ),
                "Give a template that adds the answer and nothing else",
            ));
        };
        // Where the answer does not stand as it is, it may be there with other spaces.
        let is_there = rest.contains(solution) || {
            let (all, before) = (squeezed(whole), squeezed(prompt).len());
            let answer = squeezed(solution);
            all.rfind(&answer).is_some_and(|at| at + answer.len() >= before)
        };
        if !is_there {
            return Err(failed(
                format!(
                    "it leaves out or changes part of the answer. The answer: \"{}\". What the \
                     template makes of it: \"{}\"",
                    shortened(solution),
                    shortened(rest)
                ),
                "Give a template that keeps answers whole, their reasoning included",
            ));
        }
        Ok(rest)
    }

    /// Refuses a template that leaves the row's own system text out.
    fn check_system(&self, prompt_text: &str, prompt: Prompt<'_>) -> Result<()> {
        let Some(system) = prompt.system.filter(|_| self.system.is_none()) else { return Ok(()) };
        if holds(prompt_text, system) {
            return Ok(());
        }
        Err(Error::Template {
            name: self.template.name().to_owned(),
            what: format!("it leaves out the system text \"{}\"", shortened(system)),
            hint: "Leave system texts out with the column system=none, replace them with \
                   data.system_prompt, or give a template that has a place for them"
                .into(),
        })
    }

    /// The row of a prompt's text, and of its conversation with the answer.
    fn row_of(
        &self,
        tokenizer: &TextTokenizer,
        [prompt_text, whole]: [&str; 2],
        solution: &str,
    ) -> Result<RowTokens> {
        let rest = self.rest(prompt_text, whole, solution)?;
        // What prompt and row have in common is encoded once, up to where that makes no difference.
        let shared = tokenizer.divided_at(prompt_text);
        let mut prompt = self.encode_shared(tokenizer, &prompt_text[..shared])?;
        let mut tokens = prompt.clone();
        prompt.extend(tokenizer.encode_marked(&prompt_text[shared..])?);
        tokens.extend(tokenizer.encode_marked(&format!("{}{rest}", &prompt_text[shared..]))?);
        let [prompt, mut tokens] = [prompt, tokens].map(|tokens| tokenizer.with_bos(tokens));
        if !tokens.starts_with(&prompt) {
            // The answer's first letters merged with the prompt's last; when the model is asked,
            // the prompt stands alone.
            tokens = prompt.clone();
            tokens.extend(tokenizer.encode_marked(rest)?);
        }
        if !tokens[prompt.len()..].ends_with(&self.ending) {
            return Err(Error::Template {
                name: self.template.name().to_owned(),
                what: format!("it does not end this answer as others: \"{}\"", shortened(rest)),
                hint: "Give a template that ends every answer alike".into(),
            });
        }
        tokens.truncate(tokens.len() - self.ending.len());
        tokens.push(self.end_token(tokenizer));
        Ok(RowTokens { tokens, prompt: prompt.len() })
    }
}

/// A row's texts with stand-ins for the names of special tokens.
struct Hidden<'a> {
    system: Option<Cow<'a, str>>,
    problem: Cow<'a, str>,
    solution: Cow<'a, str>,
}

impl<'a> Hidden<'a> {
    fn new(tokenizer: &TextTokenizer, prompt: Prompt<'a>, solution: &'a str) -> Self {
        Self {
            system: prompt.system.map(|text| tokenizer.hide_special(text.trim())),
            problem: tokenizer.hide_special(prompt.problem.trim()),
            solution: tokenizer.hide_special(solution.trim()),
        }
    }

    fn prompt(&self) -> Prompt<'_> {
        Prompt { system: self.system.as_deref(), problem: &self.problem }
    }
}

impl PromptTemplate for ChatFormat {
    fn prompt(&self, tokenizer: &TextTokenizer, prompt: Prompt<'_>) -> Result<Vec<u32>> {
        let hidden = Hidden::new(tokenizer, prompt, "");
        let text = self.template.render(&self.messages(hidden.prompt()), true)?;
        self.check_system(&text, hidden.prompt())?;
        Ok(tokenizer.with_bos(tokenizer.encode_marked(&text)?))
    }

    fn row(
        &self,
        tokenizer: &TextTokenizer,
        prompt: Prompt<'_>,
        solution: &str,
    ) -> Result<RowTokens> {
        let hidden = Hidden::new(tokenizer, prompt, solution);
        let texts = self.conversations(&[(hidden.prompt(), &hidden.solution)])?;
        self.check_system(&texts[0], hidden.prompt())?;
        self.row_of(tokenizer, [&texts[0], &texts[1]], &hidden.solution)
    }

    /// The template's thread is asked once for all of them.
    fn rows(
        &self,
        tokenizer: &TextTokenizer,
        answers: &[(Prompt<'_>, &str)],
    ) -> Vec<Result<RowTokens>> {
        let hidden: Vec<Hidden<'_>> = answers
            .iter()
            .map(|(prompt, solution)| Hidden::new(tokenizer, *prompt, solution))
            .collect();
        let laid_out: Vec<(Prompt<'_>, &str)> =
            hidden.iter().map(|row| (row.prompt(), &*row.solution)).collect();
        match self.conversations(&laid_out) {
            Ok(texts) => texts
                .chunks_exact(2)
                .zip(&hidden)
                .map(|(texts, row)| {
                    self.check_system(&texts[0], row.prompt())?;
                    self.row_of(tokenizer, [&texts[0], &texts[1]], &row.solution)
                })
                .collect(),
            // One of them; each for itself, so that it is the right one that fails.
            Err(_) => answers
                .iter()
                .map(|(prompt, solution)| self.row(tokenizer, *prompt, solution))
                .collect(),
        }
    }

    fn end_token(&self, tokenizer: &TextTokenizer) -> u32 {
        let end = self.end.or(self.ending.first().copied());
        end.unwrap_or_else(|| tokenizer.end_token())
    }
}

/// Whether a text holds another, perhaps with other spaces.
fn holds(text: &str, part: &str) -> bool {
    text.contains(part) || squeezed(text).contains(&squeezed(part))
}

/// A text without its white space.
fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// A text for a message: whole, or its two ends.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 1000;
    let count = text.chars().count();
    if count <= 2 * SHOWN {
        return text.to_owned();
    }
    let head: String = text.chars().take(SHOWN).collect();
    let tail: String = text.chars().skip(count - SHOWN).collect();
    format!("{head} [{} characters left out] {tail}", count - 2 * SHOWN)
}
