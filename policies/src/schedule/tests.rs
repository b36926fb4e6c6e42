//! The schedule against a plain oracle, against the best there is, and against starving.

use proptest::prelude::*;

use super::*;

fn candidate(id: u64) -> impl Strategy<Value = Candidate> {
    let stand = prop_oneof![
        (0u64..60, -3i64..9).prop_map(|(since, level)| Stand::In { since, level }),
        (0u64..60).prop_map(|since| Stand::Out { since }),
    ];
    (-3i32..4, stand, prop::option::of(0u64..100), 0u64..5, 0u64..20).prop_map(
        move |(priority, stand, wake, admitted, bytes)| Candidate {
            id,
            priority,
            stand,
            wake,
            admitted,
            bytes,
        },
    )
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    (0u64..12).prop_flat_map(|n| (0..n).map(candidate).collect::<Vec<_>>())
}

fn schedule() -> impl Strategy<Value = Schedule> {
    (0u64..20, 0u64..20, 0u64..20).prop_map(|(ageing, turn, lead)| Schedule { ageing, turn, lead })
}

/// Whether `a` gets memory before `b`, rule by rule.
fn before(s: &Schedule, now: u64, a: &Candidate, b: &Candidate) -> bool {
    let runs = |c: &Candidate| c.wake.is_none_or(|wake| wake <= now + s.lead);
    let is_in = |c: &Candidate| matches!(c.stand, Stand::In { .. });
    if runs(a) != runs(b) {
        return runs(a);
    }
    if !runs(a) {
        if is_in(a) != is_in(b) {
            return is_in(a);
        }
        if a.wake != b.wake {
            return a.wake < b.wake;
        }
    }
    let level = |c: &Candidate| s.level(now, c);
    if level(a) != level(b) {
        return level(a) > level(b);
    }
    if is_in(a) != is_in(b) {
        return is_in(a);
    }
    (a.admitted, a.id) < (b.admitted, b.id)
}

/// The plan, by looking for the first again and again.
fn oracle(s: &Schedule, now: u64, room: u64, all: &[Candidate]) -> Plan {
    let (mut left, mut used, mut plan) = (all.to_vec(), 0, Plan::default());
    while !left.is_empty() {
        let first = (0..left.len())
            .find(|&i| left.iter().all(|c| c.id == left[i].id || before(s, now, &left[i], c)))
            .expect("the order is total");
        let c = left.remove(first);
        let gets = used + c.bytes <= room;
        used += if gets { c.bytes } else { 0 };
        match c.stand {
            Stand::In { .. } if !gets => plan.out.insert(0, c.id),
            Stand::Out { .. } if gets => plan.back.push(c.id),
            _ => {}
        }
    }
    plan
}

proptest! {
    #[test]
    fn the_plan_is_the_oracles((s, all, now, room) in (schedule(), candidates(), 0u64..120, 0u64..80)) {
        prop_assert_eq!(s.plan(now, room, &all), oracle(&s, now, room, &all));
    }

    #[test]
    fn the_order_of_the_list_does_not_matter(
        (s, all, now, room, turn) in (schedule(), candidates(), 0u64..120, 0u64..80, 0usize..12),
    ) {
        let mut other = all.clone();
        other.rotate_left(if all.is_empty() { 0 } else { turn % all.len() });
        prop_assert_eq!(s.plan(now, room, &all), s.plan(now, room, &other));
    }

    #[test]
    fn priority_is_strict_among_those_who_run(
        (mut all, now, room) in (candidates(), 0u64..120, 0u64..12),
    ) {
        let s = Schedule { ageing: 0, turn: 0, lead: 0 };
        all.iter_mut().for_each(|c| (c.bytes, c.wake) = (1, None));
        let plan = s.plan(now, room, &all);
        let gets = |c: &Candidate| match c.stand {
            Stand::In { .. } => !plan.out.contains(&c.id),
            Stand::Out { .. } => plan.back.contains(&c.id),
        };
        let least = all.iter().filter(|c| gets(c)).map(|c| c.priority).min();
        let most = all.iter().filter(|c| !gets(c)).map(|c| c.priority).max();
        prop_assert!(least.zip(most).is_none_or(|(in_, out)| in_ >= out));
        prop_assert_eq!(all.iter().filter(|c| gets(c)).count() as u64, room.min(all.len() as u64));
    }

    #[test]
    fn numbers_at_their_ends_do_no_harm(
        (now, since, wake, level) in (any::<u64>(), any::<u64>(), any::<u64>(), any::<i64>()),
    ) {
        let c = |id, stand| Candidate {
            id, priority: i32::MAX, stand, wake: Some(wake), admitted: u64::MAX, bytes: u64::MAX,
        };
        let all = [c(0, Stand::Out { since }), c(1, Stand::In { since, level })];
        let s = Schedule { ageing: 1, turn: u64::MAX, lead: u64::MAX };
        prop_assert!(s.plan(now, u64::MAX, &all).back.len() <= 1);
    }

    /// Steps that come at known times, one at a time: no schedule brings back fewer.
    #[test]
    fn with_known_wakes_nobody_brings_back_less(
        (steps, room) in (prop::collection::vec(0u64..5, 1..11), 1usize..4),
    ) {
        let next = |id: u64, from: usize| steps[from..].iter().position(|&s| s == id).map(|n| from + n);
        let far = steps.len() as u64 * 2;
        let (mut inside, mut brought) = (Vec::<u64>::new(), 0);
        for (t, &step) in steps.iter().enumerate() {
            let all: Vec<Candidate> = (0..5).map(|id| Candidate {
                id,
                priority: 0,
                stand: match inside.contains(&id) {
                    true => Stand::In { since: 0, level: 0 },
                    false => Stand::Out { since: t as u64 },
                },
                wake: Some(next(id, t).map_or(far, |n| n as u64)),
                admitted: id,
                bytes: 1,
            }).collect();
            let plan = Schedule::default().plan(t as u64, room as u64, &all);
            inside.retain(|id| !plan.out.contains(id));
            // Room that nobody needs is not worth a transfer here.
            let back = plan.back.iter().filter(|&&id| next(id, 0).is_some());
            for &id in back {
                inside.push(id);
                brought += 1;
            }
            prop_assert!(inside.contains(&step) && inside.len() <= room);
        }
        prop_assert_eq!(brought, fewest(&steps, room));
    }

    /// Whoever waits runs at last, whatever comes.
    #[test]
    fn nobody_starves(
        (priorities, room, arrivals) in
            (prop::collection::vec(0i32..4, 3..8), 1u64..3, prop::collection::vec(0u64..4, 1..5)),
    ) {
        let s = Schedule { ageing: 10, turn: 5, lead: 0 };
        let mut all: Vec<Candidate> = priorities.iter().zip(0..).map(|(&priority, id)| Candidate {
            id, priority, stand: Stand::Out { since: 0 }, wake: None, admitted: id, bytes: 1,
        }).collect();
        let first = all.len();
        let mut ran = vec![false; first];
        for now in 0..1200u64 {
            // Others of the highest priority come all the time, and stay for a while.
            if arrivals[now as usize % arrivals.len()] == 0 {
                let id = all.last().map_or(0, |c| c.id) + 1;
                let stand = Stand::Out { since: now };
                all.push(Candidate { id, priority: 3, stand, wake: None, admitted: now, bytes: 1 });
            }
            let plan = s.plan(now, room, &all);
            for c in &mut all {
                if plan.out.contains(&c.id) {
                    c.stand = Stand::Out { since: now };
                } else if plan.back.contains(&c.id) {
                    let level = s.level(now, c);
                    c.stand = Stand::In { since: now, level };
                    if let Some(ran) = ran.get_mut(c.id as usize) {
                        *ran = true;
                    }
                }
            }
            let done = |c: &Candidate| matches!(c.stand, Stand::In { since, .. } if now - since >= 7);
            all.retain(|c| c.id < first as u64 || !done(c));
        }
        prop_assert!(ran.iter().all(|&ran| ran), "{:?} of {:?}", ran, priorities);
    }
}

/// The fewest that must be brought in, by trying everything.
fn fewest(steps: &[u64], room: usize) -> usize {
    fn go(steps: &[u64], inside: &[u64], room: usize) -> usize {
        let Some((step, rest)) = steps.split_first() else { return 0 };
        if inside.contains(step) {
            return go(rest, inside, room);
        }
        let with = |keep: Vec<u64>| go(rest, &[&keep[..], &[*step]].concat(), room);
        if inside.len() < room {
            return 1 + with(inside.to_vec());
        }
        let without = |out: &u64| inside.iter().filter(|&id| id != out).copied().collect();
        1 + inside.iter().map(|out| with(without(out))).min().unwrap_or_else(|| with(Vec::new()))
    }
    go(steps, &[], room)
}

#[test]
fn who_sleeps_longest_leaves_first_and_who_wakes_soonest_returns() {
    let c = |id, wake, is_in| Candidate {
        id,
        priority: 0,
        stand: if is_in { Stand::In { since: 0, level: 0 } } else { Stand::Out { since: 0 } },
        wake,
        admitted: id,
        bytes: 10,
    };
    let all = [
        c(1, Some(500), true),
        c(2, Some(900), true),
        c(3, None, true),
        c(4, None, false),
        c(5, Some(110), false),
    ];
    let s = Schedule::default();
    // 4 runs, so 2 makes room; 5 does not run yet.
    assert_eq!(s.plan(100, 30, &all), Plan { out: vec![2], back: vec![4] });
    // Bringing it back takes 10 ticks: now it is time.
    let s = Schedule { lead: 10, ..s };
    assert_eq!(s.plan(100, 30, &all), Plan { out: vec![2, 1], back: vec![4, 5] });
}
