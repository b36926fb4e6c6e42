//! A GPU that fails at any call of its driver: the results are those of the CPU.

use kvist::kernels::cuda::Error as GpuError;
use kvist::{AttendOptions, Builder, Cache, DeviceOptions, Quest, Select};

use crate::pair::{Pair, geometry};

fn base() -> Builder {
    of(Select::Full)
}

fn of(select: Select) -> Builder {
    Cache::builder(geometry()).host_bytes(1 << 20).select(select).threads(1)
}

fn fail_at(call: usize, code: u32) {
    // SAFETY: no other thread runs.
    unsafe { std::env::set_var("FAKE_FAIL_AT", format!("{call}={code}")) }
}

/// A short life with the fault; whether it came.
fn live(select: &Select, call: usize, code: u32, optional: bool) -> bool {
    fail_at(call, code);
    let options = DeviceOptions::default().bytes(16 * geometry().page_bytes() as u64);
    let base = || of(select.clone());
    let gpu = base().prefault(true).device(options.optional(optional));
    if !optional && let Err(e) = gpu.clone().build() {
        assert!(matches!(e, kvist::Error::Gpu(_)), "{e}");
        return true;
    }
    fail_at(call, code + 1000);
    fail_at(call, code);
    let mut pair = Pair::new(gpu, base(), call as u64);
    pair.append(0, 40);
    for _ in 0..3 {
        pair.append(0, 1);
        pair.attend(0, 1, &AttendOptions::default());
    }
    let done = pair.gpu.device().unwrap();
    let Some(degraded) = done.degraded else {
        // Without memory for its steps, the GPU attends to what the CPU chooses.
        let chosen = if matches!(select, Select::Quest(_)) { done.selections } else { done.calls };
        return done.calls.min(chosen) < pair.attended as u64;
    };
    // Before there was a GPU, anything may be the matter.
    let cause = degraded.cause;
    match code {
        _ if done.name.is_empty() => {}
        2 => assert!(matches!(cause, GpuError::OutOfMemory { .. }), "{cause:?}"),
        _ => assert!(matches!(cause, GpuError::DeviceLost { .. }), "{cause:?}"),
    }
    true
}

pub(crate) fn every_call() {
    let select = Select::Quest(Quest { budget: 32, ..Quest::default() });
    for (select, code) in [(&Select::Full, 719), (&Select::Full, 2), (&select, 719), (&select, 2)] {
        // The first and the last call of each attention ask for the thread's context: if that is not told, it
        // is not put back, and that is all.
        let (mut faults, mut quiet, mut call) = (0, 0, 0);
        while quiet < 20 {
            call += 1;
            let fault = live(select, call, code, true);
            (faults, quiet) = if fault { (faults + 1, 0) } else { (faults, quiet + 1) };
        }
        assert!(faults > 60, "{faults} calls with {code}");
    }
    for call in [1, 5, 20, 40] {
        live(&select, call, 719, false);
    }
    // Memory comes back: the GPU is used again.
    fail_at(1_000_000, 2);
    let options = DeviceOptions::default().bytes(20 * geometry().page_bytes() as u64);
    let mut pair = Pair::new(base().device(options), base(), 1);
    pair.append(0, 40);
    pair.attend(0, 1, &AttendOptions::default());
    fail_at(3, 2);
    pair.attend(0, 1, &AttendOptions::default());
    let done = pair.gpu.device().unwrap();
    assert!(done.degraded.is_some() && done.calls_on_cpu > 0, "{done:?}");
    for _ in 0..40 {
        pair.attend(0, 1, &AttendOptions::default());
    }
    let again = pair.gpu.device().unwrap();
    assert!(again.degraded.is_none() && again.calls > done.calls, "{again:?}");
    // A GPU that is lost stays so, and what it did is remembered.
    fail_at(3, 719);
    for _ in 0..40 {
        pair.attend(0, 1, &AttendOptions::default());
    }
    let lost = pair.gpu.device().unwrap();
    assert!(matches!(lost.degraded.unwrap().cause, GpuError::DeviceLost { .. }));
    assert!(lost.calls >= again.calls && lost.budget_bytes == 0);
}
