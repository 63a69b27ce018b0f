//! Dates. `2024-05-06` is a date rather than a subtraction.

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// Returns the canonical spelling of a date: year, month, and day. For `5/6/2024`, the three numbers stay as
/// they are, since either the day or the month may come first.
pub fn date(text: &str) -> Option<String> {
    const LONGEST: usize = 64;
    if text.len() > LONGEST {
        return None;
    }
    let mut text = text.trim().trim_end_matches('.').to_lowercase();
    for command in ["\\text{", "\\mbox{", "\\mathrm{", "\\textbf{"] {
        if let Some(inside) = text.strip_prefix(command).and_then(|t| t.strip_suffix('}')) {
            text = inside.trim().to_owned();
        }
    }
    // "2024-05" is a month: the zero shows that it is not a subtraction.
    if let Some((year, month)) = text.split_once('-')
        && year.len() == 4
        && month.len() == 2
        && month.starts_with('0')
        && let (Some(year), Some(month)) = (number(year), number(month))
        && is_year(year)
        && month > 0
    {
        return Some(format!("{year}-{month}"));
    }
    for mark in ['-', '/'] {
        let parts: Vec<&str> = text.split(mark).map(str::trim).collect();
        let [first, second, third] = parts[..] else { continue };
        let (a, b, c) = (number(first)?, number(second)?, number(third)?);
        let day_and_month =
            |a: u32, b: u32| (1..=31).contains(&a) && (1..=31).contains(&b) && a.min(b) <= 12;
        if first.len() == 4 && is_year(a) && (1..=12).contains(&b) && (1..=31).contains(&c) {
            return Some(format!("{a}-{b}-{c}"));
        }
        if third.len() == 4 && is_year(c) && day_and_month(a, b) {
            return Some(format!("{a}/{b}/{c}"));
        }
    }
    // "May 6, 2024", "6 May 2024", "6th of May 2024".
    let words = text.split(|c: char| c.is_whitespace() || ",.".contains(c));
    let words: Vec<&str> = words.filter(|word| !["", "of", "the"].contains(word)).collect();
    // "March 3" and "3rd of March", without a year.
    let (first, second, third) = match words[..] {
        [first, second, third] => (first, second, third),
        [first, second] if FULL.iter().any(|month| *month == first || *month == second) => {
            (first, second, "1000")
        }
        _ => return None,
    };
    let (month, day) =
        if first.starts_with(char::is_alphabetic) { (first, second) } else { (second, first) };
    let month = MONTHS.iter().position(|name| {
        month.starts_with(name) && (month.len() == 3 || month.len() > 3 && FULL.contains(&month))
    })?;
    let day =
        number(day.trim_end_matches(char::is_alphabetic)).filter(|day| (1..=31).contains(day))?;
    let year = number(third).filter(|year| is_year(*year))?;
    Some(format!("{year}-{}-{day}", month + 1))
}

const FULL: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

fn is_year(year: u32) -> bool {
    (1000..=2999).contains(&year)
}

/// Returns a number of at most four digits.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}
