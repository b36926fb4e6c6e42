//! Publishing live sequences to a prefix store and starting others from them: against the plain way
//! (`plain`), without copies and for good (`pages`), under memory pressure (`pressure`), evicted and
//! erased (`forgetting`), over disks (`disks`), by several threads at once (`threads`).

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod common;
mod disks;
mod forgetting;
mod pages;
mod plain;
mod pressure;
mod threads;
