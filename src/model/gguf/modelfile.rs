//! Writes Modelfiles, from which Ollama creates a model of a GGUF file.
//!
//! Ollama uses Go templates, but chat templates are Jinja. The text between messages is taken from a few
//! conversations that the chat template renders. If these parts do not reproduce the conversations, the
//! Modelfile has no template, and Ollama uses the one in the GGUF file.

use crate::data::{ChatTemplate, Message};
use crate::model::text_model::TextModelFiles;
use std::path::Path;

/// Placeholders that occur in no template.
const SYSTEM: &str = "<system's text>";
const USER: &str = "<user's text>";
const ANSWER: &str = "<assistant's text>";
const LATER: &str = "<user's later text>";

/// Returns the text of a Modelfile at the path `place` for a GGUF file.
pub(super) fn modelfile(files: &TextModelFiles, gguf: &Path, place: &Path) -> String {
    let name = gguf.file_name().unwrap_or_default().to_string_lossy();
    let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let from = match whole(gguf).parent() == whole(place).parent() {
        true => format!("./{name}"),
        false => whole(gguf).display().to_string(),
    };
    let mut text = format!("# ollama create NAME -f Modelfile\nFROM {from}\n\n");
    let bos = files.tokenizer().bos_text();
    let template = match files.chat_template() {
        Some(template) => Parts::of(template, &bos).map(|parts| parts.template()),
        None => {
            let prompt = files.built_in_layout().prompt_text(USER.into());
            let around = prompt.split_once(USER);
            around.map(|(before, after)| {
                format!("{}{{{{ .Prompt }}}}{}", quoted(before), quoted(after))
            })
        }
    };
    match template.filter(|template| !template.contains("\"\"\"")) {
        Some(template) => text.push_str(&format!("TEMPLATE \"\"\"{template}\"\"\"\n\n")),
        None => text.push_str(
            "# The chat template is in the GGUF file; it cannot be expressed as an Ollama template.\n\n",
        ),
    }
    for end in files.end_tokens() {
        if let Some(end) = files.tokenizer().token_text(*end) {
            text.push_str(&format!("PARAMETER stop {end:?}\n"));
        }
    }
    text
}

/// The text that a chat template puts around messages.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    /// Before a conversation without a system message; usually empty.
    opening: String,
    /// Before and after a system message. `None` if the template ignores it.
    around_system: Option<[String; 2]>,
    before_user: String,
    /// Between a user message and the answer.
    to_answer: String,
    after_answer: String,
}

/// Returns the text between the messages of a conversation. `None` if a message is missing or changed.
fn between<const N: usize>(laid_out: &str, texts: [&str; N]) -> Option<Vec<String>> {
    let mut rest = laid_out;
    let mut parts = vec![];
    for text in texts {
        let (before, after) = rest.split_once(text)?;
        parts.push(before.to_owned());
        rest = after;
    }
    parts.push(rest.to_owned());
    Some(parts)
}

impl Parts {
    fn of(template: &ChatTemplate, bos: &str) -> Option<Self> {
        let render = |messages: &[Message]| {
            let text = template.render(messages, true).ok()?;
            // Ollama adds BOS itself.
            Some(text.strip_prefix(bos).unwrap_or(&text).to_owned())
        };
        let [system, user, answer, later] = [
            Message::new("system", SYSTEM),
            Message::new("user", USER),
            Message::new("assistant", ANSWER),
            Message::new("user", LATER),
        ];
        let alone = render(std::slice::from_ref(&user))?;
        let with_system = render(&[system.clone(), user.clone()])?;
        let turns = render(&[user.clone(), answer.clone(), later.clone()])?;
        let all = render(&[system, user, answer, later])?;
        let [before, to_answer] = between(&alone, [USER])?.try_into().ok()?;
        let [_, _, to_later, _] = between(&turns, [USER, ANSWER, LATER])?.try_into().ok()?;
        let of_system: Option<[String; 3]> = match with_system.contains(SYSTEM) {
            true => Some(between(&with_system, [SYSTEM, USER])?.try_into().ok()?),
            false => None,
        };
        // The common end of everything that precedes a user message.
        let before_user = common_end(&before, &to_later);
        let before_user = match &of_system {
            Some([_, to_user, _]) => common_end(&before_user, to_user),
            None => before_user,
        };
        let without = |text: &str| text[..text.len() - before_user.len()].to_owned();
        let parts = Self {
            opening: without(&before),
            around_system: of_system.map(|[before, to_user, _]| [before, without(&to_user)]),
            after_answer: without(&to_later),
            before_user,
            to_answer,
        };
        let made = [
            (&alone, parts.conversation(None, &[USER])),
            (&with_system, parts.conversation(Some(SYSTEM), &[USER])),
            (&turns, parts.conversation(None, &[USER, ANSWER, LATER])),
            (&all, parts.conversation(Some(SYSTEM), &[USER, ANSWER, LATER])),
        ];
        made.iter().all(|(expected, made)| *expected == made).then_some(parts)
    }

    /// Returns a conversation as Ollama renders it with [`Parts::template`].
    fn conversation(&self, system: Option<&str>, turns: &[&str]) -> String {
        let mut text = match (system, &self.around_system) {
            (Some(system), Some([before, after])) => format!("{before}{system}{after}"),
            _ => self.opening.clone(),
        };
        for (index, turn) in turns.iter().enumerate() {
            text.push_str(&match index % 2 {
                0 => format!("{}{turn}{}", self.before_user, self.to_answer),
                _ => format!("{turn}{}", self.after_answer),
            });
        }
        text
    }

    /// Returns the Go template. Ollama appends the answer, followed by the text after the last answer.
    fn template(&self) -> String {
        let Self { opening, around_system, before_user, to_answer, after_answer } = self;
        let [opening, before_user, to_answer, after_answer] =
            [opening, before_user, to_answer, after_answer].map(|text| quoted(text));
        let beginning = match around_system {
            None => opening,
            Some(around) => {
                let [before, after] = around.each_ref().map(|text| quoted(text));
                let otherwise = match opening.as_str() {
                    "" => String::new(),
                    opening => format!("{{{{- else }}}}{opening}"),
                };
                format!(
                    "{{{{- if .System }}}}{before}{{{{ .System }}}}{after}{otherwise}{{{{- end }}}}"
                )
            }
        };
        format!(
            "{beginning}{{{{- range $i, $_ := .Messages }}}}\
             {{{{- if eq .Role \"user\" }}}}{before_user}{{{{ .Content }}}}{to_answer}\
             {{{{- else if eq .Role \"assistant\" }}}}{{{{ .Content }}}}{after_answer}\
             {{{{- end }}}}{{{{- end }}}}"
        )
    }
}

/// Returns a text as an action, so that Go's `{{-` does not trim its spaces.
fn quoted(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!("{{{{ {} }}}}", go_text(text)),
    }
}

/// Returns a text as a Go string literal.
fn go_text(text: &str) -> String {
    let mut spelled = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => spelled.push_str("\\\""),
            '\\' => spelled.push_str("\\\\"),
            '\n' => spelled.push_str("\\n"),
            '\t' => spelled.push_str("\\t"),
            '\r' => spelled.push_str("\\r"),
            c if c.is_control() => spelled.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => spelled.push(c),
        }
    }
    spelled.push('"');
    spelled
}

fn common_end(one: &str, other: &str) -> String {
    let same = one.chars().rev().zip(other.chars().rev()).take_while(|(a, b)| a == b);
    let mut end: Vec<char> = same.map(|(c, _)| c).collect();
    end.reverse();
    end.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_messages_is_found() {
        let chatml = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n\
                      {% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
                      <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\
                      {% endif %}";
        let template = ChatTemplate::new("test", chatml).unwrap();
        let parts = Parts::of(&template, "").unwrap();
        // A common end of all messages becomes part of the next one.
        assert_eq!(parts.before_user, "<|im_end|>\n<|im_start|>user\n");
        assert_eq!(parts.to_answer, "<|im_end|>\n<|im_start|>assistant\n");
        assert_eq!(parts.opening, "<|im_start|>system\nBe kind.");
        let text = parts.template();
        assert!(
            text.contains("{{ \"<|im_end|>\\n<|im_start|>user\\n\" }}{{ .Content }}"),
            "{text}"
        );
        // A template may ignore system messages.
        let plain = "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA: \
                     {% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}";
        let parts = Parts::of(&ChatTemplate::new("test", plain).unwrap(), "").unwrap();
        assert_eq!(parts.around_system, None);
        assert_eq!((parts.before_user.as_str(), parts.after_answer.as_str()), ("Q: ", "</s>"));
        assert!(!parts.template().contains(".System"), "{}", parts.template());
        // A template that counts messages has no such parts.
        let counting = "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}";
        let template = ChatTemplate::new("test", counting).unwrap();
        assert_eq!(Parts::of(&template, ""), None);
    }
}
