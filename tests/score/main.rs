//! Promise: every answer of every source gets its scores under the untuned student exactly once, also after
//! interruptions.

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "cli")]
mod program;

use common::{shared, smollm2, toy_run};
use mixdistill::context::{Context, Event, Observer, StopFlag, Task};
use mixdistill::data::{Batch, ChoiceBy, ChoiceConfig, Example, Join};
use mixdistill::model::{DecoderLm, TargetScore};
use mixdistill::recipe::{
    LalpConfig, Prepared, RowScores, RunConfig, ScoreOptions, SourceAnswer, SourceConfig,
    WrittenScores, answer_steps, read_scores, write_scores,
};
use mixdistill::{Error, device};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

fn quiet(config: &RunConfig, options: &ScoreOptions) -> mixdistill::Result<WrittenScores> {
    write_scores(config, options, &Context::default())
}

fn to_file(file: &Path) -> ScoreOptions {
    ScoreOptions { file: Some(file.to_owned()), ..ScoreOptions::default() }
}

/// Twelve problems with two answers each.
fn toy() -> RunConfig {
    let mut config = toy_run(Path::new("unused"));
    config.data.toy_problems = 12;
    config
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_file_that_was_cut_anywhere_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scores.jsonl");
    let whole = quiet(&toy(), &to_file(&path)).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!((whole.rows.len(), whole.before), (24, 0));
    assert_eq!(read_scores(&path).unwrap(), whole.rows);
    let keys: BTreeSet<&str> = whole.rows.iter().map(|row| row.row.as_str()).collect();
    assert_eq!(keys.len(), 24);
    let line_end = |count: usize| {
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        ends.map(|(place, _)| place + 1).nth(count - 1).unwrap()
    };
    for (kept, before) in
        [(0, 0), (7, 0), (line_end(9), 9), (line_end(9) + 31, 9), (bytes.len() - 1, 23)]
    {
        std::fs::write(&path, &bytes[..kept]).unwrap();
        let again = quiet(&toy(), &to_file(&path)).unwrap();
        assert_eq!(again.before, before, "{kept} bytes");
        assert!(again.rows == whole.rows && again.sources == whole.sources);
        assert!(std::fs::read(&path).unwrap() == bytes, "{kept} bytes");
    }
    // With nothing missing no student is read and nothing is written.
    let changed = std::fs::metadata(&path).unwrap().modified().unwrap();
    let again = quiet(&toy(), &to_file(&path)).unwrap();
    assert_eq!((again.before, again.read_tokens), (24, 0));
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), changed);
    // In memory the scores are the same.
    assert_eq!(quiet(&toy(), &ScoreOptions::default()).unwrap().rows, whole.rows);
}

/// Asks for a stop once so many answers have their scores.
struct StopAt(u64, StopFlag);

impl Observer for StopAt {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        if let Event::Task { task: Task::Score, progress } = event
            && progress.done >= self.0
        {
            self.1.request();
        }
        Ok(())
    }
}

#[test]
fn a_stop_leaves_what_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let [path, other] = ["a.jsonl", "b.jsonl"].map(|name| folder.path().join(name));
    quiet(&toy(), &to_file(&other)).unwrap();
    let flag = StopFlag::default();
    let context = Context::new(StopAt(5, flag.clone()), &flag);
    let stopped = write_scores(&toy(), &to_file(&path), &context).unwrap_err();
    assert!(matches!(stopped, Error::Stopped { .. }), "{stopped}");
    assert!(stopped.to_string().contains("5 of 24 answers are in"), "{stopped}");
    assert_eq!(lines(&path).len(), 5);
    assert_eq!(quiet(&toy(), &to_file(&path)).unwrap().before, 5);
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&other).unwrap());
}

#[test]
fn scores_of_another_student_and_files_of_something_else_are_refused_and_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scores.jsonl");
    quiet(&toy(), &ScoreOptions { lalp: Some(LalpConfig::default()), ..to_file(&path) }).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let refused = |config: &RunConfig, options: &ScoreOptions, expected: &str| {
        let error = quiet(config, options).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("scores.jsonl"), "{error}");
        assert!(std::fs::read(&path).unwrap() == bytes);
    };
    let seed = RunConfig { seed: 9, ..toy() };
    refused(&seed, &to_file(&path), "student.seed was 1, is 9");
    let mut wider = toy();
    wider.model.intermediate_size = 64;
    refused(&wider, &to_file(&path), "student.shape.intermediate_size was 48, is 64");
    let window = ScoreOptions { lalp: Some(LalpConfig { window: 1 }), ..to_file(&path) };
    refused(&toy(), &window, "lalp.window was 4, is 1");
    // A line that is none of ours.
    std::fs::write(&path, b"{\"row\": 1}\n").unwrap();
    let error = quiet(&toy(), &to_file(&path)).unwrap_err().to_string();
    assert!(error.contains("scores.jsonl:1: it does not contain scores"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"{\"row\": 1}\n");
    // A file that is none of ours.
    let notes = folder.path().join("notes.jsonl");
    std::fs::write(&notes, "mine").unwrap();
    let error = quiet(&toy(), &to_file(&notes)).unwrap_err().to_string();
    assert!(error.contains("it is not a file of scores"), "{error}");
    assert_eq!(std::fs::read(&notes).unwrap(), b"mine");
    // Settings of a file that is gone keep none from beginning anew.
    std::fs::remove_file(&path).unwrap();
    assert_eq!(quiet(&seed, &to_file(&path)).unwrap().before, 0);
    assert!(quiet(&toy(), &to_file(&folder.path().join("no/scores.jsonl"))).is_err());
}

#[test]
fn files_of_the_same_stem_have_settings_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let [lines, text] = ["dup.jsonl", "dup.txt"].map(|name| folder.path().join(name));
    let first = quiet(&toy(), &to_file(&lines)).unwrap();
    let other = RunConfig { seed: 9, ..toy() };
    let second = quiet(&other, &to_file(&text)).unwrap();
    assert!(second.before == 0 && first.rows[0].nll != second.rows[0].nll);
    assert!(folder.path().join("dup.txt.settings.json").is_file());
    assert_eq!(quiet(&toy(), &to_file(&lines)).unwrap().rows, first.rows);
    assert!(quiet(&other, &to_file(&lines)).is_err());
}

#[test]
fn what_is_not_ours_is_neither_removed_nor_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let beside = folder.path().join("x.settings.json");
    for mine in ["{\"mine\":1}", "[1]", "text"] {
        std::fs::write(&beside, mine).unwrap();
        for scores in [None, Some("")] {
            if let Some(scores) = scores {
                std::fs::write(&path, scores).unwrap();
            }
            let error = quiet(&toy(), &to_file(&path)).unwrap_err().to_string();
            assert!(
                error.contains("x.settings.json: it has the name of a settings file"),
                "{error}"
            );
            assert_eq!(std::fs::read_to_string(&beside).unwrap(), mine);
        }
        std::fs::remove_file(&path).unwrap();
    }
    // The record of a part, with or without an empty file of scores.
    let path = folder.path().join("z.jsonl");
    let beside = folder.path().join("z.jsonl.part.json");
    for scores in [None, Some("")] {
        std::fs::write(&beside, "{\"mine\":1}").unwrap();
        if let Some(scores) = scores {
            std::fs::write(&path, scores).unwrap();
        }
        let error = quiet(&toy(), &to_file(&path)).unwrap_err().to_string();
        assert!(error.contains("z.jsonl.part.json: it does not say which part"), "{error}");
        assert_eq!(std::fs::read_to_string(&beside).unwrap(), "{\"mine\":1}");
    }
    let record = "{\"part\":\"9/10\",\"settings\":{}}";
    std::fs::write(&beside, record).unwrap();
    let error = quiet(&toy(), &to_file(&path)).unwrap_err().to_string();
    assert!(error.contains("it is part 9/10 of a divided job"), "{error}");
    assert_eq!(std::fs::read_to_string(&beside).unwrap(), record);
    // Bytes without a line, where settings of scores are beside them.
    let path = folder.path().join("y.jsonl");
    quiet(&toy(), &to_file(&path)).unwrap();
    for bytes in [&b"PAR1\x15\x04"[..], b"{\"problem\": 1}", b"PAR1\n\x00"] {
        std::fs::write(&path, bytes).unwrap();
        let error = quiet(&toy(), &to_file(&path)).unwrap_err().to_string();
        assert!(error.contains("y.jsonl") && error.contains("it "), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn a_choice_takes_no_parquet_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.parquet");
    std::fs::write(&path, b"PAR1").unwrap();
    std::fs::write(folder.path().join("s.parquet.settings.json"), "{\"student\":1,\"lalp\":null}")
        .unwrap();
    let mut config = toy();
    config.out = folder.path().join("run");
    config.mixture.choice =
        Some(ChoiceConfig { scores: Some(path.clone()), ..ChoiceConfig::by(ChoiceBy::Rsr) });
    let error = Prepared::new(&config, &Context::default()).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("Name the JSONL file next to it: ") && error.contains("s.jsonl"),
        "{error}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"PAR1");
}

/// Keeps notices, and the last progress.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<(Vec<String>, u64, u64)>>);

impl Observer for Heard {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        let mut heard = self.0.lock().unwrap();
        match event {
            Event::Notice(text) => heard.0.push(text.to_string()),
            Event::Task { task: Task::Score, progress } => {
                (heard.1, heard.2) = (progress.done, progress.total);
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn a_file_of_other_rows_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scores.jsonl");
    let told = |config: &RunConfig| {
        let heard = Heard::default();
        let context = Context::new(heard.clone(), &StopFlag::default());
        let written = write_scores(config, &to_file(&path), &context).unwrap();
        let notices = heard.0.lock().unwrap().0.join("\n");
        (written.before, notices)
    };
    assert_eq!(told(&toy()), (0, String::new()));
    let mut other = toy();
    other.data.template.before = "Be brief: ".into();
    let (before, notices) = told(&other);
    assert!(before == 0 && notices.contains("0 of 24 answers are in "), "{notices}");
    assert!(notices.contains("scores.jsonl, which has the scores of 24 other rows"), "{notices}");
    // With all of them in it, or begun, nothing is told.
    assert_eq!(told(&other), (24, String::new()));
    let kept = lines(&path)[..3].join("\n") + "\n";
    std::fs::write(&path, kept).unwrap();
    assert_eq!(told(&toy()), (3, String::new()));
}

/// The student, and all answers, as `write_scores` has them.
fn by_hand(config: &RunConfig) -> (Prepared, DecoderLm, Vec<SourceAnswer>) {
    let mut config = config.clone();
    (config.data.join, config.data.hold_out) = (Join::Outer, 0.0);
    let names = config.data.sources.iter().map(|source| (source.name.clone(), 1.0)).collect();
    if !config.data.sources.is_empty() {
        config.mixture.weights = names;
    }
    let prepared = Prepared::new(&config, &Context::default()).unwrap();
    let device = device::by_name(&config.backend).unwrap();
    let model = match &prepared.base {
        Some(folder) => folder.load(&device).unwrap(),
        None => prepared.model.init(config.seed, &device).unwrap(),
    };
    let answers = prepared.all_answers();
    (prepared, model, answers)
}

fn target_scores(model: &DecoderLm, tokens: &[u32], prompt: usize) -> Vec<TargetScore> {
    let batch = Batch::new([Example { tokens, prompt, ..Example::default() }], 1);
    model.target_scores(&batch).unwrap()
}

/// The places of the tokens that are scored: the answer without its end.
fn scored(answer: &SourceAnswer, ends: &[u32]) -> Range<usize> {
    let row = &answer.row;
    let ends = row.tokens.last().is_some_and(|last| ends.contains(last));
    row.prompt..row.tokens.len() - usize::from(ends)
}

#[test]
fn scores_are_those_of_the_logits_and_steps_see_their_window_alone() {
    let window = 2;
    let options = ScoreOptions { lalp: Some(LalpConfig { window }), ..ScoreOptions::default() };
    let rows = quiet(&toy(), &options).unwrap().rows;
    let (prepared, model, answers) = by_hand(&toy());
    assert_eq!(rows.len(), answers.len());
    let mut most_steps = 0;
    for (row, answer) in rows.iter().zip(&answers) {
        let tokens = &answer.row.tokens;
        let places = scored(answer, &prepared.end_tokens);
        assert_eq!(places.end + 1, tokens.len(), "the end of the turn is left out");
        assert_eq!((row.tokens, row.prompt_tokens), (places.len(), answer.row.prompt));
        assert_eq!(
            (&row.source, &row.id, &row.label),
            (&answer.source, &answer.id, &answer.row.label)
        );
        // From the logits of the whole row, in f64.
        let vocabulary = prepared.model.vocab_size;
        let ids = common::ids(tokens, [1, tokens.len()], &model.device());
        let logits = model.logits(ids).try_into_vec_as::<f32>().unwrap();
        let (mut nll, mut ranks, mut above) = (0.0, 0, 0);
        for place in places.clone() {
            let at = &logits[(place - 1) * vocabulary..place * vocabulary];
            let own = at[tokens[place] as usize];
            let sum: f64 = at.iter().map(|x| f64::from(*x).exp()).sum();
            nll += sum.ln() - f64::from(own);
            let rank = 1 + at.iter().filter(|x| **x > own).count();
            (ranks, above) = (ranks + rank.min(100), above + usize::from(rank > 100));
        }
        let count = places.len() as f64;
        let near = |ours: f64, theirs: f64| {
            assert!((ours - theirs).abs() < 1e-5 * theirs.abs().max(1.0), "{ours}, not {theirs}");
        };
        near(row.nll, nll / count);
        near(row.perplexity, (nll / count).exp());
        near(row.rsr, ranks as f64 / nll);
        assert_eq!((row.rank, row.above_100), (ranks as f64 / count, above as f64 / count));
        // Each step alone, behind the problem and two steps.
        let steps = answer_steps(&tokens[places.clone()], &prepared.tokenizer).unwrap();
        let mut sum = 0.0;
        for (number, step) in steps.iter().enumerate() {
            let from = steps[number.saturating_sub(window)].start;
            let mut read = tokens[..places.start].to_vec();
            read.extend(&tokens[places.start + from..places.start + step.end]);
            let prompt = read.len() - step.len();
            let scores = target_scores(&model, &read, prompt);
            sum -= scores.iter().map(|score| score.nll).sum::<f64>() / step.len() as f64;
        }
        near(row.lalp.unwrap(), sum / steps.len() as f64);
        assert_eq!(row.steps, Some(steps.len()));
        most_steps = most_steps.max(steps.len());
    }
    assert!(most_steps > window + 2, "{most_steps}");
    // With all steps in the window the steps' means are those of the answer's own tokens.
    let all = ScoreOptions { lalp: Some(LalpConfig { window: 1000 }), ..ScoreOptions::default() };
    let rows = quiet(&toy(), &all).unwrap().rows;
    for (row, answer) in rows.iter().zip(&answers) {
        let places = scored(answer, &prepared.end_tokens);
        let scores = target_scores(&model, &answer.row.tokens, answer.row.prompt);
        let steps = answer_steps(&answer.row.tokens[places], &prepared.tokenizer).unwrap();
        let of = |step: &Range<usize>| {
            scores[step.clone()].iter().map(|score| -score.nll).sum::<f64>() / step.len() as f64
        };
        let mean = steps.iter().map(of).sum::<f64>() / steps.len() as f64;
        assert!((row.lalp.unwrap() - mean).abs() < 1e-5);
    }
}

#[test]
fn steps_can_be_scored_later_and_each_answer_keeps_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scores.jsonl");
    let plain = quiet(&toy(), &to_file(&path)).unwrap().rows;
    let options = ScoreOptions { lalp: Some(LalpConfig::default()), ..to_file(&path) };
    // Stopped in the middle, some answers have two lines; the later ones count.
    let flag = StopFlag::default();
    let context = Context::new(StopAt(5, flag.clone()), &flag);
    write_scores(&toy(), &options, &context).unwrap_err();
    assert_eq!((lines(&path).len(), read_scores(&path).unwrap().len()), (29, 24));
    let with = quiet(&toy(), &options).unwrap();
    assert_eq!((with.before, lines(&path).len()), (5, 24));
    assert_eq!(read_scores(&path).unwrap(), with.rows);
    for (with, plain) in with.rows.iter().zip(&plain) {
        assert!(with.lalp.is_some() && with.steps.is_some_and(|steps| steps > 0));
        assert_eq!(&RowScores { lalp: None, steps: None, ..with.clone() }, plain);
    }
    // A call that does not ask for it takes the file as it is.
    let again = quiet(&toy(), &to_file(&path)).unwrap();
    assert_eq!((again.before, again.rows), (24, with.rows));
}

#[cfg(feature = "parquet")]
#[test]
fn a_parquet_file_has_what_the_lines_have() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scores.parquet");
    let options = ScoreOptions { lalp: Some(LalpConfig::default()), ..to_file(&path) };
    let made = quiet(&toy(), &options).unwrap();
    assert_eq!(read_scores(&folder.path().join("scores.jsonl")).unwrap(), made.rows);
    let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    let rows = reader.get_row_iter(None).unwrap();
    let value = |field: &Field| match field {
        Field::Null => Value::Null,
        Field::Str(text) => json!(text),
        Field::Long(number) => json!(number),
        Field::Double(number) => json!(number),
        other => panic!("{other:?}"),
    };
    let theirs: Vec<RowScores> = rows
        .map(|row| {
            let row = row.unwrap();
            let columns = row.get_column_iter().map(|(name, field)| (name.clone(), value(field)));
            serde_json::from_value(columns.collect()).unwrap()
        })
        .collect();
    assert_eq!(theirs, made.rows);
    // It is written anew beside its lines, and no other file of the name is.
    quiet(&toy(), &options).unwrap();
    std::fs::remove_file(folder.path().join("scores.jsonl")).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let error = quiet(&toy(), &options).unwrap_err().to_string();
    assert!(error.contains("scores.parquet: it exists"), "{error}");
    assert!(std::fs::read(&path).unwrap() == bytes);
}

/// Writes what `check_scores.py` recomputes, where `MIXDISTILL_PARITY_OUT` says: rows of SmolLM2 with the NLL and
/// the rank of each token, the scores, and the steps.
#[test]
fn scores_of_smollm2_are_written_for_pytorch() {
    let (Some(base), Some(data)) = (smollm2(), shared("gsm8k")) else { return };
    let out = std::env::var_os("MIXDISTILL_PARITY_OUT").map(PathBuf::from);
    let Some(out) = out else {
        eprintln!("skipped: MIXDISTILL_PARITY_OUT does not name a folder");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let source = |name: &str, file: &str, rows: usize| {
        let text = std::fs::read_to_string(data.join(file)).unwrap();
        let path = folder.path().join(format!("{name}.jsonl"));
        let lines = text.lines().take(rows).map(|line| format!("{line}\n"));
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        SourceConfig { name: name.into(), path, ..SourceConfig::default() }
    };
    let mut config = RunConfig::fine_tune(base.display().to_string());
    config.data.max_length = 320;
    config.data.too_long = mixdistill::data::TooLong::Cut;
    config.data.sources = vec![
        source("plain", "test.jsonl", 3),
        source("socratic", "test_socratic.jsonl", 2),
        source("olympiad", "../longcot_example/official-solution.jsonl", 2),
    ];
    let window = 2;
    let options = ScoreOptions { lalp: Some(LalpConfig { window }), ..ScoreOptions::default() };
    let rows = quiet(&config, &options).unwrap().rows;
    let (prepared, model, answers) = by_hand(&config);
    let cases: Vec<Value> = rows
        .iter()
        .zip(&answers)
        .map(|(row, answer)| {
            let places = scored(answer, &prepared.end_tokens);
            let scores = target_scores(&model, &answer.row.tokens, answer.row.prompt);
            let scores = &scores[..places.len()];
            let steps = answer_steps(&answer.row.tokens[places.clone()], &prepared.tokenizer);
            let ends: Vec<[usize; 2]> =
                steps.unwrap().iter().map(|step| [step.start, step.end]).collect();
            json!({
                "tokens": answer.row.tokens,
                "scored": [places.start, places.end],
                "nlls": scores.iter().map(|score| score.nll).collect::<Vec<_>>(),
                "ranks": scores.iter().map(|score| score.rank).collect::<Vec<_>>(),
                "steps": ends,
                "window": window,
                "scores": row,
            })
        })
        .collect();
    assert_eq!(cases.len(), 7);
    std::fs::write(out.join("scores.json"), json!({ "cases": cases }).to_string()).unwrap();
}
