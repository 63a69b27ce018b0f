//! The meaning of words after a value. This draws the line of the whole grader: lenient about form, but never
//! about content. A unit or a noun does not change a value and is dropped. A second value, a negation, a
//! condition, or a comparison makes a different answer.

use super::expression::Joiner;
use super::spoken::small;

/// "and" and "or" in the languages of answers.
const AND: &[&str] =
    &["and", "und", "et", "y", "e", "en", "i", "и", "و", "和", "及", "与", "と", "그리고", "및"];
const OR: &[&str] =
    &["or", "oder", "ou", "o", "lub", "или", "أو", "或", "或者", "また", "または", "또는"];

/// Words that change the meaning of a value.
const TELLING: &[&str] = &[
    // A second value.
    "and",
    "or",
    "nor",
    "but",
    "either",
    "neither",
    "both",
    "else",
    "alternatively",
    "also",
    "instead",
    "rather",
    "versus",
    "vs",
    "then",
    "und",
    "oder",
    "aber",
    "et",
    "ou",
    "mais",
    "y",
    "pero",
    "или",
    "и",
    "но",
    "to",
    "through",
    "thru",
    "between",
    "from",
    "until",
    "till",
    "upto",
    "plus",
    "minus",
    "over",
    "by",
    "divided",
    "multiplied",
    "remainder",
    "rest",
    "r",
    "half",
    "thirds",
    "fourths",
    "fifths",
    // A negation.
    "not",
    "no",
    "non",
    "never",
    "none",
    "without",
    "isn",
    "isn't",
    "aren't",
    "cannot",
    "can't",
    "wrong",
    "incorrect",
    "false",
    "negative",
    "nicht",
    "kein",
    "keine",
    "pas",
    "ne",
    "jamais",
    "nunca",
    "не",
    "нет",
    "нельзя",
    "impossible",
    "except",
    "excluding",
    "excluded",
    "excludes",
    "exclusive",
    "inclusive",
    "including",
    "unlike",
    "avoid",
    "opposite",
    "reject",
    "extraneous",
    "invalid",
    "rejected",
    // A condition.
    "if",
    "iff",
    "unless",
    "when",
    "whenever",
    "where",
    "wherever",
    "while",
    "for",
    "provided",
    "providing",
    "given",
    "assuming",
    "suppose",
    "otherwise",
    "depending",
    "depends",
    "whether",
    "as",
    "after",
    "before",
    "wenn",
    "falls",
    "si",
    "quand",
    "cuando",
    "если",
    "при",
    "any",
    "every",
    "some",
    // A comparison.
    "more",
    "less",
    "fewer",
    "greater",
    "smaller",
    "larger",
    "bigger",
    "higher",
    "lower",
    "least",
    "most",
    "than",
    "above",
    "below",
    "under",
    "beyond",
    "exceeding",
    "exceeds",
    "minimum",
    "maximum",
    "max",
    "min",
    "beneath",
    "within",
    "almost",
    "nearly",
    "mehr",
    "weniger",
    "mindestens",
    "höchstens",
    "moins",
    "plusieurs",
    "más",
    "menos",
    "больше",
    "меньше",
    "more+",
    // Doubt, or another statement.
    "maybe",
    "perhaps",
    "possibly",
    "probably",
    "might",
    "may",
    "could",
    "would",
    "should",
    "is",
    "are",
    "was",
    "were",
    "be",
    "equals",
    "equal",
    "it",
    "it's",
    "that's",
    "ago",
    "vielleicht",
    "peut",
    "quizás",
    // Another value computed from this one.
    "squared",
    "cubed",
    "factorial",
    "twice",
    "doubled",
    "tripled",
    "halved",
    "inverse",
    "reciprocal",
    "base",
    "imaginary",
];

/// Characters of scripts without spaces that change the meaning of a value at any position.
const TELLING_CHARACTERS: &str = "或和与及不非没至如若但当时除到约超余又또는不";

/// Endings that change the meaning of a value in languages that put them after it.
const TELLING_ENDINGS: &[&str] = &[
    "以上",
    "以下",
    "以内",
    "未満",
    "ではありません",
    "ではない",
    "じゃない",
    "または",
    "か、",
    "아닙",
    "아니",
    "이상",
    "이하",
    "미만",
    "초과",
    "नहीं",
];

/// Comparisons and negations right before a value.
const COMPARISONS: &[&str] = &[
    "at least",
    "at most",
    "more than",
    "less than",
    "fewer than",
    "greater than",
    "larger than",
    "smaller than",
    "up to",
    "not",
    "between",
    "over",
    "under",
    "above",
    "below",
    "beyond",
    "exceeding",
    "exceeds",
    "almost",
    "nearly",
    "never",
    "cannot be",
    "but",
    "except",
    "or equal to",
    "root of",
    "square of",
    "cube of",
    "half of",
    "half",
    "twice",
    "maybe",
    "perhaps",
    "possibly",
    "multiple of",
    "multiples of",
    "divisible by",
    "factor of",
    "other than",
    "different from",
    "either",
    "neither",
    "nicht",
    "kein",
    "mindestens",
    "höchstens",
    "mehr als",
    "weniger als",
    "größer als",
    "kleiner als",
    "über",
    "unter",
    "fast",
    "au moins",
    "au plus",
    "plus de",
    "moins de",
    "pas",
    "presque",
    "al menos",
    "por lo menos",
    "como mínimo",
    "como máximo",
    "a lo sumo",
    "más de",
    "menos de",
    "mayor que",
    "menor que",
    "casi",
    "no",
    "almeno",
    "al massimo",
    "più di",
    "meno di",
    "non",
    "pelo menos",
    "no máximo",
    "mais de",
    "não",
    "minstens",
    "hoogstens",
    "meer dan",
    "minder dan",
    "niet",
    "co najmniej",
    "co najwyżej",
    "nie",
    "не",
    "не менее",
    "не более",
    "не меньше",
    "не больше",
    "больше",
    "меньше",
    "более",
    "менее",
    "минимум",
    "максимум",
    "почти",
    "至少",
    "至多",
    "最多",
    "不是",
    "大于",
    "小于",
    "超过",
    "少于",
    "多于",
    "不超过",
    "少なくとも",
    "적어도",
    "최소",
    "최대",
    "ليس",
    "ليست",
    "على الأقل",
    "على الأكثر",
    "أكثر من",
    "أقل من",
    "en az",
    "en fazla",
    "ít nhất",
    "nhiều nhất",
    "không phải",
    "setidaknya",
    "paling banyak",
    "bukan",
];

/// Words that scale a unit.
const SCALES: &[(&str, u64)] = &[
    ("dozen", 12),
    ("hundred", 100),
    ("thousand", 1_000),
    ("million", 1_000_000),
    ("billion", 1_000_000_000),
    ("trillion", 1_000_000_000_000),
];

/// Returns how a word joins two values, if it does.
pub fn joiner(word: &str) -> Option<Joiner> {
    // A single capital letter is a name, not "i" or "e".
    let lone = word.len() == 1 && word.starts_with(char::is_uppercase);
    let lower = if lone { String::new() } else { word.to_lowercase() };
    let lower = lower.as_str();
    if AND.contains(&lower) {
        return Some(Joiner::And);
    }
    OR.contains(&lower).then_some(Joiner::Or)
}

/// Returns whether a word joins two values.
pub fn is_connective(word: &str) -> bool {
    joiner(word).is_some()
}

/// Returns whether a note after a value, such as a unit, does not change the value.
pub fn adds_nothing(note: &str) -> bool {
    let note = &note.replace("to the nearest", "");
    let mut words = note.split(|c: char| !(c.is_alphabetic() || c == '\'' || c == '’'));
    !tells_natively(note)
        && !note
            .chars()
            .any(|c| c.is_numeric() || "=<>≤≥≠≈±+?".contains(c) || TELLING_CHARACTERS.contains(c))
        && words.all(|word| {
            let lower = word.to_lowercase().replace('’', "'");
            let tells = TELLING.contains(&lower.as_str()) || small(&lower).is_some();
            !(tells || lower.ends_with("n't"))
        })
}

/// Returns whether the text after a value changes its meaning in another language.
pub fn tells_natively(behind: &str) -> bool {
    TELLING_ENDINGS.iter().any(|ending| behind.contains(ending))
}

/// Returns whether words before a value end in a comparison or a negation.
pub fn compares_at_end(before: &str) -> bool {
    COMPARISONS.iter().any(|comparison| {
        let rest = before.strip_suffix(comparison);
        rest.is_some_and(|rest| {
            !rest.ends_with(char::is_alphabetic)
                || comparison.starts_with(|c| ('\u{3040}'..='\u{d7ff}').contains(&c))
        })
    })
}

/// Returns whether words before a value only announce it: "the answer is", "exactly".
pub fn announces(words: &str) -> bool {
    const ANNOUNCEMENTS: [&str; 17] = [
        "there are",
        "there is",
        "total",
        "answer",
        "the answer is",
        "answer is",
        "the final answer is",
        "final answer",
        "exactly",
        "about",
        "approximately",
        "approx",
        "roughly",
        "so",
        "thus",
        "therefore",
        "hence",
    ];
    let words = words.trim().trim_end_matches([':', '.', ',']).to_lowercase();
    ANNOUNCEMENTS.contains(&words.as_str())
        // "the number is".
        || words
            .strip_prefix("the ")
            .and_then(|words| words.strip_suffix(" is").or(words.strip_suffix(" are")))
            .is_some_and(adds_nothing)
}

/// Returns the factor by which a unit multiplies the value before it: `5 million dollars`.
pub fn scale(unit: &str) -> Option<u64> {
    let first = unit.split(' ').next()?;
    let first = first.strip_suffix('s').unwrap_or(first);
    SCALES.iter().find(|(name, _)| *name == first).map(|(_, scale)| *scale)
}
