//! The subsets that a dataset's card lists: `configs` in the front matter of its README.

use serde::Deserialize;

/// A subset from a card.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Subset {
    #[serde(rename = "config_name", default = "usual_name")]
    pub name: String,
    /// Whether this is the default subset.
    #[serde(default)]
    pub default: bool,
    /// The folder that the patterns are relative to.
    #[serde(default)]
    pub data_dir: Option<String>,
    #[serde(default)]
    pub data_files: Option<DataFiles>,
}

pub(super) fn usual_name() -> String {
    "default".into()
}

/// Which files belong to which split.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum DataFiles {
    /// The only split.
    One(String),
    Several(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Entry {
    /// A pattern of the only split.
    Path(String),
    Split {
        split: String,
        path: Paths,
    },
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Paths {
    One(String),
    Several(Vec<String>),
}

impl DataFiles {
    /// Returns the splits with their patterns, in the card's order.
    pub fn splits(&self) -> Vec<(String, Vec<String>)> {
        let mut splits: Vec<(String, Vec<String>)> = vec![];
        let mut add =
            |split: &str, paths: &[String]| match splits.iter_mut().find(|(name, _)| name == split)
            {
                Some((_, patterns)) => patterns.extend_from_slice(paths),
                None => splits.push((split.to_owned(), paths.to_vec())),
            };
        match self {
            Self::One(path) => add("train", std::slice::from_ref(path)),
            Self::Several(entries) => entries.iter().for_each(|entry| match entry {
                Entry::Path(path) => add("train", std::slice::from_ref(path)),
                Entry::Split { split, path: Paths::One(path) } => {
                    add(split, std::slice::from_ref(path));
                }
                Entry::Split { split, path: Paths::Several(paths) } => add(split, paths),
            }),
        }
        splits
    }
}

/// The part of a card's front matter that matters here.
#[derive(Default, Deserialize)]
struct FrontMatter {
    #[serde(default)]
    configs: Option<Vec<Subset>>,
}

/// Returns the YAML between the first two `---` lines of a card.
pub(super) fn front_matter(card: &str) -> Option<&str> {
    let card = card.trim_start_matches('\u{feff}');
    let rest = card.strip_prefix("---").filter(|rest| rest.starts_with(['\r', '\n']))?;
    let (end, _) = rest.match_indices("\n---").find(|(at, mark)| {
        let after = &rest[at + mark.len()..];
        after.is_empty() || after.starts_with(['\r', '\n'])
    })?;
    Some(&rest[..end])
}

/// Returns the subsets that a card lists, if any. The error is the parser's message, on one line.
pub(super) fn subsets(card: &str) -> Result<Vec<Subset>, String> {
    let Some(yaml) = front_matter(card) else { return Ok(vec![]) };
    if !yaml.lines().any(|line| line.starts_with("configs:")) {
        return Ok(vec![]);
    }
    // The parser itself limits nesting, aliases, and size.
    let parsed: Result<FrontMatter, _> = serde_saphyr::from_str(yaml);
    let matter = parsed.map_err(|error| {
        let text = error.to_string();
        let first = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        first.chars().filter(|c| !c.is_control()).take(160).collect::<String>()
    })?;
    let subsets = matter.configs.unwrap_or_default();
    // Each pattern is matched against every file.
    let patterns = |subset: &Subset| {
        let splits = subset.data_files.as_ref().map(DataFiles::splits).unwrap_or_default();
        1 + splits.iter().map(|(_, patterns)| patterns.len()).sum::<usize>()
    };
    match subsets.iter().map(patterns).sum::<usize>() {
        many if many > MOST_PATTERNS => Err(format!("it has {many} subsets and patterns")),
        _ => Ok(subsets),
    }
}

/// Maximum number of subsets and patterns in a card. Large cards have a few hundred.
const MOST_PATTERNS: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn splits(yaml: &str) -> Vec<(String, Vec<String>)> {
        let card = format!("---\nlicense: mit\n{yaml}\n---\n\n# Title\n---\nmore\n");
        let subsets = subsets(&card).unwrap();
        subsets[0].data_files.as_ref().unwrap().splits()
    }

    #[test]
    fn all_forms_of_data_files_are_read() {
        let of = |split: &str, paths: &[&str]| {
            (split.to_owned(), paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>())
        };
        let one = "configs:\n- config_name: a\n  data_files: a.jsonl";
        assert_eq!(splits(one), [of("train", &["a.jsonl"])]);
        let list =
            "configs:\n  - config_name: a\n    data_files:\n    - a.jsonl\n    - \"b*.jsonl\"";
        assert_eq!(splits(list), [of("train", &["a.jsonl", "b*.jsonl"])]);
        let by_split = "configs:\n- config_name: a\n  data_files:\n  - split: train\n    path:\n    - \
                        x/*\n    - y/*\n  - split: test\n    path: z/*";
        assert_eq!(splits(by_split), [of("train", &["x/*", "y/*"]), of("test", &["z/*"])]);
    }

    #[test]
    fn cards_without_subsets_have_none() {
        for card in
            ["", "# Title", "---\nlicense: mit\n---\n", "---\nconfigs:\n- a", "----\n", "--- a"]
        {
            assert_eq!(subsets(card).unwrap(), [], "{card}");
        }
        assert_eq!(subsets("---\nconfigs:\n---\n").unwrap(), []);
        // Other fields may have any value.
        let card = "---\r\ndataset_info:\r\n  x: [1, {a: 2}]\r\nconfigs:\r\n- config_name: b\r\n  \
                    default: true\r\n  drop_labels: false\r\n---\r\n";
        let subsets = subsets(card).unwrap();
        assert!(subsets[0].default && subsets[0].name == "b" && subsets[0].data_files.is_none());
    }

    #[test]
    fn hostile_cards_are_errors() {
        let nested = format!("---\nconfigs: {}\n---\n", "[".repeat(100_000));
        let mut bomb = String::from("---\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let before = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
        }
        bomb.push_str("configs: *a11\n---\n");
        for card in
            [nested.as_str(), bomb.as_str(), "---\nconfigs: 1\n---\n", "---\nconfigs: [}\n---\n"]
        {
            let error = subsets(card).unwrap_err();
            assert!(error.chars().count() <= 160 && !error.contains('\n'), "{error}");
        }
    }
}
