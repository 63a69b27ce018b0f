//! Chat templates compared with transformers' rendering, and the trained tokens of a conversation.

mod common;

use common::chat_folder::ChatFolder;
use common::{shared, smollm2};
use mixdistill::Error;
use mixdistill::data::{
    ChatFormat, ChatTemplate, Message, PlainTemplate, Prompt, PromptTemplate, TextTokenizer,
};
use serde_json::{Value, json};

#[test]
fn renderings_equal_those_of_transformers() {
    let Some(folder) = shared("templates") else { return };
    let text = std::fs::read_to_string(folder.join("renderings.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let (mut equal, mut refused) = (0, 0);
    for case in &cases {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(folder.join(format!("jinja/{name}.jinja"))).unwrap();
        let mut template = ChatTemplate::new(name, source).unwrap();
        for key in ["bos_token", "eos_token", "date_string"] {
            template.set(key, &case[key]);
        }
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
            .collect();
        let rendered = template.render(&messages, case["add_generation_prompt"] == true);
        match case["rendered"].as_str() {
            Some(expected) => {
                assert_eq!(rendered.unwrap(), expected, "{name}, {}", case["case"]);
                equal += 1;
            }
            None => {
                let error = rendered.unwrap_err();
                assert!(matches!(error, Error::Template { .. }), "{error}");
                let expected = case["error"].as_str().unwrap().split(": ").nth(1).unwrap();
                assert!(error.to_string().contains(expected), "{error}");
                refused += 1;
            }
        }
    }
    println!("{equal} renderings are equal, {refused} are errors as they must be");
    assert_eq!((equal, refused), (108, 4));
}

/// As Python's dicts do; sorted, they would make another prompt.
#[test]
fn the_keys_of_template_variables_stay_in_their_order() {
    let toml = "base_model = \"x\"\n[data.template_variables]\nflag = true\n\
                tool = { name = \"f\", args = { z = 1, a = [{ y = 2, b = 3 }] } }\n\
                [data.template_variables.table]\nzeta = 1\nalpha = { k = 1, b = 2 }\n";
    let config = mixdistill::recipe::RunConfig::from_toml(toml).unwrap();
    // Also after they were written and read, as runs that go on do.
    let again = mixdistill::recipe::RunConfig::from_toml(&config.to_toml().unwrap()).unwrap();
    for config in [config, again] {
        let source = "{{ tool | tojson }} {{ table | tojson(separators=(',', ':')) }} \
                      {{ table | tojson(sort_keys=true) }} {{ table.items() | map('first') | list }}";
        let mut template = ChatTemplate::new("test", source).unwrap();
        for (name, value) in &config.data.template_variables {
            template.set(name, value);
        }
        assert_eq!(
            template.render(&[], false).unwrap(),
            "{\"name\": \"f\", \"args\": {\"z\": 1, \"a\": [{\"y\": 2, \"b\": 3}]}} \
             {\"zeta\":1,\"alpha\":{\"k\":1,\"b\":2}} \
             {\"alpha\": {\"b\": 2, \"k\": 1}, \"zeta\": 1} ['zeta', 'alpha']"
        );
    }
}

/// What templates in use hold: Python's methods and `%`, in a template of a folder.
#[test]
fn templates_written_for_python_are_rendered() {
    let source = "{%- for m in messages -%}{{ '<|%s|>%d: ' % (m['role'], loop.index) }}\
                  {{ m.content.removeprefix('> ').partition('=')[2].rjust(4) }}\
                  {{ '%s' | format(m.content[-1:]) }}{%- endfor -%}";
    let template = ChatTemplate::new("test", source).unwrap();
    let messages = [Message::new("user", "> a=b=c"), Message::new("assistant", "x=y")];
    assert_eq!(template.render(&messages, false).unwrap(), "<|user|>1:  b=cc<|assistant|>2:    yy");
    let error = ChatTemplate::new("test", "{{ messages % 2 }}").unwrap();
    let error = error.render(&messages, false).unwrap_err().to_string();
    assert!(error.contains("`%` needs two numbers, or a text and values"), "{error}");
}

/// A folder with the special tokens that the templates here name.
fn folder_with(adds_bos: bool, settings: Value) -> ChatFolder {
    let special = ["<s>", "</s>", "<|user|>", "<|bot|>", "<|end|>"];
    ChatFolder::new(&special, &[], adds_bos, settings)
}

const PLAIN: &str = "{% for m in messages %}<|{{ 'user' if m.role == 'user' else 'bot' }}|>\
                     {{ m.content }}<|end|>\n{% endfor %}\
                     {% if add_generation_prompt %}<|bot|>{% endif %}";

fn settings(template: &str) -> Value {
    json!({"eos_token": "</s>", "bos_token": "<s>", "chat_template": template})
}

#[test]
fn the_answer_and_its_end_of_turn_are_trained_and_nothing_else() {
    let folder = folder_with(false, settings(PLAIN));
    let (tokenizer, format) = (folder.tokenizer(), folder.format(None).unwrap());
    let row = format.row(&tokenizer, " 1+1? ".into(), "\n2\n").unwrap();
    let [user, bot, end] = [258, 259, 260];
    let text = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let expected =
        [vec![user], text("1+1?"), vec![end], text("\n"), vec![bot], text("2"), vec![end]].concat();
    // What the template adds after the end of the turn, a line break, is left out.
    assert_eq!(row.tokens, expected);
    assert_eq!(row.tokens[row.prompt..], [u32::from(b'2'), end]);
    assert_eq!(format.prompt(&tokenizer, "1+1?".into()).unwrap(), row.tokens[..row.prompt]);
    // The tokenizer's own end token is another one; answers end with the turn.
    assert_eq!((format.end_token(&tokenizer), tokenizer.end_token()), (end, 257));
}

#[test]
fn a_rows_own_system_text_is_laid_out_replaced_or_refused() {
    let names = "{% for m in messages %}<|{{ 'user' if m.role == 'user' else 'bot' }}|>\
                 {{ m.role }}:{{ m.content }}<|end|>\n{% endfor %}\
                 {% if add_generation_prompt %}<|bot|>assistant:{% endif %}";
    let folder = folder_with(false, settings(names));
    let (tokenizer, format) = (folder.tokenizer(), folder.format(None).unwrap());
    let prompt = Prompt { system: Some(" Be <|end|> brief. "), ..Prompt::from("1+1?") };
    let row = format.row(&tokenizer, prompt, "2").unwrap();
    let asked = format.prompt(&tokenizer, prompt).unwrap();
    assert_eq!(row.tokens[..row.prompt], asked);
    let text = "system:Be <|end|> brief.\nuser:1+1?\nassistant:";
    assert_eq!(tokenizer.decode(&asked).unwrap(), text);
    // Its words are text, whatever they spell.
    assert_eq!(asked.iter().filter(|token| **token == 260).count(), 2);
    assert_eq!(
        format.rows(&tokenizer, &[(prompt, "2"), ("1+1?".into(), "2")])[0].as_ref().unwrap(),
        &row
    );
    // The run's own takes its place.
    let replaced = folder.format(Some("Think.")).unwrap().prompt(&tokenizer, prompt).unwrap();
    assert!(tokenizer.decode(&replaced).unwrap().starts_with("system:Think.\nuser"));
    // A template that has no place for it is refused, and does for rows without one.
    for template in [
        "{% for m in messages if m.role != 'system' %}<|user|>{{ m.content }}<|end|>{% endfor %}\
         {% if add_generation_prompt %}<|user|>{% endif %}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}\
         {% endif %}{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}\
         {% if add_generation_prompt %}<|user|>{% endif %}",
    ] {
        let folder = folder_with(false, settings(template));
        let format = folder.format(None).unwrap();
        assert!(format.row(&tokenizer, "1+1?".into(), "2").is_ok());
        for error in [
            format.row(&tokenizer, prompt, "2").map(|_| ()).unwrap_err(),
            format.prompt(&tokenizer, prompt).map(|_| ()).unwrap_err(),
            format.rows(&tokenizer, &[(prompt, "2")]).remove(0).map(|_| ()).unwrap_err(),
        ] {
            let error = error.to_string();
            let says =
                error.contains("it leaves out the system text") && error.contains("system=none");
            assert!(says || error.contains("System role not supported"), "{error}");
        }
    }
}

#[test]
fn the_built_in_layout_has_a_place_for_a_rows_own_system_text() {
    let folder = folder_with(true, settings(PLAIN));
    let tokenizer = folder.tokenizer();
    let layout = PlainTemplate::default();
    let prompt = Prompt { system: Some("Be brief."), ..Prompt::from("1+1?") };
    assert_eq!(layout.prompt_text(prompt), "Be brief.\n\nProblem:\n1+1?\n\nSolution:\n");
    let template = ChatTemplate::new("layout", layout.to_jinja(&tokenizer, true)).unwrap();
    let messages = [Message::new("system", " Be brief. "), Message::new("user", "1+1?")];
    let text = template.render(&messages, true).unwrap();
    assert_eq!(tokenizer.encode_marked(&text).unwrap(), layout.prompt(&tokenizer, prompt).unwrap());
    let alone = template.render(&messages[1..], true).unwrap();
    let prompt = layout.prompt(&tokenizer, "1+1?".into()).unwrap();
    assert_eq!(tokenizer.encode_marked(&alone).unwrap(), prompt);
}

#[test]
fn a_problem_or_answer_cannot_spell_special_tokens() {
    let folder = folder_with(false, settings(PLAIN));
    let (tokenizer, format) = (folder.tokenizer(), folder.format(None).unwrap());
    let (problem, solution) = ("What is <|end|>?", "A token: <|end|><|user|> and </s>.");
    let row = format.row(&tokenizer, problem.into(), solution).unwrap();
    let special: Vec<u32> = row.tokens.iter().copied().filter(|token| *token > 255).collect();
    assert_eq!(special, [258, 260, 259, 260], "only those of the template");
    let (prompt, answer) = row.tokens.split_at(row.prompt);
    assert_eq!(tokenizer.decode(prompt).unwrap(), format!("{problem}\n"));
    assert_eq!(tokenizer.decode(answer).unwrap(), solution);
    assert_eq!(format.prompt(&tokenizer, problem.into()).unwrap(), prompt);
}

#[test]
fn there_is_exactly_one_bos() {
    let with_bos = format!("{{{{ bos_token }}}}{PLAIN}");
    let count = |adds_bos: bool, settings: Value| {
        let folder = folder_with(adds_bos, settings);
        let (tokenizer, format) = (folder.tokenizer(), folder.format(None).unwrap());
        let row = format.row(&tokenizer, "1".into(), "2").unwrap();
        assert!(row.tokens.starts_with(&format.prompt(&tokenizer, "1".into()).unwrap()));
        assert_eq!(row.tokens[row.prompt..], [u32::from(b'2'), 260]);
        row.tokens.iter().filter(|token| **token == 256).count()
    };
    assert_eq!(count(true, settings(&with_bos)), 1, "template and tokenizer add it");
    assert_eq!(count(true, settings(PLAIN)), 1, "the tokenizer adds it");
    assert_eq!(count(false, settings(&with_bos)), 1, "the template adds it");
    assert_eq!(count(false, settings(PLAIN)), 0, "nothing asks for one");
    let mut explicit = settings(PLAIN);
    explicit["add_bos_token"] = json!(true);
    assert_eq!(count(false, explicit.clone()), 1, "the settings ask for it");
    explicit["add_bos_token"] = json!(false);
    assert_eq!(count(true, explicit), 0, "the settings forbid it");
}

#[test]
fn the_built_in_layout_as_a_template_begins_as_its_rows_do() {
    for adds_bos in [true, false] {
        let folder = folder_with(adds_bos, settings(PLAIN));
        let tokenizer = folder.tokenizer();
        let layout = PlainTemplate::default();
        let template = ChatTemplate::new("layout", layout.to_jinja(&tokenizer, false)).unwrap();
        let text = template.render(&[Message::new("user", "1+1?")], true).unwrap();
        // What other tools do with it: names of special tokens are those tokens, nothing is added.
        let prompt = layout.prompt(&tokenizer, "1+1?".into()).unwrap();
        assert_eq!(tokenizer.encode_marked(&text).unwrap(), prompt, "{text}");
        assert_eq!(prompt.contains(&256), adds_bos);
    }
}

#[test]
fn a_template_that_ends_no_answer_gets_the_tokenizers_end() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    let folder = folder_with(false, settings(template));
    let (tokenizer, format) = (folder.tokenizer(), folder.format(None).unwrap());
    let row = format.row(&tokenizer, "1".into(), "2").unwrap();
    assert_eq!(tokenizer.decode(&row.tokens[row.prompt..]).unwrap(), "2\n");
    assert_eq!(row.tokens.last(), Some(&tokenizer.end_token()));
}

#[test]
fn where_answer_and_prompt_would_merge_the_prompt_is_as_when_the_model_is_asked() {
    let Some(folder) = shared("tokenizers/gpt2") else { return };
    let tokenizer = TextTokenizer::from_folder(&folder, None).unwrap();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    let format = |template: ChatTemplate| ChatFormat::new(template, &tokenizer, None).unwrap();
    let format = format(ChatTemplate::new("test", template).unwrap());
    let row = format.row(&tokenizer, "1 + 1".into(), "two").unwrap();
    let prompt = format.prompt(&tokenizer, "1 + 1".into()).unwrap();
    // Alone the space is a token; before a word it would be part of it.
    assert_eq!(row.tokens[..row.prompt], prompt);
    assert_eq!(tokenizer.decode(&row.tokens[row.prompt..]).unwrap(), "two");
    let whole = tokenizer.encode_marked("user: 1 + 1<|endoftext|>assistant: two").unwrap();
    assert!(!whole.starts_with(&prompt), "otherwise this shows nothing");
    assert_eq!(row.tokens.last(), Some(&tokenizer.end_token()));
}

/// Prompts are encoded up to their last special token by themselves, and their common beginning once.
#[test]
fn rows_have_the_tokens_of_their_whole_text() {
    let Some(folder) = shared("tokenizers/qwen3") else { return };
    let tokenizer = TextTokenizer::from_folder(&folder, None).unwrap();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let template = ChatTemplate::new("test", template).unwrap();
    let pieces =
        ["12", " a", "\n", "\n\n", "  ", "\u{301}e", "<|im", "_end|>", "Ω", "'s", "...", "<"];
    let text = |seed: usize| -> String {
        (0..seed % 9 + 1)
            .map(|i| pieces[(seed * 31 + i * i * 7 + i * seed) % pieces.len()])
            .collect()
    };
    let mut merged = 0;
    for system in [None, Some("Be brief.")] {
        let format =
            ChatFormat::new(template.clone(), &tokenizer, system.map(str::to_owned)).unwrap();
        for seed in 0..300 {
            let (problem, solution) = (format!("x{}", text(seed)), format!("y{}", text(seed + 7)));
            if [&problem, &solution].iter().any(|text| text.contains("<|im_end|>")) {
                continue;
            }
            let messages: Vec<Message> = system
                .iter()
                .map(|text| Message::new("system", *text))
                .chain([Message::new("user", problem.trim())])
                .chain([Message::new("assistant", solution.trim())])
                .collect();
            let encode = |messages: &[Message], prompt: bool| {
                tokenizer.encode_marked(&template.render(messages, prompt).unwrap()).unwrap()
            };
            let prompt = encode(&messages[..messages.len() - 1], true);
            let whole = encode(&messages, false);
            let row = format.row(&tokenizer, (&problem).into(), &solution).unwrap();
            assert_eq!(row.tokens[..row.prompt], prompt, "{problem:?} {solution:?}");
            assert_eq!(format.prompt(&tokenizer, (&problem).into()).unwrap(), prompt);
            if whole.starts_with(&prompt) {
                // Without the line break after the end of the turn.
                assert_eq!(row.tokens, whole[..whole.len() - 1], "{problem:?} {solution:?}");
            } else {
                merged += 1;
            }
        }
    }
    assert!(merged < 60, "{merged} rows show nothing");
}

#[test]
fn an_end_token_of_ones_own_takes_the_place_of_the_templates() {
    let folder = folder_with(false, settings(PLAIN));
    let (tokenizer, format) = (folder.tokenizer(), folder.format(None).unwrap());
    let format = format.with_end_token(257);
    let row = format.row(&tokenizer, "1".into(), "2").unwrap();
    assert_eq!(row.tokens[row.prompt..], [u32::from(b'2'), 257]);
    assert_eq!(format.end_token(&tokenizer), 257);
}

#[test]
fn a_template_that_changes_the_prompt_or_the_answer_is_refused_with_both_texts() {
    let error = |template: &str, solution: &str| {
        let folder = folder_with(false, settings(template));
        let row =
            folder.format(None).and_then(|f| f.row(&folder.tokenizer(), "1+1?".into(), solution));
        let error = row.unwrap_err();
        assert!(matches!(error, Error::Template { .. }), "{error}");
        error.to_string()
    };
    let other = PLAIN.replace("<|bot|>{% endif %}", "<|bot|>Well,\n{% endif %}");
    let message = error(&other, "2");
    assert!(message.contains("does not begin with the same conversation"), "{message}");
    assert!(message.contains("<|bot|>Well,") && message.contains("First answer"), "{message}");
    let dropping = PLAIN.replace("{{ m.content }}", "{{ m.content.split('###')[-1] }}");
    let message = error(&dropping, "### 1 and 1 ### 2");
    assert!(message.contains("leaves out or changes part of the answer"), "{message}");
    assert!(message.contains("### 1 and 1 ### 2"), "{message}");
    let counting = "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages | length }}";
    error(counting, "2");
    error("{{ raise_exception('never') }}", "2");
    error("{% for m in messages %}{{ m.missing.missing }}{% endfor %}", "2");
}

#[test]
fn a_template_is_found_wherever_folders_have_it() {
    let found = |settings: Value, file: Option<&str>| {
        let folder = folder_with(false, settings);
        if let Some(file) = file {
            std::fs::write(folder.path().join("chat_template.jinja"), file).unwrap();
        }
        let template = ChatTemplate::from_folder(folder.path());
        template.map(|t| t.map(|t| t.render(&[], false).unwrap()))
    };
    assert_eq!(found(settings("text{{ eos_token }}"), None).unwrap().unwrap(), "text</s>");
    assert_eq!(found(settings("text"), Some("file{{ bos_token }}")).unwrap().unwrap(), "file<s>");
    let list = json!([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]);
    let mut with_list = settings("");
    with_list["chat_template"] = list;
    with_list["eos_token"] = json!({"content": "</s>", "special": true});
    assert_eq!(found(with_list.clone(), None).unwrap().unwrap(), "d");
    with_list["chat_template"] = json!([{"name": "tools", "template": "t"}]);
    assert!(found(with_list.clone(), None).is_err());
    with_list["chat_template"] = json!(3);
    assert!(found(with_list.clone(), None).is_err());
    with_list["chat_template"] = Value::Null;
    assert!(found(with_list, None).unwrap().is_none());
}

#[test]
fn special_tokens_in_templates_are_those_of_transformers() {
    let (Some(folder), Some(reference)) = (smollm2(), shared("smollm2/reference.json")) else {
        return;
    };
    let text = std::fs::read_to_string(reference).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    let tokenizer = TextTokenizer::from_folder(&folder, None).unwrap();
    let template = ChatTemplate::from_folder(&folder).unwrap().unwrap();
    let tokens = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    for case in reference["greedy"].as_array().unwrap() {
        let messages: Vec<Message> = serde_json::from_value::<Vec<Value>>(case["messages"].clone())
            .unwrap()
            .iter()
            .map(|m| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
            .collect();
        let text = template.render(&messages, true).unwrap();
        assert_eq!(text, case["prompt"].as_str().unwrap());
        assert_eq!(tokenizer.encode_marked(&text).unwrap(), tokens(&case["prompt_ids"]));
    }
    // The supervised example: ours ends with the end of the turn, where transformers' has a line
    // break after it.
    let sft = &reference["sft"];
    let text = sft["text"].as_str().unwrap();
    let (problem, solution) = text
        .split_once("<|im_start|>user\n")
        .and_then(|(_, rest)| rest.split_once("<|im_end|>\n<|im_start|>assistant\n"))
        .unwrap();
    let solution = solution.trim_end().trim_end_matches("<|im_end|>");
    let format = ChatFormat::new(template, &tokenizer, None).unwrap();
    let row = format.row(&tokenizer, problem.into(), solution).unwrap();
    let ids = tokens(&sft["input_ids"]);
    assert_eq!(row.tokens, ids[..ids.len() - 1]);
    let labels = sft["labels"].as_array().unwrap();
    assert_eq!(row.prompt, labels.iter().filter(|label| **label == -100).count());
}

/// `tools` is None where there are none, and None is not iterable in Python.
#[test]
fn templates_that_ask_whether_there_are_tools_are_rendered() {
    let source = "{% if tools is iterable and tools | length > 0 %}tools{% endif %}\
                  {{ [] is iterable }}{{ 'a' is iterable }}{{ {} is iterable }}{{ 1 is iterable }}";
    let template = ChatTemplate::new("test", source).unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "TrueTrueTrueFalse");
    for name in ["Qwen3-Coder", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"] {
        let Some(source) = common::chat_folder::template(name) else { continue };
        let template = ChatTemplate::new(name, source).unwrap();
        let text = template.render(&[Message::new("user", "1+1?")], true).unwrap();
        assert!(text.contains("<|im_start|>user\n1+1?<|im_end|>"), "{name}: {text}");
    }
}
