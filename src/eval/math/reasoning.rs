//! The end of a model's reasoning. Only the text after it states an answer: inside the reasoning, a model
//! tries answers and drops them again.

use crate::data::chat::reasoning::MARKS;

/// Maximum number of markers to examine in a text.
const MOST: usize = 256;

/// Returns the part of an answer that can state the final answer: the text after the reasoning, or the whole
/// text if it has no reasoning. `None` if the reasoning never ends. `opened_by_prompt` says whether the
/// prompt ended with the opening marker, so that the text starts inside the reasoning.
///
/// An opening marker counts at the beginning of the text or on its own line; elsewhere, the text only
/// mentions it. A closing marker without an opening one also ends a reasoning, which the template opened.
///
/// ```
/// use mixdistill::eval::after_reasoning;
/// assert_eq!(after_reasoning("<think>11? No.</think>12", false), Some("12"));
/// assert_eq!(after_reasoning("11? No.</think>12", false), Some("12"));
/// assert_eq!(after_reasoning("<think>11? Or", false), None);
/// assert_eq!(after_reasoning("11? Or", true), None);
/// assert_eq!(after_reasoning("12, without <think>", false), Some("12, without <think>"));
/// ```
pub fn after_reasoning(text: &str, opened_by_prompt: bool) -> Option<&str> {
    // Byte offsets are the same in both.
    let lower = text.to_ascii_lowercase();
    let mut start = 0;
    let mut inside = opened_by_prompt;
    let mut ended = false;
    let mut at = 0;
    for _ in 0..MOST {
        let Some((place, marker, opens)) = next_marker(&lower, at) else { break };
        at = place + marker.len();
        let before = &text[start.min(place)..place];
        let begins_text = before.trim().is_empty();
        let begins_line = begins_text || before.trim_end_matches([' ', '\t']).ends_with('\n');
        let ends_line = text[at..].trim_start_matches([' ', '\t', '\r']).starts_with('\n')
            || text[at..].trim().is_empty();
        let alone = begins_line && ends_line;
        match (opens, inside) {
            (true, false) if begins_text || alone => inside = true,
            // A pair in the middle: around a passage that begins a line, or only mentioned.
            (true, false) => {
                let closed = closing(marker).and_then(|close| lower[at..].find(close));
                match closed {
                    Some(_) if begins_line => inside = true,
                    Some(length) => at += length + closing(marker).map_or(0, str::len),
                    None => {}
                }
            }
            (true, true) => {}
            (false, _) if inside || !ended || alone => {
                (inside, ended, start) = (false, true, at);
            }
            (false, _) => {}
        }
    }
    (!inside).then(|| &text[start..])
}

fn closing(opening: &str) -> Option<&'static str> {
    MARKS.iter().find(|(open, _)| *open == opening).map(|(_, close)| *close)
}

/// Returns the first marker from `from` on: its position, its text, and whether it opens.
fn next_marker(lower: &str, from: usize) -> Option<(usize, &'static str, bool)> {
    let starts = lower[from..].match_indices(['<', '[', '◁']).map(|(at, _)| from + at);
    starts.into_iter().find_map(|at| {
        let rest = &lower[at..];
        MARKS.iter().find_map(|(open, close)| {
            if rest.starts_with(open) {
                return Some((at, *open, true));
            }
            rest.starts_with(close).then_some((at, *close, false))
        })
    })
}
