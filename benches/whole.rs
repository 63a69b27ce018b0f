//! Times a training step, generation, and the data path at small sizes. `benches/bench_*.rs` use real sizes.
//!
//! `cargo bench --profile dev --bench whole`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mixdistill::context::Context;
use mixdistill::data::{
    BatchLayout, Encoded, Join, LengthLimit, MixDistillation, MixedRows, MixtureConfig,
    MixtureOptions, Packing, Pairs, PlainTemplate, Row, RowStream, Source, TextTokenizer, arith,
};
use mixdistill::device::{by_name, use_threads};
use mixdistill::model::{DecoderConfig, GenerateConfig, StopConditions};
use mixdistill::train::{Learner, TrainConfig};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

fn config() -> DecoderConfig {
    DecoderConfig {
        vocab_size: 1024,
        hidden_size: 128,
        intermediate_size: 352,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        ..DecoderConfig::default()
    }
}

fn step(criterion: &mut Criterion) {
    use_threads(None).expect("the threads are set once");
    let device = by_name("auto").expect("a backend").autodiff();
    let mut group = criterion.benchmark_group("step");
    for (what, unequal, packing) in [
        ("equal lengths", false, Packing::Off),
        ("unequal lengths, padded", true, Packing::Off),
        ("unequal lengths, packed", true, Packing::On),
    ] {
        let rows: Vec<Row> = (0..8u64)
            .map(|number| {
                let length = if unequal { 16 << (number % 5) } else { 129 };
                let tokens = (0..length).map(|i| ((i * 31 + number * 7) % 1024) as u32).collect();
                Row { tokens, prompt: 1, number, ..Row::default() }
            })
            .collect();
        let tokens: usize = rows.iter().map(|row| row.tokens.len() - 1).sum();
        let train = TrainConfig { batch_size: 8, accumulate: 1, packing, ..Default::default() };
        let model = config().init(1, &device).expect("a model");
        let mut learner = Learner::new(model, train).expect("a learner");
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(what, |bencher| {
            bencher.iter(|| learner.train_step(&rows, 1_000_000).expect("a step"));
        });
    }
    group.finish();
}

fn generation(criterion: &mut Criterion) {
    let device = by_name("auto").expect("a backend");
    let model = config().init(1, &device).expect("a model");
    let tokenizer = words();
    let mut group = criterion.benchmark_group("generation");
    for batch in [1, 16] {
        let prompts: Vec<Vec<u32>> = (0..batch).map(|i| vec![i as u32 + 1; 32]).collect();
        let config = GenerateConfig {
            max_new_tokens: 32,
            batch_size: batch,
            temperature: 0.0,
            ..GenerateConfig::default()
        };
        group.throughput(Throughput::Elements(32 * batch as u64));
        group.bench_function(BenchmarkId::new("batch", batch), |bencher| {
            let endings = StopConditions { tokens: &[], tokenizer: &tokenizer };
            bencher.iter(|| {
                model.generate(&prompts, endings, &config, &mut |_| ControlFlow::Continue(()))
            });
        });
    }
    group.finish();
}

fn words() -> TextTokenizer {
    let words = arith::vocabulary();
    TextTokenizer::builtin(words.iter().map(String::as_str)).expect("a tokenizer")
}

fn data(criterion: &mut Criterion) {
    let corpus = arith::ArithCorpus::generate(&arith::ArithConfig::default(), 2000, 0, 1);
    let problems = || corpus.train.iter().enumerate();
    let long = Source::new("long", problems().map(|(id, p)| p.long_record(id)).collect());
    let short = Source::new("short", problems().map(|(id, p)| p.short_record(id)).collect());
    let (pairs, mut ledger) = Pairs::join(vec![long, short], Join::Inner).expect("pairs");
    let (tokenizer, template) = (words(), PlainTemplate::default());
    let encode = || {
        let limit = LengthLimit::drop_beyond(512);
        Encoded::encode(&pairs, &tokenizer, &template, limit, &Context::default()).expect("tokens")
    };
    let mut group = criterion.benchmark_group("data");
    group.throughput(Throughput::Elements(4000));
    group.bench_function("encode", |bencher| bencher.iter(encode));
    let encoded = Arc::new(encode());
    let fitting = Arc::new(encoded.fitting(&pairs, &mut ledger));
    group.throughput(Throughput::Elements(fitting.len() as u64));
    let mix = || {
        let lengths = Some(Arc::new(encoded.lengths()));
        let options = MixtureOptions { lengths, ..MixtureOptions::default() };
        MixDistillation::new(fitting.clone(), MixtureConfig::long_short(0.2), options)
            .expect("a mixture")
    };
    group.bench_function("mix", |bencher| bencher.iter(mix));
    let mut rows = MixedRows::new(mix(), encoded.clone());
    let layout =
        BatchLayout { tokens_per_batch: Some(2048), ..BatchLayout::rows(1, 1, Packing::On) };
    group.bench_function("pack", |bencher| {
        let all = rows.rows_per_epoch() as u64;
        bencher.iter(|| layout.batches(&rows.rows(0..all).expect("rows")));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3));
    targets = step, generation, data
}
criterion_main!(benches);
