//! Sequences that move, against twins that never did.

mod faults;
mod hostile;
mod moves;
mod refused;
mod scene;

use scene::{Scene, Script, Way};
