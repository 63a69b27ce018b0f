//! Reasoning, and only reasoning, gets the form that the template has for it.

mod common;

use common::chat_folder::template;
use common::thinking::{REASONED, format, row, tokenizer};
use mixdistill::data::{EarlierTurn, Prompt, PromptTemplate};
use serde_json::json;

/// A template that takes reasoning in blocks of the content, within marks that no other has.
const BLOCKS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.content is string %}{{ m.content }}{% else %}{% for block in m.content %}\
    {% if block.type == 'thinking' %}((first: {{ THOUGHT }} :first)){% else %}{{ block.text }}\
    {% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[test]
fn reasoning_that_a_template_takes_in_blocks_is_in_its_marks_in_every_turn() {
    for thought in ["block.thinking", "block.thinking[0].text"] {
        let format = format(&BLOCKS.replace("THOUGHT", thought), json!({})).unwrap();
        let expected = "((first: One and one. :first))Two.<|im_end|>";
        for solution in [REASONED, "One and one.</think>Two.", "<think>One and one.</think>Two."] {
            assert_eq!(row(&format, solution).unwrap().1, expected);
        }
        assert_eq!(row(&format, "Two.").unwrap().1, "Two.<|im_end|>");
        let earlier = [EarlierTurn { problem: "1+1?".into(), solution: REASONED.into() }];
        let prompt = Prompt { earlier: &earlier, ..Prompt::from("Sure?") };
        let tokenizer = tokenizer();
        let asked = tokenizer.decode_all(&format.prompt(&tokenizer, prompt).unwrap()).unwrap();
        let begins = format!("<|im_start|>user\n1+1?<|im_end|><|im_start|>assistant\n{expected}");
        assert!(asked.starts_with(&begins), "{asked}");
    }
    // A list that is only printed is no form.
    let printed = BLOCKS.replace("{% if m.content is string %}", "{% if true %}");
    let format = format(&printed, json!({})).unwrap();
    assert_eq!(row(&format, REASONED).unwrap().1, format!("{REASONED}<|im_end|>"));
}

/// Reasoning under a key, in marks of the usual names and of its own, with texts kept as they are.
fn keyed(key: &str, written: &str) -> String {
    format!(
        "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{% if m.{key} %}}{written}\
         {{% endif %}}{{{{ m.content }}}}<|im_end|>{{% endfor %}}\
         {{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
    )
}

#[test]
fn all_reasoning_of_a_model_has_one_form_wherever_a_row_has_it() {
    let trained = |source: &str, solution: &str| {
        row(&format(source, json!({})).unwrap(), solution).unwrap().1
    };
    let own = keyed("thinking", "<think>{{ m.thinking }}</think>");
    for solution in [REASONED, "<think>One and one.</think> Two.", "One and one.\n</think>\nTwo."] {
        assert_eq!(trained(&own, solution), "<think>One and one.</think>Two.<|im_end|>");
    }
    let named = keyed("reasoning", "((first: {{ m.reasoning }} :first))");
    assert_eq!(trained(&named, REASONED), "((first: One and one. :first))Two.<|im_end|>");
    // Where it has no form of its own, texts stay as they are.
    let plain = keyed("other", "");
    for text in [REASONED, "<think>One and one.</think> Two."] {
        assert_eq!(trained(&plain, text), format!("{text}<|im_end|>"));
    }
    // A template that writes the reasoning twice is not asked to.
    let twice = keyed("thinking", "<think>{{ m.thinking }}</think>{{ m.thinking }}");
    assert_eq!(trained(&twice, REASONED), format!("{REASONED}<|im_end|>"));
    // An empty one is as none, where the prompt opens it.
    let opened = keyed("thinking", "<think>\n{{ m.thinking }}\n</think>\n");
    let opened = opened.replace("assistant\n{% endif", "assistant\n<think>\n{% endif");
    for text in ["Two.", "<think>\n\n</think>\n\nTwo.", "<think></think>Two."] {
        assert_eq!(trained(&opened, text), "\n</think>\nTwo.<|im_end|>");
    }
    if let Some(source) = template("LFM2.5-8B-A1B") {
        for text in [REASONED, "<think>One and one.</think>Two."] {
            let text = trained(&source, text);
            assert!(text.starts_with("<think>One and one.</think>Two.<|im_end|>"), "{text}");
        }
    }
}

#[test]
fn marks_that_an_answer_is_about_are_words_of_it() {
    let about = "The tag <think> opens; </think> closes. 13.";
    let qwen = template("Qwen-Qwen3-0.6B");
    let r1 = template("deepseek-ai-DeepSeek-R1-Distill-Llama-8B");
    let plain = keyed("other", "");
    let off = json!({"enable_thinking": false});
    for (source, variables, expected) in [
        (Some(plain), json!({}), format!("{about}<|im_end|>")),
        (qwen.clone(), json!({}), format!("<think>\n\n</think>\n\n{about}<|im_end|>")),
        (qwen, off, format!("{about}<|im_end|>")),
        (r1, json!({}), format!("\n</think>\n\n{about}<｜end▁of▁sentence｜>")),
    ] {
        let Some(source) = source else { continue };
        let format = format(&source, variables).unwrap();
        assert_eq!(row(&format, about).unwrap().1, expected);
    }
}
