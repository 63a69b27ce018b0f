//! Answers in words that stand for a symbol or a number: `\text{eight}`, "all real numbers", "no solution".
//! Words that say the same in more or fewer words are also one answer.

/// Returns the mathematical form of words.
pub fn symbol(words: &[String]) -> Option<String> {
    let words: Vec<&str> = essential(words);
    let symbol = match words.as_slice() {
        ["infinity"] | ["positive", "infinity"] => "\\infty",
        ["negative", "infinity"] | ["minus", "infinity"] => "-\\infty",
        ["all", "real", "number"] | ["all", "real"] | ["real", "number"] => "\\mathbb{R}",
        ["all", "integer"] | ["all", "integer", "number"] => "\\mathbb{Z}",
        ["empty", "set"] | ["no", "solution"] => "\\emptyset",
        _ => return number(&words).map(|number| number.to_string()),
    };
    Some(symbol.to_owned())
}

/// Returns the words in the singular, without those that only complete the sentence.
pub fn essential(words: &[String]) -> Vec<&str> {
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    for opening in [&["there", "is"][..], &["there", "are"], &["there", "exists"]] {
        if words.starts_with(opening) {
            words.drain(..opening.len());
        }
    }
    if words.ends_with(&["does", "not", "exist"]) && words.len() <= 6 {
        return vec!["dne"];
    }
    if words.len() > 1 {
        words.retain(|word| !["a", "an", "the"].contains(word));
    }
    if let ["infinite" | "infinitely", "many", ..] | ["infinite", "solutions"] = words.as_slice()
        && words.len() <= 3
    {
        return vec!["infinitely", "many"];
    }
    for word in &mut words {
        const PLURALS: [(&str, &str); 7] = [
            ("solutions", "solution"),
            ("roots", "root"),
            ("numbers", "number"),
            ("reals", "real"),
            ("integers", "integer"),
            ("values", "value"),
            ("answers", "answer"),
        ];
        if let Some((_, one)) = PLURALS.iter().find(|(many, _)| many == word) {
            *word = one;
        }
    }
    words
}

/// Returns a number in English words: "twenty three", "two hundred and five".
pub fn number(words: &[&str]) -> Option<u64> {
    const MOST: usize = 12;
    if words.is_empty() || words.len() > MOST || words == ["hundred"] {
        return None;
    }
    let (mut total, mut group) = (0u64, 0u64);
    let mut last = u64::MAX;
    for (at, word) in words.iter().enumerate() {
        if *word == "and" && at > 0 && last >= 100 && at + 1 < words.len() {
            continue;
        }
        if let Some(small) = small(word) {
            // A ten before a digit, a hundred before both.
            let fits = last == u64::MAX || last >= 100 || last >= 20 && (1..10).contains(&small);
            if !fits || last != u64::MAX && small == 0 {
                return None;
            }
            group += small;
            last = small;
        } else {
            let scale = match *word {
                "hundred" => 100,
                "thousand" => 1_000,
                "million" => 1_000_000,
                _ => return None,
            };
            if group == 0 || group >= 1_000 {
                return None;
            }
            if scale == 100 {
                group *= 100;
            } else {
                total = total.checked_add(group.checked_mul(scale)?)?;
                group = 0;
            }
            last = scale;
        }
    }
    total.checked_add(group)
}

/// Returns a number below twenty, or a ten, in one English word.
pub(super) fn small(word: &str) -> Option<u64> {
    const SMALL: [&str; 20] = [
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
    ];
    const TENS: [&str; 8] =
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let in_small = SMALL.iter().position(|name| *name == word);
    let in_tens = || Some(10 * (TENS.iter().position(|name| *name == word)? + 2));
    in_small.or_else(in_tens).map(|value| value as u64)
}
