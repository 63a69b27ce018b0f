//! The card of a set of pairs: the teachers, their settings, and which answers were kept.

use super::config::{Keep, MakePairsConfig, Pick, TeacherConfig};
use super::report::{PairsReport, in_table};
use crate::eval::INSTRUCTION;

/// Returns the card in Markdown, with the front matter of a dataset on the Hub.
pub(super) fn card(config: &MakePairsConfig, report: &PairsReport) -> String {
    let data_file = |name: &str| format!("- config_name: {name}\n  data_files: {name}.jsonl\n");
    let files: String = ["pairs", "long", "short"].map(data_file).concat();
    let name = |path: &std::path::Path| {
        path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    let picked = match config.pick {
        Pick::First => "the first correct one",
        Pick::Shortest => "the shortest correct one",
        Pick::Longest => "the longest correct one",
    };
    let kept = match config.keep {
        Keep::Both => "Only problems that both teachers answered correctly are kept",
        Keep::Either => "Problems that at least one teacher answered correctly are kept",
    };
    let benchmarks: Vec<String> = config.benchmarks.iter().map(|path| name(path)).collect();
    let apart = match benchmarks.is_empty() {
        true => "The problems were not compared with benchmarks.".to_owned(),
        false => format!(
            "Problems that have the same text as a benchmark problem, or share thirteen words in a row \
             with one, were left out ({}).",
            benchmarks.join(", ")
        ),
    };
    let asked = match config.instruct {
        true => format!("The prompts ended with the instruction *{INSTRUCTION}*"),
        false => "The prompts had no instruction.".to_owned(),
    };
    let [long, short] = [&report.long.model, &report.short.model].map(|model| in_table(model));
    format!(
        "---\nconfigs:\n{files}---\n\n# Long and short answers\n\n{} problems of `{}`, each with a long \
         answer by {long} and a short answer by {short} ({} long rows, {} short rows). {asked} Each \
         teacher was asked for up to {} answers per problem, with seeds from {} on; {picked} is \
         included. Answers that the length limit truncated are never included. {kept}. {apart} \
         Problems with the same answer and a text similarity of at least {} count as duplicates.\n\n\
         - `long.jsonl`, `short.jsonl`: rows with `id`, `problem`, `solution`, `answer`\n\
         - `pairs.jsonl`: rows with `id`, `problem`, `answer`, `long`, `short`\n\n\
         Rules graded the answers by comparing the final answer that they state with the known one. \
         Created with mixdistill {}.\n\n## Counts\n\n{}\n## Teachers\n\n{}{}",
        report.pairs,
        name(&config.problems),
        report.rows[0],
        report.rows[1],
        config.samples,
        config.seed,
        config.near_duplicates,
        env!("CARGO_PKG_VERSION"),
        report.to_markdown(),
        teacher("long", &long, &config.long),
        teacher("short", &short, &config.short),
    )
}

/// Returns a teacher's settings, without the URL, which may be private.
fn teacher(role: &str, model: &str, config: &TeacherConfig) -> String {
    let (mut system, mut limits) = (String::new(), String::new());
    let drawn = |temperature: f64, top_p: f64, max_tokens: usize| {
        format!("temperature {temperature}, top-p {top_p}, at most {max_tokens} tokens")
    };
    if let Some(server) = &config.server {
        system.clone_from(&server.system);
        limits = drawn(server.temperature, server.top_p, server.max_tokens);
        limits.push_str(&format!(", {} per request", config.n));
        if !server.extra.is_empty() {
            limits.push_str(&format!(", {}", serde_json::Value::Object(server.extra.clone())));
        }
    }
    if let Some(local) = &config.local {
        system.clone_from(&local.system);
        limits = drawn(local.temperature, local.top_p, local.max_tokens);
    }
    let system = match system.is_empty() {
        true => "none".to_owned(),
        false => format!("{system:?}"),
    };
    let reasoning = format!("{:?}", config.reasoning).to_lowercase();
    format!("- {role}: {model}; {limits}; system message: {system}; reasoning: {reasoning}\n")
}
