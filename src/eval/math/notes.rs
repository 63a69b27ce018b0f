//! What words behind a value say. The rule of the whole grader is drawn here: lenient about form,
//! never about content. A unit or a noun says nothing about a value, and it is dropped; a second
//! value, a negation, a condition or a comparison does, and with it the answer is another one.

use super::expression::Joiner;

/// "and" and "or" in the languages that answers are met in.
const AND: &[&str] =
    &["and", "und", "et", "y", "e", "en", "i", "и", "و", "和", "及", "与", "と", "그리고", "및"];
const OR: &[&str] =
    &["or", "oder", "ou", "o", "lub", "или", "أو", "或", "或者", "また", "または", "또는"];

/// Words that say something about a value.
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
    // A doubt or another statement.
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
    // Another value made of this one.
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
    // Numbers.
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
];

/// Characters of scripts without spaces that say something wherever they stand.
const TELLING_CHARACTERS: &str = "或和与及不非没至如若但当时除到约超余又또는不";

/// Words that say how large one of the unit is.
const SCALES: &[(&str, u64)] = &[
    ("dozen", 12),
    ("hundred", 100),
    ("thousand", 1_000),
    ("million", 1_000_000),
    ("billion", 1_000_000_000),
    ("trillion", 1_000_000_000_000),
];

/// How a word joins two values, if it does.
pub fn joiner(word: &str) -> Option<Joiner> {
    // A lone capital is a name and no "i" or "e".
    let lone = word.len() == 1 && word.starts_with(char::is_uppercase);
    let lower = if lone { String::new() } else { word.to_lowercase() };
    let lower = lower.as_str();
    if AND.contains(&lower) {
        return Some(Joiner::And);
    }
    OR.contains(&lower).then_some(Joiner::Or)
}

/// Whether a word joins two values.
pub fn is_connective(word: &str) -> bool {
    joiner(word).is_some()
}

/// Whether a note behind a value, such as a unit, says nothing about the value.
pub fn adds_nothing(note: &str) -> bool {
    let note = &note.replace("to the nearest", "");
    let mut words = note.split(|c: char| !(c.is_alphabetic() || c == '\'' || c == '’'));
    !note
        .chars()
        .any(|c| c.is_numeric() || "=<>≤≥≠≈±+?".contains(c) || TELLING_CHARACTERS.contains(c))
        && words.all(|word| {
            let lower = word.to_lowercase().replace('’', "'");
            !(TELLING.contains(&lower.as_str()) || lower.ends_with("n't"))
        })
}

/// Whether words before a value only announce it: "the answer is", "exactly".
pub fn announces(words: &str) -> bool {
    const ANNOUNCEMENTS: [&str; 14] = [
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
}

/// By how much a unit multiplies the value before it: `5 million dollars`.
pub fn scale(unit: &str) -> Option<u64> {
    let first = unit.split(' ').next()?;
    let first = first.strip_suffix('s').unwrap_or(first);
    SCALES.iter().find(|(name, _)| *name == first).map(|(_, scale)| *scale)
}
