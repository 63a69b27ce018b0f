//! Flags in messages. The library names settings by their keys. The program adds the flag that sets
//! each of them, and the flag that does what a hint advises.

use clap::Command;
use mixdistill::Error;

/// Advice of the library, the flag that follows it, and the advice with that flag. It is replaced if the
/// command has the flag.
const ADVICE: [(&str, &str, &str); 8] = [
    ("the model to fine-tune in base_model", "--model", "the model to fine-tune with --model"),
    ("Name it with base_model", "--model", "Name it with --model"),
    ("choose another directory (out)", "--out", "choose another directory with --out"),
    ("choose another backend", "--backend", "choose another backend with --backend"),
    ("Resume it", "--resume", "Resume it with --resume"),
    ("overwrite it", "--overwrite", "overwrite it with --overwrite"),
    ("allow the change", "--allow-changes", "allow the change with --allow-changes"),
    ("start a new run", "--resume", "start a new run without --resume"),
];

/// The flags of a command by the settings that they set. The id of a flag is the setting's key.
#[derive(Debug, Default)]
pub struct SettingFlags {
    flags: Vec<(String, String)>,
    /// The keys that `--set` accepts.
    settable: Vec<String>,
}

impl SettingFlags {
    /// Returns the flags of a command; `settable` are the keys that its `--set` accepts.
    pub fn of(command: &Command, settable: Vec<String>) -> Self {
        let flag = |arg: &clap::Arg| Some((arg.get_id().to_string(), arg.get_long()?.to_owned()));
        let flags = command.get_arguments().filter_map(flag);
        Self { flags: flags.map(|(id, long)| (id, format!("--{long}"))).collect(), settable }
    }

    /// Returns the flag that sets a setting.
    fn flag(&self, key: &str) -> Option<String> {
        // A flag that sets a table also sets its entries.
        let sets = |id: &str| key.strip_prefix(id).is_some_and(|rest| rest.starts_with('.'));
        let whole = |id: &str| id.ends_with(".columns") && sets(id);
        if let Some((_, flag)) = self.flags.iter().find(|(id, _)| id == key || whole(id)) {
            return Some(flag.clone());
        }
        let is_settable = self.settable.iter().any(|known| same_key(known, key));
        is_settable.then(|| format!("--set {key}=..."))
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|(_, known)| known == flag)
    }

    /// Returns the text of an error, with flags.
    pub fn error(&self, error: &Error) -> String {
        let mut text = error.to_string();
        for (advice, flag, said) in ADVICE {
            if self.has(flag) && !text.contains(flag) {
                text = text.replace(advice, said);
            }
        }
        with_features(self.text(&text))
    }

    /// Returns a text of the library, with flags next to the settings that it names.
    pub fn text(&self, text: &str) -> String {
        let mut text = self.named(text);
        for (key, flag) in self.flags.iter().filter(|(key, _)| key.contains('.')) {
            text = beside(&text, key, flag);
        }
        text
    }

    /// Adds the flag after each "setting `key`".
    fn named(&self, text: &str) -> String {
        const BEFORE: &str = "setting `";
        let mut parts = text.split(BEFORE);
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            out.push_str(BEFORE);
            let Some((key, rest)) = part.split_once('`') else {
                out.push_str(part);
                continue;
            };
            out.push_str(&format!("{key}`"));
            if let Some(flag) = self.flag(key) {
                out.push_str(&format!(" ({flag})"));
            }
            out.push_str(rest);
        }
        out
    }
}

/// Adds a flag after each mention of a dotted key that is not of the form "setting `key`".
fn beside(text: &str, key: &str, flag: &str) -> String {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '/' | '*' | '-' | '=');
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(key) {
        let (before, after) = (&rest[..at], &rest[at + key.len()..]);
        let mut next = after.chars();
        let goes_on = match next.next() {
            // A period may end the sentence.
            Some('.') => next.next().is_some_and(is_part),
            Some(c) => is_part(c) || c == '`',
            None => false,
        };
        let begins = !before.ends_with(|c| is_part(c) || c == '`');
        out.push_str(before);
        out.push_str(key);
        if begins && !goes_on && !text.contains(flag) {
            match before.ends_with('(') {
                true => out.push_str(&format!(", {flag}")),
                false => out.push_str(&format!(" ({flag})")),
            }
        }
        rest = after;
    }
    out + rest
}

/// Returns whether a key matches a known one, in which `*` stands for any entry of a list.
fn same_key(known: &str, key: &str) -> bool {
    let [known, key] = [known, key].map(|path| path.split('.').collect::<Vec<_>>());
    known.len() == key.len() && known.iter().zip(&key).all(|(a, b)| *a == "*" || a == b)
}

/// Returns how to get a feature that this build lacks.
pub fn how_to_get(feature: &str) -> String {
    format!(
        "Install it with `cargo install --locked --profile dev --path . --features {feature}`, or use \
         the binary of a release"
    )
}

/// Adds how to get a feature to a message that asks for it.
fn with_features(text: String) -> String {
    for feature in
        ["hub", "parquet", "teacher", "cuda", "metal", "rocm", "vulkan", "wgpu", "ndarray"]
    {
        if text.contains(&format!("feature `{feature}`"))
            || text.contains(&format!("--features {feature}"))
        {
            return format!("{text}. {}", how_to_get(feature));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    fn flags() -> SettingFlags {
        let arg = |id: &'static str, long: &'static str| Arg::new(id).long(long);
        let command = Command::new("train")
            .arg(arg("data.max_length", "max-length"))
            .arg(arg("out", "out"))
            .arg(arg("resume", "resume"))
            .arg(arg("overwrite", "overwrite"));
        SettingFlags::of(&command, vec!["train.steps".into(), "data.sources.*.path".into()])
    }

    #[test]
    fn flags_stand_beside_settings() {
        let error = |key: &str, hint: &str| flags().error(&Error::config(key, "it is 1", hint));
        let text = error("data.max_length", "Raise it");
        assert_eq!(text, "setting `data.max_length` (--max-length): it is 1. Raise it");
        let text = error("train.steps", "Raise data.max_length");
        let expected = "setting `train.steps` (--set train.steps=...): it is 1. \
                        Raise data.max_length (--max-length)";
        assert_eq!(text, expected);
        assert!(error("data.sources.0.path", "").contains("--set data.sources.0.path=..."));
        // There is no such setting.
        assert_eq!(error("generate", "x"), "setting `generate`: it is 1. x");
        assert_eq!(flags().text("none (data.max_length)"), "none (data.max_length, --max-length)");
        for other in ["data.max_length.x", "my.data.max_length", "data.max_lengths"] {
            assert_eq!(flags().text(other), other);
        }
    }

    #[test]
    fn advice_names_the_flag_of_a_command_that_has_one() {
        let error = Error::RunDirectory {
            path: "run".into(),
            what: "it already holds a run".into(),
            hint: "Resume it, overwrite it, or choose another directory (out)".into(),
        };
        let text = flags().error(&error);
        assert!(text.contains("Resume it with --resume, overwrite it with --overwrite"), "{text}");
        let text = SettingFlags::default().error(&error);
        assert!(!text.contains("--"), "{text}");
    }

    #[test]
    fn the_library_says_what_advice_is_looked_for() {
        fn sources(folder: &std::path::Path, text: &mut String) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.ends_with("src/cli") {
                    sources(&path, text);
                } else if path.is_file() {
                    text.push_str(&std::fs::read_to_string(path).unwrap());
                }
            }
        }
        let mut text = String::new();
        sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        // Joins texts that continue on the next line.
        let text = text.split("\\\n").map(str::trim_start).collect::<String>();
        for (advice, _, _) in ADVICE {
            assert!(text.contains(advice), "no text of the library contains {advice:?}");
        }
    }

    #[test]
    fn several_errors_are_told_in_a_list() {
        let of = |key: &str| Error::config(key, "it is 1", "Raise it");
        let several = Error::Several(vec![of("data.max_length"), of("out")]);
        let text = flags().error(&several);
        assert!(text.contains("(--max-length)") && text.contains("(--out)"), "{text}");
        assert!(text.lines().count() == 3, "{text}");
    }
}
