//! The toy corpus: both solutions of every problem are correct, and test problems are not in the training data.

use mixdistill::data::TextTokenizer;
use mixdistill::data::arith::{ArithConfig, ArithCorpus, vocabulary};
use mixdistill::eval::final_answer;
use std::collections::HashSet;

/// Checks every equation `a + b (- c ...) = d` of a text, except those that the text itself calls
/// wrong, and returns how many there were. Written without regard to how the text was made.
fn check_equations(text: &str) -> usize {
    let clean = text.replace(['.', ',', '?', ':'], " ");
    let words: Vec<&str> = clean.split_whitespace().collect();
    let number = |word: &str| word.parse::<i64>().ok();
    let mut checked = 0;
    for (at, _) in words.iter().enumerate().filter(|(_, word)| **word == "=") {
        // Back to the first number of the left side: numbers with signs between them.
        let mut first = at - 1;
        while first >= 2
            && ["+", "-"].contains(&words[first - 1])
            && number(words[first - 2]).is_some()
        {
            first -= 2;
        }
        let mut value = number(words[first]).expect("a number");
        for pair in words[first + 1..at].chunks_exact(2) {
            let term = number(pair[1]).expect("a number");
            value += if pair[0] == "+" { term } else { -term };
        }
        assert_eq!(Some(value), number(words[at + 1]), "{:?}", &words[first..at + 2]);
        checked += 1;
    }
    checked
}

#[test]
fn every_equation_of_every_solution_is_right_and_ends_in_the_answer() {
    for config in
        [ArithConfig::default(), ArithConfig { operations: (1, 6), start: 5000, operand: 1999 }]
    {
        let corpus = ArithCorpus::generate(&config, 500, 100, 3);
        let mut slips = 0;
        for problem in corpus.train.iter().chain(&corpus.test) {
            let answer = Some(problem.answer.to_string());
            assert_eq!(final_answer(&problem.short), answer);
            assert_eq!(final_answer(&problem.long), answer);
            assert!(check_equations(&problem.short) >= config.operations.0);
            assert!(check_equations(&problem.long) >= 2 * config.operations.0);
            assert!(problem.long.len() > 2 * problem.short.len());
            slips += problem.long.matches("Wait").count();
        }
        assert!(slips > 100, "long solutions correct themselves now and then: {slips}");
    }
}

#[test]
fn an_expression_has_the_value_that_is_called_its_answer() {
    let corpus = ArithCorpus::generate(&ArithConfig::default(), 600, 0, 8);
    let mut expressions = 0;
    for problem in &corpus.train {
        let Some(rest) = problem.problem.strip_prefix("What is ") else { continue };
        check_equations(&format!("{} = {}", rest.trim_end_matches('?'), problem.answer));
        expressions += 1;
    }
    assert!(expressions > 100, "{expressions}");
}

#[test]
fn problems_are_disjoint_and_a_function_of_the_seed() {
    let make = |seed| ArithCorpus::generate(&ArithConfig::default(), 3000, 300, seed);
    let corpus = make(1);
    assert_eq!((corpus.train.len(), corpus.test.len()), (3000, 300));
    let all: HashSet<&str> =
        corpus.train.iter().chain(&corpus.test).map(|p| p.problem.as_str()).collect();
    assert_eq!(all.len(), 3300);
    assert_eq!(make(1).train, corpus.train);
    assert_ne!(make(2).train, corpus.train);
}

#[test]
fn a_space_of_too_few_problems_gives_fewer_and_ends() {
    let tiny = ArithConfig { operations: (1, 1), start: 1, operand: 1 };
    let corpus = ArithCorpus::generate(&tiny, 100_000, 10, 1);
    assert!(corpus.train.len() < 100_000 && corpus.test.len() == 10);
}

#[test]
fn the_built_in_tokenizer_knows_the_corpus_by_words() {
    let words = vocabulary();
    let tokenizer = TextTokenizer::builtin(words.iter().map(String::as_str)).unwrap();
    let corpus = ArithCorpus::generate(&ArithConfig::default(), 300, 0, 77);
    for problem in &corpus.train {
        for text in [&problem.problem, &problem.short, &problem.long] {
            let tokens = tokenizer.encode(text).unwrap();
            assert_eq!(&tokenizer.decode(&tokens).unwrap(), text);
            // A word, a digit and a sign are one token each; so there are no more tokens than
            // letters' words, and other characters but the spaces around signs.
            let words = text.split(|c: char| !c.is_alphabetic()).filter(|w| !w.is_empty()).count();
            let others = text.chars().filter(|c| !c.is_alphabetic() && *c != ' ').count();
            let spaces =
                text.split(' ').filter(|w| w.starts_with(|c: char| c.is_ascii_digit())).count();
            assert!(tokens.len() <= words + others + spaces, "{} for {text}", tokens.len());
        }
    }
}
