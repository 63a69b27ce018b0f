//! Composes the text of a problem from several columns: context before it, options below it. Training data
//! and benchmarks use the same layout.

use serde_json::{Map, Value};

/// Returns a string or number as text. 27.0 becomes 27.
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

/// Returns a problem after its context.
pub(crate) fn with_context(problem: &str, context: &str) -> String {
    let context = context.trim();
    // The bodies in SVAMP lack the period before the question.
    let end =
        if context.ends_with(['.', '?', '!', ':', '。', '？', '！', '：']) { "" } else { "." };
    format!("{context}{end} {problem}")
}

/// The options of a multiple-choice problem.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options<'a> {
    /// Each option with its letter, if they are separate values.
    pub(crate) lettered: Vec<(char, &'a Value)>,
    /// The text to place below the problem.
    pub(crate) text: Option<String>,
}

impl<'a> Options<'a> {
    /// Reads the options in a column: text, a list, or an object with letters as keys.
    ///
    /// # Errors
    /// A description of the invalid options.
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

    /// Places the options below a problem.
    pub(crate) fn below(&self, problem: String) -> String {
        match &self.text {
            Some(text) => format!("{problem}\n{text}"),
            None => problem,
        }
    }
}

/// Returns the form of ARC: a list of texts and a list of their letters.
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
        _ => Err(format!("the label {label} of its options is not a letter")),
    };
    labels.iter().zip(texts).map(|(label, text)| Ok((letter(label)?, text))).collect()
}

/// Returns the options of a row with their letters: a list in order, or an object by its keys. Null options
/// are dropped, since some writers fill missing keys with null.
fn lettered(options: Option<&Value>) -> Result<Vec<(char, &Value)>, String> {
    let mut lettered: Vec<(char, &Value)> = match options {
        Some(Value::Array(options)) if options.len() > 26 => {
            return Err(format!("it has {} options, but there are only 26 letters", options.len()));
        }
        Some(Value::Array(options)) => ('A'..='Z').zip(options).collect(),
        Some(Value::Object(options)) if options.contains_key("label") => labeled(options)?,
        Some(Value::Object(options)) => {
            let letter = |key: &str| match key.trim_matches([' ', '(', ')', '.', ':']).as_bytes() {
                [byte] if byte.is_ascii_alphabetic() => Ok(char::from(byte.to_ascii_uppercase())),
                _ => Err(format!("the key `{key}` of its options is not a letter")),
            };
            let options = options.iter().map(|(key, option)| Ok((letter(key)?, option)));
            options.collect::<Result<_, String>>()?
        }
        _ => vec![],
    };
    lettered.retain(|(_, option)| !option.is_null());
    lettered.sort_by_key(|(letter, _)| *letter);
    match lettered.iter().find(|(_, option)| plain_text(option).is_none()) {
        Some((letter, _)) => Err(format!("its option {letter} is not text")),
        None => Ok(lettered),
    }
}
