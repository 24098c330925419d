//! Numbers as people read them.

use bytesize::ByteSize;

/// Four digits or so.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "-".into(),
        size if size >= 1e6 => format!("{value:.3e}"),
        size if size < 1e-3 && size > 0.0 => format!("{value:.2e}"),
        size => format!("{value:.*}", decimals(size)),
    }
}

/// Decimals that leave about four digits.
fn decimals(size: f64) -> usize {
    match size {
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        size if size >= 1.0 => 3,
        _ => 4,
    }
}

/// A number on an axis: without zeros at its end.
pub(super) fn tick(value: f64) -> String {
    let text = short(value);
    match text.contains('.') && !text.contains('e') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A number with its standard error, to as many decimals.
pub(super) fn with_error(value: f64, stderr: Option<f64>) -> String {
    let error = |stderr: f64| match decimals(value.abs()) {
        decimals if stderr == 0.0 || 2.0 * stderr * 10_f64.powi(decimals as i32) >= 1.0 => {
            format!("{stderr:.decimals$}")
        }
        _ => short(stderr),
    };
    stderr.map_or_else(|| short(value), |stderr| format!("{} ± {}", short(value), error(stderr)))
}

/// A difference with its sign and standard error.
pub(super) fn signed(value: f64, stderr: Option<f64>) -> String {
    format!("{}{}", if value < 0.0 { '−' } else { '+' }, with_error(value.abs(), stderr))
}

/// The binary unit for sizes up to `most`: its bytes and name.
pub(super) fn unit(most: f64) -> (f64, &'static str) {
    let units = [(1024_f64.powi(3), "GiB"), (1024_f64.powi(2), "MiB"), (1024.0, "KiB")];
    units.into_iter().find(|(bytes, _)| most >= *bytes).unwrap_or((1.0, "bytes"))
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
        assert_eq!(shown, ["0.0000", "0.1235", "1.500", "35.32", "218.7", "12346", "2.000e9", "1.00e-9", "-"]);
        assert_eq!(signed(-1.5, None), "−1.500");
        assert_eq!(with_error(35.317, Some(2.6915)), "35.32 ± 2.69");
        assert_eq!(with_error(1114.2, Some(0.01)), "1114 ± 0.0100");
        assert_eq!([0.95, 100.0, 512.0, 1500.0].map(tick), ["0.95", "100", "512", "1500"]);
        assert_eq!(unit(3.0 * 1024.0 * 1024.0), (1024.0 * 1024.0, "MiB"));
        assert_eq!(bytes(33.0 * 1024.0 * 1024.0), "33.0 MiB");
    }
}
