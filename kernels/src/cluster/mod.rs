//! Semantic clusters: tokens with similar keys of one KV head, wherever they stand in the sequence.
//!
//! [`build`] clusters the keys of some heads by k-means ([`KMeans`]: kvist's own settings, and those of
//! ClusterKV and RetroInfer) into [`Clusters`]. A cluster's centroid is scored instead of its keys, with
//! [`rows::QueryRows`](crate::rows::QueryRows) over the centroids as f32 rows; its radius bounds what the
//! score can miss.
//!
//! Keys that arrive later are clustered alone and appended ([`Clusters::append`]); a segment that is full
//! is clustered again after its parts were taken off ([`Clusters::truncate`]).
//!
//! One idea makes it fast without making it approximate: labels are decided in f64, but only among the few
//! centroids whose rough score, a dot product of bytes or of f32 with a proven bound on its error, comes
//! near the best.

mod assign;
mod balance;
mod buffer;
mod build;
mod finish;
mod index;
mod lloyd;
mod members;
mod points;
pub mod pq;
mod rows;
mod settings;
mod targets;

pub use build::build;
pub use finish::{Head, refresh};
pub use index::Clusters;
pub use rows::Rows;
pub use settings::{Count, KMeans, Last};
pub use targets::Metric;
