//! Clusters against a plain k-means, and what is promised of them.

mod balance;
mod common;
mod index;
mod plain;
mod pq;
mod same;
