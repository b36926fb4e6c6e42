//! What opening and the first tokens read, in bytes.

use std::time::Duration;

use super::*;

/// Bytes that the disk was asked for by this.
fn read_by<T>(cache: &Cache, work: impl FnOnce() -> T) -> (T, u64) {
    let before = cache.disk().unwrap().read_bytes;
    let done = work();
    (done, cache.disk().unwrap().read_bytes - before)
}

#[test]
fn the_first_token_reads_summaries_and_selected_pages_alone() {
    let (sim, setup) = (SimVfs::new(1), Setup { host_bytes: 16 << 20, ..Setup::default() });
    let cache = setup.open(&sim);
    let saved = filled(&cache, 1, 20_000).save("a").unwrap();
    drop(cache);
    let cache = setup.open(&sim);
    let (s, opened) = read_by(&cache, || cache.open_session("a").unwrap());
    let (_, first) = read_by(&cache, || (0..LAYERS).for_each(|l| drop(attend(&s, l, 1).unwrap())));
    assert!((opened + first) * 4 <= saved.bytes, "{opened} and {first} of {}", saved.bytes);
    // Pages that were selected, rounded to sectors, and no others.
    let pages = cache.stats().below_read_bytes;
    assert!(pages <= first * 2 && first < pages + (pages >> 2) + (64 << 10), "{first} for {pages}");
    let (_, rest) = read_by(&cache, || s.restore().unwrap());
    assert!(opened + first + rest < saved.bytes * 11 / 10);
    assert!(holds(&s, 1, 20_000).unwrap());
}

#[test]
fn opening_a_directory_reads_no_page() {
    let (sim, setup) = (SimVfs::new(1), Setup::default());
    let cache = setup.open(&sim);
    let saved = filled(&cache, 1, 5000).save("a").unwrap();
    drop(cache);
    let cache = setup.open(&sim);
    assert!(cache.disk().unwrap().read_bytes * 50 < saved.bytes, "{:?}", cache.disk());
}

#[test]
fn restoring_behind_the_scenes_takes_free_memory_only() {
    let sim = SimVfs::new(1);
    let roomy = Setup { host_bytes: 16 << 20, ..Setup::default() };
    let cache = roomy.open(&sim);
    filled(&cache, 1, 5000).save("a").unwrap();
    drop(cache);
    let setup = Setup { host_bytes: 1 << 20, ..Setup::default() };
    let cache = setup.open(&sim);
    let mine = filled(&cache, 2, 600);
    let s = cache.open_session("a").unwrap();
    let (pages, ticket) = s.restore_behind();
    assert!(pages > 0);
    // Without a thread each token sends for a part.
    (0..50).for_each(|q| drop(attend(&s, 0, q).unwrap()));
    let stats = s.stats();
    assert!(stats.page_bytes > 200 << 10 && stats.demoted_bytes > 0, "{stats:?}");
    assert_eq!(mine.stats().demoted_bytes, 0, "pages left for those that nobody asked for");
    assert!(!ticket.is_done() || ticket.wait_for(Duration::ZERO).is_some_and(|came| came < pages));
    let newest = s.layers[1].sealed.last().unwrap().place();
    assert_eq!(newest, (HEADS, true));
}
