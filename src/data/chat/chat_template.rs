//! Chat templates: the Jinja program in a model's folder that turns a conversation into text.
//!
//! They are written for Python's Jinja as transformers sets it up; what that offers beyond
//! Jinja itself is rebuilt here: methods of Python's values, `%` on texts, `raise_exception`,
//! `strftime_now`, `tojson` in the form of Python's `json.dumps`, loop controls, `generation` blocks.

use super::message::Message;
use super::python::json::to_json;
use super::python::text::{bounded, failed, python_str};
use super::python::{arguments, methods, percent, printf};
use crate::error::{Error, Result};
use crate::files::read_if_there;
use jiff::civil::Date;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, StringInput, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, ErrorKind, State, escape_formatter};
use serde::ser::Serialize;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// Work that one rendering may cost, beside one unit for each byte of the conversation. An
/// instruction costs 1, and so do 64 bytes of text or of lists that are made, so that it bounds
/// memory as well as time.
const FUEL: u64 = 200_000;

/// Time that a compilation, or the texts of a row, may take. Templates in use take milliseconds; what takes
/// so long is work that the engine does not count, such as comparing lists within lists.
const LONGEST_TIME: Duration = Duration::from_secs(10);

/// Stack for compiling and rendering, which both recurse into what is nested. Only what is used of
/// it takes memory.
const STACK: usize = 512 << 20;

/// Largest source of a template, in bytes; those in use have up to some ten thousand.
const LONGEST_SOURCE: usize = 1 << 17;

/// Name of the template in its environment.
const NAME: &str = "chat_template";

/// Name of the template with calls in place of the operator `%`, where it has any.
const WITH_CALLS: &str = "chat_template_with_calls";

/// A compiled chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    name: String,
    source: String,
    environment: Environment<'static>,
    variables: BTreeMap<String, Value>,
}

impl ChatTemplate {
    /// Compiles a template; `name` stands for it in messages.
    ///
    /// # Errors
    /// [`Error::Template`] where it is no template.
    pub fn new(name: impl Into<String>, source: impl Into<String>) -> Result<Self> {
        let name = name.into();
        // As Python's engine does it.
        let source = source.into().replace("\r\n", "\n").replace('\r', "\n");
        let failed = |what: String| Error::Template {
            name: name.clone(),
            what,
            hint: "Mend the template, or give one of your own".into(),
        };
        if source.len() > LONGEST_SOURCE {
            return Err(failed(format!("it has {} bytes", source.len())));
        }
        let text = without_generation_blocks(&source);
        let environment = aside(move || {
            let mut environment = environment()?;
            if let Some(with_calls) = percent::with_calls(&text) {
                // Where it cannot be compiled, the template itself says why it fails.
                let _ = environment.add_template_owned(WITH_CALLS, with_calls);
            }
            environment.add_template_owned(NAME, text)?;
            Ok(environment)
        });
        let environment =
            environment.map_err(|what| failed(format!("it cannot be compiled: {what}")))?;
        let mut template = Self { name, source, environment, variables: BTreeMap::new() };
        template.set_date(jiff::ZonedDateTime::now().date());
        Ok(template)
    }

    /// The template of a model's folder: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json`, a text or a list of which the one named `default` is taken. `None`
    /// where the folder has none. The names of special tokens are given to the template.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Template`].
    pub fn from_folder(folder: &Path) -> Result<Option<Self>> {
        let file = folder.join("chat_template.jinja");
        if file.is_file() {
            return Self::from_file(&file, folder).map(Some);
        }
        let config = TokenizerConfig::read(folder)?;
        let Some(source) = config.template()? else { return Ok(None) };
        Self::with_config(config.name.clone(), source, &config).map(Some)
    }

    /// The template in a file, given the names of special tokens in `tokenizer_config.json` of
    /// `folder`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Template`].
    pub fn from_file(file: &Path, folder: &Path) -> Result<Self> {
        Self::from_file_with(file, &TokenizerConfig::read(folder)?)
    }

    /// As [`ChatTemplate::from_file`], with these names of special tokens.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Template`].
    pub(crate) fn from_file_with(file: &Path, config: &TokenizerConfig) -> Result<Self> {
        let source = read_if_there(file)?.ok_or_else(|| {
            Error::io("read", file, std::io::Error::from(std::io::ErrorKind::NotFound))
        })?;
        Self::with_config(file.display().to_string(), source, config)
    }

    /// The template of a text, given the names of special tokens.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub(crate) fn with_config(
        name: impl Into<String>,
        source: impl Into<String>,
        config: &TokenizerConfig,
    ) -> Result<Self> {
        Self::new(name, source)?.with_tokens(config)
    }

    fn with_tokens(mut self, config: &TokenizerConfig) -> Result<Self> {
        config.special_tokens().for_each(|(key, token)| self.set(key, token));
        Ok(self)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The file, or what else it was named.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets a variable that the template can see, such as `enable_thinking` or `date_string`.
    pub fn set(&mut self, name: impl Into<String>, value: impl Serialize) {
        self.variables.insert(name.into(), Value::from(Serde(value)));
    }

    /// Refuses a name of a variable that the program sets itself.
    ///
    /// # Errors
    /// [`Error::Config`] with `key`, a dot and the name.
    pub fn check_variable(key: &str, name: &str) -> Result<()> {
        const OWN: [&str; 6] =
            ["messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"];
        match OWN.contains(&name) {
            true => Err(Error::config(
                format!("{key}.{name}"),
                "chat templates are given it by the program",
                "Leave it out",
            )),
            false => Ok(()),
        }
    }

    /// Sets several variables; see [`ChatTemplate::set`].
    pub fn set_all(&mut self, variables: &BTreeMap<String, serde_json::Value>) {
        variables.iter().for_each(|(name, value)| self.set(name, value));
    }

    /// Sets the date that `strftime_now` formats (midnight of it); at first it is today's.
    pub fn set_date(&mut self, date: Date) {
        let format = move |format: String| {
            jiff::fmt::strtime::format(&format, date.at(0, 0, 0, 0))
                .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
        };
        self.environment.add_function("strftime_now", format);
    }

    /// The text of a conversation; with `add_generation_prompt` up to where an answer begins.
    ///
    /// # Errors
    /// [`Error::Template`]: the template refuses the conversation, fails, or does not end within
    /// bounds of time and memory.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let mut texts = self.render_all(&[(messages, add_generation_prompt)])?;
        Ok(texts.pop().unwrap_or_default())
    }

    /// As [`ChatTemplate::render`], several texts at once.
    pub(super) fn render_all(&self, conversations: &[(&[Message], bool)]) -> Result<Vec<String>> {
        let context = |&(messages, add_generation_prompt): &(&[Message], bool)| {
            let mut context = self.variables.clone();
            context.insert("messages".into(), Value::from(Serde(messages)));
            context.insert("add_generation_prompt".into(), add_generation_prompt.into());
            for unused in ["tools", "documents"] {
                context.entry(unused.into()).or_insert_with(|| Value::from(()));
            }
            let bytes: usize = messages.iter().map(Message::bytes).sum();
            (context, FUEL + bytes as u64)
        };
        let contexts: Vec<_> = conversations.iter().map(context).collect();
        let mut environment = self.environment.clone();
        let rendered = aside(move || {
            let mut render_as = |name: &str, context: &BTreeMap<String, Value>, fuel| {
                environment.set_fuel(Some(fuel));
                environment.get_template(name)?.render(context)
            };
            let render = |(context, fuel)| match render_as(NAME, &context, fuel) {
                // Only then, so that templates which do without it stay as they are.
                Err(error) if is_of_percent(&error) => {
                    match render_as(WITH_CALLS, &context, fuel) {
                        Err(other) if other.kind() == ErrorKind::TemplateNotFound => Err(error),
                        result => result,
                    }
                }
                result => result,
            };
            contexts.into_iter().map(render).collect::<std::result::Result<Vec<_>, _>>()
        });
        rendered.map_err(|what| Error::Template {
            name: self.name.clone(),
            what: format!("it failed: {what}"),
            hint: "The template must fit the conversation; another can be given".into(),
        })
    }
}

/// The engine as transformers sets it up.
fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::None
        | ValueKind::Bool
        | ValueKind::Number
        | ValueKind::Seq
        | ValueKind::Map
        | ValueKind::Iterable => Ok(out.write_str(&python_str(value)?)?),
        _ => escape_formatter(out, state, value),
    });
    // As in Python, where None is not.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", python_str);
    environment.add_filter("join", bounded_join);
    environment.add_filter("format", format_filter);
    environment.add_function(percent::FUNCTION, printf::percent);
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, _> {
        Err(failed(python_str(message)?))
    });
    Ok(environment)
}

/// Jinja's `format`: `'%s, %s' | format(a, b)`, or values by name.
fn format_filter(format: &Value, values: Rest<ValueOrKwargs>) -> Result<String, minijinja::Error> {
    let values = values.into_values();
    match arguments::divided(&values) {
        (positional, None) => {
            let values = Value::from(Tuple::from(positional.to_vec()));
            printf::formatted(&python_str(format)?, &values)
        }
        ([], Some(named)) => printf::formatted(&python_str(format)?, named),
        _ => Err(failed("format takes values by place or by name, not both")),
    }
}

/// Whether an error is that the engine's `%` is for numbers alone.
fn is_of_percent(error: &minijinja::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.to_string().contains("tried to use % operator") {
            return true;
        }
        cause = error.source();
    }
    false
}

fn bounded_join(
    state: &mut State,
    value: &Value,
    joiner: Option<StringInput<'_>>,
    attribute: Option<&str>,
    options: Kwargs,
) -> Result<Value, minijinja::Error> {
    bounded(value)?;
    minijinja::filters::join(state, value, joiner, attribute, options)
}

/// Work for a thread that renders.
type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    /// The thread that renders for this one; it ends with it.
    static RENDERER: RefCell<Option<mpsc::Sender<Job>>> = const { RefCell::new(None) };
}

/// Does work on a stack and within a time of its own; errors come as words.
fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, minijinja::Error> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    let job: Job = Box::new(move || {
        let result = work().map_err(|error| describe(&error));
        // Nobody waits any more where the time is over.
        let _ = sender.send(result);
    });
    let renderer = match RENDERER.take() {
        Some(renderer) => renderer,
        None => {
            let (sender, jobs) = mpsc::channel::<Job>();
            std::thread::Builder::new()
                .stack_size(STACK)
                .spawn(move || jobs.into_iter().for_each(|job| job()))
                .map_err(|e| format!("no thread can be started: {e}"))?;
            sender
        }
    };
    if renderer.send(job).is_err() {
        return Err("the template engine is gone".into());
    }
    let result = receiver.recv_timeout(LONGEST_TIME);
    match result {
        Ok(result) => {
            // For the next work. After anything but success the thread ends, and with it its stack.
            if result.is_ok() {
                RENDERER.set(Some(renderer));
            }
            result
        }
        Err(mpsc::RecvTimeoutError::Timeout) => Err("it does not end".into()),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("the template engine panicked".into()),
    }
}

/// An error of the engine with its line and its causes.
fn describe(error: &minijinja::Error) -> String {
    const LONGEST: usize = 1000;
    if error.kind() == ErrorKind::OutOfFuel {
        return "it does not end, or makes too much text".into();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    let hint = match is_of_percent(error) {
        true => "; write texts together with `~`, or with the filter `format`",
        false => "",
    };
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{} [...]{hint}", &text[..at]),
        None => text + hint,
    }
}

/// The template with `{% generation %}` blocks, which mark the answer for Python's trainers, made
/// blocks that do nothing but keep their variables to themselves.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        rest = tag;
        for (name, new) in [("generation", "with"), ("endgeneration", "endwith")] {
            let word = tag.trim_start_matches(['-', '+']).trim_start();
            if let Some(end) = word.strip_prefix(name)
                && end.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                out.push_str(&tag[..tag.len() - word.len()]);
                out.push_str(&format!(" {new} "));
                rest = end;
            }
        }
    }
    out + rest
}

/// What a template needs of `tokenizer_config.json`.
pub(crate) struct TokenizerConfig {
    pub(super) name: String,
    pub(crate) json: serde_json::Value,
}

impl TokenizerConfig {
    /// Reads the file; a folder without it gives an empty one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Tokenizer`] where it is not a JSON object.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer_config.json");
        let name = path.display().to_string();
        match read_if_there(&path)? {
            Some(text) => Self::parse(name, &text),
            None => Ok(Self { name, json: serde_json::Value::Null }),
        }
    }

    /// Reads the file's text; `name` stands for it in messages.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where it is not a JSON object.
    pub(crate) fn parse(name: String, text: &str) -> Result<Self> {
        let failed = |what: String| Error::Tokenizer {
            name: name.clone(),
            what,
            hint: "Mend the file, or take it from the model again".into(),
        };
        let json: serde_json::Value =
            serde_json::from_str(text).map_err(|e| failed(format!("it is not JSON: {e}")))?;
        if !json.is_object() {
            return Err(failed("it is not a JSON object".into()));
        }
        Ok(Self { name, json })
    }

    /// The text of a special token: `eos_token`, `bos_token` and so on.
    pub(super) fn token(&self, key: &str) -> Option<&str> {
        let token = self.json.get(key)?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    }

    fn special_tokens(&self) -> impl Iterator<Item = (&'static str, &str)> {
        ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"]
            .into_iter()
            .filter_map(|key| Some((key, self.token(key)?)))
    }

    fn template(&self) -> Result<Option<String>> {
        let failed = |what: &str| Error::Template {
            name: self.name.clone(),
            what: what.into(),
            hint: "Give a template as a text, or a list with one named `default`".into(),
        };
        match self.json.get("chat_template") {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(serde_json::Value::String(source)) => Ok(Some(source.clone())),
            Some(serde_json::Value::Array(list)) => {
                let default = list.iter().find(|entry| entry["name"] == "default");
                let source = default.and_then(|entry| entry["template"].as_str());
                source.map(|source| Some(source.to_owned())).ok_or_else(|| {
                    failed("`chat_template` is a list without a template named `default`")
                })
            }
            Some(_) => Err(failed("`chat_template` is neither a text nor a list")),
        }
    }
}

#[cfg(test)]
mod python_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str) -> Result<String> {
        let mut template = ChatTemplate::new("test", source)?;
        template.set("data", serde_json::json!({"b": [1, 2.5, null], "a": "é<"}));
        template.render(&[Message::new("user", "x")], true)
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        assert_eq!(
            rendered("{{ data.b | tojson }}{{ [] | tojson(indent=2) }}{{ {} | tojson }}").unwrap(),
            "[1, 2.5, null][]{}"
        );
        assert_eq!(rendered("{{ 'é<\"' | tojson }}").unwrap(), "\"é<\\\"\"");
        assert_eq!(
            rendered("{{ {'k': [1, {'l': true}]} | tojson(indent=2) }}").unwrap(),
            "{\n  \"k\": [\n    1,\n    {\n      \"l\": true\n    }\n  ]\n}"
        );
    }

    #[test]
    fn values_are_printed_as_python_prints_them() {
        assert_eq!(rendered("{{ none }} {{ true }} {{ missing }}.").unwrap(), "None True .");
    }

    #[test]
    fn generation_blocks_keep_their_text_and_their_variables() {
        let source = "{% set x = 1 %}a {%- generation -%} {% set x = 2 %}b{{ x }}\
                      {%- endgeneration %}\nc{{ x }}";
        assert_eq!(rendered(source).unwrap(), "ab2c1");
        assert_eq!(without_generation_blocks("{% if generation %}{%"), "{% if generation %}{%");
    }

    #[test]
    fn the_date_is_formatted_as_asked() {
        let mut template = ChatTemplate::new("test", "{{ strftime_now('%d %b %Y') }}").unwrap();
        template.set_date(jiff::civil::date(2024, 7, 26));
        assert_eq!(template.render(&[], false).unwrap(), "26 Jul 2024");
        assert!(rendered("{{ strftime_now('%!') }}").is_err());
    }

    #[test]
    fn line_breaks_of_other_systems_are_those_of_templates() {
        let source = "{% for m in messages %}\r\n{{ m.content }}\r\n{% endfor %}\r\nend\r\n";
        assert_eq!(rendered(source).unwrap(), "x\nend");
    }

    #[test]
    fn hostile_templates_end_with_an_error() {
        let looped = |set: &str, then: &str| {
            format!(
                "{{% set ns = namespace(x=['a'], s='ab') %}}{{% for i in range(60) %}}\
                 {{% set {set} %}}{{% endfor %}}{then}"
            )
        };
        let double = |then: &str| looped("ns.x = [ns.x, ns.x]", then);
        let cases = [
            looped("ns.s = ns.s ~ ns.s", "{{ ns.s }}"),
            looped("ns.s = ns.s.replace('a', ns.s)", ""),
            double("{{ ns.x }}"),
            double("{{ ns.x | string }}"),
            double("{{ ns.x | tojson }}"),
            double("{{ ns.x | join }}"),
            double("{{ ''.join(ns.x) }}"),
            double("{{ ns.x.count(1) }}"),
            double("{{ '{}'.format(ns.x) }}"),
            double("{{ raise_exception(ns.x) }}"),
            "{% set x = 'a' * 1000000 %}{{ x.join(x) }}".into(),
            "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}"
                .into(),
            "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}".into(),
            "{{ {'a': 1} | tojson(indent=99999999999) }}".into(),
            "{{ 'a' * 99999999999 }}".into(),
            "{{ '{:.99999999999}'.format(1.5) }}".into(),
            "{{ '{:99999999999999}'.format(1) }}".into(),
            "{{ ('a' * 50000000).split('a') }}".into(),
            "{{ raise_exception('a' * 40000000) }}".into(),
            "{% for %}".into(),
            "{{ x.y.z }}".into(),
            "{{ raise_exception('no') }}".into(),
            "{{ 1 + none }}".into(),
            format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000)),
            "x".repeat(LONGEST_SOURCE + 1),
        ];
        for source in cases {
            let start: String = source.chars().take(200).collect();
            let error = rendered(&source).expect_err(&start);
            assert!(matches!(error, Error::Template { .. }), "{error}");
            assert!(error.to_string().len() < 2000, "{start}: a message to be read");
        }
        // Deep, but not endless: whatever comes of it, it comes.
        for source in [
            format!("{{{{ {}1 }}}}", "1+".repeat(60_000)),
            format!("{{{{ messages{} }}}}", "[0]".repeat(40_000)),
            format!("{{{{ messages{} }}}}", "|first".repeat(18_000)),
            "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}\
             {% endfor %}{{ ns.x | tojson }}"
                .into(),
        ] {
            let _ = rendered(&source);
        }
    }
}
