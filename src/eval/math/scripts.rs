//! Converts the digits of all scripts, and the full-width forms of letters and signs, to ASCII, so that all
//! other rules only deal with ASCII digits.

use std::borrow::Cow;

/// The zeros of Unicode's decimal digits (general category Nd) beyond ASCII. Nine digits follow each.
const ZEROS: [u32; 70] = [
    0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66,
    0x0DE6, 0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90,
    0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10,
    0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650,
    0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x11F50, 0x16A60, 0x16AC0,
    0x16B50, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E4F0, 0x1E950,
    0x1FBF0, 0x10D40, 0x11BF0, 0x1CCF0,
];

/// Converts a decimal digit of any script, or the full-width form of a letter or a sign, to ASCII. Other
/// characters stay.
pub fn plain_character(character: char) -> char {
    let code = u32::from(character);
    if code < 0x0660 {
        return character;
    }
    if let Some(zero) = ZEROS.iter().find(|zero| (**zero..**zero + 10).contains(&code)) {
        return char::from_digit(code - zero, 10).unwrap_or(character);
    }
    match character {
        // Arabic decimal and thousands separators.
        '٫' => '.',
        '٬' => ',',
        '٪' | '％' => '%',
        '（' => '(',
        '）' => ')',
        '＋' => '+',
        '－' => '-',
        '＝' => '=',
        '／' => '/',
        '＜' => '<',
        '＞' => '>',
        'Ａ'..='Ｚ' | 'ａ'..='ｚ' => char::from_u32(code - 0xFEE0).unwrap_or(character),
        _ => character,
    }
}

/// Returns a text with its digits in ASCII.
pub fn plain(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || text.chars().all(|c| plain_character(c) == c) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(plain_character).collect())
}
