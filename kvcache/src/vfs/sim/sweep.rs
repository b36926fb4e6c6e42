//! Every fault at every call.

use std::panic::{RefUnwindSafe, catch_unwind};

use super::{Fault, When};

/// Every fault at every N-th call, once and from then on, until it strikes no more. `run` says how
/// often it did. `KVIST_CASE` picks one case. Returns the number of runs.
pub(crate) fn each_fault(
    name: &str,
    seed: Option<u64>,
    run: impl Fn(Fault, When) -> u64 + RefUnwindSafe,
) -> u64 {
    let only = std::env::var("KVIST_CASE").ok();
    let replay = seed.map_or(String::new(), |seed| format!("KVIST_SEED={seed} "));
    let mut runs = 0;
    for (fault, from) in Fault::ALL.into_iter().flat_map(|f| [(f, false), (f, true)]) {
        let mut n = 0;
        loop {
            // Refusals that never end cost real time.
            let slow = from && matches!(fault, Fault::WouldBlock | Fault::Interrupted);
            n = if slow { n * 6 + 1 } else { n + 1 };
            let case = format!("{name}.{fault:?}.{from}.{n}");
            if only.as_ref().is_some_and(|c| *c != case) && n < 300 {
                continue;
            }
            let when = if from { When::From(n) } else { When::Nth(n) };
            let fired = catch_unwind(|| run(fault, when)).unwrap_or_else(|e| {
                let text = e.downcast_ref::<String>().cloned().unwrap_or_default();
                panic!("{replay}KVIST_CASE={case}: {text}")
            });
            runs += 1;
            if fired == 0 || only.is_some() {
                break;
            }
        }
    }
    runs
}
