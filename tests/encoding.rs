//! Encoding records as tokens: trained tokens, answers that are too long, and counts.

mod common;

use common::{shared, smollm2};
use mixdistill::Error;
use mixdistill::context::Context;
use mixdistill::data::arith;
use mixdistill::data::{
    Batch, BatchLayout, CotRecord, Encoded, Example, Join, Ledger, LengthLimit, MixDistillation,
    MixedRows, MixtureConfig, MixtureOptions, Packing, Pairs, PlainTemplate, RowStream, Source,
    TextTokenizer, TooLong,
};
use proptest::prelude::*;
use std::sync::Arc;

fn tokenizer() -> TextTokenizer {
    let words = arith::vocabulary();
    TextTokenizer::builtin(words.iter().map(String::as_str)).expect("built-in tokenizer")
}

/// `count` problems with long and short answers; every fifth long answer is 200 words.
fn pairs(count: usize) -> (Pairs, Ledger) {
    let source = |name: &str, words: fn(usize) -> usize| {
        let record = |i: usize| CotRecord {
            system: None,
            earlier: vec![],
            id: None,
            problem: format!("What is {i} + 1?"),
            solution: format!("{}\\boxed{{{}}}", "step ".repeat(words(i)), i + 1),
            answer: Some((i + 1).to_string()),
        };
        Source::new(name, (0..count).map(record).collect())
    };
    let long = source("long", |i| if i % 5 == 0 { 200 } else { 20 });
    Pairs::join(vec![long, source("short", |_| 1)], Join::Inner).expect("join")
}

fn encode(pairs: &Pairs, limit: usize, too_long: TooLong) -> mixdistill::Result<Encoded> {
    Encoded::encode(
        pairs,
        &tokenizer(),
        &PlainTemplate::default(),
        LengthLimit { tokens: limit, too_long },
        &Context::default(),
    )
}

#[test]
fn the_answer_and_its_end_token_are_trained_and_nothing_else() {
    let (pairs, _) = pairs(3);
    let (tokenizer, template) = (tokenizer(), PlainTemplate::default());
    let encoded = encode(&pairs, 1000, TooLong::Drop).unwrap();
    let example = encoded.example(1, 2).unwrap();
    let (prompt, answer) = example.tokens.split_at(example.prompt);
    assert_eq!(tokenizer.decode(prompt).unwrap(), template.prompt_text("What is 2 + 1?".into()));
    assert_eq!(tokenizer.decode(answer).unwrap(), "step \\boxed{3}");
    assert_eq!(answer.last(), Some(&tokenizer.end_token()));
    assert_eq!(answer.iter().filter(|t| **t == tokenizer.end_token()).count(), 1);

    // Masked by position: the same token is trained in the answer and not in the prompt.
    let batch = Batch::new([example], 1);
    let trained: Vec<u32> = (0..batch.targets.len())
        .filter(|i| batch.weights[*i] == 1.0)
        .map(|i| batch.targets[i])
        .collect();
    assert_eq!(trained, answer);
}

#[test]
fn rows_are_laid_out_side_by_side_with_padding_on_the_right() {
    let rows = [
        Example { tokens: &[1, 2, 3, 4, 5], prompt: 2, ..Example::default() },
        Example { tokens: &[6, 7, 8], prompt: 1, number: 1, ..Example::default() },
    ];
    let batch = Batch::new(rows, 3);
    assert_eq!((batch.rows, batch.length), (2, 6));
    assert_eq!(batch.ids, [1, 2, 3, 4, 0, 0, 6, 7, 0, 0, 0, 0]);
    assert_eq!(batch.targets, [2, 3, 4, 5, 0, 0, 7, 8, 0, 0, 0, 0]);
    assert_eq!(batch.weights, [0., 1., 1., 1., 0., 0., 1., 1., 0., 0., 0., 0.]);
    assert_eq!((batch.tokens, batch.trained, batch.padding()), (6, 5, 6));

    let batch = Batch::packed(rows, 4);
    assert_eq!((batch.rows, batch.length, batch.examples), (1, 8, 2));
    assert_eq!(batch.ids, [1, 2, 3, 4, 6, 7, 0, 0]);
    assert_eq!(batch.targets, [2, 3, 4, 5, 7, 8, 0, 0]);
    assert_eq!(batch.weights, [0., 1., 1., 1., 1., 1., 0., 0.]);
    assert_eq!(batch.positions, [0, 1, 2, 3, 0, 1, 0, 1]);
    assert_eq!(batch.starts, [0, 0, 0, 0, 4, 4, 6, 6]);
}

#[test]
fn rows_that_do_not_fit_are_dropped_and_counted() {
    let (pairs, mut ledger) = pairs(50);
    let encoded = encode(&pairs, 100, TooLong::Drop).unwrap();
    let kept = encoded.fitting(&pairs, &mut ledger);
    assert!(ledger.adds_up(), "{ledger}");
    assert_eq!((ledger.sources[0].too_long, ledger.sources[0].usable), (10, 40));
    assert_eq!(ledger.sources[1].too_long, 0);
    assert_eq!(kept.len(), 50, "the short answers of those problems remain");
    assert_eq!(kept.available(0), 40);

    let complete = kept.complete(&mut ledger).unwrap();
    assert!(ledger.adds_up(), "{ledger}");
    assert_eq!((complete.len(), ledger.sources[1].unmatched), (40, 10));
}

#[test]
fn rows_that_do_not_fit_can_be_an_error_or_be_cut() {
    let (pairs, mut ledger) = pairs(50);
    let error = encode(&pairs, 100, TooLong::Error).unwrap_err().to_string();
    assert!(error.contains("`long` record 1 has") && error.contains("100"), "{error}");

    let encoded = encode(&pairs, 100, TooLong::Cut).unwrap();
    encoded.fitting(&pairs, &mut ledger);
    assert_eq!((ledger.sources[0].cut, ledger.sources[0].too_long), (10, 0));
    let cut = encoded.example(0, 0).unwrap();
    assert_eq!(cut.tokens.len(), 100);
    assert_ne!(cut.tokens.last(), Some(&tokenizer().end_token()), "it lost its end");
}

#[test]
fn a_limit_below_every_row_is_an_error_that_says_what_is_needed() {
    let (pairs, _) = pairs(5);
    for too_long in [TooLong::Drop, TooLong::Cut] {
        let error = encode(&pairs, 5, too_long).unwrap_err();
        assert!(matches!(error, Error::Config { .. }));
        assert!(error.to_string().contains("no row fits 5 tokens; the shortest has"), "{error}");
    }
}

#[test]
fn encoding_does_not_depend_on_the_threads() {
    let (pairs, _) = pairs(300);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| encode(&pairs, 1000, TooLong::Drop).unwrap())
    };
    let (one, three) = (with(1), with(3));
    for source in 0..2 {
        assert!((0..300).all(|r| one.example(source, r) == three.example(source, r)));
    }
}

#[test]
fn the_token_ledger_adds_up_from_the_report_to_the_batches() {
    let (pairs, _) = pairs(101);
    let encoded = Arc::new(encode(&pairs, 1000, TooLong::Drop).unwrap());
    let lengths = Some(Arc::new(encoded.lengths()));
    let options = MixtureOptions { lengths, ..MixtureOptions::default() };
    let mixture = MixDistillation::new(Arc::new(pairs), MixtureConfig::long_short(0.2), options);
    let mixture = mixture.unwrap();
    let total = mixture.report().total();
    let mut stream = MixedRows::new(mixture, encoded);
    for packing in [Packing::Off, Packing::On, Packing::Auto] {
        let (mut tokens, mut trained, mut positions, mut padding, mut rows) = (0, 0, 0, 0, 0);
        for first in (0..101).step_by(16) {
            let step = stream.rows(first..(first + 16).min(101)).unwrap();
            for batch in BatchLayout::rows(4, 8, packing).batches(&step) {
                rows += batch.examples;
                tokens += batch.tokens;
                trained += batch.trained;
                padding += batch.padding();
                positions += batch.rows * batch.length;
            }
        }
        assert_eq!(rows, 101);
        // The last token of a row is a target only.
        assert_eq!(tokens as u64, total.tokens - 101);
        assert_eq!(trained as u64, total.trained_tokens);
        assert_eq!(positions, tokens + padding);
    }
}

#[test]
fn a_row_is_the_same_wherever_the_stream_is_entered() {
    let (pairs, _) = pairs(10);
    let encoded = Arc::new(encode(&pairs, 1000, TooLong::Drop).unwrap());
    let config = MixtureConfig { redraw: true, ..MixtureConfig::long_short(0.3) };
    let mixture = MixDistillation::new(Arc::new(pairs), config, MixtureOptions::default()).unwrap();
    let mut stream = MixedRows::new(mixture.clone(), encoded.clone());
    let all = stream.rows(0..35).unwrap();
    for start in [0u64, 7, 9, 10, 25, 31] {
        let mut fresh = MixedRows::new(mixture.clone(), encoded.clone());
        assert_eq!(fresh.rows(start..35).unwrap(), all[start as usize..]);
    }
    for epoch in all[..30].chunks(10) {
        let mut prompts: Vec<&[u32]> = epoch.iter().map(|r| &r.tokens[..r.prompt]).collect();
        prompts.sort();
        prompts.dedup();
        assert_eq!(prompts.len(), 10, "an epoch has every problem once");
    }
}

proptest! {
    #[test]
    fn the_built_in_tokenizer_gives_any_text_back(text in any::<String>()) {
        // Special tokens in a text are left out when it is decoded, and none is in random text.
        let tokenizer = tokenizer();
        let tokens = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        prop_assert!(tokens.iter().all(|token| (*token as usize) < tokenizer.vocabulary_size()));
    }
}

#[test]
fn the_name_of_a_special_token_in_a_text_is_text() {
    let tokenizer = tokenizer();
    let text = "an <|end|> that ends nothing";
    let tokens = tokenizer.encode(text).unwrap();
    assert!(!tokens.contains(&tokenizer.end_token()));
    assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
}

#[test]
fn hugging_face_tokenizers_are_read_with_their_end_token() {
    let (Some(gpt2), Some(qwen3)) =
        (shared("tokenizers/gpt2/tokenizer.json"), shared("tokenizers/qwen3/tokenizer.json"))
    else {
        return;
    };
    let gpt2 = TextTokenizer::from_file(&gpt2, None).unwrap();
    assert_eq!((gpt2.vocabulary_size(), gpt2.end_token()), (50_257, 50_256));
    assert_eq!(gpt2.encode("Hello world").unwrap(), [15_496, 995]);
    let named = TextTokenizer::from_file(&qwen3, None).unwrap();
    assert_eq!(named.end_token_text(), "<|im_end|>", "from tokenizer_config.json");
    let chosen = TextTokenizer::from_file(&qwen3, Some("<|endoftext|>")).unwrap();
    assert_eq!(chosen.end_token(), 151_643);
}

#[test]
fn tokens_equal_the_reference_vectors_and_decode_back() {
    #[derive(serde::Deserialize)]
    struct Vector {
        text: String,
        ids: Vec<u32>,
    }
    let vectors = |path: &str| -> Option<Vec<Vector>> {
        let text = std::fs::read_to_string(shared(&format!("tokenizers/{path}"))?).unwrap();
        Some(serde_json::from_str(&text).unwrap())
    };
    let cases = [
        (shared("tokenizers/gpt2"), vectors("gpt2/vectors.json")),
        (shared("tokenizers/qwen3"), vectors("qwen3/vectors.json")),
        (smollm2(), vectors("smollm2_vectors.json")),
    ];
    for (folder, vectors) in cases {
        let (Some(folder), Some(vectors)) = (folder, vectors) else { continue };
        let tokenizer = TextTokenizer::from_folder(&folder, None).unwrap();
        assert!(vectors.len() > 40);
        for Vector { text, ids } in &vectors {
            assert_eq!(tokenizer.encode(text).unwrap(), *ids, "{}: {text:?}", folder.display());
            assert_eq!(tokenizer.decode(ids).unwrap(), *text, "{}", folder.display());
        }
        println!("{}: {} vectors", folder.display(), vectors.len());
    }
}

#[test]
fn tokenizers_that_cannot_be_used_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.json");
    let error = TextTokenizer::from_file(&missing, None).unwrap_err().to_string();
    assert!(error.contains("cannot read") && error.contains("none.json"), "{error}");

    let broken = folder.path().join("tokenizer.json");
    std::fs::write(&broken, "{\"model\": 3}").unwrap();
    let error = TextTokenizer::from_file(&broken, None).unwrap_err().to_string();
    assert!(error.contains("it cannot be read"), "{error}");

    // A tokenizer without any end token that is known.
    let text = tokenizer().to_json().unwrap().replace("<|end|>", "<|over|>");
    std::fs::write(&broken, text).unwrap();
    let error = TextTokenizer::from_file(&broken, None).unwrap_err().to_string();
    assert!(error.contains("no known end token") && error.contains("end_token"), "{error}");
    let error = TextTokenizer::from_file(&broken, Some("<stop>")).unwrap_err().to_string();
    assert!(error.contains("`<stop>` is not in its vocabulary"), "{error}");
    let named = TextTokenizer::from_file(&broken, Some("<|over|>")).unwrap();
    assert_eq!(named.end_token_text(), "<|over|>");
}
