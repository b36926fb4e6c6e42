//! What went wrong in other stores, one file each: it must not happen here.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod abort_during_load;
mod disk_accounting_drift;
mod extent_reuse_after_recovery;
mod failed_load_counts_as_done;
mod failed_load_livelock;
mod failed_store_stays_visible;
mod pickle_in_cache_dir;
mod rename_without_fsync;
mod request_larger_than_cache;
mod salt_lost_or_confused;
mod same_name_other_weights;
mod same_shape_other_layout;
mod staging_deadlock;

#[path = "../common/prefix.rs"]
mod common;
