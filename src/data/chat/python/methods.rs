//! Methods of Python's text, lists, and maps. Methods for which minijinja's own module behaves like Python
//! are delegated to it.

use super::arguments::{bind, integer, text};
use super::text::{LARGEST, MOST_PARTS, Text, bounded, failed};
use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Methods that modify a value in place, which transformers refuses as well.
const CHANGING: [&str; 12] = [
    "add",
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
];

/// Calls a method, after checking the size of its result against a limit.
pub(in crate::data::chat) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    bounded(value)?;
    arguments.iter().try_for_each(bounded)?;
    let own = match value.kind() {
        ValueKind::String => value.as_str().and_then(|text| of_text(text, method, arguments)),
        ValueKind::Seq => of_list(value, method, arguments),
        ValueKind::Map if method == "copy" => {
            Some(bind(method, arguments, []).map(|_| value.clone()))
        }
        _ => None,
    };
    if let Some(result) = own {
        return result;
    }
    let is_changed = matches!(value.kind(), ValueKind::Seq | ValueKind::Map);
    if is_changed && CHANGING.contains(&method) && value.get_attr(method)?.is_undefined() {
        return Err(failed(format!(
            "`{method}` would modify a value, which chat templates cannot do (in transformers either); \
             create a new one, as with `{{% set list = list + [item] %}}`"
        )));
    }
    let length = |value: &Value| value.as_str().map_or(0, str::len);
    let size = match (method, arguments) {
        ("replace", [from, to, ..]) => {
            let places = match from.as_str() {
                Some("") | None => length(value) + 1,
                Some(from) => value.as_str().map_or(0, |text| text.matches(from).count()),
            };
            places.saturating_mul(length(to))
        }
        ("join", [items]) => items.len().unwrap_or(0).saturating_mul(length(value)),
        // No prompt needs a width or precision of more than three digits.
        ("format", _) if value.as_str().is_some_and(has_long_number) => usize::MAX,
        _ => 0,
    };
    if size > LARGEST {
        return Err(failed(format!("{method} produces too much text")));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
}

/// Returns whether a text contains a number with four or more digits.
fn has_long_number(text: &str) -> bool {
    text.as_bytes().windows(4).any(|four| four.iter().all(u8::is_ascii_digit))
}

/// Returns a method of a list or tuple. `None` if it is not implemented here.
fn of_list(list: &Value, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    match method {
        "index" => Some(list_index(list, arguments)),
        "copy" => Some(bind(method, arguments, []).map(|_| list.clone())),
        _ => None,
    }
}

fn list_index(list: &Value, arguments: &[Value]) -> Result<Value, Error> {
    let [wanted, start, stop] = bind("index", arguments, ["value", "start", "stop"])?;
    let wanted = wanted.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    let length = list.len().unwrap_or(0);
    let (start, stop) = (integer("index", start.as_ref())?, integer("index", stop.as_ref())?);
    let (start, stop) =
        (place(start.unwrap_or(0), length), place(stop.unwrap_or(i64::MAX), length));
    let mut items = list.try_iter()?.enumerate().take(stop).skip(start);
    let found = items.find(|(_, item)| *item == wanted);
    found.map(|(index, _)| Value::from(index)).ok_or_else(|| failed("the value is not in the list"))
}

/// Resolves a Python index, which counts from the end if negative.
fn place(index: i64, length: usize) -> usize {
    let from_end = usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX);
    if index < 0 { length.saturating_sub(from_end) } else { from_end.min(length) }
}

/// Returns whether Python considers a character white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Returns a list of texts, up to a maximum number.
fn list<'a>(parts: impl IntoIterator<Item = &'a str>) -> Result<Value, Error> {
    let parts: Vec<Value> = parts.into_iter().take(MOST_PARTS + 1).map(Value::from).collect();
    match parts.len() {
        0..=MOST_PARTS => Ok(parts.into()),
        _ => Err(Error::new(ErrorKind::OutOfFuel, "a text has too many parts")),
    }
}

/// Returns a method of a text. `None` if it is not implemented here.
fn of_text(own: &str, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    let none = || bind(method, arguments, []).map(|[]: [Option<Value>; 0]| ());
    let plain = |text: String| none().map(|()| Value::from(text));
    let one = || {
        let [argument] = bind(method, arguments, ["argument"])?;
        text(method, argument.as_ref()).map(str::to_owned)
    };
    Some(match method {
        "strip" | "lstrip" | "rstrip" => stripped(own, method, arguments),
        "split" | "rsplit" => split(own, method, arguments),
        "splitlines" => split_lines(own, arguments),
        "partition" | "rpartition" => partition(own, method, arguments),
        "removeprefix" => one().map(|prefix| own.strip_prefix(&*prefix).unwrap_or(own).into()),
        "removesuffix" => one().map(|suffix| own.strip_suffix(&*suffix).unwrap_or(own).into()),
        "find" | "rfind" | "index" | "rindex" | "count" => search(own, method, arguments),
        "startswith" | "endswith" => begins(own, method, arguments),
        "ljust" | "rjust" | "center" => justified(own, method, arguments),
        "zfill" => zero_filled(own, arguments),
        "expandtabs" => expanded(own, arguments),
        "title" => plain(title(own)),
        "capitalize" => plain(capitalized(own)),
        "swapcase" => plain(own.chars().map(swapped).collect()),
        "casefold" => plain(own.chars().map(folded).collect()),
        "isspace" => none().map(|()| (!own.is_empty() && own.chars().all(is_space)).into()),
        "istitle" => none().map(|()| is_title(own).into()),
        "isdecimal" | "isdigit" => {
            let is_digit = |c: char| {
                let above = matches!(c, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{2070}'..='\u{2089}');
                c.is_numeric() && (is_decimal(c) || (method == "isdigit" && above))
            };
            none().map(|()| (!own.is_empty() && own.chars().all(is_digit)).into())
        }
        "isprintable" => none().map(|()| {
            own.chars().all(|c| c == ' ' || !(c.is_control() || c.is_whitespace())).into()
        }),
        "isidentifier" => none().map(|()| {
            let mut chars = own.chars();
            let first = chars.next().is_some_and(|c| c == '_' || c.is_alphabetic());
            (first && chars.all(|c| c == '_' || c.is_alphanumeric())).into()
        }),
        _ => return None,
    })
}

/// Returns whether a character is a decimal digit of some script, which form blocks. Other numeric characters
/// (fractions, Roman and circled numbers, Chinese numerals) do not count.
fn is_decimal(c: char) -> bool {
    c.is_ascii_digit()
        || c.is_numeric()
            && !matches!(c,
                '\u{80}'..='\u{bf}' | '\u{9f4}'..='\u{9f9}' | '\u{b72}'..='\u{b77}'
                | '\u{bf0}'..='\u{bf2}' | '\u{c78}'..='\u{c7e}' | '\u{d58}'..='\u{d78}'
                | '\u{f2a}'..='\u{f33}' | '\u{1369}'..='\u{137c}' | '\u{16ee}'..='\u{16f0}'
                | '\u{17f0}'..='\u{17f9}' | '\u{19da}' | '\u{2070}'..='\u{a61f}'
                | '\u{a6e6}'..='\u{a6ef}' | '\u{a830}'..='\u{a835}' | '\u{f900}'..='\u{fadf}'
                | '\u{10000}'..='\u{1049f}' | '\u{10800}'..='\u{10d2f}' | '\u{10d40}'..='\u{11065}')
}

fn stripped(own: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [chars] = bind(method, arguments, ["chars"])?;
    let chars = chars.filter(|chars| !chars.is_none());
    let set: Option<Vec<char>> = match &chars {
        None => None,
        Some(_) => Some(text(method, chars.as_ref())?.chars().collect()),
    };
    let goes = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
    Ok(Value::from(match method {
        "lstrip" => own.trim_start_matches(goes),
        "rstrip" => own.trim_end_matches(goes),
        _ => own.trim_matches(goes),
    }))
}

fn split(own: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [separator, most] = bind(method, arguments, ["sep", "maxsplit"])?;
    let most = match integer(method, most.as_ref())?.unwrap_or(-1) {
        most if most < 0 => usize::MAX,
        most => usize::try_from(most).unwrap_or(usize::MAX),
    };
    let from_end = method == "rsplit";
    let separator = separator.filter(|separator| !separator.is_none());
    if separator.is_none() {
        return list(words(own, most, from_end));
    }
    let separator = text(method, separator.as_ref())?;
    if separator.is_empty() {
        return Err(failed(format!("{method} got an empty separator")));
    }
    let parts = most.saturating_add(1);
    if !from_end {
        return list(own.splitn(parts, separator));
    }
    let mut parts: Vec<&str> = own.rsplitn(parts, separator).take(MOST_PARTS + 1).collect();
    parts.reverse();
    list(parts)
}

/// Splits text at white space, at most `most` times.
fn words(own: &str, most: usize, from_end: bool) -> Vec<&str> {
    let mut parts = vec![];
    let mut rest = own;
    loop {
        rest = match from_end {
            true => rest.trim_end_matches(is_space),
            false => rest.trim_start_matches(is_space),
        };
        if rest.is_empty() || parts.len() > MOST_PARTS {
            break;
        }
        let at = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        match at.filter(|_| parts.len() < most) {
            None => {
                parts.push(rest);
                break;
            }
            // The white space itself is removed when the next part begins.
            Some(at) if from_end => {
                let after = at + rest[at..].chars().next().map_or(1, char::len_utf8);
                parts.push(&rest[after..]);
                rest = &rest[..at];
            }
            Some(at) => {
                parts.push(&rest[..at]);
                rest = &rest[at..];
            }
        }
    }
    if from_end {
        parts.reverse();
    }
    parts
}

fn split_lines(own: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [keep] = bind("splitlines", arguments, ["keepends"])?;
    let keep = keep.is_some_and(|keep| keep.is_true());
    let ends = |c: char| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = vec![];
    let mut rest = own;
    while let Some(at) = rest.find(ends).filter(|_| lines.len() <= MOST_PARTS) {
        let end = match rest[at..].strip_prefix("\r\n") {
            Some(_) => at + 2,
            None => at + rest[at..].chars().next().map_or(1, char::len_utf8),
        };
        lines.push(&rest[..if keep { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    list(lines)
}

fn partition(own: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [separator] = bind(method, arguments, ["sep"])?;
    let separator = text(method, separator.as_ref())?;
    if separator.is_empty() {
        return Err(failed(format!("{method} got an empty separator")));
    }
    let parts = match method {
        "partition" => own
            .split_once(separator)
            .map_or([own, "", ""], |(before, after)| [before, separator, after]),
        _ => own
            .rsplit_once(separator)
            .map_or(["", "", own], |(before, after)| [before, separator, after]),
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from).to_vec())))
}

/// Returns the part of a text between two positions, and the number of characters before it. `None` if the
/// start is past the text or the end is before the start.
fn window(
    own: &str,
    method: &str,
    start: Option<&Value>,
    end: Option<&Value>,
) -> Result<Option<(usize, String)>, Error> {
    let (start, end) = (integer(method, start)?, integer(method, end)?);
    if start.is_none() && end.is_none() {
        return Ok(Some((0, own.to_owned())));
    }
    let length = own.chars().count();
    let (start, end) = (start.unwrap_or(0), place(end.unwrap_or(i64::MAX), length));
    let is_behind = usize::try_from(start).is_ok_and(|start| start > length);
    let start = place(start, length);
    if is_behind || end < start {
        return Ok(None);
    }
    Ok(Some((start, own.chars().skip(start).take(end - start).collect())))
}

fn search(own: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [wanted, start, end] = bind(method, arguments, ["sub", "start", "end"])?;
    let wanted = text(method, wanted.as_ref())?;
    let window = window(own, method, start.as_ref(), end.as_ref())?;
    let count = |text: &str| text.chars().count();
    if method == "count" {
        return Ok(window.map_or(0, |(_, part)| part.matches(wanted).count()).into());
    }
    let found = window.and_then(|(before, part)| {
        let at = if method.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
        at.map(|at| before + count(&part[..at]))
    });
    match found {
        Some(found) => Ok(found.into()),
        None if method.ends_with("find") => Ok((-1).into()),
        None => Err(failed(format!("{method}: the text is not in it"))),
    }
}

fn begins(own: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [wanted, start, end] = bind(method, arguments, ["affix", "start", "end"])?;
    let wanted = wanted.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    let wanted: Vec<Value> = match wanted.kind() {
        ValueKind::Seq | ValueKind::Iterable => wanted.try_iter()?.collect(),
        _ => vec![wanted],
    };
    let Some((_, part)) = window(own, method, start.as_ref(), end.as_ref())? else {
        return Ok(false.into());
    };
    for wanted in &wanted {
        let wanted = text(method, Some(wanted))?;
        if if method == "startswith" { part.starts_with(wanted) } else { part.ends_with(wanted) } {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

/// Returns the number of characters missing to a width.
fn lacking(own: &str, method: &str, width: Option<&Value>) -> Result<(usize, usize), Error> {
    let width = integer(method, width)?;
    let width = width.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    Ok((width.saturating_sub(own.chars().count()), width))
}

fn justified(own: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [width, fill] = bind(method, arguments, ["width", "fillchar"])?;
    let (lacking, width) = lacking(own, method, width.as_ref())?;
    let fill = match &fill {
        None => ' ',
        Some(_) => {
            let mut chars = text(method, fill.as_ref())?.chars();
            match (chars.next(), chars.next()) {
                (Some(fill), None) => fill,
                _ => return Err(failed(format!("{method} fills with exactly one character"))),
            }
        }
    };
    let before = match method {
        "ljust" => 0,
        "rjust" => lacking,
        // Rounded as in Python.
        _ => lacking / 2 + (lacking & width & 1),
    };
    let mut out = Text::default();
    out.pad(fill, before)?;
    out.push(own)?;
    out.pad(fill, lacking - before)?;
    Ok(out.into_string().into())
}

fn zero_filled(own: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [width] = bind("zfill", arguments, ["width"])?;
    let (lacking, _) = lacking(own, "zfill", width.as_ref())?;
    let (sign, digits) = own.split_at(usize::from(own.starts_with(['+', '-'])));
    let mut out = Text::default();
    out.push(sign)?;
    out.pad('0', lacking)?;
    out.push(digits)?;
    Ok(out.into_string().into())
}

fn expanded(own: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [size] = bind("expandtabs", arguments, ["tabsize"])?;
    let size = integer("expandtabs", size.as_ref())?.unwrap_or(8);
    let size = usize::try_from(size).unwrap_or(0);
    let mut out = Text::default();
    let mut column = 0;
    for c in own.chars() {
        match c {
            '\t' => {
                let width = if size == 0 { 0 } else { size - column % size };
                out.pad(' ', width)?;
                column += width;
            }
            c => {
                out.pad(c, 1)?;
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(out.into_string().into())
}

/// Returns the title case of a character.
fn titled(c: char) -> String {
    match c {
        'Ǆ'..='ǆ' => "ǅ".into(),
        'Ǉ'..='ǉ' => "ǈ".into(),
        'Ǌ'..='ǌ' => "ǋ".into(),
        'Ǳ'..='ǳ' => "ǲ".into(),
        c => {
            let mut upper = c.to_uppercase();
            let first: String = upper.next().into_iter().collect();
            first + &upper.flat_map(char::to_lowercase).collect::<String>()
        }
    }
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ')
}

fn title(own: &str) -> String {
    let mut in_word = false;
    own.chars()
        .map(|c| {
            let out = if in_word { c.to_lowercase().collect() } else { titled(c) };
            in_word = is_cased(c);
            out
        })
        .collect()
}

fn is_title(own: &str) -> bool {
    let (mut in_word, mut any) = (false, false);
    for c in own.chars() {
        if is_cased(c) && in_word != c.is_lowercase() {
            return false;
        }
        in_word = is_cased(c);
        any |= in_word;
    }
    any
}

fn capitalized(own: &str) -> String {
    let mut chars = own.chars();
    let first = chars.next().map(titled).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

fn swapped(c: char) -> String {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

/// Returns the case folding of a character.
fn folded(c: char) -> String {
    match c {
        // The only letter whose upper case does not map back to it.
        'ı' => "ı".into(),
        c => c.to_uppercase().flat_map(char::to_lowercase).collect(),
    }
}
