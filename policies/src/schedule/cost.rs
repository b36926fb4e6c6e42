//! What bringing a sequence back costs, against computing it again.

/// What the machine does in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Tokens of a prompt that the model computes.
    pub prefill_tokens: f64,
    /// Bytes that come from the tier below.
    pub read_bytes: f64,
    /// Bytes that go there.
    pub write_bytes: f64,
}

/// How a preempted sequence is to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Store what is not stored yet, read it all when it runs again.
    Swap,
    /// Forget it, and compute its keys and values again.
    Recompute,
}

/// Whether a sequence of so many tokens is stored, and `bytes` read back, of which `unstored` are not
/// stored yet, or is computed again: whichever is sooner done, storing if neither is. A rate that is not
/// positive means that it cannot be done at all.
#[must_use]
pub fn again(tokens: u64, bytes: u64, unstored: u64, rates: &Rates) -> Again {
    let swap = seconds(bytes, rates.read_bytes) + seconds(unstored, rates.write_bytes);
    match seconds(tokens, rates.prefill_tokens) < swap {
        true => Again::Recompute,
        false => Again::Swap,
    }
}

fn seconds(n: u64, rate: f64) -> f64 {
    match n {
        0 => 0.0,
        _ if rate > 0.0 => n as f64 / rate,
        _ => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates { prefill_tokens: 1000.0, read_bytes: 1e6, write_bytes: 5e5 };

    #[test]
    fn the_sooner_one_wins_and_storing_where_both_are() {
        // A second to compute, 0.9 to read, and as much to write as is not stored.
        assert_eq!(again(1000, 900_000, 0, &RATES), Again::Swap);
        assert_eq!(again(1000, 900_000, 50_000, &RATES), Again::Swap);
        assert_eq!(again(1000, 900_000, 50_001, &RATES), Again::Recompute);
        assert_eq!(again(0, 0, 0, &RATES), Again::Swap);
        assert_eq!(again(0, 1, 0, &RATES), Again::Recompute);
    }

    #[test]
    fn what_cannot_be_done_is_not_chosen() {
        for bad in [0.0, -1.0, f64::NAN] {
            let slow = Rates { prefill_tokens: bad, ..RATES };
            assert_eq!(again(1, u64::MAX, u64::MAX, &slow), Again::Swap);
            let no_disk = Rates { write_bytes: bad, ..RATES };
            assert_eq!(again(u64::MAX, 1, 1, &no_disk), Again::Recompute);
            assert_eq!(again(1 << 40, 1, 0, &no_disk), Again::Swap, "all is stored");
        }
    }
}
