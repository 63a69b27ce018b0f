//! The normalization of Hendrycks et al. (2021) for MATH, reproduced exactly: a list of textual rules in a
//! fixed order. It knows no mathematics: `1/2` and `0.5` become `\frac{1}{2}`, but `2/4` does not, and the
//! order of a list matters.

/// Returns whether two answers have the same text after the normalization.
///
/// ```
/// use mixdistill::eval::hendrycks_equal;
/// assert!(hendrycks_equal(r"\tfrac12", "1/2"));
/// assert!(hendrycks_equal(r"10\text{ units}", "10"));
/// assert!(!hendrycks_equal("1, 2", "2, 1"));
/// ```
pub fn hendrycks_equal(a: &str, b: &str) -> bool {
    a == b || hendrycks_normalized(a) == hendrycks_normalized(b)
}

/// Returns the normalized text of an answer.
///
/// ```
/// use mixdistill::eval::hendrycks_normalized;
/// assert_eq!(hendrycks_normalized(r"x = \dfrac 3 4"), r"\frac{3}{4}");
/// ```
pub fn hendrycks_normalized(answer: &str) -> String {
    let mut text = answer.replace('\n', "").replace("\\!", "").replace("\\\\", "\\");
    text = text.replace("tfrac", "frac").replace("dfrac", "frac");
    text = text.replace("\\left", "").replace("\\right", "");
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "");
    text = without_unit(text);
    text = text.replace("\\%", "");
    text = text.replace(" .", " 0.").replace("{.", "{0.");
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    // A short name before the only equals sign: `k = 5` is `5`.
    if let Some((name, value)) = text.split_once('=')
        && !value.contains('=')
        && name.chars().count() <= 2
    {
        text = value.to_owned();
    }
    text = with_braced_roots(&text);
    text.retain(|character| character != ' ');
    text = with_braced_fractions(&text);
    if text == "0.5" {
        text = "\\frac{1}{2}".to_owned();
    }
    slash_as_fraction(&text).unwrap_or(text)
}

/// Removes a `\text{ unit}` at the end.
fn without_unit(text: String) -> String {
    match text.split_once("\\text{ ") {
        Some((left, right)) if !right.contains("\\text{ ") => left.to_owned(),
        _ => text,
    }
}

/// Writes `\sqrt3` as `\sqrt{3}`.
pub(super) fn with_braced_roots(text: &str) -> String {
    let mut pieces = text.split("\\sqrt");
    let mut output = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        output.push_str("\\sqrt");
        match piece.chars().next() {
            Some(first) if first != '{' => {
                output.push_str(&format!("{{{first}}}{}", &piece[first.len_utf8()..]));
            }
            _ => output.push_str(piece),
        }
    }
    output
}

/// Writes `\frac12` and `\frac1{72}` as `\frac{1}{2}` and `\frac{1}{72}`. The whole text is unchanged if a
/// `\frac` does not have two arguments.
pub(super) fn with_braced_fractions(text: &str) -> String {
    let mut pieces = text.split("\\frac");
    let mut output = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        output.push_str("\\frac");
        let mut characters = piece.chars();
        match (characters.next(), characters.next()) {
            (Some('{'), _) => output.push_str(piece),
            (Some(over), Some('{')) => {
                output.push_str(&format!("{{{over}}}{}", &piece[over.len_utf8()..]));
            }
            (Some(over), Some(under)) => {
                output.push_str(&format!("{{{over}}}{{{under}}}{}", characters.as_str()));
            }
            _ => return text.to_owned(),
        }
    }
    output
}

/// Writes `a/b` as `\frac{a}{b}` if both are integers and there is nothing else.
pub(super) fn slash_as_fraction(text: &str) -> Option<String> {
    let (over, under) = text.split_once('/')?;
    let (over, under) = (over.parse::<i64>().ok()?, under.parse::<i64>().ok()?);
    (text == format!("{over}/{under}")).then(|| format!("\\frac{{{over}}}{{{under}}}"))
}
