//! Chat templates: the Jinja programs in model folders that turn a conversation into text.
//!
//! They are written for Python's Jinja as configured by transformers. This module adds what that has beyond
//! plain Jinja: methods of Python values, `%` on text, `raise_exception`, `strftime_now`, `tojson` in the
//! format of Python's `json.dumps`, loop controls, and `generation` blocks.

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

/// Work budget of one rendering, plus one unit per byte of the conversation. An instruction costs 1, and so
/// do 64 bytes of created text or lists, so the budget bounds memory as well as time.
const FUEL: u64 = 200_000;

/// Time limit for a compilation or for the texts of a row. Templates in use take milliseconds; only work that
/// the engine does not count, such as comparing nested lists, takes this long.
const LONGEST_TIME: Duration = Duration::from_secs(10);

/// Stack size for compiling and rendering, which both recurse into nested values. Only used pages take
/// memory.
const STACK: usize = 512 << 20;

/// Maximum size of a template in bytes. Templates in use have up to about ten thousand.
const LONGEST_SOURCE: usize = 1 << 17;

/// Name of the template in its environment.
const NAME: &str = "chat_template";

/// Name of the template with calls in place of the `%` operator, if it uses the operator.
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
    /// Compiles a template. `name` is used in messages.
    ///
    /// # Errors
    /// [`Error::Template`] if the template is invalid.
    pub fn new(name: impl Into<String>, source: impl Into<String>) -> Result<Self> {
        let name = name.into();
        // Python's engine does the same.
        let source = source.into().replace("\r\n", "\n").replace('\r', "\n");
        let failed = |what: String| Error::Template {
            name: name.clone(),
            what,
            hint: "Fix the template, or give another one".into(),
        };
        if source.len() > LONGEST_SOURCE {
            return Err(failed(format!("it is too long, with {} bytes", source.len())));
        }
        let text = without_generation_blocks(&source);
        let environment = aside(move || {
            let mut environment = environment()?;
            if let Some(with_calls) = percent::with_calls(&text) {
                // If this does not compile, the original template reports the error.
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

    /// Reads the template of a model folder: `chat_template.jinja`, or else `chat_template` in
    /// `tokenizer_config.json`, which is a text or a list with a template named `default`. `None` if the
    /// folder has none. The template gets the names of special tokens.
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

    /// Reads a template from a file, with the names of special tokens from `tokenizer_config.json` in
    /// `folder`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Template`].
    pub fn from_file(file: &Path, folder: &Path) -> Result<Self> {
        Self::from_file_with(file, &TokenizerConfig::read(folder)?)
    }

    /// Like [`ChatTemplate::from_file`], with these names of special tokens.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Template`].
    pub(crate) fn from_file_with(file: &Path, config: &TokenizerConfig) -> Result<Self> {
        let source = read_if_there(file)?.ok_or_else(|| {
            Error::io("read", file, std::io::Error::from(std::io::ErrorKind::NotFound))
        })?;
        Self::with_config(file.display().to_string(), source, config)
    }

    /// Creates a template from text, with these names of special tokens.
    ///
    /// # Errors
    /// See [`ChatTemplate::new`].
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

    /// Returns the template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns the file, or another name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets a template variable, such as `enable_thinking` or `date_string`.
    pub fn set(&mut self, name: impl Into<String>, value: impl Serialize) {
        self.variables.insert(name.into(), Value::from(Serde(value)));
    }

    /// Refuses the name of a variable that the program sets itself.
    ///
    /// # Errors
    /// [`Error::Config`] with `key`, a dot, and the name.
    pub fn check_variable(key: &str, name: &str) -> Result<()> {
        const OWN: [&str; 6] =
            ["messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"];
        match OWN.contains(&name) {
            true => Err(Error::config(
                format!("{key}.{name}"),
                "mixdistill sets this variable of chat templates itself",
                "Remove it",
            )),
            false => Ok(()),
        }
    }

    /// Sets several variables. See [`ChatTemplate::set`].
    pub fn set_all(&mut self, variables: &BTreeMap<String, serde_json::Value>) {
        variables.iter().for_each(|(name, value)| self.set(name, value));
    }

    /// Sets the date (at midnight) that `strftime_now` formats. The default is today.
    pub fn set_date(&mut self, date: Date) {
        let format = move |format: String| {
            jiff::fmt::strtime::format(&format, date.at(0, 0, 0, 0))
                .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
        };
        self.environment.add_function("strftime_now", format);
    }

    /// Renders a conversation. With `add_generation_prompt`, the text ends where an answer begins.
    ///
    /// # Errors
    /// [`Error::Template`] if the template rejects the conversation, fails, or exceeds the limits on time and
    /// memory.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let mut texts = self.render_all(&[(messages, add_generation_prompt)])?;
        Ok(texts.pop().unwrap_or_default())
    }

    /// Like [`ChatTemplate::render`], for several conversations at once.
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
                // Only after this error, so that other templates are unchanged.
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
            hint: "Check the conversation, or give a template that supports it".into(),
        })
    }
}

/// Returns the engine as configured by transformers.
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
    // As in Python, None is not iterable.
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

/// Implements Jinja's `format` filter: `'%s, %s' | format(a, b)`, or values by name.
fn format_filter(format: &Value, values: Rest<ValueOrKwargs>) -> Result<String, minijinja::Error> {
    let values = values.into_values();
    match arguments::divided(&values) {
        (positional, None) => {
            let values = Value::from(Tuple::from(positional.to_vec()));
            printf::formatted(&python_str(format)?, &values)
        }
        ([], Some(named)) => printf::formatted(&python_str(format)?, named),
        _ => Err(failed("format takes positional or named values, not both")),
    }
}

/// Returns whether the error is that the engine's `%` only supports numbers.
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

/// A job for a rendering thread.
type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    /// The rendering thread of this thread, which ends with it.
    static RENDERER: RefCell<Option<mpsc::Sender<Job>>> = const { RefCell::new(None) };
}

/// Runs work on its own stack and with a time limit. Errors are converted to text.
fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, minijinja::Error> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    let job: Job = Box::new(move || {
        let result = work().map_err(|error| describe(&error));
        // Nobody receives the result after the time limit.
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
            // Keep the thread for the next job. After an error it ends, which frees its stack.
            if result.is_ok() {
                RENDERER.set(Some(renderer));
            }
            result
        }
        Err(mpsc::RecvTimeoutError::Timeout) => Err("it does not terminate".into()),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("the template engine panicked".into()),
    }
}

/// Formats an engine error with its line and causes.
fn describe(error: &minijinja::Error) -> String {
    const LONGEST: usize = 1000;
    if error.kind() == ErrorKind::OutOfFuel {
        return "it does not terminate, or produces too much text".into();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    let hint = match is_of_percent(error) {
        true => "; concatenate text with `~`, or use the filter `format`",
        false => "",
    };
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{} [...]{hint}", &text[..at]),
        None => text + hint,
    }
}

/// Replaces `{% generation %}` blocks, which mark the answer for Python trainers, by blocks that only scope
/// their variables.
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

/// The part of `tokenizer_config.json` that a template needs.
pub(crate) struct TokenizerConfig {
    pub(super) name: String,
    pub(crate) json: serde_json::Value,
}

impl TokenizerConfig {
    /// Reads the file. A folder without it gives an empty configuration.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Tokenizer`] if it is not a JSON object.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer_config.json");
        let name = path.display().to_string();
        match read_if_there(&path)? {
            Some(text) => Self::parse(name, &text),
            None => Ok(Self { name, json: serde_json::Value::Null }),
        }
    }

    /// Parses the file's text. `name` is used in messages.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it is not a JSON object.
    pub(crate) fn parse(name: String, text: &str) -> Result<Self> {
        let failed = |what: String| Error::Tokenizer {
            name: name.clone(),
            what,
            hint: "Fix the file, or download it again".into(),
        };
        let json: serde_json::Value =
            serde_json::from_str(text).map_err(|e| failed(format!("it is not JSON: {e}")))?;
        if !json.is_object() {
            return Err(failed("it is not a JSON object".into()));
        }
        Ok(Self { name, json })
    }

    /// Returns the text of a special token such as `eos_token`.
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
            hint: "Give a template as text, or a list with one named `default`".into(),
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
            Some(_) => Err(failed("`chat_template` is neither text nor a list")),
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
        // Deep, but finite: either result is fine, as long as there is one.
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
