//! Conversations of several turns: what is the prompt, and which answers are trained.

mod common;

use common::chat_folder::ChatFolder;
use common::{relative_error, tiny};
use mixdistill::Error;
use mixdistill::context::Context;
use mixdistill::data::{
    Batch, BatchLayout, ColumnMap, CotRecord, EarlierTurn, Encoded, Join, LengthLimit, Message,
    Packing, Pairs, PlainTemplate, PromptTemplate, Row, Source, TextTokenizer, TooLong, TopTokens,
    TrainedTurns, read_records,
};
use mixdistill::model::Architecture;
use mixdistill::recipe::{held_out_rows, questions};
use mixdistill::train::{
    TeacherLogitsHeader, TeacherLogitsWriter, named_gradients, step_gradients,
};
use serde_json::json;

fn read(line: &str) -> mixdistill::Result<Vec<CotRecord>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, format!("{line}\n")).unwrap();
    read_records(&path, &ColumnMap::default(), 0.0).map(|records| records.records)
}

fn turn(problem: &str, solution: &str) -> EarlierTurn {
    EarlierTurn { problem: problem.into(), solution: solution.into() }
}

#[test]
fn a_conversation_is_one_record_with_its_earlier_turns() {
    let messages = json!([
        {"role": "system", "content": "s"},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "One and one."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]);
    let expected = CotRecord {
        system: Some("s".into()),
        earlier: vec![turn("1+1?", "<think>\nOne and one.\n</think>\n\n2")],
        problem: "Sure?".into(),
        solution: "Yes.".into(),
        ..CotRecord::default()
    };
    assert_eq!(read(&json!({"messages": messages}).to_string()).unwrap(), vec![expected.clone()]);
    // A prompt of several messages, with the completion beside it.
    let prompt = json!({"prompt": messages.as_array().unwrap()[..4], "completion": "Yes."});
    assert_eq!(read(&prompt.to_string()).unwrap(), [expected]);
    // What is empty within is no record.
    for (at, what) in
        [(1, "an earlier user turn is empty"), (2, "reasoning, but the answer is empty")]
    {
        let mut messages = messages.clone();
        messages[at]["content"] = " ".into();
        let error = read(&json!({"messages": messages}).to_string()).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

/// Pairs of one source with one record.
fn pairs(record: &CotRecord) -> Pairs {
    Pairs::join(vec![Source::new("long", vec![record.clone()])], Join::Inner).unwrap().0
}

fn encoded(
    record: &CotRecord,
    tokenizer: &TextTokenizer,
    template: &dyn PromptTemplate,
    turns: TrainedTurns,
    limit: LengthLimit,
) -> mixdistill::Result<Encoded> {
    let (pairs, context) = (pairs(record), Context::default());
    Encoded::encode_by_source(&pairs, tokenizer, &[template], turns, limit, &context)
}

/// The text of a row, with what is trained in brackets.
fn marked(encoded: &Encoded, tokenizer: &TextTokenizer) -> String {
    let row = encoded.example(0, 0).unwrap();
    let is_trained =
        |at: usize| at >= row.prompt && !row.untrained.iter().any(|gap| gap.contains(&(at as u32)));
    let mut text = String::new();
    for (at, token) in row.tokens.iter().enumerate() {
        if is_trained(at) && (at == 0 || !is_trained(at - 1)) {
            text.push('[');
        }
        text.push_str(&tokenizer.decode_all(&[*token]).unwrap());
        if is_trained(at) && (at + 1 == row.tokens.len() || !is_trained(at + 1)) {
            text.push(']');
        }
    }
    assert_eq!(row.trained(), (0..row.tokens.len()).filter(|at| is_trained(*at)).count());
    text
}

fn three_turns() -> CotRecord {
    CotRecord {
        earlier: vec![turn("a?", "<think>Hm.</think>A"), turn("b?", "B")],
        problem: "c?".into(),
        solution: "C".into(),
        answer: Some("C".into()),
        ..CotRecord::default()
    }
}

/// A template that keeps answers, and one that drops the reasoning of earlier ones.
fn template(keeps: bool) -> String {
    let content = match keeps {
        true => "m.content",
        false => "(m.content if loop.last else m.content.split('</think>')[-1])",
    };
    format!(
        "{{% for m in messages %}}<|{{{{ 'user' if m.role == 'user' else 'bot' }}}}|>\
         {{{{ {content} }}}}<|end|>{{% endfor %}}{{% if add_generation_prompt %}}<|bot|>{{% endif %}}"
    )
}

const LIMIT: LengthLimit = LengthLimit { tokens: 1000, too_long: TooLong::Drop };

#[test]
fn the_last_answer_is_trained_or_all_of_them_where_they_are_kept() {
    let special = ["<|user|>", "<|bot|>", "<|end|>"];
    let folder = |keeps| {
        let settings = json!({"eos_token": "<|end|>", "chat_template": template(keeps)});
        ChatFolder::new(&special, &[], false, settings)
    };
    let (keeping, dropping) = (folder(true), folder(false));
    let tokenizer = keeping.tokenizer();
    let text = |folder: &ChatFolder, record: &CotRecord, turns| {
        let format = folder.format(None).unwrap();
        encoded(record, &tokenizer, &format, turns, LIMIT).map(|row| marked(&row, &tokenizer))
    };
    let record = three_turns();
    assert_eq!(
        text(&keeping, &record, TrainedTurns::Last).unwrap(),
        "<|user|>a?<|end|><|bot|><think>Hm.</think>A<|end|><|user|>b?<|end|><|bot|>B<|end|>\
         <|user|>c?<|end|><|bot|>[C<|end|>]"
    );
    assert_eq!(
        text(&keeping, &record, TrainedTurns::All).unwrap(),
        "<|user|>a?<|end|><|bot|>[<think>Hm.</think>A<|end|>]<|user|>b?<|end|><|bot|>[B<|end|>]\
         <|user|>c?<|end|><|bot|>[C<|end|>]"
    );
    assert_eq!(
        text(&dropping, &record, TrainedTurns::Last).unwrap(),
        "<|user|>a?<|end|><|bot|>A<|end|><|user|>b?<|end|><|bot|>B<|end|>\
         <|user|>c?<|end|><|bot|>[C<|end|>]"
    );
    let error = text(&dropping, &record, TrainedTurns::All).unwrap_err();
    assert!(matches!(&error, Error::Config { key, .. } if key == "data.trained_turns"), "{error}");
    let error = error.to_string();
    for part in [
        "`long` record 1: the chat template changes answer 1 ",
        "<|bot|><think>Hm.</think>A",
        "<|bot|>A<|end|>",
        "`last`",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    // Where nothing is dropped, that template trains all of them, too.
    let plain = CotRecord { earlier: vec![turn("a?", "A"), turn("b?", "B")], ..record };
    let all = text(&dropping, &plain, TrainedTurns::All).unwrap();
    assert_eq!(all.matches('[').count(), 3, "{all}");
    // A record of one turn is the same row with either.
    let single = CotRecord { earlier: vec![], ..plain };
    let last = text(&keeping, &single, TrainedTurns::Last).unwrap();
    assert_eq!(text(&keeping, &single, TrainedTurns::All).unwrap(), last);
}

#[test]
fn the_built_in_layout_lays_out_earlier_turns() {
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    let row = |turns, limit| {
        let template = PlainTemplate::default();
        encoded(&three_turns(), &tokenizer, &template, turns, limit).unwrap()
    };
    let all = marked(&row(TrainedTurns::All, LIMIT), &tokenizer);
    assert_eq!(
        all,
        "Problem:\na?\n\nSolution:\n[<think>Hm.</think>A<|end|>]Problem:\nb?\n\nSolution:\n\
         [B<|end|>]Problem:\nc?\n\nSolution:\n[C<|end|>]"
    );
    // A row that is cut has less of it.
    for tokens in 25..100 {
        let limit = LengthLimit { tokens, too_long: TooLong::Cut };
        let cut = marked(&row(TrainedTurns::All, limit), &tokenizer);
        let bare = |text: &str| text.replace(['[', ']'], "");
        assert!(bare(&all).starts_with(&bare(&cut)), "{cut}");
        assert!(cut.starts_with("Problem:\na?\n\nSolution:\n["), "{cut}");
    }
    // As a chat template it is the same text.
    let jinja = PlainTemplate::default().to_jinja(&tokenizer, false);
    let mut chat = mixdistill::data::ChatTemplate::new("layout", jinja).unwrap();
    chat.set("eos_token", "<|end|>");
    let message = mixdistill::data::Message::new;
    let messages =
        [message("user", "a?"), message("assistant", "<think>Hm.</think>A"), message("user", "b?")];
    let prompt = chat.render(&messages, true).unwrap();
    assert!(all.replace(['[', ']'], "").starts_with(&prompt), "{prompt}");
}

/// A question of a conversation is asked with all that comes before it.
#[test]
fn conversations_are_joined_by_all_that_the_user_says_and_asked_whole() {
    let record = |first: &str, answer: &str| CotRecord {
        earlier: vec![turn(first, answer)],
        problem: "Why?".into(),
        solution: "Because.".into(),
        answer: Some("7".into()),
        ..CotRecord::default()
    };
    let long = Source::new("long", vec![record("1+1?", "2"), record("2+2?", "4")]);
    let short = Source::new("short", vec![record("2 +2?", "four"), record("1+1?", "two")]);
    let (pairs, _) = Pairs::join(vec![long, short], Join::Inner).unwrap();
    assert_eq!(pairs.len(), 1, "of the two, only one is asked in the same words");
    assert_eq!(pairs.earlier(0), [turn("1+1?", "2")]);
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    let template = PlainTemplate::default();
    let question = &questions(&pairs, 1)[0];
    let asked = template.prompt(&tokenizer, question.prompt()).unwrap();
    let encoded =
        Encoded::encode(&pairs, &tokenizer, &template, LIMIT, &Context::default()).unwrap();
    let row = &held_out_rows(&pairs, &encoded, 1)[0].rows[0];
    assert_eq!(asked, row.tokens[..row.prompt]);
    // With the same id they are of one problem only where all of that agrees.
    let named = |first| CotRecord { id: Some("x".into()), ..record(first, "2") };
    let sources = ["1 + 1?", "2+2?"].map(|first| Source::new(first, vec![named(first)]));
    let (pairs, ledger) = Pairs::join(sources.to_vec(), Join::Outer).unwrap();
    assert_eq!((pairs.len(), ledger.sources[1].id_conflicts), (2, 1));
}

/// Ten tokens: a prompt of three, and a user's two between two answers.
fn gapped() -> Row {
    Row {
        tokens: vec![3, 1, 4, 1, 5, 9, 2, 6, 5, 8],
        prompt: 3,
        untrained: std::iter::once(5..7).collect(),
        ..Row::default()
    }
}

#[test]
fn what_is_between_two_answers_adds_nothing_to_the_loss() {
    let device = common::devices()[0].clone().autodiff();
    let model = tiny(Architecture::Llama).init(1, &device).unwrap();
    let step = |rows: &[Row], packing| {
        step_gradients(&model, &BatchLayout::rows(8, 4, packing).batches(rows)).unwrap()
    };
    let row = gapped();
    assert_eq!(row.example().trained(), 5);
    // The sums of the tokens from the third, the fifth and the seventh on.
    let from = |prompt| {
        let row = Row { prompt, untrained: vec![], ..row.clone() };
        let step = step(&[row], Packing::Off);
        (step.loss * step.trained as f64, step)
    };
    let (third, fifth, seventh) = (from(3), from(5), from(7));
    let whole = step(std::slice::from_ref(&row), Packing::Off);
    assert_eq!(whole.trained, 5);
    let by_hand = (third.0 - fifth.0 + seventh.0) / 5.0;
    // f32 sums in another order.
    assert!((whole.loss / by_hand - 1.0).abs() < 1e-6, "{} {by_hand}", whole.loss);
    // Gradients add up as losses do, and packing changes neither.
    let other = common::rows(&[(6, 2), (5, 1)]);
    let rows = [other[0].clone(), row.clone(), other[1].clone()];
    let (alone, packed) = (step(&rows, Packing::Off), step(&rows, Packing::On));
    assert_eq!((alone.trained, packed.trained), (5 + 4 + 4, 5 + 4 + 4));
    assert!((packed.loss / alone.loss - 1.0).abs() < 1e-6);
    let expected = named_gradients(&model, &alone.gradients).unwrap();
    for (name, gradient) in named_gradients(&model, &packed.gradients).unwrap() {
        let error = relative_error(&gradient.values, &expected[&name].values);
        assert!(error < 5e-6, "{name}: {error:e}");
    }
    let batch = Batch::new([row.example()], 1);
    assert_eq!(batch.weights, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
}

#[test]
fn a_teachers_logits_are_of_the_tokens_that_are_trained() {
    let folder = tempfile::tempdir().unwrap();
    let header = TeacherLogitsHeader::new("teacher", "f", 23, 1, 1.0).unwrap();
    let mut writer = TeacherLogitsWriter::open(&folder.path().join("logits"), header).unwrap();
    let top = |trained: usize| TopTokens {
        k: 1,
        tokens: vec![2; trained],
        log_probs: vec![(0.5f32).ln(); 2 * trained],
    };
    let whole = Row { untrained: vec![], ..gapped() };
    writer.write(&[(whole.clone(), top(7))]).unwrap();
    assert!(writer.holds(&whole));
    assert!(!writer.holds(&gapped()), "the same tokens, of which others are trained");
    let error = writer.write(&[(gapped(), top(7))]).unwrap_err().to_string();
    assert!(error.contains('5'), "{error}");
    writer.write(&[(gapped(), top(5))]).unwrap();
    assert!(writer.holds(&gapped()));
}

/// A template that takes reasoning under a name of its own gets that of earlier answers there, too.
#[test]
fn reasoning_of_earlier_answers_stands_as_the_template_writes_it() {
    let special = ["<|user|>", "<|bot|>", "<|end|>"];
    let source = "{% for m in messages %}<|{{ 'user' if m.role == 'user' else 'bot' }}|>\
                  {% if m.thinking %}((first: {{ m.thinking }} :first)){% endif %}{{ m.content }}\
                  <|end|>{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}";
    let settings = json!({"eos_token": "<|end|>", "chat_template": source});
    let folder = ChatFolder::new(&special, &[], false, settings);
    let (tokenizer, format) = (folder.tokenizer(), folder.format(None).unwrap());
    let text = |turns| {
        let row = encoded(&three_turns(), &tokenizer, &format, turns, LIMIT).unwrap();
        marked(&row, &tokenizer)
    };
    assert_eq!(
        text(TrainedTurns::Last),
        "<|user|>a?<|end|><|bot|>((first: Hm. :first))A<|end|><|user|>b?<|end|><|bot|>B<|end|>\
         <|user|>c?<|end|><|bot|>[C<|end|>]"
    );
    assert_eq!(
        text(TrainedTurns::All),
        "<|user|>a?<|end|><|bot|>[((first: Hm. :first))A<|end|>]<|user|>b?<|end|><|bot|>[B<|end|>]\
         <|user|>c?<|end|><|bot|>[C<|end|>]"
    );
    // A chat is asked so, too.
    let said = [
        Message::new("user", "a?"),
        Message::new("assistant", "<think>Hm.</think>A"),
        Message::new("user", "b?"),
    ];
    let asked = format.conversation(&tokenizer, &said).unwrap();
    assert_eq!(
        tokenizer.decode_all(&asked).unwrap(),
        "<|user|>a?<|end|><|bot|>((first: Hm. :first))A<|end|><|user|>b?<|end|><|bot|>"
    );
}
