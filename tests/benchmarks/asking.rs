//! Asking a model the problems of benchmarks: answers do not depend on batches or stops, and a
//! directory of answers keeps models apart.

use crate::benchmark;
use crate::common::{command, devices, toy_run};
use burn::tensor::{Device, Int, Tensor};
use mixdistill::context::{Context, Event, Observer, StopFlag};
use mixdistill::data::{ColumnMap, PlainTemplate, PromptTemplate, TextTokenizer, arith};
use mixdistill::eval::{
    Benchmark, BenchmarkProblem, EvaluateConfig, EvaluationDirectory, GradedAnswer, TestedModel,
    evaluate, read_benchmarks,
};
use mixdistill::model::{
    DecoderConfig, DecoderLm, Generate, GenerateConfig, Generation, NewToken, StopConditions,
    TextInterface, TokenLimits, TokenObserver,
};
use mixdistill::recipe::{RunMode, run};
use mixdistill::{Error, Result};
use std::cell::Cell;
use std::path::Path;

struct Student {
    model: DecoderLm,
    tokenizer: TextTokenizer,
    template: PlainTemplate,
}

impl Student {
    fn new() -> Self {
        let words = arith::vocabulary();
        let tokenizer = TextTokenizer::builtin(words.iter().map(String::as_str)).unwrap();
        let config = DecoderConfig {
            vocab_size: tokenizer.vocabulary_size(),
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            initializer_range: 0.3,
            ..DecoderConfig::default()
        };
        let model = config.init(3, &devices()[0]).unwrap();
        Self { model, tokenizer, template: PlainTemplate::default() }
    }

    /// One that is made for rows of this many tokens.
    fn of_length(max_position_embeddings: usize) -> Self {
        let student = Self::new();
        let config = DecoderConfig { max_position_embeddings, ..student.model.config().clone() };
        Self { model: config.init(3, &devices()[0]).unwrap(), ..student }
    }

    fn answer(&self, config: &EvaluateConfig, store: &Path) -> Vec<GradedAnswer> {
        let end = [self.tokenizer.end_token()];
        let answering = TextInterface {
            tokenizer: &self.tokenizer,
            template: &self.template,
            end_tokens: &end,
        };
        let context = Context::default();
        evaluate(&self.model, &answering, &benchmark(), config, store, &context).unwrap()
    }
}

/// Asks for a stop once so many answers are there.
struct StopsAt<'a>(u64, &'a StopFlag);

impl Observer for StopsAt<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if matches!(event, Event::Task { progress, .. } if progress.done >= self.0) {
            self.1.request();
        }
        Ok(())
    }
}

/// A model whose process is suspended for long before each last token, and a claim that is another's then.
struct Suspended<'a>(&'a DecoderLm, &'a Cell<bool>);

impl Generate for Suspended<'_> {
    fn limits(&self) -> TokenLimits {
        self.0.limits()
    }

    fn device(&self) -> Device {
        Generate::device(self.0)
    }

    fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        Generate::logits(self.0, ids)
    }

    fn generate_as(
        &self,
        prompts: &[Vec<u32>],
        numbers: &[u64],
        stop_conditions: StopConditions<'_>,
        config: &GenerateConfig,
        observe: &mut TokenObserver<'_>,
    ) -> Result<Vec<Generation>> {
        let mut suspended = |token: &NewToken<'_>| {
            self.1.set(self.1.get() || token.end.is_some());
            observe(token)
        };
        self.0.generate_as(prompts, numbers, stop_conditions, config, &mut suspended)
    }
}

struct Refuses<'a>(&'a Cell<bool>);

impl Observer for Refuses<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Task { .. } if self.0.get() => Err(Error::Training {
                what: "another process has taken it over".into(),
                hint: "Leave it".into(),
            }),
            _ => Ok(()),
        }
    }
}

#[test]
fn no_answer_is_stored_once_whoever_watches_forbids_it() {
    let student = Student::new();
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("answers.jsonl");
    let lost = Cell::new(false);
    let end = [student.tokenizer.end_token()];
    let text = TextInterface {
        tokenizer: &student.tokenizer,
        template: &student.template,
        end_tokens: &end,
    };
    let context = Context::new(Refuses(&lost), &StopFlag::default());
    let model = Suspended(&student.model, &lost);
    let config = config(2, 1, 0.0);
    let error = evaluate(&model, &text, &benchmark(), &config, &store, &context).unwrap_err();
    assert!(lost.get() && error.to_string().contains("has taken it over"), "{error}");
    assert_eq!(std::fs::read_to_string(&store).unwrap_or_default(), "");
}

fn config(batch_size: usize, samples: usize, temperature: f64) -> EvaluateConfig {
    let generate =
        GenerateConfig { max_new_tokens: 9, batch_size, temperature, ..Default::default() };
    EvaluateConfig { samples, generate, ..EvaluateConfig::default() }
}

fn untimed(mut answers: Vec<GradedAnswer>) -> Vec<GradedAnswer> {
    answers.iter_mut().for_each(|answer| answer.seconds = 0.0);
    answers
}

#[test]
fn answers_are_the_same_in_any_batches_and_after_an_interruption() {
    let (student, folder) = (Student::new(), tempfile::tempdir().unwrap());
    let store = |name: &str| folder.path().join(name);
    for (samples, temperature) in [(1, 0.0), (3, 1.0)] {
        let ask = |batch_size, name: &str| {
            untimed(student.answer(&config(batch_size, samples, temperature), &store(name)))
        };
        let whole = ask(100, &format!("whole{samples}"));
        assert_eq!(whole.len(), 7 * samples);
        assert!(whole == ask(2, &format!("small{samples}")));
        // The first five answers, and one that was cut off.
        let text = std::fs::read_to_string(store(&format!("small{samples}"))).unwrap();
        let kept: Vec<&str> = text.lines().take(5).collect();
        let cut = format!("{}\n{}", kept.join("\n"), &text.lines().nth(5).unwrap()[..20]);
        std::fs::write(store("cut"), cut).unwrap();
        assert!(whole == ask(2, "cut"));
        assert_eq!(std::fs::read_to_string(store("cut")).unwrap().lines().count(), 7 * samples);
        std::fs::remove_file(store("cut")).unwrap();
        if samples == 3 {
            let first = |sample| whole.iter().find(|a| a.id == "0" && a.sample == sample);
            assert_ne!(first(0).unwrap().text, first(1).unwrap().text, "samples differ");
            let other = EvaluateConfig {
                generate: GenerateConfig { seed: 1, ..config(2, 3, 1.0).generate },
                ..config(2, 3, 1.0)
            };
            assert!(whole != untimed(student.answer(&other, &store("seed"))));
        }
    }
    // Fewer problems and samples are asked for: those that are there count.
    let fewer = EvaluateConfig { limit: Some(3), ..config(2, 2, 1.0) };
    let some = untimed(student.answer(&fewer, &store("whole3")));
    assert_eq!(some.len(), 6);
    assert!(some.iter().all(|a| a.sample < 2 && ["0", "1", "2"].contains(&a.id.as_str())));
    // More samples: the first ones are those that were there.
    let more = untimed(student.answer(&config(3, 4, 1.0), &store("whole3")));
    let whole = untimed(student.answer(&config(100, 4, 1.0), &store("four")));
    assert!(more == whole);
    // A stop keeps what has ended.
    let end = [student.tokenizer.end_token()];
    let answering = TextInterface {
        tokenizer: &student.tokenizer,
        template: &student.template,
        end_tokens: &end,
    };
    let ask = |name: &str, most: usize| {
        let stop = StopFlag::default();
        let context = Context::new(StopsAt(most as u64, &stop), &stop);
        let (config, store) = (config(2, 1, 0.0), store(name));
        evaluate(&student.model, &answering, &benchmark(), &config, &store, &context)
    };
    assert!(matches!(ask("stopped", 3), Err(Error::Stopped { .. })));
    let kept = std::fs::read_to_string(store("stopped")).unwrap_or_default().lines().count();
    assert!((3..7).contains(&kept), "{kept}");
    assert!(untimed(ask("stopped", 99).unwrap()).len() == 7);
    // What is none of ours stays as it is, down to its last byte.
    let bench = std::fs::read(store("whole1")).unwrap();
    for (foreign, what) in [
        (
            &b"{\"question\": \"1+1?\", \"answer\": 2}\n{\"question\": \"2+2?\""[..],
            "not a saved answer",
        ),
        (b"my only line", "no complete line"),
        (&[&bench[..], &bench[..]].concat(), "twice"),
    ] {
        std::fs::write(store("foreign"), foreign).unwrap();
        let error = ask("foreign", 99).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!(std::fs::read(store("foreign")).unwrap(), foreign);
    }
    // Answers to other problems are not mixed in; a line cut in the middle of a character is.
    let text = String::from_utf8(bench.clone()).unwrap();
    std::fs::write(store("foreign"), text.replace("\"id\":\"0\"", "\"id\":\"99\"")).unwrap();
    let error = ask("foreign", 99).unwrap_err().to_string();
    assert!(error.contains("problem 99 is not in toy"), "{error}");
    std::fs::write(store("torn"), [&bench[..], b"{\"id\":\"caf\xc3"].concat()).unwrap();
    assert_eq!(ask("torn", 99).unwrap().len(), 7);
    assert_eq!(std::fs::read(store("torn")).unwrap(), bench);
    let greedy = config(2, 2, 0.0).validate().unwrap_err().to_string();
    assert!(greedy.contains("greedy"), "{greedy}");
}

#[test]
fn the_program_scores_a_model_goes_on_and_keeps_models_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = toy_run(&folder.path().join("run"));
    config.train.steps = Some(3);
    config.evaluation.questions = 0;
    run(&config, RunMode::New, &Context::default()).unwrap();
    let bench = folder.path().join("toy.jsonl");
    let text: String = benchmark()
        .problems
        .iter()
        .map(|p| {
            format!("{}\n", serde_json::json!({ "question": p.problem, "answer": p.reference }))
        })
        .collect();
    std::fs::write(&bench, text).unwrap();
    let path = |path: &Path| path.display().to_string();
    let (model, out) = (path(&config.out.join("model")), path(&folder.path().join("scores")));
    let evaluate = |more: &[&str]| {
        let output = command("evaluate")
            .args(["--bench", &path(&bench), "--out", &out])
            .args(match more.contains(&"--max-new-tokens") {
                true => &[][..],
                false => &["--max-new-tokens", "6"],
            })
            .args(more)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let at = |name: &str| folder.path().join("scores").join(name).display().to_string();
    let ask = ["--model", model.as_str(), "--no-instruction"];
    let (good, said) = evaluate(&ask);
    assert!(good && said.contains("toy") && said.contains("95% interval"), "{said}");
    let stored = std::fs::read_to_string(folder.path().join("scores/toy.jsonl")).unwrap();
    assert_eq!(stored.lines().count(), 7);
    // Where the results are, and what to do about answers that were cut off.
    assert!(said.contains(&at("toy.jsonl")) && said.contains(&at("scores.md")), "{said}");
    assert!(said.contains("raise generate.max_new_tokens (--max-new-tokens)"), "{said}");
    let (good, said) = evaluate(&[&ask[..], &["--json"]].concat());
    assert!(good && said.contains("{\"out\":") && said.contains("\"accuracy\":"), "{said}");
    let again = std::fs::read_to_string(folder.path().join("scores/toy.jsonl")).unwrap();
    assert_eq!(stored, again, "nothing is asked twice");
    let (good, said) = evaluate(&["--model", &model]);
    assert!(!good && said.contains("other settings: instruct was false, is true"), "{said}");
    let (good, said) = evaluate(&[&ask[..], &["--max-new-tokens", "7"]].concat());
    assert!(
        !good && said.contains("generate.max_new_tokens (--max-new-tokens) was 6, is 7"),
        "{said}"
    );
    for name in ["scores.md", "scores.json", "settings.json"] {
        assert!(folder.path().join("scores").join(name).is_file(), "{name}");
    }
    // The stored answers can be graded by themselves.
    let answers = path(&folder.path().join("scores/toy.jsonl"));
    let (good, said) = evaluate(&["--answers", &answers]);
    assert!(good && said.contains("toy"), "{said}");
    assert!(folder.path().join("scores/toy.graded.jsonl").is_file());
    // Those from elsewhere do not take their place.
    let elsewhere = folder.path().join("elsewhere.jsonl");
    std::fs::copy(&answers, &elsewhere).unwrap();
    let (good, said) = evaluate(&["--answers", &path(&elsewhere)]);
    assert!(!good && said.contains("other settings"), "{said}");
    // A directory with other things in it is refused, and stays as it is.
    let mine = path(folder.path());
    let output = command("evaluate")
        .args(["--bench", &path(&bench), "--out", &mine, "--answers", &answers])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("not an evaluation's"), "{output:?}");
}

#[test]
fn a_directory_of_answers_needs_no_model_for_what_it_holds() {
    let (student, folder) = (Student::new(), tempfile::tempdir().unwrap());
    let out = EvaluationDirectory::open(&folder.path().join("scores")).unwrap();
    let benchmarks = [benchmark()];
    let end = [student.tokenizer.end_token()];
    let text = TextInterface {
        tokenizer: &student.tokenizer,
        template: &student.template,
        end_tokens: &end,
    };
    let (config, context) = (config(2, 1, 0.0), Context::default());
    let tested = |name: &str| TestedModel { fingerprint: name.into(), ..Default::default() };
    let mut loaded = 0;
    let mut ask = |benchmarks: &[Benchmark], name: &str, config: &EvaluateConfig| {
        let mut load = || {
            loaded += 1;
            Ok(student.model.clone())
        };
        let answers = out.evaluate(benchmarks, config, &tested(name), &text, &mut load, &context);
        (answers, loaded)
    };
    let (answers, loads) = ask(&benchmarks, "m", &config);
    let answers = answers.unwrap();
    assert_eq!((answers[0].len(), loads), (7, 1));
    let (again, loads) = ask(&benchmarks, "m", &config);
    assert!((again.unwrap(), loads) == (answers.clone(), 1));
    // Several benchmarks load it once.
    let more = ["a", "b"].map(|name| Benchmark { name: name.into(), ..benchmark() });
    assert_eq!(ask(&more, "m", &config).1, 2);
    let error = ask(&benchmarks, "other", &config).0.unwrap_err().to_string();
    assert!(error.contains("other settings: model was \"m\", is \"other\""), "{error}");
    let scores = out.write_scores(&benchmarks, &answers, Some(3)).unwrap();
    assert_eq!((scores.scores[0].problems, scores.scores[0].of), (3, 3));
    // Two files of one name would share their answers.
    let paths = ["x/toy.jsonl", "y/TOY.jsonl"].map(|name| folder.path().join(name));
    for path in &paths {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{\"problem\": \"1+1?\", \"answer\": 2}\n").unwrap();
    }
    let error =
        read_benchmarks(&paths, &ColumnMap::default(), folder.path(), &context).unwrap_err();
    assert!(error.to_string().contains("two benchmarks are named TOY"), "{error}");
}

#[test]
fn a_problem_that_leaves_no_room_for_an_answer_is_one_that_the_model_cannot_do() {
    let folder = tempfile::tempdir().unwrap();
    let student = Student::new();
    let length = |problem: &BenchmarkProblem| {
        student.template.prompt(&student.tokenizer, (&problem.problem).into()).unwrap().len()
    };
    let benchmark = benchmark();
    let longest = benchmark.problems.iter().map(length).max().unwrap();
    let short = Student::of_length(longest);
    let answers = short.answer(&config(3, 1, 0.0), &folder.path().join("answers"));
    assert_eq!(answers.len(), 7);
    for (problem, answer) in benchmark.problems.iter().zip(&answers) {
        let fits = length(problem) < longest;
        assert_eq!(answer.text.is_empty() && answer.tokens == 0, !fits, "{answer:?}");
        assert!(fits || (answer.hit_limit && !answer.correct));
    }
    // It is stored like any other.
    let again = short.answer(&config(3, 1, 0.0), &folder.path().join("answers"));
    assert!(untimed(again) == untimed(answers));
}
