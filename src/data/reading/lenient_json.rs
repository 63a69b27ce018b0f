//! JSON as other programs write it: Python's `json` writes NaN and lone surrogates, and ids may exceed the
//! numbers that serde_json supports.

use serde_json::Value;
use std::borrow::Cow;

/// The changes that [`lenient`] made to a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Repairs {
    /// Lone surrogate escapes, replaced by U+FFFD.
    pub surrogates: usize,
    /// NaN, Infinity, and -Infinity, replaced by null.
    pub not_finite: usize,
    /// Numbers that serde_json would round or reject, replaced by strings with their text.
    pub long_numbers: usize,
}

/// An `f64` distinguishes at most this many decimal digits.
const EXACT_DIGITS: usize = 17;

/// Replaces what serde_json rejects or rounds in a JSON text: NaN and infinities by null, lone surrogate
/// escapes by U+FFFD, and numbers that do not fit by strings of their exact text.
///
/// The pass is lexical: invalid JSON stays invalid, so that serde_json reports it.
pub(crate) fn lenient(text: &[u8]) -> (Cow<'_, [u8]>, Repairs) {
    repaired(text, false)
}

/// Parses one JSON text, repaired if necessary. Errors refer to positions in the original text.
pub(crate) fn parse(text: &[u8]) -> serde_json::Result<(Value, Repairs)> {
    let strict = serde_json::from_slice::<Value>(text);
    let (fixed, repairs) = lenient(text);
    if repairs == Repairs::default() {
        return strict.map(|value| (value, repairs));
    }
    match serde_json::from_slice(&fixed) {
        Ok(value) => Ok((value, repairs)),
        // There is another error. It has its original column if every repair is as long as the text it
        // replaces.
        Err(error) => match serde_json::from_slice::<Value>(&repaired(text, true).0) {
            Err(placed) => Err(placed),
            Ok(_) => Err(error),
        },
    }
}

/// Like [`lenient`]. With `same_length`, repairs outside of strings are a digit and spaces.
fn repaired(text: &[u8], same_length: bool) -> (Cow<'_, [u8]>, Repairs) {
    let mut repairs = Repairs::default();
    let mut out = Vec::new();
    // Text before this position is in `out`, once `out` is not empty.
    let mut copied = 0;
    let mut replace = |from: usize, to: usize, by: &[u8]| {
        out.extend_from_slice(&text[copied..from]);
        out.extend_from_slice(by);
        copied = to;
    };
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'"' => at = string_end(text, at + 1, &mut repairs, &mut replace),
            byte if in_token(byte) => {
                let token = &text[at..];
                let end = token.iter().position(|&b| !in_token(b)).unwrap_or(token.len());
                let token = &token[..end];
                if let Some(by) = replacement(token, &mut repairs) {
                    if same_length {
                        let mut digit = vec![b' '; token.len()];
                        digit[0] = b'0';
                        replace(at, at + end, &digit);
                    } else {
                        replace(at, at + end, &by);
                    }
                }
                at += end;
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return (Cow::Borrowed(text), repairs);
    }
    out.extend_from_slice(&text[copied..]);
    (Cow::Owned(out), repairs)
}

/// Returns the end of a string whose first character is at `at`. Lone surrogates in it are replaced.
fn string_end(
    text: &[u8],
    mut at: usize,
    repairs: &mut Repairs,
    replace: &mut impl FnMut(usize, usize, &[u8]),
) -> usize {
    while at < text.len() {
        match text[at] {
            b'"' => return at + 1,
            b'\\' => match escaped_unit(text, at) {
                Some(0xD800..=0xDBFF)
                    if matches!(escaped_unit(text, at + 6), Some(0xDC00..=0xDFFF)) =>
                {
                    at += 12;
                }
                Some(0xD800..=0xDFFF) => {
                    replace(at, at + 6, br"\ufffd");
                    repairs.surrogates += 1;
                    at += 6;
                }
                // A backslash and whatever it escapes.
                _ => at += 2,
            },
            _ => at += 1,
        }
    }
    at
}

/// Returns the UTF-16 unit of an escape at this position: `\u` and four hexadecimal digits.
fn escaped_unit(text: &[u8], at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix(br"\u")?;
    digits.iter().try_fold(0, |unit, &digit| {
        let value = char::from(digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(value).ok()?)
    })
}

/// Returns the bytes of literals and numbers outside of strings.
fn in_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_') || byte >= 0x80
}

/// Returns the replacement of a literal or number. `None` if serde_json supports it or it is not JSON.
fn replacement(token: &[u8], repairs: &mut Repairs) -> Option<Vec<u8>> {
    if matches!(token, b"NaN" | b"Infinity" | b"-Infinity") {
        repairs.not_finite += 1;
        return Some(b"null".to_vec());
    }
    if is_exact(token)? {
        return None;
    }
    repairs.long_numbers += 1;
    Some([b"\"", token, b"\""].concat())
}

/// Returns whether serde_json represents a number exactly. `None` if the token is not a JSON number.
fn is_exact(token: &[u8]) -> Option<bool> {
    let unsigned = token.strip_prefix(b"-").unwrap_or(token);
    if !unsigned.first()?.is_ascii_digit() {
        return None;
    }
    let exponent_at = unsigned.iter().position(|b| matches!(b, b'e' | b'E'));
    let (mantissa, exponent) = match exponent_at {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.iter().position(|&b| b == b'.') {
        Some(at) => (&mantissa[..at], Some(&mantissa[at + 1..])),
        None => (mantissa, None),
    };
    let is_digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let exponent_digits =
        exponent.map(|e| e.strip_prefix(b"+").or(e.strip_prefix(b"-")).unwrap_or(e));
    let has_leading_zero = whole.len() > 1 && whole[0] == b'0';
    let is_number = is_digits(whole)
        && !has_leading_zero
        && fraction.is_none_or(is_digits)
        && exponent_digits.is_none_or(is_digits);
    if !is_number {
        return None;
    }
    let written = std::str::from_utf8(token).ok()?;
    if fraction.is_none() && exponent.is_none() {
        // Short numbers fit and need no parsing.
        return Some(
            whole.len() < 19 || written.parse::<i64>().is_ok() || written.parse::<u64>().is_ok(),
        );
    }
    let digits = || whole.iter().chain(fraction.unwrap_or_default());
    let first = digits().position(|&d| d != b'0');
    let Some(first) = first else { return Some(true) };
    let zeros_behind = digits().rev().take_while(|&&d| d == b'0').count();
    if digits().count() - first - zeros_behind > EXACT_DIGITS {
        return Some(false);
    }
    // Numbers outside the range of an `f64` are rejected or become zero.
    Some(
        exponent.is_none() && fraction.is_none_or(|f| f.len() < 300) && whole.len() < 300
            || written.parse::<f64>().is_ok_and(|value| value.is_finite() && value != 0.0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixed(text: &str) -> (String, [usize; 3]) {
        let (fixed, repairs) = lenient(text.as_bytes());
        let counts = [repairs.surrogates, repairs.not_finite, repairs.long_numbers];
        if counts == [0; 3] {
            assert!(matches!(fixed, Cow::Borrowed(_)), "{text}: copied without need");
        }
        (String::from_utf8(fixed.into_owned()).unwrap(), counts)
    }

    fn unchanged(text: &str) {
        assert_eq!(fixed(text), (text.to_owned(), [0; 3]));
    }

    #[test]
    fn lone_surrogates_become_the_replacement_character() {
        assert_eq!(fixed(r#"{"a":"x\ud83d"}"#), (r#"{"a":"x\ufffd"}"#.into(), [1, 0, 0]));
        assert_eq!(fixed(r#"["\uDE00y"]"#), (r#"["\ufffdy"]"#.into(), [1, 0, 0]));
        // Keys too.
        assert_eq!(fixed(r#"{"\ud83d":1}"#), (r#"{"\ufffd":1}"#.into(), [1, 0, 0]));
        // Two high surrogates, then a low one: the last two are a pair.
        assert_eq!(fixed(r#""\ud83d\ud83d\ude00""#), (r#""\ufffd\ud83d\ude00""#.into(), [1, 0, 0]));
        // A low surrogate before a high one is not a pair.
        assert_eq!(fixed(r#""\ude00\ud83d""#), (r#""\ufffd\ufffd""#.into(), [2, 0, 0]));
        assert_eq!(fixed(r#""\ud83d\n""#), (r#""\ufffd\n""#.into(), [1, 0, 0]));
    }

    #[test]
    fn pairs_and_escaped_backslashes_are_kept() {
        unchanged(r#"{"a":"\ud83d\ude00 \u00e9"}"#);
        // An escaped backslash does not begin an escape.
        unchanged(r#"{"a":"\\ud83d"}"#);
        unchanged(r#"{"a":"\"\\\"\\ud83d"}"#);
        assert_eq!(fixed(r#""\\\ud83d""#), (r#""\\\ufffd""#.into(), [1, 0, 0]));
    }

    #[test]
    fn numbers_that_are_not_finite_become_null() {
        assert_eq!(fixed("[NaN, -Infinity,Infinity]"), ("[null, null,null]".into(), [0, 3, 0]));
        assert_eq!(fixed(r#"{"NaN":NaN}"#), (r#"{"NaN":null}"#.into(), [0, 1, 0]));
        unchanged(r#"{"a":"NaN","b":"say \"Infinity\" -Infinity"}"#);
        // Python does not write these.
        for text in ["[nan]", "[NaNs]", "[-NaN]", "[Inf]", "[+Infinity]", "[xNaN]", "[NaN.0]"] {
            unchanged(text);
        }
    }

    #[test]
    fn numbers_that_do_not_fit_become_their_text() {
        for number in [
            "123456789012345678901",
            "-123456789012345678901",
            "18446744073709551616",
            "-9223372036854775809",
            "0.123456789012345678",
            "123456789.1234567891",
            "1.234567890123456789e5",
            "1e400",
            "-1e400",
            "1e-400",
        ] {
            let expected = format!(r#"{{"id":"{number}"}}"#);
            assert_eq!(fixed(&format!(r#"{{"id":{number}}}"#)), (expected, [0, 0, 1]));
        }
        for number in [
            "0",
            "-0",
            "18446744073709551615",
            "-9223372036854775808",
            "9007199254740993",
            "0.1",
            "0.10000000000000001",
            "1.00000000000000000000000",
            "0.00000000000000000000001",
            "1e300",
            "2.5E-7",
            "0e999",
            "1e+2",
        ] {
            unchanged(&format!("[{number}]"));
        }
        let many = format!("1{}", "0".repeat(400));
        assert_eq!(fixed(&many), (format!("\"{many}\""), [0, 0, 1]));
        let many = format!("{many}.0");
        assert_eq!(fixed(&many), (format!("\"{many}\""), [0, 0, 1]));
        let small = format!("0.{}1", "0".repeat(400));
        assert_eq!(fixed(&small), (format!("\"{small}\""), [0, 0, 1]));
    }

    #[test]
    fn what_is_no_json_passes_through() {
        for text in [
            "",
            "\"",
            "\"\\",
            r#""\u"#,
            r#""\ud8"#,
            r#""\ud83"#,
            "0123456789012345678901",
            "1234567890123456789012x",
            "12345678901234567890123.",
            "1e",
            "-",
            "--1",
            "1.2.3",
            "123456789012345678901é",
            "[1,",
            "}{",
            "1e+",
            ".5",
            "\u{feff}[NaN",
        ] {
            let (out, repairs) = lenient(text.as_bytes());
            assert!(parse(text.as_bytes()).is_err(), "{text}");
            if repairs == Repairs::default() {
                assert_eq!(out, text.as_bytes(), "{text}");
            }
        }
        assert_eq!(lenient(b"\xff\xfe[\"\xff").0, &b"\xff\xfe[\"\xff"[..]);
    }

    #[test]
    fn parsed_values_and_counts() {
        let text = br#"{"id":123456789012345678901,"p":NaN,"t":"a\ud83d","n":7}"#;
        let (value, repairs) = parse(text).unwrap();
        assert_eq!(value["id"], "123456789012345678901");
        assert!(value["p"].is_null());
        assert_eq!(value["t"], "a\u{fffd}");
        assert_eq!(value["n"], 7);
        assert_eq!(repairs, Repairs { surrogates: 1, not_finite: 1, long_numbers: 1 });
        assert_eq!(parse(b"[1e400]").unwrap().0, serde_json::json!(["1e400"]));
    }

    #[test]
    fn errors_name_places_in_the_original() {
        // The missing colon is at column 45 of the original text.
        let text = br#"{"a":NaN,"b":123456789012345678901,"\ud83d" 1}"#;
        let error = parse(text).unwrap_err();
        assert_eq!((error.line(), error.column()), (1, 45), "{error}");
        assert!(error.to_string().contains("expected `:`"), "{error}");
        let error = parse(b"[-Infinity, 1e999, nope]").unwrap_err();
        assert_eq!(error.column(), 21, "{error}");
        // Nothing to repair: the error of serde_json.
        assert_eq!(parse(b"[1,]").unwrap_err().column(), 4);
    }

    #[test]
    fn hostile_texts_take_linear_time() {
        for text in [
            "9".repeat(2_000_000),
            format!("\"{}", r"\ud83d".repeat(300_000)),
            "NaN,".repeat(500_000),
            format!("1e{}", "9".repeat(2_000_000)),
            "[".repeat(1_000_000),
            "\\".repeat(1_000_001),
        ] {
            let started = std::time::Instant::now();
            let _ = parse(text.as_bytes());
            assert!(started.elapsed().as_secs() < 10);
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..8)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_that_needs_no_repair_is_unchanged(value in json()) {
            for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                let (out, repairs) = lenient(text.as_bytes());
                prop_assert_eq!(repairs, Repairs::default());
                prop_assert!(matches!(out, Cow::Borrowed(_)));
                prop_assert_eq!(&parse(text.as_bytes()).unwrap().0, &value);
            }
        }

        #[test]
        fn no_bytes_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&text);
            let _ = lenient(&text);
        }

        #[test]
        fn no_pieces_panic(pieces in prop::collection::vec(
            prop::sample::select(vec![
                "\"", "\\", "\\ud83d", "\\ude00", "NaN", "-", "Infinity", "1234567890123456789012",
                "1e999", ".", "[", "]", "{", "}", ":", ",", " ", "é", "0",
            ]), 0..24,
        )) {
            let text = pieces.concat();
            // Valid JSON without rounded numbers is unchanged.
            let (_, repairs) = lenient(text.as_bytes());
            if serde_json::from_str::<Value>(&text).is_ok() {
                prop_assert_eq!(repairs.surrogates + repairs.not_finite, 0);
                prop_assert!(parse(text.as_bytes()).is_ok());
            }
        }
    }
}
