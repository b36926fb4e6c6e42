//! Lists and shapes that do not fit are errors, not reads out of bounds.

use kvist_kernels::attend::{self, Out};
use kvist_kernels::{Executor, Tensor3Mut};

use crate::common::{Built, base, build, run_with};

#[test]
fn bad_lists_and_shapes_are_errors() {
    let case = base();
    let fails = |change: &dyn Fn(&mut Built<f32>)| {
        let mut built = build::<f32>(&case);
        change(&mut built);
        let mut o = vec![0f32; 6 * 64];
        run_with(&case, &built, |queries, pool, pages, _, params| {
            let view = Tensor3Mut::contiguous(&mut o, [1, 6, 64]).unwrap();
            let mut out = Out { o: view, lse2: None };
            attend::pages(queries, pool, pages, params, &Executor::inline(), &mut out)
                .unwrap_err()
                .to_string()
        })
    };
    let far = fails(&|b| b.list[0] = 1000);
    assert!(far.contains("frame: expected 0..9, found 1000"), "{far}");
    let long = fails(&|b| b.lens[0] = 1000);
    assert!(long.contains("expected 16 pages for 1000 tokens, found 3"), "{long}");
    let fall = fails(&|b| b.indptr[1] = 70);
    assert!(fall.contains("indptr"), "{fall}");
    let rows = fails(&|b| b.q_indptr[1] = 2);
    assert!(rows.contains("query indptr"), "{rows}");
}

#[test]
fn sinks_that_are_no_logits_are_refused() {
    let mut case = base();
    case.sinks = true;
    for (sink, taken) in [(f32::NAN, false), (f32::INFINITY, false), (f32::NEG_INFINITY, true)] {
        let mut built = build::<f32>(&case);
        built.sinks[1] = sink;
        let mut o = vec![0f32; 6 * 64];
        run_with(&case, &built, |queries, pool, pages, _, params| {
            let view = Tensor3Mut::contiguous(&mut o, [1, 6, 64]).unwrap();
            let mut out = Out { o: view, lse2: None };
            let done = attend::pages(queries, pool, pages, params, &Executor::inline(), &mut out);
            assert_eq!(done.is_ok(), taken, "{sink}: {done:?}");
        });
    }
}

#[test]
fn more_threads_than_any_machine_has_are_refused() {
    let error = Executor::with_threads(Executor::THREADS_MAX + 1).unwrap_err().to_string();
    assert_eq!(error, "threads: expected 1..=1024, found 1025");
}
