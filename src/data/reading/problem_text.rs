//! How the text of a problem is made up where columns hold parts of it: context before it, options
//! behind it. Training data and benchmarks are laid out alike.

use serde_json::{Map, Value};

/// A string or a number as text; 27.0 is 27.
pub(crate) fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(match number.as_f64() {
            Some(x) if x.fract() == 0.0 && x.abs() < 1e15 => format!("{x:.0}"),
            _ => number.to_string(),
        }),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

/// A problem below its context.
pub(crate) fn with_context(problem: &str, context: &str) -> String {
    let context = context.trim();
    // SVAMP's bodies lack the full stop before the question.
    let end =
        if context.ends_with(['.', '?', '!', ':', '。', '？', '！', '：']) { "" } else { "." };
    format!("{context}{end} {problem}")
}

/// The options of a multiple-choice problem.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options<'a> {
    /// Each with its letter, where they come one by one.
    pub(crate) lettered: Vec<(char, &'a Value)>,
    /// The text that stands below the problem.
    pub(crate) text: Option<String>,
}

impl<'a> Options<'a> {
    /// The options in a column: a text, a list, or an object by letters.
    ///
    /// # Errors
    /// What cannot be laid out, in words.
    pub(crate) fn of(value: Option<&'a Value>) -> Result<Self, String> {
        let lettered = lettered(value)?;
        let text = match lettered.is_empty() {
            true => value.and_then(plain_text).filter(|text| !text.is_empty()),
            false => {
                let lines = lettered.iter().filter_map(|(letter, option)| {
                    plain_text(option).map(|option| format!("{letter}) {option}"))
                });
                Some(lines.collect::<Vec<_>>().join("\n"))
            }
        };
        Ok(Self { lettered, text })
    }

    /// A problem with the options below it.
    pub(crate) fn below(&self, problem: String) -> String {
        match &self.text {
            Some(text) => format!("{problem}\n{text}"),
            None => problem,
        }
    }
}

/// ARC's form: a list of texts and one of their letters.
fn labeled(options: &Map<String, Value>) -> Result<Vec<(char, &Value)>, String> {
    let list = |key: &str| options.get(key).and_then(Value::as_array);
    let (Some(labels), Some(texts)) = (list("label"), list("text")) else {
        return Err("its options have no lists `label` and `text`".to_owned());
    };
    if labels.len() != texts.len() {
        let (labels, texts) = (labels.len(), texts.len());
        return Err(format!("its options have {labels} labels and {texts} texts"));
    }
    let letter = |label: &Value| match label.as_str().map(str::as_bytes) {
        Some([byte]) if byte.is_ascii_alphabetic() => Ok(char::from(byte.to_ascii_uppercase())),
        _ => Err(format!("the label {label} of its options is no letter")),
    };
    labels.iter().zip(texts).map(|(label, text)| Ok((letter(label)?, text))).collect()
}

/// The options that a row has one by one, with their letters: a list's in its order, an object's by
/// its keys. Those that are null are not there: some writers fill an object's missing keys so.
fn lettered(options: Option<&Value>) -> Result<Vec<(char, &Value)>, String> {
    let mut lettered: Vec<(char, &Value)> = match options {
        Some(Value::Array(options)) if options.len() > 26 => {
            return Err(format!("it has {} options, more than there are letters", options.len()));
        }
        Some(Value::Array(options)) => ('A'..='Z').zip(options).collect(),
        Some(Value::Object(options)) if options.contains_key("label") => labeled(options)?,
        Some(Value::Object(options)) => {
            let letter = |key: &str| match key.trim_matches([' ', '(', ')', '.', ':']).as_bytes() {
                [byte] if byte.is_ascii_alphabetic() => Ok(char::from(byte.to_ascii_uppercase())),
                _ => Err(format!("the key `{key}` of its options is no letter")),
            };
            let options = options.iter().map(|(key, option)| Ok((letter(key)?, option)));
            options.collect::<Result<_, String>>()?
        }
        _ => vec![],
    };
    lettered.retain(|(_, option)| !option.is_null());
    lettered.sort_by_key(|(letter, _)| *letter);
    match lettered.iter().find(|(_, option)| plain_text(option).is_none()) {
        Some((letter, _)) => Err(format!("its option {letter} is no text")),
        None => Ok(lettered),
    }
}
