//! Implements Python's `%` on text: `'%s: %.2f' % (name, share)`.

use super::text::{Text, as_float, as_integer, failed, python_repr, python_str, with_exponent};
use minijinja::Error;
use minijinja::value::{Value, ValueKind};

/// Implements Python's `%`: the remainder of numbers, or text formatting.
pub(in crate::data::chat) fn percent(left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(format) = left.as_str() {
        return formatted(format, right).map(Value::from);
    }
    let impossible = || {
        let (left, right) = (left.kind(), right.kind());
        failed(format!("`%` needs two numbers, or a text and values, not {left} and {right}"))
    };
    if let (Some(a), Some(b)) = (as_integer(left), as_integer(right)) {
        let remainder =
            a.checked_rem(b).ok_or_else(|| failed(format!("{a} % {b} is undefined")))?;
        let is_other_side = remainder != 0 && (remainder < 0) != (b < 0);
        return Ok(whole(if is_other_side { remainder + b } else { remainder }));
    }
    let number = |value: &Value| as_float(value).or(as_integer(value).map(|n| n as f64));
    let (a, b) = (number(left).ok_or_else(impossible)?, number(right).ok_or_else(impossible)?);
    if b == 0.0 {
        return Err(failed(format!("{a} % {b} is undefined")));
    }
    let remainder = a % b;
    Ok(match remainder {
        0.0 => 0f64.copysign(b),
        r if (r < 0.0) != (b < 0.0) => r + b,
        r => r,
    }
    .into())
}

/// Returns an integer in the smallest form that holds it.
fn whole(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}

/// Formats text with values: those of a tuple in order, those of a map by name, or a single one.
pub(in crate::data::chat) fn formatted(format: &str, values: &Value) -> Result<String, Error> {
    let tuple: Option<Vec<Value>> =
        if values.is_tuple() { Some(values.try_iter()?.collect()) } else { None };
    let is_one = tuple.is_none();
    let list = tuple.unwrap_or_else(|| vec![values.clone()]);
    let (text, used) = fill(format, &list, values)?;
    // Python treats maps and lists as named values, which need not all be used.
    let by_name = is_one && matches!(values.kind(), ValueKind::Map | ValueKind::Seq);
    if used < list.len() && !by_name {
        return Err(failed("not all values were used by the text before `%`"));
    }
    Ok(text)
}

/// A `%...` specifier.
#[derive(Default)]
struct Spec {
    left: bool,
    zero: bool,
    plus: bool,
    space: bool,
    other_form: bool,
    width: usize,
    precision: Option<usize>,
}

/// Returns the text, and the number of positional values used.
fn fill(format: &str, list: &[Value], by_name: &Value) -> Result<(String, usize), Error> {
    let mut out = Text::default();
    let mut used = 0;
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push(before)?;
        let mut next = || {
            used += 1;
            list.get(used - 1).ok_or_else(|| failed("not enough values for the text before `%`"))
        };
        rest = after;
        let mut named = None;
        if let Some(inner) = rest.strip_prefix('(') {
            let (key, tail) = closed(inner)?;
            if by_name.kind() != ValueKind::Map {
                return Err(failed(format!("`%({key})` needs a map after `%`")));
            }
            let value = by_name.get_item(&Value::from(key))?;
            if value.is_undefined() {
                return Err(failed(format!("`%({key})`: the map has no such key")));
            }
            (named, rest) = (Some(value), tail);
        }
        let mut spec = Spec::default();
        rest = spec.read(rest, &mut next)?;
        let mut chars = rest.chars();
        let kind = chars.next().ok_or_else(|| failed("the text ends with `%`; write `%%`"))?;
        rest = chars.as_str();
        if kind == '%' {
            out.push("%")?;
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next()?.clone(),
        };
        spec.write(&mut out, kind, &value)?;
    }
    out.push(rest)?;
    Ok((out.into_string(), used))
}

/// Parses a key up to its closing parenthesis. Parentheses inside it must be balanced.
fn closed(text: &str) -> Result<(&str, &str), Error> {
    let mut open = 1;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => open += 1,
            b')' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Ok((&text[..at], &text[at + 1..]));
        }
    }
    Err(failed("a `%(` is not closed"))
}

impl Spec {
    /// Parses flags, width, precision, and length modifier. Returns the rest.
    fn read<'a, 'v>(
        &mut self,
        mut rest: &'a str,
        next: &mut impl FnMut() -> Result<&'v Value, Error>,
    ) -> Result<&'a str, Error> {
        while let Some(flag) = rest.chars().next() {
            match flag {
                '-' => self.left = true,
                '0' => self.zero = true,
                '+' => self.plus = true,
                ' ' => self.space = true,
                '#' => self.other_form = true,
                _ => break,
            }
            rest = &rest[1..];
        }
        let mut number = |rest: &mut &'a str| -> Result<i128, Error> {
            /// No prompt needs more.
            const MOST: i128 = 999;
            let number = if let Some(after) = rest.strip_prefix('*') {
                *rest = after;
                as_integer(next()?).ok_or_else(|| failed("`*` in a `%` needs a whole number"))?
            } else {
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                let digits = &rest[..end];
                *rest = &rest[end..];
                if digits.is_empty() { 0 } else { digits.parse().unwrap_or(MOST + 1) }
            };
            match number {
                number if (-MOST..=MOST).contains(&number) => Ok(number),
                _ => Err(failed("a width or precision after `%` is larger than 999")),
            }
        };
        let width = number(&mut rest)?;
        self.left |= width < 0;
        self.width = usize::try_from(width.unsigned_abs()).unwrap_or(0);
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            self.precision = Some(usize::try_from(number(&mut rest)?).unwrap_or(0));
        }
        Ok(rest.strip_prefix(['h', 'l', 'L']).unwrap_or(rest))
    }

    fn write(&self, out: &mut Text, kind: char, value: &Value) -> Result<(), Error> {
        let needs = |what: &str| failed(format!("`%{kind}` needs {what}, not a {}", value.kind()));
        let cut = |text: String| match self.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text,
        };
        match kind {
            's' => {
                let text = cut(out.spend(python_str(value)?)?);
                self.text(out, &text)
            }
            'r' => {
                let text = cut(out.spend(python_repr(value)?)?);
                self.text(out, &text)
            }
            'a' => {
                let text = cut(escaped(&out.spend(python_repr(value)?)?));
                self.text(out, &text)
            }
            'c' => {
                let one = value.as_str().filter(|text| text.chars().count() == 1);
                let code = as_integer(value).and_then(|code| u32::try_from(code).ok());
                let one =
                    one.map(str::to_owned).or(code.and_then(char::from_u32).map(String::from));
                self.text(out, &one.ok_or_else(|| needs("one character or its number"))?)
            }
            'd' | 'i' | 'u' => {
                // Truncated, as by `int`.
                let float = as_float(value).filter(|number| number.abs() < 1e38);
                let number = as_integer(value).or(float.map(|number| number.trunc() as i128));
                let number = number.ok_or_else(|| needs("a number"))?;
                let digits = self.at_least(number.unsigned_abs().to_string());
                self.number(out, number < 0, "", &digits)
            }
            'x' | 'X' | 'o' => {
                let number = as_integer(value).ok_or_else(|| needs("a whole number"))?;
                let digits = match kind {
                    'x' => format!("{:x}", number.unsigned_abs()),
                    'X' => format!("{:X}", number.unsigned_abs()),
                    _ => format!("{:o}", number.unsigned_abs()),
                };
                let prefix = if self.other_form { format!("0{kind}") } else { String::new() };
                self.number(out, number < 0, &prefix, &self.at_least(digits))
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let number = as_float(value).or(as_integer(value).map(|number| number as f64));
                let number = number.ok_or_else(|| needs("a number"))?;
                let mut digits = self.float(kind.to_ascii_lowercase(), number.abs());
                if kind.is_ascii_uppercase() {
                    digits = digits.to_uppercase();
                }
                let is_negative = number.is_sign_negative() && !number.is_nan();
                self.number(out, is_negative, "", &digits)
            }
            other => Err(failed(format!("`%{other}` is not a Python format"))),
        }
    }

    /// Pads digits with zeros up to the precision.
    fn at_least(&self, digits: String) -> String {
        let lacking = self.precision.unwrap_or(0).saturating_sub(digits.len());
        "0".repeat(lacking) + &digits
    }

    fn float(&self, kind: char, number: f64) -> String {
        if number.is_nan() {
            return "nan".into();
        }
        if number.is_infinite() {
            return "inf".into();
        }
        let precision = self.precision.unwrap_or(6);
        let point = if self.other_form && precision == 0 { "." } else { "" };
        let scientific = |precision: usize| {
            let text = format!("{number:.precision$e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            (digits.to_owned(), exponent.parse::<i32>().unwrap_or(0))
        };
        match kind {
            'f' => format!("{number:.precision$}{point}"),
            'e' => {
                let (digits, exponent) = scientific(precision);
                with_exponent(&(digits + point), exponent)
            }
            _ => {
                let precision = precision.max(1);
                let (digits, exponent) = scientific(precision - 1);
                let significant = i32::try_from(precision).unwrap_or(i32::MAX);
                let trimmed = |digits: &str| {
                    if self.other_form || !digits.contains('.') {
                        return digits.to_owned();
                    }
                    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
                };
                if (-4..significant).contains(&exponent) {
                    let decimals = usize::try_from(significant - 1 - exponent).unwrap_or(0);
                    trimmed(&format!("{number:.decimals$}"))
                } else {
                    with_exponent(&trimmed(&digits), exponent)
                }
            }
        }
    }

    fn number(
        &self,
        out: &mut Text,
        is_negative: bool,
        prefix: &str,
        digits: &str,
    ) -> Result<(), Error> {
        let sign = match (is_negative, self.plus, self.space) {
            (true, ..) => "-",
            (false, true, _) => "+",
            (false, false, true) => " ",
            (false, false, false) => "",
        };
        if self.zero && !self.left {
            let zeros = self.width.saturating_sub(sign.len() + prefix.len() + digits.len());
            return out.push(&format!("{sign}{prefix}{}{digits}", "0".repeat(zeros)));
        }
        self.text(out, &format!("{sign}{prefix}{digits}"))
    }

    /// Pads a text to the width.
    fn text(&self, out: &mut Text, text: &str) -> Result<(), Error> {
        let lacking = self.width.saturating_sub(text.chars().count());
        if !self.left {
            out.pad(' ', lacking)?;
        }
        out.push(text)?;
        out.pad(' ', if self.left { lacking } else { 0 })
    }
}

/// Escapes all non-ASCII characters.
fn escaped(text: &str) -> String {
    let escape = |c: char| match u32::from(c) {
        0..=0x7f => c.to_string(),
        code @ 0x80..=0xff => format!("\\x{code:02x}"),
        code @ 0x100..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    };
    text.chars().map(escape).collect()
}
