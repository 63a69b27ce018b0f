//! Hand-written pairs of answers in `pairs.txt`, by the kinds that the mathematical tier knows.
//! Each is compared in both directions.

use mixdistill::eval::{Tier, equal};

#[test]
fn mathematical() {
    let (mut kind, mut count, mut wrong) = ("", 0, vec![]);
    for line in include_str!("pairs.txt").lines() {
        if let Some(title) = line.strip_prefix("# ") {
            kind = title;
            continue;
        }
        let (mark, pair) = line.split_at(2);
        let (a, b) = pair.split_once(" ;; ").unwrap();
        let expected = mark == "= ";
        for (a, b) in [(a, b), (b, a)] {
            if equal(Tier::Mathematical, a, b) != expected {
                let verdict = if expected { "equal" } else { "different" };
                wrong.push(format!("{kind}: {a}  and  {b}  should be {verdict}"));
            }
        }
        count += 1;
    }
    println!("{count} pairs, each in both directions");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 150);
}

#[test]
fn tiers_alone() {
    assert!(equal(Tier::Exact, " x ", "x") && !equal(Tier::Exact, "1,000", "1000"));
    assert!(equal(Tier::Hendrycks, r"\frac34", "3/4") && !equal(Tier::Hendrycks, "0.75", "3/4"));
    // The tier below the last drops units and knows lists by their text only.
    assert!(equal(Tier::Hendrycks, r"5\text{ cm}", r"5\text{ km}"));
    assert!(!equal(Tier::Mathematical, r"5\text{ cm}", r"5\text{ km}"));
    assert!(!equal(Tier::Hendrycks, "1, 2", "2, 1") && equal(Tier::Mathematical, "1, 2", "2, 1"));
}

#[test]
fn whole_texts() {
    for (gold, solution) in [
        ("5", "it is 5"),
        ("1000.99", "not it's not 10 it's 1,000.99 m²"),
        ("3", "So we get $x = 3$."),
        ("x = 3", "Answer: $3$ metres"),
        ("-3", "Therefore the answer is -3"),
        ("1, 2", r"$\boxed{1} \Rightarrow \boxed{2}$"),
        ("1, 2", r"\(\boxed{1}\) or \(\boxed{2}\)."),
        ("2", r"First \boxed{1}, so that at last \boxed{2}"),
        ("5", r"\boxed{x = \boxed{5}}"),
        ("B", r"The answer is \boxed{\text{(B)}}."),
        ("18", "He has 9 * 2 = $<<9*2=18>>18\nA: 18"),
        (r"\frac{1}{2}", r"The final answer is \(\frac{2}{4}\). I hope it is correct."),
        ("70", "so 7 * 10 = 70 of them."),
    ] {
        assert!(
            mixdistill::eval::grade(gold, solution).correct,
            "{gold}: {:?}",
            mixdistill::eval::grade(gold, solution)
        );
    }
    for (gold, solution) in
        [("7", r"It is \boxed{7"), ("5", r"\boxed{6} since 5"), ("3", "-3"), ("7", "")]
    {
        assert!(!mixdistill::eval::grade(gold, solution).correct, "{gold}: {solution}");
    }
}
