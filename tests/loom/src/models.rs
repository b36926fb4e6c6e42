//! What threads do, in every order.

use std::collections::HashSet;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kvist_policies::replace::Replace;
use loom::thread;

use crate::arena::{Arena, Care};
use crate::budget::Budget;
use crate::disk::Refused;
use crate::disk_budget::{DiskBudget, DiskCharge};
use crate::format::BlockKey;
use crate::host::{Body, Entry, Held, Host, block_overhead};
use crate::journal::Journal;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Condvar, Mutex};
use crate::ticket::ticket;
use crate::turn::Turn;

/// Waits until it is woken.
const PATIENT: Duration = Duration::from_secs(60);

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// The value is one thread's at a time, and nobody waits for a turn that is free.
pub fn turns() {
    check(|| {
        let turn = Arc::new(Turn::new(0u32));
        let take =
            |turn: Arc<Turn<u32>>| move || *turn.take(PATIENT).expect("nobody keeps it") += 1;
        let threads = [thread::spawn(take(turn.clone())), thread::spawn(take(turn.clone()))];
        take(turn.clone())();
        threads.into_iter().for_each(|t| t.join().expect("no panic"));
        assert_eq!(turn.retire(PATIENT), Some(3));
    });
}

/// After the value is retired nobody has it any more.
pub fn retired() {
    check(|| {
        let turn = Arc::new(Turn::new(0u32));
        let other = turn.clone();
        let thread = thread::spawn(move || {
            other.take(Duration::ZERO).map(|mut value| *value += 1).is_some()
        });
        let last = turn.retire(PATIENT);
        let took = thread.join().expect("no panic");
        assert_eq!(last, Some(u32::from(took)));
        assert!(turn.take(Duration::ZERO).is_none());
    });
}

/// Who waits gets the result, whenever it comes.
pub fn kept() {
    check(|| {
        let (ticket, promise) = ticket();
        let thread = thread::spawn(move || promise.keep(7));
        assert_eq!(ticket.wait(PATIENT), Some(7));
        thread.join().expect("no panic");
    });
}

/// Who waits for work that is given up, by whichever end, is told so.
pub fn given_up() {
    check(|| {
        let (ticket, promise) = ticket::<u32>();
        let thread = thread::spawn(move || {
            let cancelled = promise.is_cancelled();
            drop(promise);
            cancelled
        });
        ticket.cancel();
        assert_eq!(ticket.wait(PATIENT), None);
        thread.join().expect("no panic");
    });
}

/// A count that a waker raises.
struct Woken(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Woken {
    fn wake(self: std::sync::Arc<Woken>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

/// A ticket that says "not yet" wakes whoever asked, once; one that says "ready" has the result.
pub fn awaited() {
    check(|| {
        let (mut ticket, promise) = ticket();
        let thread = thread::spawn(move || promise.keep(7));
        let woken = std::sync::Arc::new(Woken(0.into()));
        let waker = Waker::from(woken.clone());
        let first = Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker));
        thread.join().expect("no panic");
        let times = woken.0.load(std::sync::atomic::Ordering::SeqCst);
        match first {
            Poll::Ready(result) => assert_eq!((result, times), (Some(7), 0)),
            Poll::Pending => {
                assert_eq!(times, 1, "nobody was woken");
                let again = Pin::new(&mut ticket).poll(&mut Context::from_waker(Waker::noop()));
                assert_eq!(again, Poll::Ready(Some(7)));
            }
        }
    });
}

/// Charges never exceed the limit, are all or nothing, and come back.
pub fn budget() {
    check(|| {
        let budget = Arc::new(Budget::new(100));
        let holders = Arc::new(AtomicUsize::new(0));
        let charge = |budget: Arc<Budget>, holders: Arc<AtomicUsize>| {
            move || {
                if budget.charge(60).is_ok() {
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "two of 60 in 100");
                    assert!(budget.used() <= 100);
                    holders.fetch_sub(1, Ordering::SeqCst);
                    budget.release(60);
                }
            }
        };
        let threads = [
            thread::spawn(charge(budget.clone(), holders.clone())),
            thread::spawn(charge(budget.clone(), holders.clone())),
        ];
        charge(budget.clone(), holders)();
        threads.into_iter().for_each(|t| t.join().expect("no panic"));
        assert_eq!(budget.used(), 0);
    });
}

/// A file's charge that two threads shrink is given back once.
pub fn disk_budget() {
    check(|| {
        let budget = DiskBudget::new(100);
        let charge = Arc::new(budget.charge(80, 20).expect("it fits"));
        let shrink = |bytes, charge: Arc<DiskCharge>| move || charge.shrink_to(bytes);
        let threads =
            [thread::spawn(shrink(50, charge.clone())), thread::spawn(shrink(30, charge.clone()))];
        let more = budget.charge(40, 20);
        threads.into_iter().for_each(|t| t.join().expect("no panic"));
        let expected = 30 + if more.is_some() { 40 } else { 0 };
        assert_eq!((charge.bytes(), budget.used()), (30, expected));
        drop((charge, more));
        assert_eq!(budget.used(), 0);
    });
}

fn key(n: u8) -> BlockKey {
    BlockKey([n; 32])
}

/// A host tier for so many blocks.
fn host(blocks: u64) -> (Arc<Host>, Arc<Arena>) {
    let (care, journal) = (Care { wipes: true, stays: false }, Arc::new(Journal::default()));
    let each = 1 + block_overhead(Replace::Lru);
    let host = Host::new(blocks * each, Replace::Lru, care, journal);
    let arena = host.arena(1).expect("a size");
    (Arc::new(host), arena)
}

/// Puts a block whose byte is its number.
fn put(host: &Host, arena: &Arc<Arena>, n: u8) -> Result<(), Refused> {
    let mut room = host.room(arena).ok_or(Refused::Throttled)?;
    room.bytes()[0] = n;
    host.publish(&entry(host, n), room, None, |_| Ok(()))
}

fn entry(host: &Host, n: u8) -> Entry {
    Entry { key: key(n), parent: None, owner: host.owner(0, 0), priority: 0 }
}

fn holds(held: &Held, n: u8) {
    let Body::Own(cell) = &held.body else { panic!("nothing is lent") };
    assert_eq!(cell.read(), n, "the bytes of another block");
}

/// Who holds a block sees its bytes, though it is evicted, removed or its memory is wanted.
pub fn leases() {
    check(|| {
        let (host, arena) = host(1);
        put(&host, &arena, 1).expect("there is room");
        let (reader, other) = (host.clone(), (host.clone(), arena.clone()));
        let reading = thread::spawn(move || {
            if let Some(held) = reader.get(&key(1)) {
                holds(&held, 1);
                let again = held.clone();
                drop(held);
                holds(&again, 1);
            }
        });
        let putting = thread::spawn(move || put(&other.0, &other.1, 2).is_ok());
        reading.join().expect("no panic");
        let put = putting.join().expect("no panic");
        assert_eq!((host.contains(&key(1), 0), host.contains(&key(2), 0)), (!put, put));
        if let Some(held) = host.get(&key(2)) {
            holds(&held, 2);
        }
        host.clear();
        assert_eq!(host.budget().used(), 0);
    });
}

/// Of two who put one block, one does; whoever removes it takes it away once.
pub fn published() {
    check(|| {
        let (host, arena) = host(2);
        let other = (host.clone(), arena.clone());
        let remover = host.clone();
        let putting = thread::spawn(move || put(&other.0, &other.1, 1));
        let removing = thread::spawn(move || remover.remove(&key(1)));
        let mine = put(&host, &arena, 1);
        let theirs = putting.join().expect("no panic");
        let removed = removing.join().expect("no panic");
        let puts = usize::from(mine.is_ok()) + usize::from(theirs.is_ok());
        let there = usize::from(host.contains(&key(1), 0));
        assert_eq!(puts, there + usize::from(removed), "{mine:?} {theirs:?} {removed}");
        if let Some(held) = host.get(&key(1)) {
            holds(&held, 1);
        }
        host.clear();
        assert_eq!(host.budget().used(), 0);
    });
}

/// A block that was sent for before it was evicted does not come back with what lands.
pub fn landing() {
    check(|| {
        let (host, arena) = host(2);
        let since = host.moment();
        let evictor = host.clone();
        let evicting = thread::spawn(move || {
            let closed = evictor.close_landing();
            evictor.remove_all(&[key(1)], HashSet::new);
            drop(closed);
        });
        let mut room = host.room(&arena).expect("there is room");
        room.bytes()[0] = 1;
        let held = host.land(&entry(&host, 1), room, since);
        holds(&held, 1);
        evicting.join().expect("no panic");
        holds(&held, 1);
        assert!(!host.contains(&key(1), 0), "evicted, and back");
        drop(held);
        assert_eq!(host.budget().used(), 0);
    });
}

/// The shim's own condition variable wakes whom it should: without, the others would prove nothing.
pub fn woken() {
    check(|| {
        let pair = Arc::new((Mutex::new(false), Condvar::new()));
        let other = pair.clone();
        let thread = thread::spawn(move || {
            *other.0.lock() = true;
            other.1.notify_one();
        });
        let mut guard = pair.0.lock();
        pair.1.wait_while_for(&mut guard, |set| !*set, PATIENT);
        assert!(*guard);
        drop(guard);
        thread.join().expect("no panic");
    });
}
