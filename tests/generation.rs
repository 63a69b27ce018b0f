//! Generation: the cache compared with whole rows, batches, settings, and stop conditions.

mod common;

use common::{devices, generate, ids, rows, shaken, tiny};
use mixdistill::data::TextTokenizer;
use mixdistill::model::{
    Architecture, DecoderConfig, EndReason, GenerateConfig, Generation, StopConditions,
};
use std::ops::ControlFlow;

#[test]
fn a_cache_gives_the_tokens_that_whole_rows_give() {
    for device in devices() {
        for architecture in Architecture::ALL {
            let config = tiny(architecture);
            let model = shaken(&config, &device);
            let prompt = rows(&[(7, 1)])[0].tokens.clone();
            let settings = GenerateConfig { max_new_tokens: 150, ..Default::default() };
            let answers = generate(&model, std::slice::from_ref(&prompt), &[], &settings).unwrap();
            let mut row = prompt;
            for token in &answers[0].tokens {
                let length = row.len();
                let logits = model.logits(ids(&row, [1, length], &device));
                let last = logits.narrow(1, length - 1, 1).try_into_vec_as::<f32>().unwrap();
                let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
                assert_eq!(*token as usize, best, "{architecture:?} after {length} tokens");
                row.push(*token);
            }
            // Long enough for the cache to grow twice.
            assert_eq!(answers[0].tokens.len(), 150);
        }
    }
}

#[test]
fn answers_do_not_depend_on_what_they_are_batched_with() {
    let device = &devices()[0];
    let model = shaken(&tiny(Architecture::Qwen2), device);
    let shapes = [(3, 1), (11, 1), (1, 1), (7, 1), (7, 1), (20, 1)];
    let prompts: Vec<Vec<u32>> = rows(&shapes).into_iter().map(|row| row.tokens).collect();
    for temperature in [0.0, 0.9] {
        let settings = |batch_size| GenerateConfig {
            max_new_tokens: 24,
            temperature,
            top_p: 0.95,
            seed: 4,
            batch_size,
            repetition_penalty: 1.1,
            ..Default::default()
        };
        let end = [3, 5];
        let together = generate(&model, &prompts, &end, &settings(6)).unwrap();
        let alone = generate(&model, &prompts, &end, &settings(1)).unwrap();
        let three = generate(&model, &prompts, &end, &settings(4)).unwrap();
        assert_eq!(together, alone);
        assert_eq!(together, three);
        assert!(together.iter().any(|answer| !answer.hit_limit()), "some answer ends early");
        assert!(together.iter().all(|a| !a.tokens.iter().any(|t| end.contains(t))));
        assert!(together.iter().all(|a| !a.hit_limit() || a.tokens.len() == 24));
    }
}

/// Answers end at different times, and the next prompts take their places: far beyond the places that the
/// first rows had, so that what is padding in all rows is let go of.
#[test]
fn prompts_that_take_the_places_of_ended_answers_get_the_answers_that_they_get_alone() {
    let device = &devices()[0];
    for architecture in Architecture::ALL {
        let model = shaken(&tiny(architecture), device);
        let shapes: Vec<(usize, usize)> = (0..40).map(|i| (1 + i * 7 % 23, 1)).collect();
        let prompts: Vec<Vec<u32>> = rows(&shapes).into_iter().map(|row| row.tokens).collect();
        let settings = |batch_size| GenerateConfig {
            max_new_tokens: 60,
            temperature: 0.8,
            seed: 9,
            batch_size,
            ..Default::default()
        };
        let alone = generate(&model, &prompts, &[3], &settings(1)).unwrap();
        let lengths: Vec<usize> = alone.iter().map(|answer| answer.tokens.len()).collect();
        assert!(lengths.iter().max() > lengths.iter().min(), "{architecture:?}: {lengths:?}");
        for batch_size in [2, 3, 7] {
            let together = generate(&model, &prompts, &[3], &settings(batch_size)).unwrap();
            assert_eq!(together, alone, "{architecture:?} {batch_size}");
        }
    }
}

/// As answers of a benchmark, whose prompts begin with the same instructions.
#[test]
fn prompts_that_begin_alike_get_the_answers_that_they_get_alone() {
    let device = &devices()[0];
    for architecture in Architecture::ALL {
        let model = shaken(&tiny(architecture), device);
        let shapes: Vec<(usize, usize)> = (0..12).map(|i| (1 + i * 7 % 23, 1)).collect();
        let prompts: Vec<Vec<u32>> = rows(&shapes)
            .into_iter()
            .map(|row| (0..21).map(|i| (i * 5 + 2) % 23).chain(row.tokens).collect())
            .collect();
        let settings =
            |batch_size| GenerateConfig { max_new_tokens: 20, batch_size, ..Default::default() };
        let alone: Vec<_> = prompts
            .iter()
            .flat_map(|prompt| {
                generate(&model, std::slice::from_ref(prompt), &[3], &settings(1)).unwrap()
            })
            .collect();
        for batch_size in [1, 3, 12] {
            let together = generate(&model, &prompts, &[3], &settings(batch_size)).unwrap();
            assert_eq!(together, alone, "{architecture:?} {batch_size}");
        }
    }
}

#[test]
fn drawn_answers_follow_their_seed() {
    let device = &devices()[0];
    let model = shaken(&tiny(Architecture::Llama), device);
    let prompts = vec![vec![1, 2, 3]];
    let answer = |seed| {
        let settings =
            GenerateConfig { temperature: 1.5, seed, max_new_tokens: 30, ..Default::default() };
        generate(&model, &prompts, &[], &settings).unwrap()
    };
    assert_eq!(answer(1), answer(1));
    assert_ne!(answer(1), answer(2));
}

#[test]
fn prompts_and_settings_that_cannot_be_answered_are_refused() {
    let device = &devices()[0];
    let model = tiny(Architecture::Llama).init(1, device).unwrap();
    let try_with = |prompt: Vec<u32>, settings: GenerateConfig| {
        generate(&model, &[prompt], &[], &settings).unwrap_err().to_string()
    };
    let fine = GenerateConfig::default;
    assert!(try_with(vec![], fine()).contains("prompt 0 is empty"));
    assert!(try_with(vec![23], fine()).contains("prompt 0 has the token 23"));
    for (settings, key) in [
        (GenerateConfig { max_new_tokens: 0, ..fine() }, "max_new_tokens"),
        (GenerateConfig { batch_size: 0, ..fine() }, "batch_size"),
        (GenerateConfig { temperature: -1.0, ..fine() }, "temperature"),
        (GenerateConfig { temperature: f64::NAN, ..fine() }, "temperature"),
        (GenerateConfig { top_p: 0.0, ..fine() }, "top_p"),
        (GenerateConfig { min_p: 1.5, ..fine() }, "min_p"),
        (GenerateConfig { repetition_penalty: 0.0, ..fine() }, "repetition_penalty"),
        (GenerateConfig { repetition_penalty: f64::NAN, ..fine() }, "repetition_penalty"),
        (GenerateConfig { stop: vec![String::new()], ..fine() }, "stop"),
    ] {
        assert!(try_with(vec![1], settings).contains(key));
    }
}

/// A model over the built-in vocabulary, whose tokens are text.
fn speaking(tokenizer: &TextTokenizer) -> mixdistill::model::DecoderLm {
    let vocab_size = tokenizer.vocabulary_size();
    shaken(&DecoderConfig { vocab_size, ..tiny(Architecture::Llama) }, &devices()[0])
}

#[test]
fn a_stop_text_ends_an_answer_wherever_tokens_divide_it() {
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    let model = speaking(&tokenizer);
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| vec![40 + i, 300 + i, 12]).collect();
    let answer = |stop: Vec<String>| -> Vec<Generation> {
        let config = GenerateConfig {
            max_new_tokens: 60,
            temperature: 1.0,
            stop,
            ..GenerateConfig::default()
        };
        let stop_conditions = StopConditions { tokens: &[], tokenizer: &tokenizer };
        model
            .generate(&prompts, stop_conditions, &config, &mut |_| ControlFlow::Continue(()))
            .unwrap()
    };
    for free in answer(vec![]) {
        assert_eq!(free.end, EndReason::Limit);
    }
    let free = answer(vec![]);
    let whole: Vec<String> = free.iter().map(|a| a.text(&tokenizer).unwrap()).collect();
    // Three characters from the middle of an answer, which are several tokens.
    let middle: String = whole[2].chars().skip(20).take(3).collect();
    for (index, answer) in
        answer(vec!["never to be seen".into(), middle.clone()]).iter().enumerate()
    {
        let text = answer.text(&tokenizer).unwrap();
        match whole[index].find(&middle) {
            Some(at) => {
                assert_eq!(answer.end, EndReason::Stop(middle.clone()));
                assert_eq!(text, whole[index][..at]);
                assert!(free[index].tokens.starts_with(&answer.tokens));
            }
            None => assert_eq!(*answer, free[index]),
        }
    }
}

#[test]
fn a_stop_text_is_cut_where_it_begins_first() {
    // A word that holds one stop text twice and another before it.
    let tokenizer = TextTokenizer::builtin([" xbabca"]).unwrap();
    let model = speaking(&tokenizer);
    let token = tokenizer.encode(" xbabca").unwrap()[0];
    let answer = |stop: &str| Generation { tokens: vec![token], end: EndReason::Stop(stop.into()) };
    assert_eq!(answer("a").text(&tokenizer).unwrap(), " xb");
    let config = GenerateConfig {
        stop: vec!["a".into(), "b".into()],
        max_new_tokens: 40,
        temperature: 2.0,
        ..GenerateConfig::default()
    };
    let stop_conditions = StopConditions { tokens: &[], tokenizer: &tokenizer };
    let prompts: Vec<Vec<u32>> = (0..300).map(|i| vec![i % 300]).collect();
    let answers = model
        .generate(&prompts, stop_conditions, &config, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    let with = answers.iter().filter(|answer| answer.tokens.last() == Some(&token));
    assert!(with.clone().count() > 0, "some answer ends with the word");
    for answer in with {
        assert_eq!(answer.end, EndReason::Stop("b".into()));
        assert!(answer.text(&tokenizer).unwrap().ends_with(" x"));
    }
}

#[test]
fn an_observer_sees_every_token_and_may_end_the_work() {
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    let model = speaking(&tokenizer);
    let prompts: Vec<Vec<u32>> = (0..5).map(|i| vec![40 + i; 3 + i as usize]).collect();
    let config = GenerateConfig { max_new_tokens: 8, batch_size: 2, ..GenerateConfig::default() };
    let stop_conditions = StopConditions { tokens: &[], tokenizer: &tokenizer };
    let mut seen = vec![vec![]; 5];
    let mut ended = vec![];
    let answers = model
        .generate(&prompts, stop_conditions, &config, &mut |token| {
            seen[token.prompt].push(*token.tokens.last().unwrap());
            if token.end.is_some() {
                ended.push(token.finished);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, answers.iter().map(|a| a.tokens.clone()).collect::<Vec<_>>());
    assert_eq!(ended, [1, 2, 3, 4, 5]);

    let mut count = 0;
    let stopped = model
        .generate(&prompts, stop_conditions, &config, &mut |_| {
            count += 1;
            if count == 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((count, stopped.len()), (6, 5));
    assert!(stopped.iter().all(|answer| answer.end == EndReason::Interrupted));
    // The longest prompts come first.
    assert_eq!(stopped[4].tokens, answers[4].tokens[..3]);
    assert!(stopped[0].tokens.is_empty());
}

#[test]
fn a_repetition_penalty_makes_greedy_answers_repeat_less() {
    let model = shaken(&tiny(Architecture::Qwen3), &devices()[0]);
    let distinct = |repetition_penalty| {
        let config =
            GenerateConfig { repetition_penalty, max_new_tokens: 20, ..Default::default() };
        let mut tokens = generate(&model, &[vec![1, 2, 3]], &[], &config).unwrap().remove(0).tokens;
        tokens.sort_unstable();
        tokens.dedup();
        tokens.len()
    };
    assert!(distinct(3.0) > distinct(1.0), "{} {}", distinct(3.0), distinct(1.0));
}
