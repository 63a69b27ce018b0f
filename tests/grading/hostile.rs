//! Answers that are meant to hang or crash a grader. Each is "not equal", or "equal" only to its
//! own text, within the counted steps. The test prints the time of each.

use mixdistill::eval::{
    ANY, AnswerKind, MAX_STEPS, Tier, equal, extract, final_answer, grade, same_answer,
    steps_of_comparison,
};
use proptest::prelude::*;
use std::time::Instant;

fn hostile() -> Vec<(&'static str, String)> {
    let digits = |n: usize| "7".repeat(n);
    vec![
        ("10,000 nested braces", format!("{}1{}", "{".repeat(10_000), "}".repeat(10_000))),
        (
            "10,000 nested fractions",
            format!("{}1{}", r"\frac{1}{".repeat(10_000), "}".repeat(10_000)),
        ),
        ("60 nested fractions", format!("{}1{}", r"\frac{1}{1+".repeat(60), "}".repeat(60))),
        ("10,000 open brackets", "(".repeat(10_000)),
        ("10,000 nested roots", format!("{}2", r"\sqrt".repeat(10_000))),
        ("10,000 nested powers", format!("{}2", "2^".repeat(10_000))),
        ("60 nested powers", format!("{}2", "2^".repeat(60))),
        ("10,000 signs", format!("{}1", "-".repeat(10_000))),
        ("10,000 factorials", format!("3{}", "!".repeat(10_000))),
        ("7 factorials", format!("3{}", "!".repeat(7))),
        ("10,000 percent", format!("3{}", "%".repeat(10_000))),
        ("10,000 divisions", format!("3{}", "/3".repeat(10_000))),
        ("10,000 subscripts", format!("x{}", "_x".repeat(10_000))),
        ("nested marks", format!("{}x{}", r"\vec{".repeat(60), "}".repeat(60))),
        ("nested subscripts", format!("{}x{}", "x_{".repeat(60), "}".repeat(60))),
        ("10,000 bars", "|".repeat(10_000)),
        ("a megabyte of digits", digits(1 << 20)),
        ("60 KB of dots", ".".repeat(60_000)),
        ("60 KB of dots and more", format!("{}1", ". ".repeat(30_000))),
        ("many tiny numbers", vec!["1e-4000"; 8_000].join(",")),
        ("many long numbers", vec![digits(9_000); 7].join(", ")),
        (
            "many variables in many items",
            (0..120)
                .map(|n| {
                    (0..60).map(|m| format!("x_{m}")).collect::<Vec<_>>().join("+")
                        + &format!("+{n}")
                })
                .collect::<Vec<_>>()
                .join(","),
        ),
        ("many sets by condition", "{x|".repeat(5_000)),
        ("60 KB of digits", digits(60_000)),
        ("a megabyte of letters", "x".repeat(1 << 20)),
        ("a megabyte of commas", ",".repeat(1 << 20)),
        ("a megabyte of backslashes", "\\".repeat(1 << 20)),
        ("a megabyte of dollars", "$".repeat(1 << 20)),
        ("a megabyte of \\(", r"\(".repeat(1 << 19)),
        ("a megabyte of formulas", "$a$ ".repeat(1 << 18)),
        ("a megabyte of boxes", r"\boxed{".repeat(1 << 17)),
        ("a megabyte of closed boxes", r"\boxed{1} ".repeat(100_000)),
        ("a megabyte of \\boxed", r"\boxed ".repeat(150_000)),
        ("a megabyte of numbers", "1 ".repeat(1 << 19)),
        ("a megabyte of answers", "answer is ".repeat(100_000)),
        ("a megabyte of ####", "#### ".repeat(200_000)),
        ("a megabyte of openings", "<think> ".repeat(130_000)),
        ("a megabyte of closings", "a </think>".repeat(100_000)),
        ("a megabyte of pairs", "a <think> b </think>".repeat(50_000)),
        ("a megabyte of amounts", "$5 and ".repeat(150_000)),
        ("a megabyte of phrases", "答案是 ".repeat(100_000)),
        ("a megabyte of names", "la réponse est une réponse ".repeat(40_000)),
        ("a megabyte of headings", "#### Step 1\n".repeat(90_000)),
        ("a megabyte of ruled out letters", "it is not A ".repeat(90_000)),
        ("a megabyte of bracketed letters", "(A) ".repeat(250_000)),
        ("a megabyte of clauses", "the answer is 5, and so on, ".repeat(40_000)),
        ("a megabyte of empty boxes", r"\boxed{} ".repeat(110_000)),
        ("a megabyte of tags", "<answer>".repeat(120_000)),
        ("60 KB of connectives", r"\text{ or }".repeat(5_500)),
        ("60 KB of commands around words", r"\text{a b}".repeat(5_500)),
        ("commands around words in commands", r"\text{".repeat(10_000)),
        ("moduli in moduli", r"\text{mod ".repeat(6_000)),
        ("60 KB of pointed groups", format!("1{}5", ".234".repeat(15_000))),
        ("60 KB of turned brackets", "]1,2[,".repeat(10_000)),
        ("60 KB of hours", "3 hours ".repeat(8_000)),
        ("60 KB of \\over", r"1\over ".repeat(8_000)),
        ("60 KB of ranges", r"(k \in Z) ".repeat(6_000)),
        ("10^10^10", "10^10^10".into()),
        ("10^{10^{10}}", "10^{10^{10}}".into()),
        ("9^9^9^9", "9^9^9^9".into()),
        ("(-1)^10^10", "(-1)^{10^{10}}".into()),
        ("2^2^...^x", "2^2^2^2^2^2^x".into()),
        ("x^999999999", "x^{999999999}".into()),
        ("(1+x)^10^6", "(1+x)^{1000000}".into()),
        ("100000!", "100000!".into()),
        ("1000!", "1000!+1".into()),
        ("big binomial", r"\binom{1000000}{500000}".into()),
        ("1e999999999", "1e999999999".into()),
        ("1e-999999999", "1e-999999999".into()),
        ("1e9999", "1e9999".into()),
        ("1e9999999999999", "1e9999999999999".into()),
        ("tiny", "1e-4000".into()),
        ("division by zero", r"\frac{1}{0}".into()),
        ("0^0", "0^0".into()),
        ("0^{-1}", "0^{-1}".into()),
        ("ln 0", r"\ln 0".into()),
        ("tan of a pole", r"\tan\frac{\pi}{2}".into()),
        ("infinite difference", r"\infty-\infty".into()),
        ("root of index 0", r"\sqrt[0]{2}".into()),
        ("root of a huge index", r"\sqrt[999999999]{2}".into()),
        ("floor of a huge number", r"\lfloor 10^{300}\pi\rfloor".into()),
        (
            "sum of 8,000 fractions",
            (1..8_000).map(|n| format!("1/{n}")).collect::<Vec<_>>().join("+"),
        ),
        ("sum of 500 fractions", (1..500).map(|n| format!("1/{n}")).collect::<Vec<_>>().join("+")),
        (
            "product of 8,000 numbers",
            (1..8_000).map(|n| n.to_string()).collect::<Vec<_>>().join("*"),
        ),
        (
            "sum of 8,000 variables",
            (1..8_000).map(|n| format!("x_{n}")).collect::<Vec<_>>().join("+"),
        ),
        (
            "set of 5,000",
            format!(r"\{{{}\}}", (1..5_000).map(|n| n.to_string()).collect::<Vec<_>>().join(", ")),
        ),
        (
            "set of 2,000 roots",
            format!(
                r"\{{{}\}}",
                (1..2_000).map(|n| format!(r"\sqrt{{{n}}}")).collect::<Vec<_>>().join(",")
            ),
        ),
        ("list of 16,000 repeats", vec!["1"; 16_000].join(", ")),
        ("a thousand ±", vec![r"\pm 1"; 1_000].join(" ")),
        ("set of ±", format!(r"\{{{}\}}", vec![r"\pm 1\pm 2\pm 3\pm 4"; 500].join(","))),
        (
            "matrix of 10^6 cells",
            format!(
                r"\begin{{pmatrix}}{}\end{{pmatrix}}",
                vec![vec!["1"; 1000].join("&"); 1000].join(r"\\")
            ),
        ),
        (
            "matrix of 10^4 cells",
            format!(
                r"\begin{{pmatrix}}{}\end{{pmatrix}}",
                vec![vec!["1"; 80].join("&"); 80].join(r"\\")
            ),
        ),
        ("matrix powers", vec![r"\begin{pmatrix}1&1\\1&0\end{pmatrix}"; 200].join("")),
        (
            "matrices in matrices",
            format!("{}1{}", r"\begin{pmatrix}".repeat(70), r"\end{pmatrix}".repeat(70)),
        ),
        (
            "union of 3,000 intervals",
            (0..3_000).map(|n| format!("({n},{})", n + 1)).collect::<Vec<_>>().join(r"\cup"),
        ),
        (
            "union of 50 intervals",
            (0..50).map(|n| format!("({n},{})", n + 1)).collect::<Vec<_>>().join(r"\cup"),
        ),
        ("chain of 5,000", (1..5_000).map(|n| format!("x_{n}")).collect::<Vec<_>>().join("<")),
        ("long exponents", format!("x^{{{}}}", digits(5_000))),
        ("unclosed everything", r"\frac{\sqrt{\left(\begin{pmatrix}\text{\boxed{".into()),
        ("not a character", "\u{0}\u{fffd}\u{202e}".into()),
        ("combining marks", "e\u{301}".repeat(20_000)),
        ("emoji", "🎉".repeat(20_000)),
        ("escaped brace at the end", r"\boxed{\}".into()),
        ("lone backslash", "\\".into()),
        ("nothing", String::new()),
    ]
}

#[test]
fn ends() {
    let others = [
        "1",
        r"x^2+\frac{1}{2}",
        r"\{1,2,3\}",
        "(0,1]",
        r"x\ge 3",
        r"\begin{pmatrix}1&2\end{pmatrix}",
        "B",
    ];
    println!("| input                          |  bytes |   steps | ms |");
    println!("|--------------------------------|--------|---------|----|");
    for (name, text) in hostile() {
        let start = Instant::now();
        let mut steps = 0;
        for other in others {
            // Things with a value of their own may be that value; the rest equals nothing.
            let valued = [
                "10,000 nested braces",
                "(-1)^10^10",
                "10,000 signs",
                "list of 16,000 repeats",
                "a megabyte of closed boxes",
            ];
            let one = equal(Tier::Mathematical, other, &text);
            assert_eq!(one, equal(Tier::Mathematical, &text, other), "{name} is not symmetric");
            assert!(!one || valued.contains(&name), "{name} equals {other}");
            assert!(
                !same_answer(other, &text) || valued.contains(&name),
                "{name} is the answer {other}"
            );
            steps = steps.max(steps_of_comparison(other, &text));
        }
        // Against itself with a space, so that the text differs.
        let spaced = text.replacen(' ', "", 1) + " ";
        equal(Tier::Mathematical, &text, &spaced);
        let changed = format!("{text}+1");
        assert!(
            !equal(Tier::Mathematical, &text, &changed) || text.is_empty(),
            "{name} equals itself and one"
        );
        steps = steps
            .max(steps_of_comparison(&text, &spaced))
            .max(steps_of_comparison(&text, &changed));
        assert!(equal(Tier::Exact, &text, &text) && same_answer(&text, &text));
        extract(&text, &ANY);
        final_answer(&format!("the answer is {text}"));
        extract(&format!("It is ${text}$ and so on"), &ANY);
        for kind in [AnswerKind::Stated, AnswerKind::LastNumber, AnswerKind::Choice] {
            kind.answer(&text);
            kind.answer_after(&text, true);
        }
        assert!(steps <= MAX_STEPS);
        println!(
            "| {name:30} | {:6} | {steps:7} | {:.1} |",
            text.len(),
            start.elapsed().as_secs_f64() * 1e3
        );
    }
}

#[test]
fn deep_answers_fit_a_small_stack() {
    let marked = |n: usize| format!("{}3{}", "(1+".repeat(n), ")!!!!!!!".repeat(n));
    for depth in [10, 40, 62] {
        let answers = [
            marked(depth),
            format!("{}1{}", r"\frac{1}{1+".repeat(depth), "}".repeat(depth)),
            format!("{}x{}", r"\{x|x<".repeat(depth), r"\}".repeat(depth)),
            format!("{}x{}", r"\sin(1,".repeat(depth), ")".repeat(depth)),
            format!(
                "{}1{}",
                r"\begin{vmatrix}1&2\\3&".repeat(depth),
                r"\end{vmatrix}".repeat(depth)
            ),
            format!("{}2", "2^".repeat(depth)),
            format!("{}2", r"\sqrt".repeat(depth)),
        ];
        for answer in answers {
            let compare = move || {
                let changed = format!("{answer} + 0");
                same_answer(&answer, &changed)
                    || same_answer(&answer, "1")
                    || grade(&answer, "x").correct
            };
            let thread = std::thread::Builder::new().stack_size(512 << 10).spawn(compare).unwrap();
            thread.join().unwrap();
        }
    }
}

/// Pieces that make LaTeX more likely than random letters do.
fn latex() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "\\frac",
        "{",
        "}",
        "1",
        "23",
        "0",
        "x",
        "y",
        "^",
        "_",
        "\\sqrt",
        "[",
        "]",
        "(",
        ")",
        "\\left",
        "\\right",
        ",",
        ";",
        "\\pm",
        "-",
        "+",
        "/",
        "\\cdot",
        "=",
        "<",
        "\\le",
        "\\in",
        "\\cup",
        "\\setminus",
        "\\infty",
        "\\pi",
        "e",
        "i",
        "%",
        "!",
        "|",
        "\\{",
        "\\}",
        "\\text{",
        "and",
        " or ",
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "&",
        "\\\\",
        "\\boxed{",
        "$",
        "\\(",
        "\\)",
        " ",
        ".",
        "1,234",
        "1e9",
        "\\log",
        "\\sin",
        "^\\circ",
        "\\lfloor",
        "\\rfloor",
        "\\binom",
        "999999999",
        "é",
        "∞",
        "½",
        ":",
        "cm",
        "'",
        "\\mathbb{R}",
        "\\overline{",
        "\\begin{vmatrix}",
        "\\end{vmatrix}",
        "\\text{ or }",
        "\\text{ (mod ",
        "\\text{ hours and ",
        "\\pmod",
        "\\over",
        "####",
        "<think>",
        "</think>",
        "the answer is ",
        " not ",
        "১২",
        "1.234,5",
        "10:30 am",
        "2024-5-6",
        "\\mathbb{Z}",
    ]);
    prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat())
}

fn never_panics(a: &str, b: &str) {
    assert_eq!(same_answer(a, b), same_answer(b, a), "not symmetric: {a:?} and {b:?}");
    assert!(same_answer(a, a));
    let _ = grade(a, b);
    for kind in [AnswerKind::Stated, AnswerKind::LastNumber, AnswerKind::Choice] {
        let _ = (kind.answer(a), kind.answer_after(b, true));
    }
    let _ = extract(a, &[mixdistill::eval::Extractor::Choice(vec!['A', 'é'])]);
    assert!(steps_of_comparison(a, b) <= MAX_STEPS);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(6000) })]

    #[test]
    fn random_text(a in "\\PC{0,60}", b in "\\PC{0,60}") {
        never_panics(&a, &b);
    }

    #[test]
    fn random_bytes(a in any::<String>(), b in any::<String>()) {
        never_panics(&a, &b);
    }

    #[test]
    fn random_latex(a in latex(), b in latex()) {
        never_panics(&a, &b);
    }

    #[test]
    fn mutated(a in latex(), at in any::<prop::sample::Index>(), with in "\\PC{0,2}") {
        let mut characters: Vec<char> = a.chars().collect();
        if !characters.is_empty() {
            let at = at.index(characters.len());
            characters.splice(at..=at, with.chars());
        }
        never_panics(&a, &characters.into_iter().collect::<String>());
    }
}
