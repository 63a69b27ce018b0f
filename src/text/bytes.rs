//! Amounts of memory and disk space.

/// Formats a number of bytes: `12 MiB`, `1.46 GiB`, `120 GiB`. Negative, NaN, and infinite values give `?`.
///
/// ```
/// use mixdistill::text::bytes;
/// assert_eq!(bytes(12.0 * 1024.0 * 1024.0), "12 MiB");
/// assert_eq!(bytes(1.46 * 1024f64.powi(3)), "1.46 GiB");
/// assert_eq!(bytes(22.9 * 1024f64.powi(3)), "22.9 GiB");
/// ```
pub fn bytes(bytes: f64) -> String {
    if !(bytes >= 0.0 && bytes.is_finite()) {
        return "?".into();
    }
    let mib = bytes / 1024.0 / 1024.0;
    // Round first, to avoid `1024 MiB`.
    match mib.round() {
        0.0 if bytes > 0.0 => "below 1 MiB".into(),
        whole if whole < 1024.0 => format!("{whole} MiB"),
        _ => {
            let gib = mib / 1024.0;
            match gib {
                gib if gib < 9.995 => format!("{gib:.2} GiB"),
                gib if gib < 99.95 => format!("{gib:.1} GiB"),
                gib => format!("{gib:.0} GiB"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn amounts_have_three_digits_and_a_unit() {
        let mib = 1024.0 * 1024.0;
        for (amount, expected) in [
            (0.0, "0 MiB"),
            (1000.0, "below 1 MiB"),
            (mib, "1 MiB"),
            (1023.4 * mib, "1023 MiB"),
            (1023.6 * mib, "1.00 GiB"),
            (9.99 * 1024.0 * mib, "9.99 GiB"),
            (9.996 * 1024.0 * mib, "10.0 GiB"),
            (99.96 * 1024.0 * mib, "100 GiB"),
            (-1.0, "?"),
            (f64::NAN, "?"),
        ] {
            assert_eq!(bytes(amount), expected, "{amount}");
        }
    }
}
