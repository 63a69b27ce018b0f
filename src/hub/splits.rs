//! Selects the files of a dataset: those of a split of a subset, according to the card, or else by name
//! with the rules of Hugging Face's `datasets`.

use super::data_card::{Subset, usual_name};
use super::names::is_file;
use crate::data::reading::{FileKind, READABLE};
use globset::{GlobBuilder, GlobMatcher};
use std::collections::{BTreeMap, BTreeSet};

/// The usual splits and their synonyms in names of folders and files.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
/// Characters that end a word.
const APART: &str = "[-._ 0-9]";
/// Files that are not data.
const NO_DATA: [&str; 6] = [
    "README.md",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dummy_data.zip",
    "dataset_dict.json",
];
/// Choices that an error lists.
const SHOWN: usize = 20;

/// The requested part of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// The only split.
    Any,
    /// A split, or a subset that has one split.
    Word(String),
    /// A split of a subset.
    Split { subset: String, split: String },
    /// A file, or all files that match a pattern.
    File(String),
}

/// Why the selection fails, and a hint.
pub(super) type Unclear = (String, String);

/// A split with its files.
type Split = (String, Vec<String>);

/// Returns the selected files, in order. `name` is the dataset's name, for hints.
pub(super) fn choose(
    selection: &Selection,
    card: &[Subset],
    list: &[String],
    name: &str,
) -> Result<Vec<String>, Unclear> {
    let files = match selection {
        Selection::File(pattern) => of_pattern(pattern, list)?,
        _ => {
            let subsets = match card.is_empty() {
                true => by_layout(list),
                false => card.to_vec(),
            };
            let (subset, word) = subset_of(selection, &subsets, list, name)?;
            let splits = splits_of(&subset, list)?;
            let prefix = match subsets.len() {
                1 => name.to_owned(),
                _ => format!("{name}:{}", subset.name),
            };
            one_split(splits, word, &prefix)?
        }
    };
    let kinds: BTreeMap<FileKind, &String> =
        files.iter().filter_map(|file| Some((FileKind::of(file)?, file))).collect();
    if kinds.len() > 1 {
        let what = format!("it has files of several kinds: {}", listed(kinds.into_values()));
        return Err((what, format!("Choose the files with {name}/FILE or {name}/PATTERN")));
    }
    if let Some(file) = files.iter().find(|file| !is_file(file)) {
        let what = format!("it has a file named {:?}, which is not a plain path", shortened(file));
        return Err((what, "Use another revision of the dataset".into()));
    }
    match files.iter().find(|file| FileKind::of(file).is_none()) {
        Some(file) => Err((format!("rows cannot be read from `{file}`"), readable())),
        None => Ok(files),
    }
}

/// Returns the hint with the readable formats.
fn readable() -> String {
    format!("Use files in {READABLE}; many datasets have Parquet files at @refs/convert/parquet")
}

/// Returns the selected subset, and the name of its selected split.
fn subset_of<'a>(
    selection: &'a Selection,
    subsets: &[Subset],
    list: &[String],
    name: &str,
) -> Result<(Subset, Option<&'a str>), Unclear> {
    let named = |wanted: &str| subsets.iter().find(|subset| subset.name == wanted).cloned();
    let several = || {
        let names = subsets.iter().map(|subset| &subset.name);
        let what = format!("it has several subsets: {}", listed(names));
        (what, format!("Choose one, such as {name}:{}", subsets[0].name))
    };
    let usual = || match subsets {
        [only] => Some(only.clone()),
        _ => subsets.iter().find(|s| s.default).cloned().or_else(|| named(&usual_name())),
    };
    match selection {
        Selection::Split { subset, split } => {
            let found = named(subset).ok_or_else(|| {
                let names = subsets.iter().map(|subset| &subset.name);
                let what = format!("it has no subset `{}`", shortened(subset));
                (what, format!("Choose one of these: {}", listed(names)))
            })?;
            Ok((found, Some(split)))
        }
        Selection::Word(word) => match usual() {
            Some(subset) if splits_of(&subset, list)?.iter().any(|(name, _)| name == word) => {
                Ok((subset, Some(word)))
            }
            usual => match (named(word), usual) {
                (Some(subset), _) => Ok((subset, None)),
                (None, Some(subset)) => Ok((subset, Some(word))),
                (None, None) => Err(several()),
            },
        },
        _ => usual().map(|subset| (subset, None)).ok_or_else(several),
    }
}

/// Returns the files of the selected split, or of the only one.
fn one_split(splits: Vec<Split>, word: Option<&str>, prefix: &str) -> Result<Vec<String>, Unclear> {
    let names = || listed(splits.iter().map(|(name, _)| name));
    let example = || splits.first().map_or("train", |(name, _)| name).to_owned();
    match (word, &splits[..]) {
        (_, []) => Err(("it has no readable data files".into(), readable())),
        (None, [(_, files)]) => Ok(files.clone()),
        (None, _) => {
            let hint = format!("Choose one, such as {prefix}:{}", example());
            Err((format!("it has several splits: {}", names()), hint))
        }
        (Some(word), _) => match splits.iter().find(|(name, _)| name == word) {
            Some((_, files)) => Ok(files.clone()),
            None => {
                let what = format!("it has no split `{}`", shortened(word));
                Err((what, format!("Choose one of these: {}", names())))
            }
        },
    }
}

/// Returns a glob matcher in which `*` does not match a `/`.
fn glob(pattern: &str) -> Result<GlobMatcher, Unclear> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(false).build();
    glob.map(|glob| glob.compile_matcher()).map_err(|_| {
        let what = format!("`{}` is not a valid file pattern", shortened(pattern));
        (what, "Choose the files with owner/name/FILE".into())
    })
}

/// Returns whether a file may be data, judging by its name alone.
fn is_data(file: &str) -> bool {
    let (folders, name) = file.rsplit_once('/').unwrap_or(("", file));
    !NO_DATA.contains(&name)
        && !file.split('/').any(|part| part.starts_with('.'))
        && !folders.split('/').any(|part| part.starts_with("__"))
        && FileKind::of(file).is_some()
}

/// Returns the files that match a pattern. A pattern without wildcards is a file name.
fn of_pattern(pattern: &str, list: &[String]) -> Result<Vec<String>, Unclear> {
    if !pattern.contains(['*', '?', '[']) {
        return Ok(vec![pattern.to_owned()]);
    }
    let glob = glob(pattern)?;
    let fits = |file: &&String| glob.is_match(file) && is_data(file);
    let files: BTreeSet<String> = list.iter().filter(fits).cloned().collect();
    match files.is_empty() {
        true => Err((format!("no file matches `{}`", shortened(pattern)), readable())),
        false => Ok(files.into_iter().collect()),
    }
}

/// Returns the splits of a subset that have files.
fn splits_of(subset: &Subset, list: &[String]) -> Result<Vec<Split>, Unclear> {
    let folder = subset.data_dir.as_deref().unwrap_or("").trim_matches('/');
    let Some(files) = &subset.data_files else {
        return Ok(by_names(folder, list));
    };
    let mut splits = vec![];
    for (split, patterns) in files.splits() {
        let mut of_split = BTreeSet::new();
        for pattern in patterns {
            let pattern = pattern.strip_prefix("./").unwrap_or(&pattern);
            let pattern =
                if folder.is_empty() { pattern.into() } else { format!("{folder}/{pattern}") };
            let glob = glob(&pattern)?;
            let is_exact = |file: &str| file == pattern;
            let fits = |file: &&String| is_exact(file) || glob.is_match(file) && is_data(file);
            of_split.extend(list.iter().filter(fits).cloned());
        }
        if of_split.is_empty() {
            let what = format!("its card lists a split `{}` that has no files", shortened(&split));
            return Err((what, readable()));
        }
        splits.push((split, of_split.into_iter().collect()));
    }
    Ok(splits)
}

/// Finds splits by the names of folders and files, like `datasets`: `data/NAME-00000-of-00001`, a usual
/// word in a folder's name, a usual word in a file's name, or else all files as `train`.
fn by_names(folder: &str, list: &[String]) -> Vec<Split> {
    let within = |file: &String| match folder {
        "" => Some(file.clone()),
        folder => file.strip_prefix(folder)?.strip_prefix('/').map(str::to_owned),
    };
    let files: BTreeSet<String> =
        list.iter().filter_map(within).filter(|file| is_data(file)).collect();
    let whole = |file: String| if folder.is_empty() { file } else { format!("{folder}/{file}") };
    let mut sharded: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in &files {
        if let Some(split) = file.strip_prefix("data/").and_then(split_of_shard) {
            sharded.entry(split.to_owned()).or_default().push(whole(file.clone()));
        }
    }
    if !sharded.is_empty() {
        return sharded.into_iter().collect();
    }
    let in_folder = |word: &str| {
        ["**/{w}/**", "**/{w}{a}*/**", "**/*{a}{w}/**", "**/*{a}{w}{a}*/**"]
            .map(|pattern| pattern.replace("{w}", word).replace("{a}", APART))
    };
    let in_file = |word: &str| {
        ["**/{w}{a}*", "**/*{a}{w}{a}*"]
            .map(|pattern| pattern.replace("{w}", word).replace("{a}", APART))
    };
    let by = |patterns: &dyn Fn(&str) -> Vec<String>| -> Vec<Split> {
        let of = |(split, words): &(&str, &[&str])| {
            let globs: Vec<GlobMatcher> = words
                .iter()
                .flat_map(|word| patterns(word))
                .filter_map(|pattern| glob(&pattern).ok())
                .collect();
            let fits = |file: &&String| globs.iter().any(|glob| glob.is_match(file));
            let files: Vec<String> = files.iter().filter(fits).cloned().map(whole).collect();
            (!files.is_empty()).then(|| ((*split).to_owned(), files))
        };
        WORDS.iter().filter_map(of).collect()
    };
    let splits = by(&|word| in_folder(word).to_vec());
    let splits = if splits.is_empty() { by(&|word| in_file(word).to_vec()) } else { splits };
    if splits.is_empty() && !files.is_empty() {
        return vec![("train".into(), files.into_iter().map(whole).collect())];
    }
    splits
}

/// Returns `train` of `train-00000-of-00010.parquet`.
fn split_of_shard(name: &str) -> Option<&str> {
    let (stem, _) = name.rsplit_once('/').map_or((name, ""), |_| ("", ""));
    let (at, _) = stem.match_indices("-of-").next()?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (before, after) = (&stem[..at], &stem[at + 4..]);
    let (split, number) = before.rsplit_once('-')?;
    let is_shard = is_number(number) && after.get(..5).is_some_and(is_number) && stem.contains('.');
    (is_shard && !split.is_empty()).then_some(split)
}

/// Returns the subsets of a repository whose card lists none: those of the Hub's own conversion to Parquet,
/// `SUBSET/SPLIT/0000.parquet`, or else a single one.
fn by_layout(list: &[String]) -> Vec<Subset> {
    let converted = |file: &str| {
        let mut parts = file.split('/');
        let (subset, split, name) = (parts.next()?, parts.next()?, parts.next()?);
        let number = name.strip_suffix(".parquet")?;
        let is_number = number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit());
        (is_number && parts.next().is_none()).then(|| (subset.to_owned(), split.to_owned()))
    };
    let data: Vec<&String> = list.iter().filter(|file| is_data(file)).collect();
    let found: Option<BTreeSet<(String, String)>> =
        data.iter().map(|file| converted(file)).collect();
    let Some(found) = found.filter(|found| !found.is_empty()) else {
        return vec![Subset { name: usual_name(), ..Subset::default() }];
    };
    let mut subsets: BTreeMap<String, Vec<super::data_card::Entry>> = BTreeMap::new();
    for (subset, split) in found {
        let path = super::data_card::Paths::One(format!("{subset}/{split}/*.parquet"));
        subsets.entry(subset).or_default().push(super::data_card::Entry::Split { split, path });
    }
    let subset = |(name, entries)| Subset {
        name,
        data_files: Some(super::data_card::DataFiles::Several(entries)),
        ..Subset::default()
    };
    subsets.into_iter().map(subset).collect()
}

/// Returns the first few names, and how many more there are.
fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<String> = names.map(|name| shortened(name)).collect();
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

fn shortened(name: &str) -> String {
    name.escape_debug().to_string().chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `get_data_patterns` of `datasets` 5.2 finds in folders with these files, one split per line.
    const FOUND: &str = "\
data/train-00000-of-00001.parquet data/sft-00000-of-00001.parquet
  train data/train-00000-of-00001.parquet
  sft data/sft-00000-of-00001.parquet
data/train-00000-of-00001-abc.parquet data/test-1.parquet
  train data/train-00000-of-00001-abc.parquet
x/data/train-00000-of-00001.parquet
  train x/data/train-00000-of-00001.parquet
train-00000-of-00001.parquet data/val.parquet
  train train-00000-of-00001.parquet
  validation data/val.parquet
a/train/x.jsonl a/dev/y.jsonl b/valid/z.jsonl
  train a/train/x.jsonl
  validation a/dev/y.jsonl b/valid/z.jsonl
train/a.jsonl test.jsonl
  train train/a.jsonl
data_train_v1/a.jsonl data_test_v1/b.jsonl
  train data_train_v1/a.jsonl
  test data_test_v1/b.jsonl
my-eval-set.jsonl training_1.jsonl
  train training_1.jsonl
  test my-eval-set.jsonl
Train.jsonl train2.jsonl validation.jsonl
  train train2.jsonl
  validation validation.jsonl
trainer.jsonl testament.jsonl sub/c.jsonl
  train sub/c.jsonl testament.jsonl trainer.jsonl
b.jsonl .hidden.jsonl __x/c.jsonl
  train b.jsonl
";

    #[test]
    fn names_stand_for_the_splits_that_datasets_finds() {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        type Case = (Vec<String>, BTreeMap<String, Vec<String>>);
        let mut cases: Vec<Case> = vec![];
        for line in FOUND.lines() {
            match (line.strip_prefix("  "), cases.last_mut()) {
                (Some(split), Some((_, splits))) => {
                    let mut words = words(split);
                    splits.insert(words.remove(0), words);
                }
                _ => cases.push((words(line), BTreeMap::new())),
            }
        }
        assert_eq!(cases.len(), 11);
        for (files, expected) in cases {
            let found: BTreeMap<String, Vec<String>> = by_names("", &files).into_iter().collect();
            assert_eq!(found, expected, "{files:?}");
        }
    }
}
