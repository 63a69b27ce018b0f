use mixdistill::eval::{AnswerKind, Extractor, extract, equal_to_decimals, same_answer, grade};
fn verdict(form: &str, gold: &str, text: &str) -> (bool, Option<String>) {
    let by = |kind: AnswerKind| { let s = kind.answer(text); (s.as_ref().is_some_and(|s| same_answer(gold, s)), s) };
    let latex = match form {
        "m" => return by(AnswerKind::Stated),
        "n" => return by(AnswerKind::LastNumber),
        "c" => return by(AnswerKind::Choice),
        "e" => return (same_answer(gold, text), Some(text.into())),
        "g" => { let g = grade(gold, text); return (g.correct, g.stated) }
        "a" => { let s = extract(text, &[Extractor::Choice("ABCD".chars().collect())]); return (s.as_deref() == Some(gold), s) }
        "l" => vec![Extractor::Boxed, Extractor::FinalAnswerPhrase, Extractor::Whole, Extractor::Last],
        "t" => vec![Extractor::Boxed, Extractor::FinalAnswerPhrase, Extractor::Formula],
        _ => vec![Extractor::FinalAnswerPhrase, Extractor::Whole, Extractor::LastNumber],
    };
    let gold = extract(gold, &latex).unwrap_or(gold.to_owned());
    let s = extract(text, &latex);
    (s.as_ref().is_some_and(|s| equal_to_decimals(&gold, s, 6)), s)
}
#[test]
fn texts() {
    let (mut all, mut agree) = (0, 0);
    for line in std::fs::read_to_string(std::env::var("FRESH").unwrap_or("/work/wt-grader/tests/grading/fresh.txt".into())).unwrap().lines() {
        if line.starts_with("# ") { continue; }
        let parts: Vec<&str> = line[2..].split(" ;; ").collect();
        let (v, s) = verdict(parts[0], parts[1], &parts[2].replace('⏎', "\n"));
        all += 1;
        if v == line.starts_with('=') { agree += 1 } else { println!("{line}  -> {s:?}") }
    }
    println!("{agree} of {all}");
    let (mut all, mut agree) = (0, 0);
    for line in std::fs::read_to_string("/work/shared/cases/grading.jsonl").unwrap().lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let reference = row["reference"].as_str().map(str::to_owned).unwrap_or_else(|| { let r = line.split("\"reference\": ").nth(1).unwrap(); r[..r.find(',').unwrap()].to_owned() });
        let (form, reference) = if row["form"] == "gsm8k" { ("n", mixdistill::eval::final_answer(&reference).unwrap()) } else { ("m", reference) };
        let (v, s) = verdict(form, &reference, row["answer"].as_str().unwrap());
        all += 1;
        if Some(v) == row["right"].as_bool() { agree += 1 } else { println!("{} {reference:?} {} {s:?}", row["id"], row["answer"]) }
    }
    println!("{agree} of {all}");
}
