//! Promise: the grader is lenient about form, but never about content. A second value, a negation,
//! a condition, a comparison, or a doubt makes a right answer wrong, in either direction of the
//! comparison. A unit, a noun, a modulus, or another spelling does not.

use mixdistill::eval::{AnswerKind, same_answer};
use proptest::prelude::*;
use proptest::sample::select;

/// A right answer: numbers, roots, expressions, intervals, sets.
fn value() -> impl Strategy<Value = String> {
    let positive = 2u32..500;
    prop_oneof![
        scalar(),
        (positive.clone(), positive.clone()).prop_map(|(a, b)| format!("({a}, {})", a + b)),
        (positive.clone(), positive.clone()).prop_map(|(a, b)| format!("[{a}, {})", a + b)),
        (positive.clone(), positive.clone()).prop_map(|(a, b)| format!(r"\{{{a}, {}\}}", a + b)),
        (positive.clone(), select(vec!["x", "n", "a"])).prop_map(|(a, x)| format!("{a}{x}+1")),
        (positive.clone(), select(vec!["x", "y"])).prop_map(|(a, x)| format!("{x} = {a}")),
        (positive.clone(), positive).prop_map(|(a, b)| format!(r"{a} + {b}\pi")),
    ]
}

/// A number, in its many forms.
fn scalar() -> impl Strategy<Value = String> {
    let positive = 2u32..2_000;
    prop_oneof![
        (-2_000i32..2_000).prop_map(|n| n.to_string()),
        (1_000u64..u64::MAX).prop_map(|n| n.to_string()),
        (positive.clone(), 1u32..100).prop_map(|(a, b)| format!("{a}.{b:02}")),
        (positive.clone(), positive.clone()).prop_map(|(a, b)| format!(r"\frac{{{a}}}{{{b}}}")),
        positive.clone().prop_map(|n| format!(r"\sqrt{{{n}}}")),
        positive.clone().prop_map(|n| format!(r"{n}\sqrt{{2}}")),
        positive.clone().prop_map(|n| format!(r"{n}\pi")),
        (2u32..10, 2u32..30).prop_map(|(a, b)| format!("{a}^{{{b}}}")),
        positive.prop_map(|n| format!("{n}/7")),
    ]
}

/// What says something; `V` stands for the answer and `W` for another value.
const TELLING: &[&str] = &[
    r"V \text{ or } W",
    r"V \text{ and } W",
    r"V, W",
    r"W, V",
    r"V; W",
    r"V \text{ or possibly } W",
    r"V\text{ or }W",
    r"V \mbox{ or } W",
    r"V or W",
    r"V and W",
    r"V \text{, and also } W",
    r"V \text{ oder } W",
    r"V \text{ ou } W",
    r"V \text{ o } W",
    r"V \text{ или } W",
    r"V \text{或} W",
    r"V \lor W",
    r"V \text{ (but maybe } W \text{)}",
    r"V \text{ (but maybe W)}",
    r"V \text{ (or W)}",
    r"V \text{ is wrong, it is } W",
    r"V \text{ is wrong}",
    r"V \text{ is not the answer}",
    r"V \text{ not } W",
    r"V \text{ not W}",
    r"\text{not } V",
    r"\text{ not } V",
    r"\text{not V}",
    r"\neg V",
    r"\lnot V",
    r"\ne V",
    r"\neq V",
    r"\text{no, } V",
    r"V \text{ if } n > 2",
    r"V \text{ if n > 2}",
    r"V \text{ if } n \text{ is even}",
    r"V \text{ if n is even}",
    r"V \text{ for } x < 0",
    r"V \text{ for all } n",
    r"V \text{ when } n = 3",
    r"V \text{ unless } n = 1",
    r"V \text{ where } n > 0",
    r"V \text{ provided that } n > 0",
    r"V \text{ only if } n > 0",
    r"V, n > 2",
    r"V \text{, if } n > 2",
    r"V \text{ or more}",
    r"V \text{ or less}",
    r"V \text{ or fewer}",
    r"V \text{ and above}",
    r"V or more",
    r"\text{at least } V",
    r"\text{at most } V",
    r"\text{more than } V",
    r"\text{less than V}",
    r"\text{at least V}",
    r"V \text{ at most}",
    r"V \text{ except } W",
    r"V \text{ but not } W",
    r"V \text{ to } W",
    r"\text{from } V \text{ to } W",
    r"\text{between } V \text{ and } W",
    r"V \text{ remainder } 3",
    r"V \text{ R } 3",
    r"V \text{ and a half}",
    r"V \text{ hours and } 20 \text{ minutes}",
    r"V \text{ or none}",
    r"V \text{ (maybe)}",
    r"V \text{ otherwise } W",
    r"V \text{ if } n>0, W \text{ otherwise}",
    r"\begin{cases} V & n>0 \\ W & n \le 0 \end{cases}",
    r"V \text{ plus } W",
    r"V \text{ times as much}",
    r"\text{maybe } V",
    r"V?",
    r"V \text{ is false}",
    r"V \text{ for some } n",
    r"V \text{ as long as } n > 0",
    r"V \text{ with } n > 0",
    r"V \text{ such that } n > 0",
    r"V \text{, otherwise } W",
    r"V \text{ instead of } W",
    r"V \text{ as well as } W",
    r"V \implies W",
    r"V \to W",
    r"V \quad W",
    r"V \cup \{W\}",
    r"V \mid n > 0",
    r"\text{anything but } V",
    r"V \text{ aber nicht } W",
    r"V \text{ OR } W",
    r"V \operatorname{or} W",
    r"V \text{ W}",
    r"V \text{ nine}",
];

/// What says something about a number, though not about a set or an equation.
const TELLING_OF_NUMBERS: &[&str] = &[
    r"\pm V",
    r"x \ge V",
    r"x > V",
    r"x \le V",
    r"x < V",
    r"x \ne V",
    r"n = V \text{ or more}",
    r"x = V, y = W",
    r"x = V \text{ or } x = W",
    r"(V)!",
    r"V^{\circ}C \text{ or } 41^{\circ}F",
    r"(V, W)",
    r"V : W",
    r"V \text{ squared}",
];

/// What says nothing about a number.
const HARMLESS: &[&str] = &[
    r"V \text{ apples}",
    r"V \text{ cm}",
    r"V\text{ cm}",
    r"V \text{ square inches}",
    r"V \text{ cm}^2",
    r"V\, \mathrm{kg}",
    r"V \text{ km/h}",
    r"V \text{ meters per second}",
    r"V \text{ (mod 4001)}",
    r"V \pmod{4001}",
    r"V \text{ dollars}",
    r"\$V",
    r"V^\circ",
    r"V^{\circ}",
    r"V \text{ degrees}",
    r"V\%",
    r"V \text{ people}",
    r"V \mbox{ units}",
    r"V \textbf{ hours}",
    r"V \text{ mod } 4001",
    r"V \text{ miles per hour}",
    r"V \text{ marbles in the bag}",
    r"V \text{ real solutions}",
    r"V \text{ sq. units}",
    r"V \text{ in total}",
    r"\text{ } V",
    r"x = V",
    r"= V",
    r"{V}",
    r"\left( V \right)",
    r"\mathbf{V}",
    r"V\,",
    r"V.",
    r"$V$",
    r"\boxed{V}",
    r" V ",
];

/// The patterns that have another value.
fn with_other() -> Vec<&'static str> {
    TELLING.iter().copied().filter(|pattern| pattern.contains('W')).collect()
}

fn of(pattern: &str, value: &str, other: &str) -> String {
    pattern.split('W').map(|part| part.replace('V', value)).collect::<Vec<_>>().join(other)
}

fn same_both_ways(a: &str, b: &str) -> bool {
    let (one, other) = (same_answer(a, b), same_answer(b, a));
    assert_eq!(one, other, "not symmetric: {a} and {b}");
    one
}

/// The verdict on an answer in a box, against a reference.
fn in_a_box(reference: &str, answer: &str) -> bool {
    let text = format!(r"So the answer is $\boxed{{{answer}}}$.");
    let stated = AnswerKind::Stated.answer(&text);
    stated.is_some_and(|stated| same_answer(reference, &stated))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn what_says_more_makes_another_answer(v in value(), w in 2_001u32..9_000, pattern in select(TELLING)) {
        let changed = of(pattern, &v, &w.to_string());
        prop_assert!(!same_both_ways(&v, &changed), "{} is not {}", changed, v);
        prop_assert!(!in_a_box(&v, &changed), "{} is not {}", changed, v);
    }

    #[test]
    fn so_it_does_of_numbers(v in scalar(), w in 2_001u32..9_000, pattern in select(TELLING_OF_NUMBERS)) {
        // Their factorials are themselves, or 1 for 0.
        prop_assume!(["0", "1", "2"].iter().all(|small| !same_answer(small, &v)));
        let changed = of(pattern, &v, &w.to_string());
        prop_assert!(!same_both_ways(&v, &changed), "{} is not {}", changed, v);
        prop_assert!(!in_a_box(&v, &changed), "{} is not {}", changed, v);
    }

    #[test]
    fn the_second_part_counts(v in value(), w in 2_001u32..9_000, pattern in select(with_other())) {
        let (one, other) = (of(pattern, &v, &w.to_string()), of(pattern, &v, &(w + 1).to_string()));
        prop_assert!(!same_both_ways(&one, &other), "{} is not {}", one, other);
        prop_assert!(same_answer(&one, &one));
        let spaced = one.replace(r"\text{ ", r"\text{  ").replace('>', " > ");
        prop_assert!(same_both_ways(&one, &spaced), "{} is {}", one, spaced);
    }

    #[test]
    fn what_says_nothing_leaves_it_right(v in scalar(), pattern in select(HARMLESS)) {
        let changed = of(pattern, &v, "");
        prop_assert!(same_both_ways(&v, &changed), "{} is {}", changed, v);
        prop_assert!(in_a_box(&v, &changed), "{} is {}", changed, v);
    }
}

/// Every pattern with answers of every form, so that none depends on what is drawn above.
#[test]
fn every_pattern() {
    let scalars = [
        "7",
        "-3",
        "0.25",
        r"\frac{3}{4}",
        r"\sqrt{2}",
        r"2\sqrt{2}",
        r"3\pi",
        "2^{10}",
        "22/7",
        "1,234",
        r"\frac{\sqrt{3}}{2}",
        "1e6",
        r"1\frac{1}{2}",
        "i",
        "3+4i",
        "x",
        "n+1",
        "90",
    ];
    let others = [
        "(1, 3)",
        "[0, 5)",
        r"\{1, 2\}",
        "x = 5",
        "2x + 3y = 6",
        r"\text{Tuesday}",
        r"\text{even}",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        "x > 3",
        "3:4",
        "5, 6",
        r"\infty",
    ];
    let mut wrong = vec![];
    for v in scalars.iter().chain(&others) {
        let number = scalars.contains(v);
        for pattern in TELLING.iter().chain(TELLING_OF_NUMBERS.iter().filter(|_| number)) {
            let changed = of(pattern, v, "9999");
            if same_both_ways(v, &changed) || in_a_box(v, &changed) {
                wrong.push(format!("{changed}  is not  {v}"));
            }
            let other = of(pattern, v, "9998");
            if pattern.contains('W') && same_both_ways(&changed, &other) {
                wrong.push(format!("{changed}  is not  {other}"));
            }
        }
        for pattern in HARMLESS.iter().filter(|_| number) {
            // A percent sign behind a sum is that of its last term, a comma in brackets parts
            // items.
            if v.contains('+') && pattern.contains('%') || v.contains(',') && pattern.contains('(')
            {
                continue;
            }
            let changed = of(pattern, v, "");
            if !same_both_ways(v, &changed) || !in_a_box(v, &changed) {
                wrong.push(format!("{changed}  is  {v}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
