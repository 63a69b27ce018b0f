//! The final answer of a solution, and whether two are the same.

/// The final answer that a solution states: what its last `\boxed{}` holds, else what follows its
/// last `####` (GSM8K). `None` where it states none.
///
/// ```
/// use mixdistill::eval::final_answer;
/// assert_eq!(final_answer(r"So \boxed{\frac{1}{2}}."), Some(r"\frac{1}{2}".into()));
/// assert_eq!(final_answer("5 + 5 = 10\n#### 10"), Some("10".into()));
/// assert_eq!(final_answer(r"It is \boxed{7"), None);
/// ```
pub fn final_answer(solution: &str) -> Option<String> {
    if let Some(start) = solution.rfind("\\boxed{") {
        let inside = &solution[start + "\\boxed{".len()..];
        let mut depth = 1usize;
        for (at, character) in inside.char_indices() {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(inside[..at].trim().to_owned());
            }
        }
        return None;
    }
    let after = solution.rsplit_once("####")?.1;
    let line = after.trim_start().lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// Whether two final answers are equal as text but for white space, or as numbers with thousands
/// separators.
///
/// ```
/// use mixdistill::eval::same_answer;
/// assert!(same_answer("1,234", "1234.0"));
/// assert!(same_answer(r"\frac{1}{2}", r"\frac {1} {2}"));
/// assert!(!same_answer("7", "70"));
/// assert!(!same_answer("1,2", "12"));
/// assert!(!same_answer("9007199254740993", "9007199254740992"));
/// ```
pub fn same_answer(a: &str, b: &str) -> bool {
    let letters = |text: &str| -> String { text.chars().filter(|c| !c.is_whitespace()).collect() };
    let (a, b) = (letters(a), letters(b));
    let number = |text: &str| {
        let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
        // Commas are thousands separators only where they part groups of three.
        let mut groups = whole.split(',');
        let first = groups.next().unwrap_or_default().trim_start_matches(['-', '+']).len();
        let separated = groups.clone().count() > 0;
        if separated && !((1..=3).contains(&first) && groups.all(|group| group.len() == 3)) {
            return None;
        }
        Some(format!("{}{rest}", whole.replace(',', "")))
    };
    let (plain_a, plain_b) = (number(&a), number(&b));
    // Whole numbers may have more digits than an f64 holds.
    let integer = |text: &Option<String>| text.as_deref()?.parse::<i128>().ok();
    if let (Some(a), Some(b)) = (integer(&plain_a), integer(&plain_b)) {
        return a == b;
    }
    let real = |text: Option<String>| text?.parse::<f64>().ok().filter(|x| x.is_finite());
    a == b || matches!((real(plain_a), real(plain_b)), (Some(a), Some(b)) if a == b)
}
