//! Regular expressions of settings and of adapters, which are untrusted: matched as in PEFT with Python's
//! `re`, but with limits on size and time.

use super::config::LoraConfig;
use super::names::ModuleNames;
use crate::error::{Error, Result};
use fancy_regex::{Regex, RegexBuilder};
use std::time::{Duration, Instant};

/// Maximum total size in bytes of a setting's expressions, and their maximum number.
const LONGEST: usize = 256 << 10;
const MOST: usize = 4096;
/// Maximum number of backtracking steps of a match. A path has about 50 characters.
const BACKTRACKS: usize = 20_000;
/// Maximum size of a compiled expression in bytes.
const COMPILED: usize = 1 << 20;
/// Time limit for all expressions of an adapter.
const TIME: Duration = Duration::from_secs(10);

/// The time by which all expressions of an adapter must have been matched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

impl Deadline {
    pub(super) fn new() -> Self {
        Self(Instant::now() + TIME)
    }

    /// # Errors
    /// [`Error::Config`] if it has passed.
    pub(super) fn check(self, key: &str) -> Result<()> {
        if Instant::now() < self.0 {
            return Ok(());
        }
        let what = format!("its expressions take more than {} seconds", TIME.as_secs());
        Err(Error::config(format!("lora.{key}"), what, "Use fewer or simpler expressions"))
    }
}

/// An expression and its setting.
#[derive(Debug)]
pub(super) struct Expression {
    key: &'static str,
    text: String,
    regex: Regex,
    deadline: Deadline,
}

impl Expression {
    /// Compiles an expression. `whole` is the expression that is compiled for `text`.
    fn new(key: &'static str, text: &str, whole: &str, deadline: Deadline) -> Result<Self> {
        deadline.check(key)?;
        let regex = RegexBuilder::new(whole)
            .backtrack_limit(BACKTRACKS)
            .delegate_size_limit(COMPILED)
            .delegate_dfa_size_limit(COMPILED)
            .build();
        let regex = regex.map_err(|error| {
            let error = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            let what = format!("`{}` is not a regular expression: {error}", shortened(text));
            Error::config(format!("lora.{key}"), what, "Fix the expression")
        })?;
        Ok(Self { key, text: text.to_owned(), regex, deadline })
    }

    /// Creates an expression that matches whole paths.
    pub(super) fn of_path(key: &'static str, text: &str, deadline: Deadline) -> Result<Self> {
        Self::new(key, text, &format!(r"\A(?:{text})\z"), deadline)
    }

    /// Creates an expression that matches the ends of paths, after a dot.
    pub(super) fn of_end(key: &'static str, text: &str, deadline: Deadline) -> Result<Self> {
        Self::new(key, text, &format!(r"\A(.*\.)?({text})$"), deadline)
    }

    /// Creates an expression that matches the paths of a module and of everything within it.
    pub(super) fn of_module(key: &'static str, text: &str, deadline: Deadline) -> Result<Self> {
        Self::new(key, text, &format!(r"\A(?:(^|.*\.){text}($|\..*))"), deadline)
    }

    /// Creates an expression that finds the number of a block in the list of that name, or in any list.
    fn of_number(text: Option<&String>, deadline: Deadline) -> Result<Self> {
        let whole = match text {
            Some(name) => format!(r"\A(?:(?:^|.*?\.){name}\.(?P<idx>\d+)\.)"),
            None => r"\A(?:.*?\.[^.]*\.(?P<idx>\d+)\.)".to_owned(),
        };
        Self::new("layers_pattern", text.map_or("", String::as_str), &whole, deadline)
    }

    /// # Errors
    /// [`Error::Config`] if the match takes too long.
    pub(super) fn matches(&self, path: &str) -> Result<bool> {
        self.deadline.check(self.key)?;
        self.regex.is_match(path).map_err(|error| self.too_long(path, &error))
    }

    fn number(&self, path: &str) -> Result<Option<usize>> {
        self.deadline.check(self.key)?;
        let found = self.regex.captures(path).map_err(|error| self.too_long(path, &error))?;
        Ok(found.and_then(|found| found.name("idx")?.as_str().parse().ok()))
    }

    fn too_long(&self, path: &str, error: &fancy_regex::Error) -> Error {
        let what = format!("`{}` failed on {path}: {error}", shortened(&self.text));
        let hint = "Avoid nested repetitions in the expression";
        Error::config(format!("lora.{}", self.key), what, hint)
    }
}

fn shortened(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.chars().count() > SHOWN {
        true => text.chars().take(SHOWN).chain("...".chars()).collect(),
        false => text.to_owned(),
    }
}

/// Returns whether a path equals a name or ends with it after a dot.
pub(super) fn ends_with(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Matches modules by names or by a pattern.
#[derive(Debug)]
pub(super) enum Matcher<'a> {
    List(&'a [String]),
    Pattern(Expression),
}

impl<'a> Matcher<'a> {
    pub(super) fn new(
        key: &'static str,
        names: &'a ModuleNames,
        deadline: Deadline,
    ) -> Result<Self> {
        Ok(match names {
            ModuleNames::List(names) => Self::List(names),
            ModuleNames::Pattern(text) => Self::Pattern(Expression::of_path(key, text, deadline)?),
        })
    }

    /// # Errors
    /// See [`Expression::matches`].
    pub(super) fn matches(&self, path: &str) -> Result<bool> {
        match self {
            Self::List(names) => Ok(names.iter().any(|name| ends_with(path, name))),
            Self::Pattern(expression) => expression.matches(path),
        }
    }
}

/// Finds the number of a module's block.
#[derive(Debug)]
pub(super) struct BlockNumbers(Vec<Expression>);

impl BlockNumbers {
    /// Searches the lists of these names, or any list if there are no names.
    pub(super) fn new(names: &[String], deadline: Deadline) -> Result<Self> {
        let all = match names {
            [] => vec![Expression::of_number(None, deadline)?],
            names => {
                let of = |name| Expression::of_number(Some(name), deadline);
                names.iter().map(of).collect::<Result<_>>()?
            }
        };
        Ok(Self(all))
    }

    /// # Errors
    /// See [`Expression::matches`].
    pub(super) fn of(&self, path: &str) -> Result<Option<usize>> {
        for expression in &self.0 {
            if let Some(number) = expression.number(path)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

/// Checks that all expressions are valid and within the limits.
///
/// # Errors
/// [`Error::Config`] for the first invalid setting.
pub(super) fn check_expressions(config: &LoraConfig) -> Result<()> {
    let patterns = |names: &ModuleNames| match names {
        ModuleNames::List(names) => names.clone(),
        ModuleNames::Pattern(text) => vec![text.clone()],
    };
    let [ranks, alphas]: [Vec<String>; 2] = [
        config.rank_pattern.0.iter().map(|(key, _)| key.clone()).collect(),
        config.alpha_pattern.0.iter().map(|(key, _)| key.clone()).collect(),
    ];
    for (key, texts) in [
        ("target_modules", &patterns(&config.target_modules)),
        ("exclude_modules", &patterns(&config.exclude_modules)),
        ("rank_pattern", &ranks),
        ("alpha_pattern", &alphas),
        ("modules_to_save", &config.modules_to_save),
        ("layers_pattern", &config.layers_pattern),
    ] {
        let (count, length) = (texts.len(), texts.iter().map(String::len).sum::<usize>());
        if count > MOST || length > LONGEST {
            let what = format!("it has {count} entries with {length} bytes in total");
            let hint = format!("Use at most {MOST} entries and {LONGEST} bytes");
            return Err(Error::config(format!("lora.{key}"), what, hint));
        }
    }
    let deadline = Deadline::new();
    if !config.targets_all() {
        Matcher::new("target_modules", &config.target_modules, deadline)?;
    }
    Matcher::new("exclude_modules", &config.exclude_modules, deadline)?;
    for (key, texts) in [("rank_pattern", &ranks), ("alpha_pattern", &alphas)] {
        texts.iter().try_for_each(|text| Expression::of_end(key, text, deadline).map(|_| ()))?;
    }
    for name in &config.modules_to_save {
        Expression::of_module("modules_to_save", name, deadline)?;
    }
    BlockNumbers::new(&config.layers_pattern, deadline).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results of Python's `re.fullmatch` and of PEFT's `re.match(rf"(.*\.)?({pattern})$")` for each
    /// path.
    #[test]
    fn expressions_find_what_python_finds() {
        let paths = [
            "model.layers.0.self_attn.q_proj",
            "model.layers.11.mlp.down_proj",
            "model.layers.1.mlp.gate_up_proj",
            "lm_head",
        ];
        let found = |expression: Result<Expression>| -> String {
            let expression = expression.unwrap();
            let one = |path: &&str| if expression.matches(path).unwrap() { '1' } else { '0' };
            paths.iter().map(one).collect()
        };
        let deadline = Deadline::new();
        for (pattern, whole, end) in [
            (r".*_proj", "1110", "1110"),
            (r"model\.layers\.\d+\.(self_attn|mlp)\.\w+", "1110", "1110"),
            (r"(?!.*mlp).*proj", "1000", "1110"),
            (r".*(?<!up)_proj", "1100", "1100"),
            (r"q_proj|.*down_proj", "0100", "1100"),
            (r".*\.(\d)\1\..*", "0100", "0000"),
            (r"(?P<x>model)\.[^.]+\.1\..*", "0010", "0010"),
            (r"model.layers.1.*?_proj\Z", "0110", "0110"),
            (r"^model\.layers\.0.*$", "1000", "1000"),
            (
                r"(?:.*?(?:language|text|model).*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn))",
                "1100",
                "1100",
            ),
            (r"q_proj", "0000", "1000"),
            (r"proj", "0000", "0000"),
            (r"layers.1", "0000", "0000"),
            (r"layers\.1\..*", "0000", "0010"),
            (r"^model.layers.0.self_attn.q_proj", "1000", "1000"),
            (r"^layers.0.self_attn.q_proj", "0000", "0000"),
            (r"self_attn.q_proj|mlp.down_proj", "0000", "1100"),
            (r"[qd]\w+_proj", "0000", "0100"),
        ] {
            assert_eq!(found(Expression::of_path("x", pattern, deadline)), whole, "{pattern}");
            assert_eq!(found(Expression::of_end("x", pattern, deadline)), end, "{pattern}");
        }
        assert_eq!(found(Expression::of_path("x", r"(?i)MODEL\..*Q_PROJ", deadline)), "1000");
        let number = |names: &[String], path: &str| {
            BlockNumbers::new(names, deadline).unwrap().of(path).unwrap()
        };
        assert_eq!(number(&[], paths[1]), Some(11));
        assert_eq!(number(&["h".into(), "layers".into()], paths[1]), Some(11));
        assert_eq!(number(&["h".into()], paths[1]), None);
        assert_eq!(number(&[], "lm_head"), None);
        // The first number applies.
        assert_eq!(number(&[], "model.layers.3.experts.5.up_proj"), Some(3));
    }
}
