//! Numbers as people read them.

use bytesize::ByteSize;

/// Four digits or so.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "-".into(),
        size if size >= 1e6 => format!("{value:.3e}"),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        size if size >= 1e-3 || size == 0.0 => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

/// A number with its standard error.
pub(super) fn with_error(value: f64, stderr: Option<f64>) -> String {
    stderr.map_or_else(|| short(value), |stderr| format!("{} ± {}", short(value), short(stderr)))
}

/// A difference, with its sign.
pub(super) fn signed(value: f64) -> String {
    if value < 0.0 { format!("−{}", short(-value)) } else { format!("+{}", short(value)) }
}

/// Bytes in binary units.
pub(super) fn bytes(value: f64) -> String {
    ByteSize::b(value.max(0.0) as u64).display().iec().to_string()
}

/// A part in percent.
pub(super) fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

/// The first digits of a hash.
pub(super) fn hash(hash: &str) -> String {
    hash.chars().take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_about_four_digits() {
        let shown = [0.0, 0.123_456, 1.5, 35.317, 218.73, 12_345.6, 2e9, 1e-9, f64::NAN].map(short);
        assert_eq!(shown, ["0.0000", "0.1235", "1.5000", "35.32", "218.7", "12346", "2.000e9", "1.00e-9", "-"]);
        assert_eq!((signed(-1.5), signed(2.0)), ("−1.5000".into(), "+2.0000".into()));
        assert_eq!(bytes(33.0 * 1024.0 * 1024.0), "33.0 MiB");
    }
}
