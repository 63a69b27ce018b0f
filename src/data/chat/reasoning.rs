//! Reasoning and answer, which may come apart and are trained as one text.

/// Names under which reasoning stands beside an answer.
pub(crate) const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

pub(crate) const OPEN: &str = "<think>";
pub(crate) const CLOSE: &str = "</think>";

/// The marks around reasoning that models use: the usual one first, all in lower case.
pub(crate) const MARKS: [(&str, &str); 11] = [
    (OPEN, CLOSE),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[think]", "[/think]"),
    ("◁think▷", "◁/think▷"),
    ("<scratchpad>", "</scratchpad>"),
    ("<|channel|>analysis", "<|channel|>final<|message|>"),
    ("<seed:think>", "</seed:think>"),
];

/// Whether a text is one of the marks.
pub(crate) fn is_reasoning_mark(text: &str) -> bool {
    let is = |mark: &str| text.trim().eq_ignore_ascii_case(mark);
    MARKS.iter().any(|(open, close)| is(open) || is(close))
}

/// Whether a prompt ends with a mark that opens reasoning, so that an answer begins within it.
pub(crate) fn ends_in_reasoning(prompt: &str) -> bool {
    let prompt = prompt.trim_end().to_ascii_lowercase();
    MARKS.iter().any(|(open, _)| prompt.ends_with(open))
}

/// Reasoning in its marks, then the answer: the text that is trained on.
pub(crate) fn with_reasoning(reasoning: &str, answer: &str) -> String {
    format!("{OPEN}\n{reasoning}\n{CLOSE}\n\n{answer}")
}

/// Reasoning and answer of a text. Some templates begin an answer within the reasoning, so that only
/// its end is marked; without an end all of it is reasoning.
pub(crate) fn divided(text: &str) -> (Option<&str>, &str) {
    let text = text.trim();
    let (opened, rest) = match text.strip_prefix(OPEN) {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    match rest.split_once(CLOSE) {
        Some((reasoning, content)) => (Some(reasoning.trim()), content.trim()),
        None if opened => (Some(rest.trim()), ""),
        None => (None, text),
    }
}

/// How reasoning and answer of a row go together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// The text to train on.
    Text(String),
    /// There is reasoning and no answer.
    OnlyReasoning,
    /// The answer holds another reasoning than the one beside it.
    TwoReasonings,
}

/// The text to train on, of an answer and the reasoning beside it. An answer that repeats the
/// reasoning in its own marks stays as it is.
pub(crate) fn joined(reasoning: &str, answer: &str) -> Joined {
    let bare = match divided(reasoning) {
        // The marks may stand around it already.
        (Some(inner), "") => inner,
        _ => reasoning.trim(),
    };
    if answer.trim().is_empty() {
        return if bare.is_empty() { Joined::Text(String::new()) } else { Joined::OnlyReasoning };
    }
    match divided(answer) {
        _ if bare.is_empty() => Joined::Text(answer.to_owned()),
        (Some(""), rest) => Joined::Text(with_reasoning(bare, rest)),
        (Some(inner), _) if same_words(inner, bare) => Joined::Text(answer.to_owned()),
        (Some(_), _) => Joined::TwoReasonings,
        (None, answer) => Joined::Text(with_reasoning(bare, answer)),
    }
}

fn same_words(a: &str, b: &str) -> bool {
    a.split_whitespace().eq(b.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_is_joined_once() {
        let text = |reasoning, answer| match joined(reasoning, answer) {
            Joined::Text(text) => text,
            other => panic!("{other:?}"),
        };
        let whole = "<think>\n1+1\n</think>\n\n2";
        assert_eq!(text("1+1", "2"), whole);
        assert_eq!(text(" 1+1\n", " 2 "), whole);
        assert_eq!(text("<think>\n1+1\n</think>", "2"), whole);
        assert_eq!(text("1+1", whole), whole);
        assert_eq!(text("1+1", "<think>\n\n</think>\n\n2"), whole);
        assert_eq!(text("  ", "2"), "2");
        assert_eq!(joined("1+1", " "), Joined::OnlyReasoning);
        assert_eq!(joined("1+1", "<think>other</think>2"), Joined::TwoReasonings);
    }
}
