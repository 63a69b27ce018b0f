//! Phrases that state an answer, such as "the answer is", in the languages that models use: the name of the
//! answer, and the word or mark that links it to the value. To add a language, add a line.

/// Names of the answer, in lower case. English comes first, since most texts are ASCII.
const NAMES: &[&str] = &[
    "answer",
    "answers",
    "the solution",
    "the solutions",
    "the roots",
    "final result",
    "réponse",
    "reponse",
    "antwort",
    "endergebnis",
    "respuesta",
    "risposta",
    "resposta",
    "antwoord",
    "svaret",
    "svar",
    "vastaus",
    "odpowiedź",
    "odpowiedzią",
    "odpověď",
    "odpoveď",
    "odgovor",
    "válasz",
    "răspunsul",
    "răspuns",
    "cevap",
    "cevabı",
    "yanıt",
    "jawabannya",
    "jawaban",
    "jawapan",
    "jibu",
    "câu trả lời",
    "đáp án",
    "đáp số",
    "Đáp án",
    "Đáp số",
    "ответ",
    "Ответ",
    "відповідь",
    "Відповідь",
    "отговор",
    "Отговор",
    "απάντηση",
    "Απάντηση",
    "התשובה",
    "תשובה",
    "الجواب",
    "الإجابة",
    "الاجابة",
    "پاسخ",
    "جواب",
    "उत्तर",
    "जवाब",
    "উত্তর",
    "பதில்",
    "సమాధానం",
    "ജവാബ്",
    "คำตอบคือ",
    "คำตอบ",
    "答案",
    "答え",
    "解答",
    "正解",
    "答",
    "정답",
    "답",
];

/// Words that may follow the name as a part of it, in lower case.
const FINAL: &[&str] = &[
    "finale",
    "final",
    "correcta",
    "correcte",
    "corretta",
    "correta",
    "finală",
    "akhirnya",
    "akhir",
    "yang benar",
    "đúng",
    "cuối cùng",
    "النهائية",
    "النهائي",
    "الصحيحة",
    "الصحيح",
    "ที่ถูกต้อง",
    "สุดท้าย",
];

/// Names of a result. On the last line, they state the answer if nothing else does.
const RESULTS: &[&str] = &[
    "result",
    "ans",
    "value",
    "total",
    "ergebnis",
    "résultat",
    "resultado",
    "risultato",
    "resultaat",
    "wynik",
    "результат",
    "Результат",
    "итого",
    "Итого",
    "sonuç",
    "sonuc",
    "kết quả",
    "hasilnya",
    "結果",
    "结果",
    "النتيجة",
    "परिणाम",
];

/// Names in languages with a decimal comma.
const WITH_DECIMAL_COMMA: &[&str] = &[
    "réponse",
    "reponse",
    "antwort",
    "ergebnis",
    "lösung",
    "respuesta",
    "risposta",
    "resposta",
    "antwoord",
    "svar",
    "vastaus",
    "odpowied",
    "odpov",
    "odgovor",
    "válasz",
    "răspuns",
    "cevap",
    "yanıt",
    "jawaban",
    "đáp",
    "ответ",
    "Ответ",
    "ОТВЕТ",
    "відповідь",
    "Відповідь",
    "отговор",
    "Отговор",
];

/// The words and marks that link the name to the answer. Links of ASCII letters must end with their word.
const LINKS: &[&str] = &[
    ":",
    "：",
    "=",
    "is:",
    "is",
    "are:",
    "are",
    "sont",
    "sind",
    "son",
    "sono",
    "should be",
    "would be",
    "must be",
    "will be",
    "equals",
    "est",
    "ist",
    "lautet",
    "es",
    "è",
    "é",
    "is",
    "är",
    "er",
    "on",
    "to",
    "je",
    "este",
    "là",
    "adalah",
    "ialah",
    "ni",
    "это",
    "—",
    "–",
    "->",
    "→",
    "είναι",
    "היא",
    "הוא",
    "هو",
    "هي",
    "است",
    "है",
    "হল",
    "হলো",
    "হচ্ছে",
    "是",
    "选",
    "選",
    "为",
    "為",
    "应为",
    "应该是",
    "は",
    "은",
    "는",
    "คือ",
];

/// Names that explicitly state the final answer.
const EXPRESS: &[&str] =
    &["final answer", "réponse finale", "respuesta final", "resposta final", "最终答案"];

/// Number of English names at the start of [`NAMES`].
const ENGLISH: usize = 6;

/// Maximum number of occurrences of one name to examine.
const MOST: usize = 64;

/// Returns the ends of all phrases in a text that state an answer, the strongest first: those that call it
/// final, then the last ones.
pub(super) fn statements(text: &str) -> Vec<usize> {
    // Byte offsets stay the same.
    let lower = text.to_ascii_lowercase();
    let ascii = lower.is_ascii();
    let mut found: Vec<(bool, usize)> = vec![];
    let mut look_for = |name: &str, express: bool| {
        // "Cevap 42", "उत्तर 42 है"; in English, that may be the number of an answer.
        let bare = name != "final answer" && !NAMES[..ENGLISH].contains(&name);
        for (at, _) in lower.rmatch_indices(name).take(MOST) {
            let inner = lower[..at].ends_with(|c: char| c.is_ascii_alphabetic());
            let Some(end) = linked(&lower, at + name.len(), bare) else { continue };
            if !inner {
                found.push((express, end));
            }
        }
    };
    for name in NAMES {
        if !ascii || name.is_ascii() {
            look_for(name, false);
        }
    }
    for name in EXPRESS {
        if !ascii || name.is_ascii() {
            look_for(name, true);
        }
    }
    // A tag around the answer is the strongest.
    if let Some(at) = lower.rfind("<answer>") {
        found.push((true, at + "<answer>".len()));
    }
    // GSM8K's `A: 18` is the weakest.
    let line_start = lower.rmatch_indices("a:").find(|(at, _)| {
        lower[..*at].trim_end_matches([' ', '*']).chars().next_back().is_none_or(|c| c == '\n')
    });
    found.sort_by(|a, b| b.cmp(a));
    found.dedup_by_key(|(_, end)| *end);
    let ends = found.into_iter().map(|(_, end)| end);
    ends.chain(result_on_last_line(&lower))
        .chain(line_start.map(|(at, phrase)| at + phrase.len()))
        .collect()
}

/// Returns the end of a phrase that names the result in the last sentence of the last line.
fn result_on_last_line(lower: &str) -> Option<usize> {
    let text = lower.trim_end();
    let line = text.rfind('\n').map_or(0, |at| at + 1);
    let found = RESULTS.iter().filter_map(|name| {
        let at = line + text[line..].rfind(name)?;
        let inner = lower[..at].ends_with(|c: char| c.is_alphabetic());
        linked(lower, at + name.len(), false).filter(|_| !inner)
    });
    found.max().filter(|end| !text.get(*end..).is_none_or(|rest| rest.contains(". ")))
}

/// Returns whether the phrase at the end of a text is in a language with a decimal comma.
pub(super) fn has_decimal_comma(before: &str) -> bool {
    const FAR: usize = 40;
    let start = before.char_indices().rev().take(FAR).last().map_or(0, |(at, _)| at);
    let near = before[start..].to_ascii_lowercase();
    WITH_DECIMAL_COMMA.iter().any(|name| near.contains(name))
}

/// Returns the end of the link after a name, if there is one.
fn linked(lower: &str, name_end: usize, bare: bool) -> Option<usize> {
    const WRAPPERS: [char; 8] = ['*', '_', '"', '`', ' ', '\'', '’', '\u{a0}'];
    let rest = &lower[name_end..];
    let mut next = rest.trim_start_matches(WRAPPERS);
    for word in FINAL {
        next = next.strip_prefix(word).unwrap_or(next).trim_start_matches(WRAPPERS);
    }
    // "The answer, therefore, is 5".
    if let Some(inserted) = next.strip_prefix(", ")
        && let Some((word, link)) = inserted.split_once(", ")
        && word.len() <= 16
        && word.chars().all(|c| c.is_alphabetic() || c == ' ')
    {
        next = link;
    }
    // "**Final answer**" and "### Answer" as a heading.
    let heading = rest.trim_start_matches(['*', '_', '#', ' ', '\r']);
    let line = lower[..name_end].rfind('\n').map_or(0, |at| at + 1);
    let before = lower[line..name_end].trim_start_matches(['*', '_', '#', ' ']);
    let alone =
        before.split(' ').count() <= 3 && before.chars().all(|c| c.is_alphabetic() || c == ' ');
    if heading.starts_with('\n') && (rest.starts_with('*') || alone) {
        return Some(lower.len() - heading.len());
    }
    let value = |c: char| c.is_numeric() || "$\\".contains(c);
    if bare && next.len() < rest.len() && next.starts_with(value) {
        return Some(lower.len() - next.len());
    }
    let link =
        LINKS.iter().filter(|link| next.starts_with(**link)).max_by_key(|link| link.len())?;
    let behind = &next[link.len()..];
    let goes_on = link.ends_with(|c: char| c.is_alphabetic() && (c.is_ascii() || c < '\u{530}'))
        && behind.starts_with(char::is_alphanumeric);
    // "Antwortis" and the like are other words.
    let parted = next.len() < rest.len() || !link.starts_with(|c: char| c.is_ascii_alphabetic());
    (!goes_on && parted).then_some(lower.len() - behind.len())
}

/// Returns the text after a name of the answer at the start of a line, as in `Final Answer: 18`; empty for
/// `Final Answer`. `None` for other lines.
pub(super) fn labeled(line: &str) -> Option<&str> {
    const MARKS: [char; 5] = ['*', '_', '#', ' ', '"'];
    let lower = line.to_ascii_lowercase();
    let mut next = lower.trim_start_matches(MARKS);
    for word in ["the ", "my ", "our ", "la ", "die ", "a "] {
        next = next.strip_prefix(word).unwrap_or(next);
    }
    for word in ["final ", "correct ", "最终"] {
        next = next.strip_prefix(word).unwrap_or(next);
    }
    let names =
        NAMES.iter().chain(&["solution", "result", "conclusion", "ans", "option", "choice"]);
    let name = names.filter(|name| next.starts_with(**name)).max_by_key(|name| name.len())?;
    let end = lower.len() - next.len() + name.len();
    if let Some(end) = linked(&lower, end, false) {
        return Some(line[end..].trim());
    }
    let rest = line[end..].trim_matches(|c: char| MARKS.contains(&c) || c == '.');
    let value = rest.starts_with(|c: char| c.is_ascii_digit() || "$\\-−([".contains(c));
    let letter = rest.chars().count() == 1;
    (rest.is_empty() || (value || letter) && line[end..].starts_with([' ', '*'])).then_some(rest)
}
