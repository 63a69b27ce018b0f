//! `preview`.

use super::call;
use crate::common::chat_folder::ChatFolder;
use serde_json::{Value, json};

#[test]
fn rows_of_each_source_are_shown_with_what_is_trained() {
    let special = ["<|user|>", "<|bot|>", "<|end|>"];
    let switch = "{% for m in messages %}<|{{ 'user' if m.role == 'user' else 'bot' }}|>\
                  {{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|bot|>\
                  {{ '<think>' if enable_thinking else '<think></think>' }}{% endif %}";
    let folder = ChatFolder::new(&special, &[], false, json!({"eos_token": "<|end|>"}));
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, text: String| std::fs::write(path(name), text).unwrap();
    write("switch.jinja", switch.into());
    let rows = |row: &dyn Fn(usize) -> Value| (1..9).map(|i| format!("{}\n", row(i))).collect();
    // Rows with a terminal escape sequence, and one very long row.
    let hm = |i: usize| if i == 2 { "m".repeat(9000) } else { "Hm.\u{1b}[2J".into() };
    let thought = |i: usize| {
        let solution = format!("{}", 2 * i);
        json!({"id": i, "problem": format!("{i} + {i}?"), "reasoning": hm(i), "solution": solution})
    };
    write("long.jsonl", rows(&thought));
    write(
        "short.jsonl",
        rows(
            &|i| json!({"id": i, "problem": format!("{i} + {i}?"), "solution": format!("{}", 2 * i), "answer": 2 * i}),
        ),
    );
    let settings = [
        format!("data.tokenizer={}", path("tokenizer.json")),
        format!("data.chat_template={}", path("switch.jinja")),
        "data.sources.long.template_variables.enable_thinking=true".into(),
        "data.hold_out=0.25".into(),
        "data.max_length=20000".into(),
    ];
    let (long, short) = (path("long.jsonl"), path("short.jsonl"));
    let mut words = vec!["preview", "--long", &long, "--short", &short, "--rows", "8"];
    settings.iter().for_each(|setting| words.extend(["--set", setting]));
    let ended = call(&words).with(0);
    for shown in [
        "\nlong: 6 answers, with enable_thinking = true\n",
        "\nshort: 6 answers\n",
        "<|user|>1 + 1?<|end|><|bot|><think>[\nHm.\u{FFFD}[2J\n</think>\n\n2<|end|>]\n",
        "\n`short` line 1 (id 1): 28 tokens, 4 trained\n\
         <|user|>1 + 1?<|end|><|bot|><think></think>[\n\n2<|end|>]\n",
        "m ... 7220 characters left out ... m",
        "\nheld-out problem: prompt of ",
    ] {
        assert!(ended.out.contains(shown), "{shown:?} in {}", ended.out);
    }
    assert!(!ended.out.contains('\u{1b}'));
    // In JSON, texts are not shortened.
    words.push("--json");
    let preview: Value = serde_json::from_str(&call(&words).with(0).out).unwrap();
    let row = &preview["sources"][0]["rows"][1];
    let trained: String = row["parts"][1]["text"].as_str().unwrap().into();
    assert!(trained.matches('m').count() == 9000 && row["parts"][1]["trained"] == true, "{row}");
    // Rows left out are reported, too.
    words.pop();
    let text = std::fs::read_to_string(path("long.jsonl")).unwrap();
    let cut = json!({"id": 9, "problem": "9 + 9?", "solution": "<think>\nHm", "reasoning": null});
    write("long.jsonl", format!("{text}{}\n{cut}\n", thought(1)));
    words.extend(["--set", "data.max_left_out=0.5"]);
    let said = call(&words).with(0).err;
    let left_out =
        "source `long`: left out of 10 rows: 1 x no answer, only reasoning, 1 x duplicate";
    assert!(said.contains(left_out), "{said}");
    // The toy corpus has no configurable sources.
    let said = call(&["preview", "--set", "data.sources.long.template_variables.x=1"]).with(1).err;
    assert!(said.contains("in the entry `long`") && said.contains("toy corpus has no"), "{said}");
    words.push("--json");
    // Nothing is created, and errors are those of training.
    assert!(!folder.path().join("run").exists());
    words.pop();
    words.extend(["--set", "data.sources.long.template_variables.enable_thinking=false"]);
    let said = call(&words).with(1).err;
    assert!(said.contains("`long` line 1") && said.contains("enable_thinking = true"), "{said}");
}
