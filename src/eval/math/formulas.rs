//! Formulas in prose, found by their delimiters. A `$` before an amount of money is not a delimiter.

/// Returns the positions of the formulas, without their delimiters.
pub(super) fn formulas(text: &str) -> Vec<(usize, usize)> {
    const DELIMITERS: [(&str, &str, bool); 4] =
        [("\\[", "\\]", false), ("$$", "$$", false), ("\\(", "\\)", true), ("$", "$", true)];
    // Up to where a formula is known not to close, so that no text is searched twice.
    let mut unclosed = [0; 4];
    let mut line_end = 0;
    let mut found = vec![];
    let mut at = 0;
    while let Some(offset) = text[at..].find(['$', '\\']) {
        at += offset;
        let rest = &text[at..];
        if rest.starts_with("\\$") {
            at += 2;
            continue;
        }
        let Some(kind) = DELIMITERS.iter().position(|(open, ..)| rest.starts_with(open)) else {
            at += 1;
            continue;
        };
        let (open, close, inline) = DELIMITERS[kind];
        let start = at + open.len();
        at = start;
        if start < unclosed[kind] {
            continue;
        }
        if inline && start > line_end {
            line_end = text[start..].find('\n').map_or(text.len(), |end| start + end);
        }
        let limit = if inline { line_end.max(start) } else { text.len() };
        let inside = &text[start..limit];
        let end = inside
            .match_indices(close)
            .find(|(end, _)| close.len() > 1 || !inside[..*end].ends_with('\\'));
        match end {
            Some((end, _)) if open == "$" && is_amount(&inside[..end], &inside[end + 1..]) => {}
            Some((end, _)) => {
                found.push((start, start + end));
                at = start + end + close.len();
            }
            None => unclosed[kind] = limit.max(start + 1),
        }
    }
    found
}

/// Returns whether the text between two `$` is an amount and prose, as in "costs $5 and $x$ is".
fn is_amount(inside: &str, behind: &str) -> bool {
    let rest = inside.trim_start_matches(|c: char| c.is_ascii_digit() || ",.'".contains(c));
    if !inside.starts_with(|c: char| c.is_ascii_digit()) {
        return false;
    }
    let words = rest.trim_start_matches([')', ';', ':', '!', '?', '*', '"']);
    let letters = |text: &str| text.chars().take_while(|c| c.is_alphabetic()).count();
    let next = words.trim_start();
    let spaced = next.len() < words.len();
    // "$5 and $x$", "$5) or $6", "$5 a day, $x$", "$5/hour, $x$", "$5-$10", "$5, $6".
    let prose = spaced && (letters(next) > 1 || next.starts_with("a ") || next.is_empty());
    let per = words.strip_prefix('/').is_some_and(|unit| letters(unit) > 1);
    let range = matches!(words, "" | "-" | "–") && behind.starts_with(|c: char| c.is_ascii_digit());
    prose || per || range
}
