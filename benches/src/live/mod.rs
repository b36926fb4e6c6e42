//! Live sequences that are larger than host memory, and saved ones that are opened again: what a
//! token costs beside the same in memory, and beside what the disk can give. Those that give way to
//! others, and those that move.

mod clusters;
mod decode;
pub(crate) mod migrate;
pub(crate) mod preempt;
mod scene;
mod session;

use crate::store::Place;
use crate::{Error, Options, Sink};

pub(crate) const NAME: &str = "store-live";

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let place = Place::new(options)?;
    if let Some(why) = &place.no_disk {
        sink.note(&format!("left out: {why}"));
        return Ok(());
    }
    let statistics = scene::Statistics::new(options, sink)?;
    decode::run(options, &place, &statistics, sink)?;
    clusters::run(options, &place, sink)?;
    session::run(options, &place, &statistics, sink)
}
