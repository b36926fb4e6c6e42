//! Destinations that do not take a sequence.

use super::scene::{seen, serving};
use super::*;
use crate::migrate::{
    Destination, Ended, Finished, MigrateOptions, MigrationId, Outgoing, Refusal,
};
use crate::{Cache, Error, Select, Sequence};

const ID: MigrationId = MigrationId { sequence: [1; 16], epoch: 4 };

fn filled(cache: &Cache, n: usize) -> Sequence {
    let mut s = cache.sequence();
    Script::Append(n).play(&mut s, 1);
    s
}

/// What a destination says to a sequence of the usual scene.
fn refused(to: &Cache) -> Refusal {
    let from = Scene::default().cache(0);
    let sequence = filled(&from, 500);
    let before = seen(&sequence);
    let destination = Destination::new(to);
    let [source, far] = Way::Local.ends(None);
    let served = serving(&destination, far);
    let error = Outgoing::offer(&sequence, ID, source, MigrateOptions::default()).unwrap_err();
    served.join().unwrap().1.unwrap();
    assert_eq!((to.stats().used_bytes, destination.open()), (0, 0));
    assert_eq!(seen(&sequence), before);
    match error {
        Error::Migrate(Ended::Refused(refusal)) => refusal,
        other => panic!("{other}"),
    }
}

#[test]
fn another_model_shape_or_selector_is_refused() {
    let scene = Scene::default();
    assert_eq!(refused(&scene.builder(1).model("others").build().unwrap()), Refusal::Model);
    let pages = Scene { page_tokens: 32, ..scene.clone() };
    let Refusal::Geometry { expected, found } = refused(&pages.cache(1)) else { panic!() };
    assert!(
        expected.contains("pages of 32") && found.contains("pages of 64"),
        "{expected} {found}"
    );
    let full = Scene { select: Select::Full, ..scene.clone() };
    assert_eq!(refused(&full.cache(1)), Refusal::Selector);
    let dense = scene.builder(1).dense_layers(&[1]).build().unwrap();
    assert_eq!(refused(&dense), Refusal::Selector);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_sent() {
    let small = Scene { host_bytes: [4 << 20, 96 << 10], ..Scene::default() };
    let Refusal::NoRoom { needed, free } = refused(&small.cache(1)) else { panic!() };
    assert!(needed > free && free <= 96 << 10, "{needed} of {free}");
}

#[test]
fn what_grows_beyond_the_room_is_refused_and_stays() {
    let scene = Scene { host_bytes: [4 << 20, 192 << 10], ..Scene::default() };
    let (from, to) = (scene.cache(0), scene.cache(1));
    let mut sequence = filled(&from, 500);
    let destination = Destination::new(&to);
    let [source, far] = Way::Socket.ends(None);
    let served = serving(&destination, far);
    let mut moving = Outgoing::offer(&sequence, ID, source, MigrateOptions::default()).unwrap();
    assert!(to.stats().used_bytes > 64 << 10, "its room is reserved");
    moving.round(sequence.fork()).unwrap();
    Script::Append(3000).play(&mut sequence, 2);
    let error = moving.round(sequence.fork()).unwrap_err();
    assert!(matches!(error, Error::Migrate(Ended::Refused(Refusal::NoRoom { .. }))), "{error}");
    let again = moving.round(sequence.fork()).unwrap_err();
    assert_eq!(again, Error::Migrate(Ended::Over));
    let Finished::Kept(sequence, error) = moving.finish(sequence) else { panic!() };
    assert_eq!((error, sequence.len()), (Error::Migrate(Ended::Over), 3500));
    served.join().unwrap().1.unwrap();
    assert_eq!((to.stats().used_bytes, destination.open()), (0, 0));
}

#[test]
fn a_link_serves_many_migrations_and_epochs_only_rise() {
    let scene = Scene::default();
    let (from, to) = (scene.cache(0), scene.cache(1));
    let destination = Destination::new(&to);
    let [mut source, far] = Way::Local.ends(None);
    let served = serving(&destination, far);
    let sequence = filled(&from, 300);
    // Nothing is known of what was aborted.
    for epoch in [5, 5] {
        let id = MigrationId { epoch, ..ID };
        let options = MigrateOptions::default();
        Outgoing::offer(&sequence, id, &mut source, options).unwrap().abort().unwrap();
    }
    let id = MigrationId { epoch: 6, ..ID };
    let moving = Outgoing::offer(&sequence, id, &mut source, MigrateOptions::default()).unwrap();
    let stale = destination.ledger_for_tests().begin(id).unwrap_err();
    assert_eq!(stale, Refusal::Stale { known: 6 });
    assert!(matches!(moving.finish(sequence), Finished::Moved(_)));
    drop(source);
    let (arrived, ended) = served.join().unwrap();
    ended.unwrap();
    assert_eq!((arrived.len(), arrived[0].id.epoch), (1, 6));
}

#[test]
fn a_model_must_be_named() {
    let nameless = Scene::default().builder(0).model("").build().unwrap();
    let sequence = filled(&nameless, 10);
    let [source, mut far] = Way::Local.ends(None);
    let error = Outgoing::offer(&sequence, ID, source, MigrateOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Setting { setting: "model", .. }), "{error}");
    let error = Destination::new(&nameless).serve(&mut far).unwrap_err();
    assert!(matches!(error, Error::Setting { setting: "model", .. }), "{error}");
}
