//! Units of measurement: their spellings and factors. `km/h`, `kilometers per hour`, and `\frac{km}{h}` are
//! one unit; meters and kilometers are two. A word that is not a unit is a note, which other modules handle.

use super::words;

/// Maximum number of units in a product.
const MOST: usize = 8;

/// Returns the canonical name of a unit for all of its spellings: its sorted factors with their powers.
/// `None` if any part of it is not a unit.
///
/// A half of the day and a modulus count as units.
pub fn canonical(text: &str) -> Option<String> {
    let text = text.trim();
    if text == "am" || text == "pm" || text.starts_with("mod ") {
        return Some(text.to_owned());
    }
    let mut factors: Vec<(String, i32)> = vec![];
    // The sign of the following powers, and the power that "square" gives the next factor.
    let (mut sign, mut next_power) = (1, 1);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first.is_whitespace() || "·*×⋅~\\,.{}()".contains(first) {
            rest = &rest[first.len_utf8()..];
        } else if first == '/' {
            sign = -1;
            rest = &rest[1..];
        } else if let Some((power, length)) = power(rest) {
            let last = factors.last_mut()?;
            last.1 *= power;
            rest = &rest[length..];
        } else {
            let word = |c: char| c.is_alphabetic() || c == '°' || c == 'Ω';
            let end = rest.find(|c: char| !word(c)).unwrap_or(rest.len());
            let (name, behind) = rest.split_at(end);
            rest = behind;
            match name {
                "" => return None,
                "cdot" | "times" | "left" | "right" => {}
                "per" | "a" | "an" | "each" if !factors.is_empty() => sign = -1,
                "square" | "sq" => next_power = 2,
                "cubic" | "cu" => next_power = 3,
                "squared" => factors.last_mut()?.1 *= 2,
                "cubed" => factors.last_mut()?.1 *= 3,
                "mph" => factors.extend([("mi".into(), sign), ("h".into(), -sign)]),
                "kph" | "kmh" => factors.extend([("km".into(), sign), ("h".into(), -sign)]),
                _ => {
                    factors.push((words::unit(name)?.to_owned(), sign * next_power));
                    next_power = 1;
                }
            }
        }
        if factors.len() > MOST {
            return None;
        }
    }
    if factors.is_empty() || next_power != 1 {
        return None;
    }
    factors.sort();
    let written = |(name, power): &(String, i32)| match power {
        1 => name.clone(),
        _ => format!("{name}^{power}"),
    };
    Some(factors.iter().map(written).collect::<Vec<_>>().join(" "))
}

/// Returns a power after a unit, and its length: `^2`, `^{-2}`, `²`, `⁻¹`.
fn power(text: &str) -> Option<(i32, usize)> {
    const RAISED: [(&str, i32); 5] = [("²", 2), ("³", 3), ("⁻¹", -1), ("⁻²", -2), ("⁻³", -3)];
    if let Some((raised, power)) = RAISED.iter().find(|(raised, _)| text.starts_with(raised)) {
        return Some((*power, raised.len()));
    }
    let behind = text.strip_prefix('^')?.trim_start().trim_start_matches('{');
    let (negative, digits) = match behind.strip_prefix(['-', '−']) {
        Some(digits) => (true, digits),
        None => (false, behind),
    };
    let power = digits.chars().next()?.to_digit(10)? as i32;
    let length = text.len() - digits.len() + 1;
    (!digits[1..].starts_with(|c: char| c.is_ascii_digit()))
        .then_some((if negative { -power } else { power }, length))
}

/// Returns whether a note is the opposite of another, such as an increase and a decrease.
pub fn opposite(a: &str, b: &str) -> bool {
    const OPPOSITES: [(&str, &str); 16] = [
        ("increase", "decrease"),
        ("increased", "decreased"),
        ("gain", "loss"),
        ("profit", "loss"),
        ("left", "right"),
        ("up", "down"),
        ("north", "south"),
        ("east", "west"),
        ("clockwise", "counterclockwise"),
        ("clockwise", "anticlockwise"),
        ("boys", "girls"),
        ("men", "women"),
        ("males", "females"),
        ("wins", "losses"),
        ("heads", "tails"),
        ("odd", "even"),
    ];
    let has = |note: &str, word: &str| note.split(|c: char| !c.is_alphabetic()).any(|w| w == word);
    OPPOSITES.iter().any(|(one, other)| {
        let only = |note, word, missing| has(note, word) && !has(note, missing);
        only(a, one, other) && only(b, other, one) || only(a, other, one) && only(b, one, other)
    })
}

/// Returns the currency that an answer names, if it names exactly one.
pub fn currency(text: &str) -> Option<&'static str> {
    const SIGNS: [(&str, &str); 7] = [
        ("\\$", "dollar"),
        ("€", "euro"),
        ("£", "pound"),
        ("\\pounds", "pound"),
        ("¥", "yen"),
        ("₹", "rupee"),
        ("¢", "cent"),
    ];
    const NAMES: [(&str, &[&str]); 6] = [
        ("dollar", &["dollar", "dollars", "usd", "bucks"]),
        ("euro", &["euro", "euros", "eur"]),
        ("pound", &["gbp"]),
        ("yen", &["yen", "jpy", "yuan"]),
        ("rupee", &["rupee", "rupees", "inr"]),
        ("cent", &["cent", "cents", "pennies"]),
    ];
    let mut found = None;
    let mut several = false;
    let mut note = |name: &'static str| {
        several |= found.is_some_and(|other| other != name);
        found = Some(name);
    };
    SIGNS.iter().filter(|(sign, _)| text.contains(sign)).for_each(|(_, name)| note(name));
    // A single `$` is not a delimiter.
    let plain = text.matches('$').count() - text.matches("\\$").count();
    if plain == 1 && text.starts_with('$') {
        note("dollar");
    }
    for word in text.split(|c: char| !c.is_alphabetic()).filter(|word| word.len() > 2) {
        let lower = word.to_lowercase();
        let name = NAMES.iter().find(|(_, words)| words.contains(&lower.as_str()));
        name.into_iter().for_each(|(name, _)| note(name));
    }
    if several { None } else { found }
}
