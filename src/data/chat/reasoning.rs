//! Reasoning and answer, which may be separate in the data and are trained as one text.

/// Field names of separate reasoning.
pub(crate) const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

pub(crate) const OPEN: &str = "<think>";
pub(crate) const CLOSE: &str = "</think>";

/// Reasoning tags of models, the usual one first, all in lower case.
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

/// The markers of Sky-T1, Bespoke-Stratos, and OpenThoughts: around the reasoning, and around the answer.
const THOUGHT: [&str; 2] = ["<|begin_of_thought|>", "<|end_of_thought|>"];
const SOLUTION: [&str; 2] = ["<|begin_of_solution|>", "<|end_of_solution|>"];

/// An answer that may have reasoning between markers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Marked<'a> {
    /// Its reasoning, and what follows it.
    Apart(&'a str, &'a str),
    /// The marker that begins the solution is not closed, or text follows its end.
    CutOff,
    /// It has another form.
    Otherwise,
}

/// Splits an answer with four markers.
pub(crate) fn marked(text: &str) -> Marked<'_> {
    let parts = text.trim().strip_prefix(THOUGHT[0]).and_then(|rest| rest.split_once(THOUGHT[1]));
    let Some((reasoning, rest)) = parts else { return Marked::Otherwise };
    let (reasoning, rest) = (reasoning.trim(), rest.trim());
    match rest.strip_prefix(SOLUTION[0]).map(|rest| rest.strip_suffix(SOLUTION[1])) {
        None => Marked::Apart(reasoning, rest),
        Some(None) => Marked::CutOff,
        Some(Some(answer)) => Marked::Apart(reasoning, answer.trim()),
    }
}

/// Returns whether a system text asks for these markers.
pub(crate) fn asks_for_marks(system: &str) -> bool {
    THOUGHT.iter().all(|mark| system.contains(mark))
}

/// Returns whether a text is a reasoning tag.
pub(crate) fn is_reasoning_mark(text: &str) -> bool {
    let is = |mark: &str| text.trim().eq_ignore_ascii_case(mark);
    MARKS.iter().any(|(open, close)| is(open) || is(close))
}

/// Returns whether a prompt ends with an opening tag, so that an answer begins inside the reasoning.
pub(crate) fn ends_in_reasoning(prompt: &str) -> bool {
    let prompt = prompt.trim_end().to_ascii_lowercase();
    MARKS.iter().any(|(open, _)| prompt.ends_with(open))
}

/// Returns reasoning in its tags followed by the answer: the text to train on.
pub(crate) fn with_reasoning(reasoning: &str, answer: &str) -> String {
    format!("{OPEN}\n{reasoning}\n{CLOSE}\n\n{answer}")
}

/// Splits a text that begins with reasoning. Without a closing tag, all of it is reasoning. Some templates
/// start an answer inside the reasoning, so only its end has a tag. Tags in other places are part of the
/// answer.
pub(crate) fn divided(text: &str) -> (Option<&str>, &str) {
    let text = text.trim();
    let (reasoning, answer) = match (text.strip_prefix(OPEN), text.split_once(CLOSE)) {
        (Some(rest), _) => rest.split_once(CLOSE).unwrap_or((rest, "")),
        (None, Some((before, rest))) if !before.contains(OPEN) && !rest.trim().is_empty() => {
            (before, rest)
        }
        _ => return (None, text),
    };
    (Some(reasoning.trim()), answer.trim())
}

/// Returns whether a text is only reasoning, closed or not, without an answer.
pub(crate) fn is_only_reasoning(text: &str) -> bool {
    let text = text.trim();
    let begins = |(open, _): &&(&str, &str)| {
        text.get(..open.len()).is_some_and(|start| start.eq_ignore_ascii_case(open))
    };
    let Some((open, close)) = MARKS.iter().find(begins) else { return false };
    let rest = text[open.len()..].to_ascii_lowercase();
    rest.find(close).is_none_or(|end| rest[end + close.len()..].trim().is_empty())
}

/// The result of joining a row's reasoning and answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// The text to train on.
    Text(String),
    /// There is reasoning but no answer.
    OnlyReasoning,
    /// The answer has reasoning that differs from the separate reasoning.
    TwoReasonings,
}

/// Joins an answer and its separate reasoning. An answer that repeats the reasoning in its own tags is
/// unchanged.
pub(crate) fn joined(reasoning: &str, answer: &str) -> Joined {
    let bare = match divided(reasoning) {
        // It may already have tags.
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
        (Some(_), _) if answer.trim_start().starts_with(OPEN) => Joined::TwoReasonings,
        _ => Joined::Text(with_reasoning(bare, answer.trim())),
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
        // An answer may be about the tags.
        let closes = "It is </think> that ends it.";
        assert_eq!(text("1+1", closes), format!("<think>\n1+1\n</think>\n\n{closes}"));
        assert_eq!(text("1+1", "1+1\n</think>\n\n2"), "1+1\n</think>\n\n2");
    }

    #[test]
    fn reasoning_in_four_marks_is_taken_apart() {
        let whole = "<|begin_of_thought|>\n\n1+1\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n2\n\
                     <|end_of_solution|>\n";
        assert_eq!(marked(whole), Marked::Apart("1+1", "2"));
        assert_eq!(marked("<|begin_of_thought|>R<|end_of_thought|> A"), Marked::Apart("R", "A"));
        assert_eq!(marked(whole.trim_end().trim_end_matches('>')), Marked::CutOff);
        assert_eq!(marked(&format!("{whole} and more")), Marked::CutOff);
        for other in ["<|begin_of_thought|>R", "A <|begin_of_thought|>R<|end_of_thought|>", "", "A"]
        {
            assert_eq!(marked(other), Marked::Otherwise);
        }
    }

    #[test]
    fn reasoning_is_what_a_text_begins_with() {
        let about = "The tag <think> opens; </think> closes. 13.";
        for (text, reasoning, answer) in [
            (" <think>R</think> A\n", Some("R"), "A"),
            ("R\n</think>\n\nA", Some("R"), "A"),
            ("</think>A", Some(""), "A"),
            ("<think>R", Some("R"), ""),
            ("<think>R</think>", Some("R"), ""),
            ("<think>R <think></think>A </think>", Some("R <think>"), "A </think>"),
            (about, None, about),
            ("It is </think>", None, "It is </think>"),
            (" A ", None, "A"),
        ] {
            assert_eq!(divided(text), (reasoning, answer), "{text}");
        }
        for text in
            ["<think>R", " <Thinking>R", "<think>R</think>\n", "[THINK]R[/THINK]", "<think>"]
        {
            assert!(is_only_reasoning(text), "{text}");
        }
        for text in ["<think>R</think>A", "R</think>", "A <think>", about, "é", "", "<thinker>A"] {
            assert!(!is_only_reasoning(text), "{text}");
        }
    }
}
