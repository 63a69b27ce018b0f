use mixdistill::data::arith::*;
use mixdistill::data::*;
use mixdistill::eval::*;
use mixdistill::model::*;
use mixdistill::train::*;
use burn::tensor::Device;
use std::sync::Arc;
fn main() {
    let env = |k: &str, d: f64| std::env::var(k).ok().and_then(|v| v.parse::<f64>().ok()).unwrap_or(d);
    let n = env("N", 6000.0) as usize;
    let c = ArithConfig { operations: (2, 3), start: env("START", 20.0) as i64, operand: env("OPERAND", 9.0) as i64 };
    let corpus = ArithCorpus::generate(&c, n, 200, 1);
    let words = vocabulary();
    let tok = TextTokenizer::builtin(words.iter().map(String::as_str)).unwrap();
    println!("vocab {}", tok.vocabulary_size());
    for p in &corpus.train[..3] { println!("{}\n  {}\n  {}", p.problem, p.short, p.long); }
    let long: Vec<_> = corpus.train.iter().enumerate().map(|(i,p)| p.long_record(i)).collect();
    let short: Vec<_> = corpus.train.iter().enumerate().map(|(i,p)| p.short_record(i)).collect();
    let (pairs, _l) = Pairs::join(vec![Source::new("long", long), Source::new("short", short)], Join::Inner).unwrap();
    let enc = Arc::new(Encoded::encode(&pairs, &tok, &PlainTemplate::default(), 512, TooLong::Drop, &|_| {}).unwrap());
    let mut mc = MixtureConfig::long_short(env("SHARE", 0.2)); mc.seed = 1;
    let mix = MixDistillation::new(Arc::new(pairs), mc, Some(Arc::new(enc.lengths()))).unwrap();
    println!("{}", mix.report());
    let device = Device::flex().autodiff();
    let mut dc = DecoderConfig { vocab_size: tok.vocabulary_size(), ..Default::default() };
    dc.hidden_size = env("D", 128.0) as usize; dc.intermediate_size = env("FF", 352.0) as usize; dc.num_hidden_layers = env("L", 5.0) as usize;
    dc.initializer_range = env("STD", 0.02); dc.rope_theta = env("THETA", 1e4); dc.num_attention_heads = env("H", 4.0) as usize; dc.num_key_value_heads = env("KV", 2.0) as usize;
    let model = dc.init(1, &device).unwrap();
    use burn::module::Module;
    println!("params {}", model.num_params());
    let tc = TrainConfig { epochs: env("EPOCHS", 1.0), packing: env("PACK", 1.0) > 0.0, batch_size: env("B", 8.0) as usize, accumulate: env("ACC", 2.0) as usize, learning_rate: env("LR", 3e-3), warmup_steps: 20, beta_2: env("B2", 0.99), min_lr_ratio: 0.05, weight_decay: 0.01, ..Default::default() };
    let mut learner = Learner::new(model, tc).unwrap();
    let mut rows = MixedRows::new(mix, enc);
    let mut obs = ProgressObserver::default();
    let t = std::time::Instant::now();
    let o = learner.fit(&mut rows, Surroundings { held_out: &[], observer: &mut obs, stop: &StopFlag::default(), checkpoints: None }).unwrap();
    println!("{:?} {:.1}s", o, t.elapsed().as_secs_f64());
    let qs: Vec<_> = corpus.test.iter().map(|p| Question { problem: p.problem.clone(), reference: p.answer.to_string() }).collect();
    let t = std::time::Instant::now();
    let g = GenerateConfig { max_new_tokens: 300, batch_size: 100, ..Default::default() };
    let a = ask(learner.model(), &tok, &PlainTemplate::default(), &qs, &g, &mut |_| {}).unwrap();
    println!("{:?} {:.1}s", Accuracy::of(&a), t.elapsed().as_secs_f64());
    for x in &a[..4] { println!("{}\n  -> {} [{}] {}", x.problem, x.text, x.reference, x.correct); }
}
