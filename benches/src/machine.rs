//! Which machine a result belongs to.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use kvist_kernels::Isa;
use serde::Serialize;

/// The header of a report.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// CPU model as the system names it.
    pub cpu: String,
    /// CPUs this process may use.
    pub cores: usize,
    /// Instruction-set level the kernels use.
    pub isa: &'static str,
    /// Last-level cache in MiB, 0 if unknown.
    pub l3_mib: u64,
    /// State of transparent huge pages.
    pub huge_pages: String,
    /// UTC date and time.
    pub date: String,
    /// Load average over one minute at the start.
    pub load: f64,
    /// Version of kvist.
    pub version: &'static str,
}

impl Machine {
    /// Describes this machine; `date` replaces the system's clock.
    #[must_use]
    pub fn detect(date: Option<&str>) -> Machine {
        Machine {
            cpu: cpu_model(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            isa: Isa::level().name(),
            l3_mib: l3_mib(),
            huge_pages: huge_pages(),
            date: date.map_or_else(utc_now, str::to_owned),
            load: load_average(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn cpu_model() -> String {
    let info = read("/proc/cpuinfo");
    let line = info.lines().find(|l| l.starts_with("model name"));
    let model = line.and_then(|l| l.split(':').nth(1)).map(|m| m.trim().to_owned());
    model.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn l3_mib() -> u64 {
    let size = read("/sys/devices/system/cpu/cpu0/cache/index3/size");
    size.trim().trim_end_matches('K').parse::<u64>().map_or(0, |kib| kib / 1024)
}

fn huge_pages() -> String {
    let modes = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let chosen = modes.split(['[', ']']).nth(1).unwrap_or("unknown");
    chosen.to_owned()
}

fn load_average() -> f64 {
    read("/proc/loadavg").split(' ').next().and_then(|l| l.parse().ok()).unwrap_or(f64::NAN)
}

fn utc_now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    utc(since)
}

/// `YYYY-MM-DDThh:mm:ssZ` of seconds since 1970.
fn utc(seconds: u64) -> String {
    // Civil-from-days: years begin in March so that the leap day comes last.
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (h, m, s) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_826_630), "2000-02-29T12:17:10Z");
    }
}
