//! A source, and a destination, that send anything.

use std::io;

use super::scene::{Random, serving};
use super::*;
use crate::migrate::wire::{HEAD, Head};
use crate::migrate::{
    Destination, Ended, Finished, Link, MigrateOptions, MigrationId, Outgoing, Stream,
};
use crate::{Cache, Error, Sequence};

const ID: MigrationId = MigrationId { sequence: [2; 16], epoch: 1 };

/// What a source sends over a link, message by message.
fn recorded() -> Vec<Vec<u8>> {
    struct Recorder<L>(L, Vec<Vec<u8>>);
    impl<L: Link> Link for Recorder<L> {
        fn send(&mut self, message: &mut Vec<u8>) -> io::Result<()> {
            self.1.push(message.clone());
            self.0.send(message)
        }
        fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
            self.0.receive(into)
        }
    }
    let scene = Scene::default();
    let destination = Destination::new(&scene.cache(1));
    let mut sequence = scene.cache(0).sequence();
    Script::Append(400).play(&mut sequence, 1);
    let [source, far] = Way::Local.ends(None);
    let served = serving(&destination, far);
    let mut recorder = Recorder(source, Vec::new());
    let options = MigrateOptions::default();
    let mut moving = Outgoing::offer(&sequence, ID, &mut recorder, options).unwrap();
    moving.round(sequence.fork()).unwrap();
    Script::Truncate(500).play(&mut sequence, 2);
    Script::Append(100).play(&mut sequence, 3);
    assert!(matches!(moving.finish(sequence), Finished::Moved(_)));
    let messages = recorder.1;
    drop(recorder.0);
    assert_eq!(served.join().unwrap().0.len(), 1);
    messages
}

/// Says these bytes to a destination; what it made of them.
fn said(to: &Cache, bytes: &[u8]) -> (usize, Result<(), Error>) {
    let destination = Destination::new(to);
    let mut link = Stream::new(bytes, io::sink());
    let mut arrived = Vec::new();
    let ended = loop {
        match destination.serve(&mut link) {
            Ok(crate::migrate::Served::Arrived(one)) => arrived.push(one),
            Ok(crate::migrate::Served::Closed) => break Ok(()),
            Ok(_) => {}
            Err(e) => break Err(e),
        }
    };
    let n = arrived.len();
    drop(arrived);
    assert_eq!(to.stats().used_bytes, 0);
    (n, ended)
}

#[test]
fn no_changed_byte_gets_through() {
    let (to, messages) = (Scene::default().cache(1), recorded());
    let all = messages.concat();
    assert_eq!(said(&to, &all).0, 1);
    let mut random = Random(5);
    let mut at = 0;
    for (n, message) in messages.iter().enumerate() {
        let bytes = (0..HEAD + 12).chain((0..20).map(|_| random.below(message.len())));
        for byte in bytes.filter(|&byte| byte < message.len()).collect::<Vec<_>>() {
            let mut bad = all.clone();
            bad[at + byte] ^= 1 << random.below(8);
            let (arrived, ended) = said(&to, &bad);
            // The last message only says that nobody will ask any more.
            assert_eq!(arrived, usize::from(n + 1 == messages.len()), "byte {byte} of message {n}");
            assert!(matches!(ended, Err(Error::Migrate(_))), "byte {byte} of message {n}");
        }
        at += message.len();
    }
}

#[test]
fn messages_that_are_cut_left_out_doubled_or_swapped_move_nothing_wrong() {
    let (to, messages) = (Scene::default().cache(1), recorded());
    let all = messages.concat();
    let commit = all.len() - messages.last().unwrap().len();
    for cut in (0..all.len()).step_by(97).chain(commit - 3..commit + 3) {
        assert_eq!(said(&to, &all[..cut]).0, usize::from(cut >= commit), "cut at {cut}");
    }
    for n in 0..messages.len() - 1 {
        let mut less = messages.clone();
        let left_out = less.remove(n);
        let is_round = Head::decode(left_out[..HEAD].try_into().unwrap()).unwrap();
        let harmless = is_round.kind == crate::migrate::wire::Kind::Round;
        assert_eq!(said(&to, &less.concat()).0, usize::from(harmless), "without message {n}");
        let mut more = messages.clone();
        more.insert(n, messages[n].clone());
        assert!(said(&to, &more.concat()).0 <= 1);
        let mut swapped = messages.clone();
        swapped.swap(n, n + 1);
        assert!(said(&to, &swapped.concat()).0 <= 1);
    }
}

/// A message with any body, its sums right.
fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    use twox_hash::XxHash3_64;
    let mut out = b"KVISTMG1".to_vec();
    out.extend(1u16.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(ID.sequence);
    out.extend(ID.epoch.to_le_bytes());
    out.extend([0; 8]);
    out.extend(XxHash3_64::oneshot(body).to_le_bytes());
    out.extend(XxHash3_64::oneshot(&out).to_le_bytes());
    out.extend(body);
    out
}

#[test]
fn bodies_that_lie_are_refused() {
    let (to, messages) = (Scene::default().cache(1), recorded());
    let offer = &messages[0];
    let mut random = Random(11);
    let kinds = [1u16, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 18, 19, 99];
    for _ in 0..3000 {
        let mut bytes = offer.clone();
        for _ in 0..1 + random.below(3) {
            let kind = kinds[random.below(kinds.len())];
            let mut body = Vec::new();
            for _ in 0..random.below(6) {
                let number = [0u32, 1, 2, 5, 64, 63, u32::MAX, 1 << 31][random.below(8)];
                body.extend(number.to_le_bytes());
            }
            body.resize(body.len() + [0, 0, 1, 4096, 8192][random.below(5)], 7);
            bytes.extend(message(kind, &body));
        }
        assert_eq!(said(&to, &bytes).0, 0);
    }
}

#[test]
fn an_offer_of_anything_takes_no_more_than_there_is() {
    let (to, messages) = (Scene::default().cache(1), recorded());
    let body = &messages[0][HEAD..];
    let mut random = Random(3);
    for _ in 0..3000 {
        let mut bad = body.to_vec();
        for _ in 0..1 + random.below(4) {
            let at = random.below(48);
            bad[at] = [0, 1, 255, random.below(256) as u8][random.below(4)];
        }
        bad.truncate(random.below(2 * bad.len()).max(1));
        assert_eq!(said(&to, &message(1, &bad)).0, 0);
    }
}

#[test]
fn a_destination_that_answers_anything_leaves_the_source_its_sequence() {
    let cache = Scene::default().cache(0);
    let ready = message(16, &[]);
    let mut random = Random(4);
    for round in 0..300 {
        let mut sequence: Sequence = cache.sequence();
        Script::Append(300).play(&mut sequence, 1);
        let body = vec![round as u8; random.below(80)];
        let kind = [1, 2, 5, 17, 18, 19, 77][random.below(7)];
        let mut answers = ready.repeat(random.below(3));
        answers.extend(message(kind, &body));
        let at = random.below(answers.len());
        answers[at] ^= (1 << random.below(8)) * u8::from(random.below(2) == 0);
        let link = Stream::new(&answers[..], io::sink());
        let options = MigrateOptions { rounds: 1, blocks: 0 };
        let Ok(mut moving) = Outgoing::offer(&sequence, ID, link, options) else { continue };
        if moving.round(sequence.fork()).is_err() {
            continue;
        }
        match moving.finish(sequence) {
            Finished::Kept(sequence, _) => assert_eq!(sequence.len(), 300),
            Finished::Unsure(unsure, _) => {
                assert_eq!((unsure.id(), unsure.destination_is_gone().len()), (ID, 300));
            }
            Finished::Moved(_) => assert_eq!(kind, 18),
        }
    }
    assert_eq!(cache.stats().used_bytes, 0);
}

#[test]
fn another_version_is_named() {
    let mut other = message(1, &[]);
    other[8] = 2;
    let (_, ended) = said(&Scene::default().cache(1), &other);
    assert_eq!(ended, Err(Error::Migrate(Ended::Version { found: 2, supported: 1 })));
}
