//! Rows in a model's own chat format.
//!
//! ```text
//! <|im_start|>user            prompt: the template up to where an answer begins
//! 1 + 1?<|im_end|>
//! <|im_start|>assistant
//! 2<|im_end|>                 answer and end of turn: what the template adds for the answer
//! ```
//!
//! Trained tokens are found by position: if the conversation with the answer begins with the conversation
//! without it, they are all that follows. A template may lay out earlier answers differently from how a model
//! writes them, without their reasoning or without the opening tag in the prompt. Then reasoning and answer
//! follow the prompt in the form that the template itself shows (see [`AnswerForm`]), without the part that
//! is already in the prompt.

use super::answer_form::{AnswerForm, Written};
use super::chat_template::ChatTemplate;
use super::message::{Beside, Message, ReasoningPlace};
use super::reasoning::{CLOSE, OPEN, divided, with_reasoning};
use super::template::{EarlierTurn, Prompt, PromptTemplate, RowTokens};
use super::tokenizer::TextTokenizer;
use crate::error::{Error, Result};
use crate::text::with_middle_left_out;
use std::borrow::Cow;
use std::sync::Arc;

/// A chat template with its end of turn and a system prompt.
#[derive(Clone, Debug)]
pub struct ChatFormat {
    template: ChatTemplate,
    system: Option<String>,
    /// The end of an answer: the tokens that the template adds after it, starting with the first special one.
    /// Only that one is trained, and the others are dropped. Empty if the template does not end answers; then
    /// the tokenizer's end token does.
    ending: Vec<u32>,
    /// The text that begins with these tokens.
    after: String,
    /// The form of reasoning and answer. `None` if the template does not show it.
    form: Option<AnswerForm>,
    /// An end token that replaces the template's.
    end: Option<u32>,
    /// The common beginning of all prompts, up to a point where text divides, and its tokens in a tokenizer.
    beginning: Arc<(Option<TextTokenizer>, String, Vec<u32>)>,
}

impl ChatFormat {
    /// Creates the format, and probes the template with conversations to find what ends an answer.
    ///
    /// # Errors
    /// [`Error::Template`] if the template is unsuitable for training: it fails, or the conversation with an
    /// answer does not begin with the conversation without it, apart from reasoning tags.
    pub fn new(
        template: ChatTemplate,
        tokenizer: &TextTokenizer,
        system: Option<String>,
    ) -> Result<Self> {
        let mut format = Self::unprobed(template, system);
        format.learn(tokenizer)?;
        format.find_beginning(tokenizer)?;
        Ok(format)
    }

    /// Like [`ChatFormat::new`], for prompts only. The template may be unsuitable for training: then the end
    /// of an answer is unknown, and [`PromptTemplate::row`] gives the reason.
    ///
    /// # Errors
    /// [`Error::Template`] if it fails or does not support the system text.
    pub fn for_prompts(
        template: ChatTemplate,
        tokenizer: &TextTokenizer,
        system: Option<String>,
    ) -> Result<Self> {
        let mut format = Self::unprobed(template, system);
        // Each row reports the reason again.
        let _ = format.learn(tokenizer);
        format.find_beginning(tokenizer)?;
        Ok(format)
    }

    fn unprobed(template: ChatTemplate, system: Option<String>) -> Self {
        Self {
            template,
            system,
            ending: vec![],
            after: String::new(),
            form: None,
            end: None,
            beginning: Arc::default(),
        }
    }

    /// Learns the form and the end of answers from sample conversations.
    fn learn(&mut self, tokenizer: &TextTokenizer) -> Result<()> {
        const PROBLEM: &str = "A problem.";
        let asked = self.messages(PROBLEM.into());
        let prompt = self.template.render(&asked, true)?;
        let form = AnswerForm::learned(&self.template, &asked, &prompt);
        // The prompt without its part of the answer.
        let (start, _) = form.written(&prompt, PROBLEM);
        let header = Some(prompt[..start].trim_end()).filter(|_| start < prompt.len());
        let probe = |answer| -> Result<String> {
            let [prompt, whole] = self.conversation_texts(PROBLEM.into(), answer)?;
            let turn = || header.and_then(|header| whole.strip_prefix(header));
            match (self.rest(&prompt, &whole, answer), turn()) {
                (Ok(rest), _) => Ok(rest.to_owned()),
                (Err(_), Some(turn)) if turn.contains(answer) => Ok(turn.to_owned()),
                (Err(error), _) => Err(error),
            }
        };
        let (first, second) = (probe("First answer")?, probe("Another one")?);
        // Their common suffix does not depend on the answer.
        let common = first.chars().rev().zip(second.chars().rev()).take_while(|(a, b)| a == b);
        let length: usize = common.map(|(c, _)| c.len_utf8()).sum();
        self.after = first[first.len() - length..].to_owned();
        let ending = tokenizer.encode_marked(&self.after)?;
        let special = ending.iter().position(|token| tokenizer.is_special(*token));
        self.ending = special.map_or(vec![], |at| ending[at..].to_vec());
        self.form = Some(form);
        let is_alike = |text, answer| ends_with(&[text], &[answer, &self.after]);
        if is_alike(&first, "First answer") && is_alike(&second, "Another one") {
            return Ok(());
        }
        Err(Error::Template {
            name: self.template.name().to_owned(),
            what: format!(
                "the text after an answer depends on the answer, so the end of an answer cannot be \
                 determined. After one: \"{}\". After another: \"{}\"",
                shortened(&first),
                shortened(&second)
            ),
            hint: "Give a template that ends every answer the same way".into(),
        })
    }

    /// Finds the common beginning of all prompts, and refuses a template that drops the system text.
    fn find_beginning(&mut self, tokenizer: &TextTokenizer) -> Result<()> {
        let prompt = |problem: &str| self.template.render(&self.messages(problem.into()), true);
        let (first, second) = (prompt("A problem.")?, prompt("Other words?")?);
        if let Some(system) = self.system.as_deref().filter(|system| !holds(&first, system)) {
            return Err(Error::Template {
                name: self.template.name().to_owned(),
                what: format!("it leaves out the system text \"{}\"", shortened(system)),
                hint: "Remove the system text, or give a template that supports it".into(),
            });
        }
        let common = first.chars().zip(second.chars()).take_while(|(a, b)| a == b);
        let common: usize = common.map(|(c, _)| c.len_utf8()).sum();
        let beginning = &first[..tokenizer.divided_at(&first[..common])];
        let tokens = tokenizer.encode_marked(beginning)?;
        self.beginning = Arc::new((Some(tokenizer.clone()), beginning.to_owned(), tokens));
        Ok(())
    }

    /// Returns the tokens of a conversation, up to the next answer. The run's system prompt replaces that of
    /// the conversation.
    ///
    /// # Errors
    /// [`Error::Template`] if the template rejects the conversation; errors of the tokenizer.
    pub fn conversation(
        &self,
        tokenizer: &TextTokenizer,
        messages: &[Message],
    ) -> Result<Vec<u32>> {
        let own = |message: &&Message| message.role == "system" && self.system.is_some();
        let system = self.system.iter().map(|text| Message::new("system", text.clone()));
        let hidden = messages.iter().filter(|message| !own(message)).map(|message| {
            match message.role.as_str() {
                "assistant" => {
                    self.earlier_answer(&hide_special_of_answer(tokenizer, &message.content))
                }
                _ => Message::new(message.role.clone(), tokenizer.hide_special(&message.content)),
            }
        });
        let text = self.template.render(&system.chain(hidden).collect::<Vec<_>>(), true)?;
        Ok(tokenizer.with_bos(tokenizer.encode_marked(&text)?))
    }

    /// Replaces the end-of-turn token.
    pub fn with_end_token(mut self, token: u32) -> Self {
        self.end = Some(token);
        self
    }

    /// Returns the template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Returns the conversation up to the answer. The run's system prompt replaces that of the row.
    fn messages(&self, prompt: Prompt<'_>) -> Vec<Message> {
        let system = self.system.as_deref().or(prompt.system);
        let system = system.into_iter().map(|text| Message::new("system", text));
        let earlier = prompt.earlier.iter().flat_map(|turn| {
            [Message::new("user", turn.problem.as_str()), self.earlier_answer(&turn.solution)]
        });
        system.chain(earlier).chain([Message::new("user", prompt.problem)]).collect()
    }

    /// Returns an earlier answer, with its reasoning where the template expects it.
    fn earlier_answer(&self, text: &str) -> Message {
        let place = self.form.as_ref().and_then(|form| form.place);
        match (place, divided(text)) {
            (Some(place), (Some(reasoning), answer))
                if !reasoning.is_empty() && !answer.is_empty() =>
            {
                let beside = Some(Beside { place, text: reasoning.to_owned() });
                Message { beside, ..Message::new("assistant", answer) }
            }
            _ => Message::new("assistant", text),
        }
    }

    /// Encodes text that ends where text divides. The tokens of its beginning, which all prompts share, are
    /// cached.
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

    /// Returns the texts of prompts and of the conversations with their answers, alternating.
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

    /// Returns the text of a prompt, and that of the conversation with its answer.
    fn conversation_texts(&self, prompt: Prompt<'_>, solution: &str) -> Result<[String; 2]> {
        let mut texts = self.conversations(&[(prompt, solution)])?.into_iter();
        Ok(std::array::from_fn(|_| texts.next().unwrap_or_default()))
    }

    /// Returns the text that a model writes after the prompt: reasoning, answer, and end. `whole` is the
    /// template's text of the conversation with the answer.
    fn written_by_the_model<'w>(
        &self,
        prompt: &str,
        whole: &'w str,
        row: &Hidden<'_>,
    ) -> Result<Cow<'w, str>> {
        let as_it_is = || self.rest(prompt, whole, &row.solution).map(Cow::Borrowed);
        let Some(form) = &self.form else { return as_it_is() };
        let (_, written) = form.written(prompt, &row.problem);
        let (reasoning, answer) = (row.reasoning.as_deref(), &*row.answer);
        let is_closed = matches!(written, Written::Closed(_));
        let is_opened = matches!(written, Written::Opened(_));
        match reasoning {
            Some("") if is_closed => {
                // The prompt already has it.
                let [prompt, whole] = self.conversation_texts(row.prompt(), answer)?;
                if let Ok(rest) = self.rest(&prompt, &whole, answer) {
                    return Ok(Cow::Owned(rest.to_owned()));
                }
            }
            Some(_) if is_closed => return Err(self.not_to_reason(prompt)),
            // The template has its own tags for the reasoning in the row.
            Some(_) if row.hides_marks || !form.is_usual() => {}
            // Use one form for all reasoning, regardless of where a row has it.
            Some(reasoning) if form.place.is_some() && (!reasoning.is_empty() || is_opened) => {}
            _ => match as_it_is() {
                Ok(rest) if reasoning.is_none() || form.is_once(written, &rest, &row.solution) => {
                    return Ok(rest);
                }
                Err(error) if reasoning.is_none() && written == Written::Nothing => {
                    let rest = self.with_marks_as_words(row)?;
                    return rest.map(Cow::Owned).ok_or(error);
                }
                _ => {}
            },
        }
        if let Some((place, reasoning)) = form.place.zip(reasoning)
            && let Some(rest) = self.with_reasoning_apart(prompt, row, place, reasoning)?
        {
            return Ok(Cow::Owned(rest));
        }
        if !form.is_known {
            return as_it_is();
        }
        let rest = form.rest(written, reasoning, answer);
        let rest = rest.ok_or_else(|| self.not_to_reason(prompt))?;
        Ok(Cow::Owned(rest + &self.after))
    }

    /// Returns the text after the prompt if tags in the answer are plain words, hidden from the template.
    /// `None` if there are none, or if the template changes them anyway.
    fn with_marks_as_words(&self, row: &Hidden<'_>) -> Result<Option<String>> {
        /// Noncharacters, which never occur in text.
        const STAND_INS: [(&str, &str); 2] = [(OPEN, "\u{fdd0}"), (CLOSE, "\u{fdd1}")];
        let hide = |text: String, (mark, stand_in): (&str, &str)| text.replace(mark, stand_in);
        let show = |text: String, (mark, stand_in): (&str, &str)| text.replace(stand_in, mark);
        let hidden = STAND_INS.into_iter().fold(row.solution.to_string(), hide);
        if hidden == row.solution {
            return Ok(None);
        }
        let [prompt, whole] = self.conversation_texts(row.prompt(), &hidden)?;
        let rest = self.rest(&prompt, &whole, &hidden).ok();
        Ok(rest.map(|rest| STAND_INS.into_iter().fold(rest.to_owned(), show)))
    }

    /// Returns the text after the prompt if the template takes reasoning separately. `None` if it drops any
    /// text, repeats it, or begins differently.
    fn with_reasoning_apart(
        &self,
        prompt: &str,
        row: &Hidden<'_>,
        place: ReasoningPlace,
        reasoning: &str,
    ) -> Result<Option<String>> {
        let Some(form) = &self.form else { return Ok(None) };
        let mut messages = self.messages(row.prompt());
        let beside = Some(Beside { place, text: reasoning.to_owned() });
        messages.push(Message { beside, ..Message::new("assistant", &*row.answer) });
        let whole = self.template.render(&messages, false)?;
        let Some(rest) = whole.strip_prefix(prompt) else { return Ok(None) };
        let is_whole = form.holds_once(rest, reasoning, &row.answer, &self.after);
        Ok(is_whole.then(|| rest.to_owned()))
    }

    /// Returns the error for a row with reasoning if the prompt excludes it.
    fn not_to_reason(&self, prompt: &str) -> Error {
        Error::Template {
            name: self.template.name().to_owned(),
            what: format!(
                "the answer has reasoning, but the prompt has already closed it, as with thinking \
                 turned off. The prompt: \"{}\"",
                shortened(prompt)
            ),
            hint: "Turn thinking on for this source, with template_variables = \
                   { enable_thinking = true } or the template's own variable, or drop the reasoning \
                   (columns.reasoning = \"none\")"
                .into(),
        }
    }

    /// Returns the text of the answer and everything after it.
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
                     without it, so the text to train on cannot be determined. Without the answer: \
                     \"{}\". With the answer: \"{}\"",
                    shortened(prompt),
                    shortened(whole)
                ),
                "Give a template that appends the answer and changes nothing else",
            ));
        };
        // If the answer is not there verbatim, it may be there with different white space.
        let is_there = rest.contains(solution) || {
            let (all, before) = (squeezed(whole), squeezed(prompt).len());
            let answer = squeezed(solution);
            all.rfind(&answer).is_some_and(|at| at + answer.len() >= before)
        };
        if !is_there {
            return Err(failed(
                format!(
                    "it leaves out or changes part of the answer. The answer: \"{}\". The \
                     template's text: \"{}\"",
                    shortened(solution),
                    shortened(rest)
                ),
                "Give a template that keeps answers complete, including their reasoning",
            ));
        }
        Ok(rest)
    }

    /// Refuses a template that drops the row's own system text.
    fn check_system(&self, prompt_text: &str, prompt: Prompt<'_>) -> Result<()> {
        let Some(system) = prompt.system.filter(|_| self.system.is_none()) else { return Ok(()) };
        if holds(prompt_text, system) {
            return Ok(());
        }
        Err(Error::Template {
            name: self.template.name().to_owned(),
            what: format!("it leaves out the system text \"{}\"", shortened(system)),
            hint: "Ignore system texts with the column system=none, replace them with \
                   data.system_prompt, or give a template that supports them"
                .into(),
        })
    }

    /// Encodes a row from the text of its prompt and of the conversation with its answer.
    fn row_of(
        &self,
        tokenizer: &TextTokenizer,
        [prompt_text, whole]: [&str; 2],
        row: &Hidden<'_>,
    ) -> Result<RowTokens> {
        self.check_system(prompt_text, row.prompt())?;
        let rest = &*self.written_by_the_model(prompt_text, whole, row)?;
        // The common part of prompt and row is encoded once, up to a point where that makes no difference.
        let shared = tokenizer.divided_at(prompt_text);
        let mut prompt = self.encode_shared(tokenizer, &prompt_text[..shared])?;
        let mut tokens = prompt.clone();
        prompt.extend(tokenizer.encode_marked(&prompt_text[shared..])?);
        tokens.extend(tokenizer.encode_marked(&format!("{}{rest}", &prompt_text[shared..]))?);
        let [prompt, mut tokens] = [prompt, tokens].map(|tokens| tokenizer.with_bos(tokens));
        if !tokens.starts_with(&prompt) {
            // The beginning of the answer merged with the end of the prompt. At inference, the prompt is
            // encoded alone.
            tokens = prompt.clone();
            tokens.extend(tokenizer.encode_marked(rest)?);
        }
        let is_ended = ends_with(&[prompt_text, rest], &[&row.answer, &self.after]);
        if !is_ended || !tokens[prompt.len()..].ends_with(&self.ending) {
            return Err(Error::Template {
                name: self.template.name().to_owned(),
                what: format!("it ends this answer unlike others: \"{}\"", shortened(rest)),
                hint: "Give a template that ends every answer the same way".into(),
            });
        }
        tokens.truncate(tokens.len() - self.ending.len());
        tokens.push(self.end_token(tokenizer));
        Ok(RowTokens { tokens, prompt: prompt.len() })
    }
}

/// The texts of a row, with stand-ins for the names of special tokens.
struct Hidden<'a> {
    system: Option<Cow<'a, str>>,
    earlier: Vec<EarlierTurn>,
    problem: Cow<'a, str>,
    /// Reasoning and answer, as in the row.
    solution: Cow<'a, str>,
    /// Only the reasoning, if any.
    reasoning: Option<Cow<'a, str>>,
    /// Only the answer.
    answer: Cow<'a, str>,
    /// Whether reasoning tags in the row are hidden because they are special tokens.
    hides_marks: bool,
}

impl<'a> Hidden<'a> {
    fn new(tokenizer: &TextTokenizer, prompt: Prompt<'a>, solution: &'a str) -> Self {
        let (reasoning, answer) = divided(solution);
        Self {
            system: prompt.system.map(|text| tokenizer.hide_special(text.trim())),
            earlier: prompt.earlier.iter().map(|turn| hidden_turn(tokenizer, turn)).collect(),
            problem: tokenizer.hide_special(prompt.problem.trim()),
            solution: tokenizer.hide_special(solution.trim()),
            reasoning: reasoning.map(|text| tokenizer.hide_special(text)),
            answer: tokenizer.hide_special(answer),
            hides_marks: hides_marks(tokenizer),
        }
    }

    fn prompt(&self) -> Prompt<'_> {
        Prompt { system: self.system.as_deref(), earlier: &self.earlier, problem: &self.problem }
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
        let [prompt, whole] = self.conversation_texts(hidden.prompt(), &hidden.solution)?;
        self.row_of(tokenizer, [&prompt, &whole], &hidden)
    }

    /// Uses a single request to the template's thread.
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
                .map(|(texts, row)| self.row_of(tokenizer, [&texts[0], &texts[1]], row))
                .collect(),
            // One of them failed. Render each on its own to report the right one.
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

/// Returns an earlier exchange with stand-ins for the names of special tokens.
fn hidden_turn(tokenizer: &TextTokenizer, turn: &EarlierTurn) -> EarlierTurn {
    EarlierTurn {
        problem: tokenizer.hide_special(turn.problem.trim()).into_owned(),
        solution: hide_special_of_answer(tokenizer, turn.solution.trim()).into_owned(),
    }
}

/// Returns whether reasoning tags are names of special tokens.
fn hides_marks(tokenizer: &TextTokenizer) -> bool {
    [OPEN, CLOSE].iter().any(|mark| tokenizer.hide_special(mark) != *mark)
}

/// Returns an answer with stand-ins for the names of special tokens, except for its reasoning tags.
fn hide_special_of_answer<'a>(tokenizer: &TextTokenizer, text: &'a str) -> Cow<'a, str> {
    match divided(text) {
        (Some(reasoning), answer) if hides_marks(tokenizer) => {
            let [reasoning, answer] = [reasoning, answer].map(|text| tokenizer.hide_special(text));
            Cow::Owned(with_reasoning(&reasoning, &answer))
        }
        _ => tokenizer.hide_special(text),
    }
}

/// Returns whether a text contains another, ignoring white space.
fn holds(text: &str, part: &str) -> bool {
    text.contains(part) || squeezed(text).contains(&squeezed(part))
}

/// Returns whether concatenated texts end with these parts, ignoring white space.
fn ends_with(texts: &[&str], parts: &[&str]) -> bool {
    let mut end = letters_from_the_end(texts);
    letters_from_the_end(parts).all(|c| end.next() == Some(c))
}

fn letters_from_the_end<'a>(texts: &'a [&str]) -> impl Iterator<Item = char> + 'a {
    texts.iter().rev().flat_map(|text| text.chars().rev()).filter(|c| !c.is_whitespace())
}

/// Returns a text without its white space.
fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Returns a text for a message: complete, or its two ends.
fn shortened(text: &str) -> String {
    with_middle_left_out(text, [1000, 1000])
}
