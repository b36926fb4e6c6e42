//! Numbers as people read them.

/// Bytes with a unit.
#[must_use]
pub fn bytes(n: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut x = n as f64 / 1024.0;
    let mut unit = 0;
    while x >= 1000.0 && unit + 1 < units.len() {
        x /= 1024.0;
        unit += 1;
    }
    format!("{x:.1} {}", units[unit])
}

/// A speed.
#[must_use]
pub fn rate(bytes_per_s: f64) -> String {
    match bytes_per_s {
        r if r >= 1e9 => format!("{:.1} GB/s", r / 1e9),
        r if r >= 1e6 => format!("{:.0} MB/s", r / 1e6),
        r => format!("{:.2} MB/s", r / 1e6),
    }
}

/// A time.
#[must_use]
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.1} s"),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}

/// A number of tokens, or of them in a second.
#[must_use]
pub fn count(n: f64) -> String {
    match n {
        n if n >= 1e7 => format!("{:.1} million", n / 1e6),
        n if n >= 1e4 => format!("{:.0} thousand", n / 1e3),
        n if n >= 10.0 => format!("{n:.0}"),
        n => format!("{n:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_two_or_three_digits() {
        let shown = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 30, "1.0 GiB")];
        for (n, text) in shown {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(1023 << 20), "1.0 GiB");
        assert_eq!(
            (rate(2.34e9), rate(4.6e7), rate(5e4)),
            ("2.3 GB/s".into(), "46 MB/s".into(), "0.05 MB/s".into())
        );
        assert_eq!(
            (time(2.0), time(0.0021), time(4e-7)),
            ("2.0 s".into(), "2.1 ms".into(), "0.4 us".into())
        );
        assert_eq!(
            (count(2.75), count(4096.0), count(2.5e7)),
            ("2.75".into(), "4096".into(), "25.0 million".into())
        );
    }
}
