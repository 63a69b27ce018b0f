//! Reasoning and answers in the form of a template: what is prompt, and what is trained.

mod common;

use common::Said;
use common::chat_folder::{ChatFolder, template, template_folders};
use common::thinking::{REASONED, SPECIAL, format, row, tokenizer};
use mixdistill::Error;
use mixdistill::context::{Context, StopFlag};
use mixdistill::data::{ColumnMap, Prompt, PromptTemplate, read_records};
use mixdistill::recipe::{Prepared, RunConfig};
use mixdistill::settings::Layers;
use serde_json::{Value, json};

/// A text without its white space.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect()
}

/// Of each template and setting: how the prompt ends, and what is trained of an answer with
/// reasoning, if it can be, and of one without.
type Case = (&'static str, Value, &'static str, Option<&'static str>, &'static str);

fn cases() -> Vec<Case> {
    let on = || json!({"enable_thinking": true});
    let off = || json!({"enable_thinking": false});
    let whole = Some("<think>\nOne and one.\n</think>\n\nTwo.<|im_end|>");
    let opened = Some("One and one.\n</think>\n\nTwo.<|im_end|>");
    let asked = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n";
    let with_open = "1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n";
    let with_both = "1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
    let empty = "<think>\n\n</think>\n\nTwo.<|im_end|>";
    let closes = "\n</think>\n\nTwo.<|im_end|>";
    let plain = "Two.<|im_end|>";
    let (r1, r1_off) =
        ("<｜User｜>1+1?<｜Assistant｜><think>\n", "<｜Assistant｜><think>\n</think>");
    let r1_opened = Some("One and one.\n</think>\n\nTwo.<｜end▁of▁sentence｜>");
    let r1_closes = "\n</think>\n\nTwo.<｜end▁of▁sentence｜>";
    vec![
        ("Qwen-Qwen3-0.6B", json!({}), asked, whole, empty),
        ("Qwen-Qwen3-0.6B", on(), asked, whole, empty),
        ("Qwen-Qwen3-0.6B", off(), with_both, None, plain),
        ("Qwen3.5-4B", json!({}), with_open, opened, closes),
        ("Qwen3.5-4B", on(), with_open, opened, closes),
        ("Qwen3.5-4B", off(), with_both, None, plain),
        ("HuggingFaceTB-SmolLM3-3B", json!({}), asked, whole, plain),
        ("HuggingFaceTB-SmolLM3-3B", on(), asked, whole, plain),
        ("HuggingFaceTB-SmolLM3-3B", off(), "assistant\n<think>\n\n</think>\n", None, plain),
        ("Qwen-QwQ-32B", on(), with_open, opened, closes),
        ("Qwen-QwQ-32B", off(), "assistant\n<think>\n</think>", None, "\n\nTwo.<|im_end|>"),
        ("openbmb-MiniCPM5-1B", json!({}), asked, whole, plain),
        ("openbmb-MiniCPM5-1B", on(), with_open, opened, closes),
        ("openbmb-MiniCPM5-1B", off(), with_both, None, plain),
        ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", json!({}), r1, r1_opened, r1_closes),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", on(), r1, r1_opened, r1_closes),
        (
            "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
            json!({}),
            r1_off,
            None,
            "\n\nTwo.<｜end▁of▁sentence｜>",
        ),
        // In blocks of the content.
        (
            "mistralai-Ministral-3-14B-Reasoning-2512",
            json!({"eos_token": "<|im_end|>"}),
            "[INST]1+1?[/INST]",
            Some("[THINK]One and one.[/THINK]Two.<|im_end|>"),
            "Two.<|im_end|>",
        ),
        // With marks of their own, other spaces, or an empty reasoning before the one in the content.
        (
            "ByteDance-Seed-OSS",
            json!({}),
            "1+1?<seed:eos><seed:bos>assistant\n",
            Some("<seed:think>One and one.</seed:think>\nTwo.<seed:eos><|im_end|>"),
            "Two.<seed:eos><|im_end|>",
        ),
        (
            "Kimi-K2-Thinking",
            json!({}),
            "<|im_assistant|>assistant<|im_middle|>",
            Some("<think>\nOne and one.\n</think>\n\nTwo.<|im_end|>"),
            "<think></think>Two.<|im_end|>",
        ),
        (
            "GLM-4.6",
            json!({}),
            "1+1?<|assistant|>",
            Some("\n<think>One and one.</think>\nTwo.<|im_end|>"),
            "\n<think></think>\nTwo.<|im_end|>",
        ),
    ]
}

#[test]
fn reasoning_is_trained_as_each_template_has_a_model_write_it() {
    for (name, variables, prompt_ends, reasoned, plain) in cases() {
        let Some(source) = template(name) else { continue };
        let what = format!("{name} {variables}");
        let format = format(&source, variables).unwrap_or_else(|error| panic!("{what}: {error}"));
        let (prompt, trained) = row(&format, "Two.").unwrap();
        assert!(prompt.ends_with(prompt_ends), "{what}: {prompt}");
        assert_eq!(trained, plain, "{what}");
        match reasoned {
            Some(reasoned) => {
                for text in [REASONED, " <think>One and one.</think> Two.\n"] {
                    let (again, trained) = row(&format, text).unwrap();
                    assert_eq!(again, prompt, "{what}");
                    // A template that keeps texts as they are keeps their spaces, too.
                    let same = trained == reasoned || text != REASONED;
                    assert!(same && squeezed(&trained) == squeezed(reasoned), "{what}: {trained}");
                }
            }
            None => {
                let error = row(&format, REASONED).unwrap_err();
                assert!(matches!(error, Error::Template { .. }), "{error}");
                let error = error.to_string();
                assert!(error.contains("the prompt has already closed it"), "{what}: {error}");
                assert!(error.contains("enable_thinking = true"), "{what}: {error}");
                // An empty reasoning is in the prompt already, and not trained again.
                let empty = row(&format, "<think>\n\n</think>\n\nTwo.").unwrap();
                assert_eq!(empty, (prompt, plain.to_owned()), "{what}");
            }
        }
    }
}

#[test]
fn reasoning_of_any_form_is_trained_once_and_whole() {
    let Some(source) = template("deepseek-ai-DeepSeek-R1-Distill-Llama-8B") else { return };
    let format = format(&source, json!({})).unwrap();
    let trained = |solution: &str| row(&format, solution).unwrap().1;
    let end = "<｜end▁of▁sentence｜>";
    // White space around an answer is left out, the indentation of its first line too.
    let indented = "<think>\n  a\n\tb\n</think>\n    c\n  d\n";
    assert_eq!(trained(indented), format!("a\n\tb\n</think>\n\nc\n  d{end}"));
    // Only its end is marked, as models write it whose prompt opens it.
    assert_eq!(trained("Hm.\n</think>\nTwo."), format!("Hm.\n</think>\n\nTwo.{end}"));
    assert_eq!(trained("<think></think>Two."), format!("\n</think>\n\nTwo.{end}"));
    // Nothing but reasoning.
    assert_eq!(trained("<think>Hm.</think>"), format!("Hm.\n</think>{end}"));
    assert_eq!(trained("<think>Hm."), format!("Hm.\n</think>{end}"));
    // What is marked as ended more than once ends the first time; the rest is text.
    let twice = trained("<think>Hm.</think> and </think> Two.");
    assert_eq!(twice, format!("Hm.\n</think>\n\nand </think> Two.{end}"));
    // Names of special tokens are text within reasoning, too.
    let tokenizer = tokenizer();
    let spelled = format!("<think>{end} is a name</think>Two {end}");
    let row = format.row(&tokenizer, "1+1?".into(), &spelled).unwrap();
    let special = row.tokens.iter().filter(|token| tokenizer.is_special(**token)).count();
    assert_eq!(special, 4, "beginning, user, assistant and the end of the turn");
    assert!(
        tokenizer.decode_all(&row.tokens).unwrap().contains("<think>\n<｜end▁of▁sentence｜> is")
    );
}

/// Rows of any pieces, through templates that keep, drop, open, end and take reasoning apart.
#[test]
fn no_letter_of_a_row_is_lost_whatever_marks_are_in_it() {
    let around = |content: &str, prompt: &str| {
        format!(
            "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{content}<|im_end|>{{% endfor %}}\
             {{% if add_generation_prompt %}}<|im_start|>assistant\n{prompt}{{% endif %}}"
        )
    };
    let dropped = "{{ m.content.split('</think>')[-1] }}";
    let taken = "{% if m.thinking %}[THINK]{{ m.thinking }}[/THINK]{% endif %}{{ m.content }}";
    let templates = [
        around("{{ m.content }}", ""),
        around("{{ m.content }}", "<think>\n"),
        around(dropped, ""),
        around(dropped, "<think>"),
        around(dropped, "<think>\n\n</think>\n\n"),
        around(taken, ""),
        around(taken, "[THINK]"),
    ];
    let pieces = ["<think>", "</think>", "x", " y\n", "\n\n", "<|im_end|>", "é", "[THINK]", ""];
    let letters = |text: &str| text.chars().filter(|c| "xyé".contains(*c)).collect::<String>();
    let tokenizer = tokenizer();
    let (mut rows, mut refused) = (0, 0);
    for (number, source) in templates.iter().enumerate() {
        let format = format(source, json!({})).unwrap();
        for seed in 0..4000usize {
            let piece = |i: u32| pieces[seed / pieces.len().pow(i) % pieces.len()];
            let problem = format!("q{}", piece(0));
            let solution: String = (0..5).map(piece).chain(["x"]).collect();
            let row = match format.row(&tokenizer, problem.as_str().into(), &solution) {
                Ok(row) => row,
                Err(error) => {
                    // Reasoning behind a prompt that has ended it, or marks within the answer.
                    let marks = [1, 2, 3, 4].contains(&number) && solution.contains("think>");
                    assert!(marks, "{source} {solution:?}: {error}");
                    refused += 1;
                    continue;
                }
            };
            rows += 1;
            let asked = format.prompt(&tokenizer, problem.as_str().into()).unwrap();
            assert_eq!(row.tokens[..row.prompt], asked, "{source} {solution:?}");
            let trained = tokenizer.decode_all(&row.tokens[row.prompt..]).unwrap();
            assert_eq!(letters(&trained), letters(&solution), "{source} {solution:?}: {trained:?}");
            let ends = row.tokens.iter().filter(|token| tokenizer.is_special(**token)).count();
            assert_eq!(ends, 4, "{source} {solution:?}: {trained:?}");
        }
    }
    println!("{rows} rows, {refused} refused");
    assert!(rows > 5 * refused, "{rows} {refused}");
}

/// They would be spelled letter by letter where they stand in a row's text.
#[test]
fn marks_that_are_special_tokens_are_those_tokens() {
    let special = ["<|user|>", "<|bot|>", "<|end|>", "<think>", "</think>"];
    let source = "{% for m in messages %}<|{{ 'user' if m.role == 'user' else 'bot' }}|>\
                  {{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}";
    let settings = json!({"eos_token": "<|end|>", "chat_template": source});
    let folder = ChatFolder::new(&special, &[], false, settings);
    let (tokenizer, format) = (folder.tokenizer(), folder.format(None).unwrap());
    let row = format.row(&tokenizer, "What is <think>?".into(), REASONED).unwrap();
    let count = |name: &str| {
        let token = tokenizer.token(name).unwrap();
        row.tokens.iter().filter(|other| **other == token).count()
    };
    assert_eq!([count("<think>"), count("</think>"), count("<|end|>")], [1, 1, 2]);
    let trained = tokenizer.decode_all(&row.tokens[row.prompt..]).unwrap();
    assert_eq!(trained, format!("{REASONED}<|end|>"));
}

#[test]
fn what_cannot_be_derived_is_refused_with_both_texts() {
    let around = |prompt: &str, answer: &str| {
        format!(
            "{{% for m in messages %}}{{% if m.role == 'assistant' %}}{answer}{{% else %}}\
             <|im_start|>{{{{ m.content }}}}{{% endif %}}<|im_end|>{{% endfor %}}\
             {{% if add_generation_prompt %}}{prompt}{{% endif %}}"
        )
    };
    let open = "bot:<think>\n";
    // It does as long as the rest is the same.
    let usual = around(open, "bot:{{ m.content.split('</think>')[-1] }}");
    let (_, trained) = row(&format(&usual, json!({})).unwrap(), REASONED).unwrap();
    assert_eq!(trained, "One and one.\n</think>\n\nTwo.<|im_end|>");
    for (template, said) in [
        (around(open, "other:{{ m.content }}"), "bot:<think>"),
        (around(open, "bot:{{ m.content | upper }}"), "FIRST ANSWER"),
        (around("bot:Well, ", "bot:{{ m.content }}"), "bot:Well, "),
    ] {
        let error = format(&template, json!({})).unwrap_err().to_string();
        assert!(error.contains("does not begin with the same conversation"), "{error}");
        assert!(error.contains(said), "{error}");
    }
    // What follows an answer is the same behind each, in the samples and in the rows.
    let scored = around("bot:", "bot:{{ m.content }}[score: {{ m.content | length }}]");
    let error = format(&scored, json!({})).unwrap_err().to_string();
    assert!(error.contains("depends on the answer"), "{error}");
    assert!(error.contains("\"First answer[score: 12]<|im_end|>\""), "{error}");
    assert!(error.contains("\"Another one[score: 11]<|im_end|>\""), "{error}");
    let graded = scored.replace("m.content | length", "m.content | length > 30");
    let graded = format(&graded, json!({})).unwrap();
    assert_eq!(row(&graded, "Two.").unwrap().1, "Two.[score: False]<|im_end|>");
    let error = row(&graded, &"long ".repeat(9)).unwrap_err().to_string();
    assert!(error.contains("it ends this answer unlike others"), "{error}");
    // A system text that is lost is so before reasoning, too.
    let format = format(&usual.replace("{% else %}", "{% elif m.role == 'user' %}"), json!({}));
    let prompt = Prompt { system: Some("Be brief."), ..Prompt::from("1+1?") };
    let error = format.unwrap().row(&tokenizer(), prompt, REASONED).unwrap_err().to_string();
    assert!(error.contains("it leaves out the system text"), "{error}");
}

/// Long answers with reasoning and short ones without, laid out by a template that can switch.
struct Mixture(ChatFolder);

const SWITCH: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
                      {{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n\
                      {{ '<think>' if enable_thinking else '<think></think>' }}{% endif %}";

impl Mixture {
    fn new() -> Self {
        let settings = json!({"eos_token": "<|im_end|>"});
        let folder = ChatFolder::new(&SPECIAL, &["<think>", "</think>"], false, settings);
        let write = |name: &str, rows: Vec<Value>| {
            let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        let problem = |i: usize| format!("{i} + {i}?");
        let long = |i: usize| {
            json!({"messages": [{"role": "user", "content": problem(i)},
                {"role": "assistant", "reasoning_content": "Twice.", "content": format!("{}", 2 * i)}]})
        };
        let short = |i: usize| json!({"problem": problem(i), "solution": format!("{}", 2 * i), "answer": 2 * i});
        write("long.jsonl", (1..9).map(long).collect());
        write("short.jsonl", (1..9).map(short).collect());
        std::fs::write(folder.path().join("switch.jinja"), SWITCH).unwrap();
        Self(folder)
    }

    /// The settings of a run, with these lines behind those of the data.
    fn settings(&self, more: &str) -> Layers<RunConfig> {
        let path = |name: &str| format!("{:?}", self.0.path().join(name));
        let mut layers = Layers::new().unwrap();
        let text = format!(
            "[data]\ntokenizer = {}\nchat_template = {}\nhold_out = 0.25\n{more}\n\
             [data.sources.long]\npath = {}\n[data.sources.short]\npath = {}\n",
            path("tokenizer.json"),
            path("switch.jinja"),
            path("long.jsonl"),
            path("short.jsonl")
        );
        layers.text(&text).unwrap();
        layers
    }
}

#[test]
fn each_source_and_the_questions_have_variables_of_their_own() {
    let mixture = Mixture::new();
    let mut layers = mixture.settings("template_variables = { enable_thinking = false }");
    layers.set("data.sources.long.template_variables.enable_thinking=true").unwrap();
    layers.set("evaluation.template_variables.enable_thinking=true").unwrap();
    let config = layers.settings().unwrap();
    assert_eq!(
        config.data.sources[0].template_variables,
        [("enable_thinking".into(), true.into())].into()
    );
    let prepared = Prepared::new(&config, &Context::default()).unwrap();
    let texts = |tokens: &[u32], prompt: usize| {
        let text = |tokens: &[u32]| prepared.tokenizer.decode_all(tokens).unwrap();
        (text(&tokens[..prompt]), text(&tokens[prompt..]))
    };
    let answers = prepared.all_answers();
    assert_eq!(answers.len(), 12);
    let held_out = prepared.held_out.iter().flat_map(|source| &source.rows);
    for row in answers.iter().map(|answer| &answer.row).chain(held_out) {
        let (prompt, trained) = texts(&row.tokens, row.prompt);
        let long = row.label.starts_with("`long`");
        let ends = if long { "assistant\n<think>" } else { "assistant\n<think></think>" };
        assert!(prompt.ends_with(ends), "{}: {prompt}", row.label);
        let begins = if long { "\nTwice.\n</think>\n\n" } else { "\n\n" };
        assert!(trained.starts_with(begins), "{}: {trained:?}", row.label);
    }
    // Held-out problems are answered as the settings of the evaluation say.
    let asked = prepared.template.prompt(&prepared.tokenizer, "1?".into()).unwrap();
    assert!(texts(&asked, asked.len()).0.ends_with("<think>"));
    // What is saved with the student is the template itself.
    assert_eq!(prepared.chat_template, SWITCH);
    // The settings as they are written are the same ones.
    let again = RunConfig::from_toml(&config.to_toml().unwrap()).unwrap();
    assert_eq!(again, config);
}

#[test]
fn answers_without_reasoning_behind_prompts_that_open_it_are_told() {
    let mixture = Mixture::new();
    let told = |settings: &str| {
        let config = mixture.settings(settings).settings().unwrap();
        let (mut said, stop) = (Said::default(), StopFlag::default());
        Prepared::new(&config, &Context::new(&mut said, &stop)).unwrap();
        said.0
    };
    let notices = told("template_variables = { enable_thinking = true }");
    let of = |name: &str| {
        let begins = format!("source `{name}`: its prompts open the reasoning");
        notices.iter().filter(|notice| notice.contains(&begins)).count()
    };
    assert_eq!((of("long"), of("short")), (0, 1), "{notices:?}");
    let unused = "data.template_variables: the template does not use `thinking_budget`";
    assert!(!notices.iter().any(|notice| notice.contains("does not use")), "{notices:?}");
    let notices = told("template_variables = { thinking_budget = 3, enable_thinking = true }");
    assert_eq!(notices.iter().filter(|notice| *notice == unused).count(), 1, "{notices:?}");
    // What the program sets is not for the settings.
    for name in
        ["messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"]
    {
        let mut layers = mixture.settings("");
        layers.set(&format!("data.sources.long.template_variables.{name}=x")).unwrap();
        let error = layers.settings().unwrap().validate().unwrap_err().to_string();
        let key = format!("`data.sources.long.template_variables.{name}`");
        assert!(error.contains(&key) && error.contains("sets this variable"), "{error}");
    }
}

/// Reasoning without an end would be trained as if the teacher had ended it.
#[test]
fn answers_of_nothing_but_reasoning_are_left_out_under_every_layout() {
    let mixture = Mixture::new();
    let path = mixture.0.path().join("long.jsonl");
    let mut rows = std::fs::read_to_string(&path).unwrap();
    for cut in
        ["<think>\nThis was cut", "<think>Ended.</think>\n", "<Reasoning> This was", "<think>"]
    {
        let row = json!({"problem": format!("{cut}?"), "solution": cut});
        std::fs::write(&path, format!("{row}\n")).unwrap();
        let read = read_records(&path, &ColumnMap::default(), 1.0).unwrap_err().to_string();
        assert!(read.contains("the answer is only reasoning"), "{read}");
        rows.push_str(&format!(
            "{}\n",
            json!({"messages": [{"role": "user", "content": "c?"},
            {"role": "assistant", "content": cut}]})
        ));
    }
    std::fs::write(&path, rows).unwrap();
    for template in ["", "data.chat_template=none"] {
        let mut layers = mixture.settings("max_left_out = 0.5");
        layers.set("data.sources.long.template_variables.enable_thinking=true").unwrap();
        if !template.is_empty() {
            layers.set(template).unwrap();
            layers.set("data.sources.long.template_variables={}").unwrap();
        }
        let prepared = Prepared::new(&layers.settings().unwrap(), &Context::default()).unwrap();
        let ledger = &prepared.ledger.sources[0];
        assert_eq!(
            ledger.left_out.rows_for("no answer, only reasoning"),
            4,
            "{:?}",
            ledger.left_out
        );
        assert_eq!(prepared.all_answers().len(), 12);
    }
}

#[test]
fn reasoning_of_a_source_whose_thinking_is_off_names_the_row_and_the_way_out() {
    let mixture = Mixture::new();
    let config = mixture.settings("").settings().unwrap();
    let error = Prepared::new(&config, &Context::default()).map(|_| ()).unwrap_err().to_string();
    for part in ["`long` line 1", "already closed it", "<think></think>", "enable_thinking = true"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn sources_by_name_are_laid_over_each_other() {
    let layers = |texts: &[&str]| {
        let mut layers = Layers::<RunConfig>::new().unwrap();
        texts.iter().try_for_each(|text| layers.text(text))?;
        layers.settings()
    };
    let first = "[data.sources.long]\npath = \"l\"\n[data.sources.short]\npath = \"s\"";
    let second =
        "[data.sources.short.template_variables]\nx = 1\n[data.sources.long]\npath = \"m\"";
    let sources = layers(&[first, second]).unwrap().data.sources;
    let shown: Vec<_> = sources
        .iter()
        .map(|s| (s.name.as_str(), s.path.to_str().unwrap(), s.template_variables.len()))
        .collect();
    assert_eq!(shown, [("long", "m", 0), ("short", "s", 1)]);
    // A list takes the place of all, as ever.
    let list = "[[data.sources]]\nname = \"a\"\npath = \"a\"";
    assert_eq!(layers(&[first, list]).unwrap().data.sources.len(), 1);
    // What is wrong is named with its line.
    let error = layers(&["[data.sources.long]\npath = 1"]).unwrap_err().to_string();
    assert!(error.contains("line 2: it is 1") && error.contains("data.sources.0.path"), "{error}");
    let error = layers(&[first, "[data.sources.more]\ncolumns = {}"]).unwrap_err().to_string();
    assert!(error.contains("data.sources.2.path") && error.contains("it is missing"), "{error}");
    assert!(layers(&["data.sources = {}"]).is_err());
    assert!(layers(&["data.sources.long = 1"]).is_err());
}

/// Whatever a template does: a row begins with its prompt, and its answer is there, or it is an
/// error.
#[test]
fn templates_in_use_keep_what_they_train() {
    let (mut rows, mut refused) = (0, 0);
    let files =
        template_folders().into_iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    for path in files.map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|ending| ending != "jinja") {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        for variables in
            [json!({}), json!({"enable_thinking": true}), json!({"enable_thinking": false})]
        {
            let Ok(format) = format(&source, variables) else {
                refused += 1;
                continue;
            };
            for solution in ["Two.", REASONED, "Hm.</think>Two.", "<think></think>Two."] {
                let Ok((prompt, trained)) = row(&format, solution) else {
                    refused += 1;
                    continue;
                };
                rows += 1;
                let what = format!("{}: {prompt:?} {trained:?}", path.display());
                assert!(trained.contains("Two."), "{what}");
                assert!(trained.matches("Two.").count() == 1, "{what}");
                assert_eq!(trained.contains("One and one."), solution == REASONED, "{what}");
                // Reasoning is opened and closed once, the prompt's part of it included.
                let asked = prompt.rfind("1+1?").unwrap();
                let turn = format!("{}{trained}", &prompt[asked..]);
                assert!(turn.matches("<think>").count() <= 1, "{what}");
            }
        }
    }
    println!("{rows} rows, {refused} refused");
}
