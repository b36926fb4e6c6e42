//! A directory that is being written while it is looked at.

use std::sync::atomic::{AtomicBool, Ordering};

use kvist::inspect::{StoreView, VerifyOptions};

use super::common::*;

#[test]
fn a_store_at_work_is_never_called_damaged() {
    let scratch = Scratch::new("used");
    let s = store(&scratch.0);
    let (space, over) = (space(&s, "tenant a"), AtomicBool::new(false));
    put(&space, 0);
    s.run_pending();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..2000 {
                put(&space, n);
                if n % 8 == 0 {
                    s.run_pending();
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        let mut looks = 0;
        while !over.load(Ordering::Relaxed) || looks < 3 {
            let view = StoreView::open(&scratch.0).unwrap();
            let report = view.verify(&VerifyOptions::default()).unwrap();
            assert_eq!(report.damage, vec![], "look {looks}");
            assert_eq!(report.in_use, Some(true));
            assert!(view.inventory().records > 0);
            looks += 1;
        }
    });
    drop((s, space));
    assert_eq!(StoreView::open(&scratch.0).unwrap().in_use(), Some(false));
    assert!(scratch.verify_as(true).clean);
}
