//! Suggestions for unknown keys.

use super::path::KeyPath;
use super::schema::{Kind, Schema, Table, listed};

/// Maximum number of suggestions.
const MOST: usize = 3;

/// Returns the hint for an unknown key of `table`. Paths of the settings start at `root`. `at` and `root_at`
/// are the paths of the two tables.
pub(super) fn advice(
    key: &str,
    (table, at): (&Table, &KeyPath),
    (root, root_at): (&Table, &KeyPath),
) -> String {
    let key = plain(key);
    if let Some((_, path)) = root.other_names.iter().find(|(other, _)| *other == key) {
        return did_you_mean(&[root_at.join(path)]);
    }
    let here = |most: usize| {
        let names = table.fields.iter().map(|field| field.name);
        nearest(names, &key, most).into_iter().map(|name| at.with(name)).collect::<Vec<_>>()
    };
    let mut all = vec![];
    paths(root, root_at, &mut all);
    let elsewhere = |most: usize| -> Vec<KeyPath> {
        let last = |path: &KeyPath| path.0.last().cloned().unwrap_or_default();
        let names: Vec<String> = all.iter().map(last).collect();
        let names = nearest(names.iter().map(String::as_str), &key, most);
        all.iter().filter(|path| names.contains(&last(path).as_str())).cloned().collect()
    };
    let far = (key.chars().count() / 3).clamp(1, 3);
    let steps = [here(1), elsewhere(0), here(far), elsewhere(far)];
    if let Some(found) = steps.into_iter().find(|found| !found.is_empty()) {
        return did_you_mean(&found[..found.len().min(MOST)]);
    }
    let names: Vec<&str> = table.fields.iter().map(|field| field.name).collect();
    match at.0.is_empty() {
        true => format!("The settings are {}", names.join(", ")),
        false => format!("The settings of `{at}` are {}", names.join(", ")),
    }
}

/// Returns the hint for a value in place of a table whose key has another name.
pub(super) fn other_name(key: &str, root: &Table, root_at: &KeyPath) -> Option<String> {
    let (_, path) = root.other_names.iter().find(|(other, _)| *other == key)?;
    Some(did_you_mean(&[root_at.join(path)]))
}

fn did_you_mean(paths: &[KeyPath]) -> String {
    let names: Vec<String> = paths.iter().map(|path| format!("`{path}`")).collect();
    format!("Did you mean {}?", listed(&names, "or"))
}

/// Normalizes a key: `LearningRate` and `learning-rate` become `learning_rate`.
fn plain(key: &str) -> String {
    let mut text = String::new();
    let mut before_is_small = false;
    for c in key.chars() {
        if c.is_uppercase() && before_is_small {
            text.push('_');
        }
        before_is_small = c.is_lowercase();
        text.extend(c.to_lowercase().map(|c| if c == '-' || c == ' ' { '_' } else { c }));
    }
    text
}

/// Collects all paths of keys below a table.
fn paths(table: &Table, at: &KeyPath, all: &mut Vec<KeyPath>) {
    for field in &table.fields {
        let at = at.with(field.name);
        all.push(at.clone());
        below(&field.schema, &at, all);
    }
}

fn below(schema: &Schema, at: &KeyPath, all: &mut Vec<KeyPath>) {
    match &schema.kind {
        // Nested settings of another type are found by their own paths.
        Kind::Table(table) if !table.is_root => paths(table, at, all),
        Kind::List(inner) | Kind::Map(inner) => below(inner, &at.with("*"), all),
        _ => {}
    }
}

/// Returns the names nearest to a key, within `most` edits.
fn nearest<'n>(names: impl Iterator<Item = &'n str>, key: &str, most: usize) -> Vec<&'n str> {
    let mut found: Vec<&str> = vec![];
    let mut least = most;
    for name in names {
        let changes = changes(name, key);
        if changes > least {
            continue;
        }
        if changes < least {
            found.clear();
        }
        least = changes;
        found.push(name);
    }
    // A missing ending is likelier than a different letter.
    let begins = |name: &&str| name.starts_with(key) || key.starts_with(name);
    if found.iter().any(begins) {
        found.retain(begins);
    }
    found
}

/// Returns the edit distance: insertions, deletions, replacements, and swaps of adjacent letters.
fn changes(from: &str, to: &str) -> usize {
    /// Longer words are not misspelled keys and would take too long.
    const LONGEST: usize = 64;
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    if from.len().max(to.len()) > LONGEST {
        return usize::MAX;
    }
    let mut rows = vec![vec![0; to.len() + 1]; from.len() + 1];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
                let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let exchanged =
                    i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1];
                if exchanged {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_letter_or_two_exchanged() {
        assert_eq!(changes("steps", "steps"), 0);
        assert_eq!(changes("steps", "step"), 1);
        assert_eq!(changes("steps", "stesp"), 1);
        assert_eq!(changes("seed", "sede"), 1);
        assert_eq!(changes("", "abc"), 3);
        assert_eq!(changes("epochs", "steps"), 5);
        assert_eq!(changes("a", &"b".repeat(100)), usize::MAX);
        assert_eq!(plain("learning-Rate"), "learning_rate");
        assert_eq!(plain("LearningRate"), "learning_rate");
    }
}
