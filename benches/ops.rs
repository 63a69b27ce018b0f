//! Times each operation, forward and backward, at the sizes of a small model: 2,048 tokens of width 256.
//!
//! `cargo bench --profile dev --bench ops` (in this profile, Burn is already compiled).

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mixdistill::device::{by_name, use_threads};
use mixdistill::ops::{
    AdamW, AttentionShape, DeltaShape, Sequences, cached_attention, causal_attention,
    causal_attention_within, causal_conv, embedding, gated_delta_rule, linear, linear_add,
    linear_cross_entropy, rms_norm, rotary, rotary_frequencies, rotary_table, sum_of_squares,
    swiglu,
};
use std::time::Duration;

const TOKENS: usize = 2048;
const WIDTH: usize = 256;
const INNER: usize = 704;
const VOCABULARY: usize = 4096;
const SHAPE: AttentionShape =
    AttentionShape { batch: 8, seq: 256, heads: 8, kv_heads: 4, head_dim: 32 };

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), device)
}

fn ints(values: impl Iterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// Times an operation, alone and with the gradients of all its inputs.
fn both<const N: usize>(
    criterion: &mut Criterion,
    name: &str,
    inputs: [[usize; 2]; N],
    device: &Device,
    op: impl Fn([Tensor<2>; N]) -> Tensor<2>,
) {
    let inputs = inputs.map(|shape| random(shape, device));
    let mut group = criterion.benchmark_group(name);
    group.bench_function("forward", |bencher| {
        bencher.iter(|| {
            let out = op(inputs.clone().map(Tensor::inner).map(Tensor::from_inner));
            device.sync().expect("the device works");
            out
        });
    });
    group.bench_function("forward and backward", |bencher| {
        bencher.iter(|| {
            let inputs = inputs.clone().map(|x| x.detach().require_grad());
            let grads = op(inputs).sum().backward();
            device.sync().expect("the device works");
            grads
        });
    });
    group.finish();
}

fn operations(criterion: &mut Criterion) {
    use_threads(None).expect("the threads are set once");
    let plain = by_name("auto").expect("a backend");
    let device = plain.clone().autodiff();
    let (x, kv) = ([TOKENS, WIDTH], [TOKENS, WIDTH / 2]);
    both(criterion, "linear", [x, [WIDTH, INNER]], &device, |[x, w]| linear(x, w));
    let add = [[TOKENS, INNER], [INNER, WIDTH], x];
    both(criterion, "linear_add", add, &device, |[x, w, y]| linear_add(x, w, y));
    both(criterion, "rms_norm", [x, [1, WIDTH]], &device, |[x, w]| {
        rms_norm(x, w.reshape([WIDTH]), 1e-5)
    });
    let inner = [TOKENS, INNER];
    both(criterion, "swiglu", [inner, inner], &device, |[gate, up]| swiglu(gate, up));
    let table = rotary_table(256, &rotary_frequencies(32, 1e4), &device);
    let positions = ints((0..TOKENS).map(|i| i % 256), &device);
    both(criterion, "rotary", [x], &device, |[x]| rotary(x, table.clone(), positions.clone()));
    let starts = Tensor::<1, Int>::zeros([TOKENS], &device);
    both(criterion, "causal_attention", [x, kv, kv], &device, |[q, k, v]| {
        causal_attention(q, k, v, starts.clone(), SHAPE)
    });
    // One row of 4,096 tokens, whole and with sliding windows.
    let shape = AttentionShape { batch: 1, seq: 4096, heads: 4, kv_heads: 2, head_dim: 64 };
    let (q, kv) = ([4096, 256], [4096, 128]);
    for window in [4096, 1024, 256] {
        let first_keys = ints((0..4096usize).map(|i| (i + 1).saturating_sub(window)), &device);
        both(criterion, &format!("a window of {window}"), [q, kv, kv], &device, |[q, k, v]| {
            causal_attention_within(q, k, v, first_keys.clone(), shape, window)
        });
    }
    // The same row with linear attention.
    let shape = DeltaShape { key_heads: 2, value_heads: 4, key_dim: 64, value_dim: 64 };
    let sequences = Sequences::rows(1, 4096);
    let (keys, gates) = ([4096, 128], [4096, 4]);
    both(criterion, "gated_delta_rule", [keys, keys, q, gates, gates], &device, |inputs| {
        let [q, k, v, decay, beta] = inputs;
        gated_delta_rule([q, k, v, -decay.abs(), beta.abs()], &sequences, shape)
    });
    both(criterion, "causal_conv", [[4096, 512], [512, 4]], &device, |[x, w]| {
        causal_conv(x, w, &sequences)
    });
    let ids = ints((0..TOKENS).map(|i| i * 31 % VOCABULARY), &device);
    let table = [VOCABULARY, WIDTH];
    both(criterion, "embedding", [table], &device, |[w]| embedding(w, ids.clone()));
    let weights = Tensor::ones([TOKENS], &device);
    both(criterion, "linear_cross_entropy", [x, [WIDTH, VOCABULARY]], &device, |[x, w]| {
        linear_cross_entropy(x, w, ids.clone(), weights.clone()).reshape([1, 1])
    });
}

fn without_gradients(criterion: &mut Criterion) {
    let device = by_name("auto").expect("a backend");
    let mut group = criterion.benchmark_group("few rows");
    for rows in [1, 16] {
        let x = random([rows, 576], &device);
        let w = random([1536, 576], &device);
        group.throughput(Throughput::Bytes(4 * 576 * 1536));
        group.bench_function(BenchmarkId::new("linear, transposed", rows), |bencher| {
            bencher.iter(|| linear(x.clone(), w.clone().transpose()));
        });
        let w = random([576, 1536], &device);
        group.bench_function(BenchmarkId::new("linear", rows), |bencher| {
            bencher.iter(|| linear(x.clone(), w.clone()));
        });
    }
    let (q, cache) = (random([16, 576], &device), random([16, 3, 256, 64], &device));
    let mask = Tensor::zeros([16, 1, 1, 200], &device);
    group.bench_function("cached_attention", |bencher| {
        bencher.iter(|| cached_attention(q.clone(), cache.clone(), cache.clone(), mask.clone(), 0));
    });
    group.finish();
    let count = 4 << 20;
    let mut group = criterion.benchmark_group("optimizer");
    group.throughput(Throughput::Elements(count as u64));
    let gradient = random([count], &device);
    group.bench_function("sum_of_squares", |bencher| {
        bencher.iter(|| sum_of_squares(gradient.clone()));
    });
    group.bench_function("adamw", |bencher| {
        let mut held = Some((random([count], &device), None));
        bencher.iter(|| {
            let (parameter, state) = held.take().expect("put back below");
            let update = AdamW::default().update(1e-3, parameter, gradient.clone(), 0.5, state);
            held = Some((update.0, Some(update.1)));
        });
    });
    group.bench_function("adamw, 8 bits", |bencher| {
        let mut held = Some((random([count], &device), None));
        bencher.iter(|| {
            let (parameter, state) = held.take().expect("put back below");
            let update =
                AdamW::default().update_8bit(1e-3, parameter, gradient.clone(), 0.5, state);
            held = Some((update.0, Some(update.1)));
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
    targets = operations, without_gradients
}
criterion_main!(benches);
