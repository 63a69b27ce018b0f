//! Durations.

/// Formats a duration in seconds: `0.4 s`, `12 s`, `1:29 min`, `2:05 h`. Negative, NaN, and infinite values
/// give `?`.
///
/// ```
/// use mixdistill::text::duration;
/// assert_eq!(duration(0.42), "0.4 s");
/// assert_eq!(duration(12.3), "12 s");
/// assert_eq!(duration(89.0), "1:29 min");
/// assert_eq!(duration(7500.0), "2:05 h");
/// ```
pub fn duration(seconds: f64) -> String {
    if !(seconds >= 0.0 && seconds.is_finite()) {
        return "?".into();
    }
    // Round first, so that no unit shows 60.
    let tenths = (seconds * 10.0).round();
    if tenths < 100.0 {
        return format!("{:.1} s", tenths / 10.0);
    }
    let whole = seconds.round();
    if whole < 60.0 {
        return format!("{whole} s");
    }
    if whole < 3600.0 {
        return format!("{}:{:02} min", (whole / 60.0).floor(), whole % 60.0);
    }
    let minutes = (seconds / 60.0).round();
    format!("{}:{:02} h", (minutes / 60.0).floor(), minutes % 60.0)
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn no_unit_has_sixty_parts() {
        for (seconds, expected) in [
            (0.0, "0.0 s"),
            (0.04, "0.0 s"),
            (0.4, "0.4 s"),
            (9.94, "9.9 s"),
            (9.96, "10 s"),
            (12.0, "12 s"),
            (59.4, "59 s"),
            (59.6, "1:00 min"),
            (89.0, "1:29 min"),
            (125.0, "2:05 min"),
            (3599.4, "59:59 min"),
            (3599.6, "1:00 h"),
            (7500.0, "2:05 h"),
            (7199.0, "2:00 h"),
            (360_000.0, "100:00 h"),
            (-1.0, "?"),
            (f64::NAN, "?"),
            (f64::INFINITY, "?"),
        ] {
            assert_eq!(duration(seconds), expected, "{seconds}");
        }
    }
}
