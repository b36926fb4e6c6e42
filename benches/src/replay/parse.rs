//! Orders and tiers as users write them.

use kvist::policies::replace::{Admit, Replace};

use super::TierSpec;
use crate::Error;

impl TierSpec {
    /// A tier that lets all in and is read at no cost.
    #[must_use]
    pub fn new(name: &'static str, blocks: usize, replace: Replace) -> TierSpec {
        TierSpec { name, blocks, replace, admit: None, gbps: None }
    }

    /// As it is written.
    pub(super) fn text(&self) -> String {
        let admit = self.admit.map_or_else(String::new, |a| format!("+{}", a.sightings));
        let gbps = self.gbps.map_or_else(String::new, |gbps| format!("@{gbps}"));
        format!("{}={}:{}{admit}{gbps}", self.name, self.blocks, self.replace.name())
    }
}

/// Orders by name, with commas between them; `all`.
///
/// # Errors
/// [`Error::Policy`] with the nearest name.
pub fn policies(text: &str) -> Result<Vec<Replace>, Error> {
    match text {
        "all" => Ok(Replace::ALL.to_vec()),
        text => Ok(text.split(',').map(Replace::parse).collect::<Result<_, _>>()?),
    }
}

/// Names of tiers, nearest first.
const NAMES: [&str; 4] = ["device", "host", "disk", "remote"];

/// Tiers as `NAME=BLOCKS[:ORDER][+SIGHTINGS][@GBPS]` with commas between them, nearest first: what is offered for
/// the `SIGHTINGS`th time is let in, and read at `GBPS` 10^9 bytes a second.
///
/// # Errors
/// [`Error::BadValue`] with the part that makes no sense; [`Error::Policy`] for unknown orders.
pub fn tiers(text: &str) -> Result<Vec<TierSpec>, Error> {
    text.split(',').map(tier).collect()
}

fn tier(text: &str) -> Result<TierSpec, Error> {
    let wrong = |expected: &str| Error::BadValue {
        flag: "tiers".to_owned(),
        expected: expected.to_owned(),
        found: text.to_owned(),
    };
    let shape =
        "NAME=BLOCKS[:ORDER][+SIGHTINGS][@GBPS], e.g. host=3000:adaptive,disk=30000:lru+2@3";
    let (name, rest) = text.split_once('=').ok_or_else(|| wrong(shape))?;
    let known = NAMES.iter().find(|known| **known == name);
    let name = *known.ok_or_else(|| wrong("a tier named device, host, disk or remote"))?;
    let (rest, gbps) = match rest.split_once('@') {
        Some((rest, gbps)) => (rest, Some(gbps.parse::<f64>().map_err(|_| wrong(shape))?)),
        None => (rest, None),
    };
    if gbps.is_some_and(|gbps| !(gbps > 0.0 && gbps.is_finite())) {
        return Err(wrong("a rate above 0"));
    }
    let (rest, sightings) = match rest.split_once('+') {
        Some((rest, n)) => (rest, Some(n.parse::<u32>().map_err(|_| wrong(shape))?)),
        None => (rest, None),
    };
    let (blocks, order) = rest.split_once(':').unwrap_or((rest, "adaptive"));
    let blocks = blocks.parse::<usize>().ok().filter(|&n| n > 0);
    let blocks = blocks.ok_or_else(|| wrong("blocks, at least 1"))?;
    let admit = sightings.map(|sightings| Admit { sightings, ..Admit::default() });
    if let Some(admit) = &admit {
        admit.check()?;
    }
    Ok(TierSpec { name, blocks, replace: Replace::parse(order)?, admit, gbps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_read_as_they_are_written() {
        let text = "host=30:lru,disk=400:adaptive+2@2.5";
        let specs = tiers(text).unwrap();
        let texts: Vec<String> = specs.iter().map(TierSpec::text).collect();
        assert_eq!(texts.join(","), text);
        assert_eq!(tiers("host=7").unwrap()[0].replace, Replace::Adaptive);
        for (text, expected) in [
            ("", "expected NAME=BLOCKS"),
            ("hst=3", "a tier named"),
            ("host=0", "blocks, at least 1"),
            ("host=3:lrv", "did you mean \"lru\"?"),
            ("host=3+0", "sightings must be at least 1"),
            ("host=3@-1", "a rate above 0"),
        ] {
            let error = tiers(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(policies("all").unwrap().len(), Replace::ALL.len());
        assert!(policies("lru,arcc").unwrap_err().to_string().contains("\"arc\""));
    }
}
