//! What is measured, under conditions that are the same for every store.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Options, Params, Repeats, Rng};

/// Bytes between two syncs of a durable write, at least one block.
pub const GROUP: usize = 16 << 20;

/// Most blocks of one repeat on disk: making and removing thousands of files takes minutes on some
/// file systems, and tells nothing more.
const DISK_BLOCKS: usize = 2048;

/// One way to use a store, seen from its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Caller's memory into the host tier.
    HostPut,
    /// Host tier into the caller's memory.
    HostGet,
    /// Caller's memory onto the disk.
    DiskPut,
    /// Disk, of which nothing is cached in memory, into the caller's memory.
    DiskGet,
}

impl Op {
    /// All of them.
    pub const ALL: [Op; 4] = [Op::HostPut, Op::HostGet, Op::DiskPut, Op::DiskGet];

    /// Name of the row.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Op::HostPut => "host-put",
            Op::HostGet => "host-get",
            Op::DiskPut => "disk-put",
            Op::DiskGet => "disk-get",
        }
    }

    /// Where the blocks lie.
    #[must_use]
    pub const fn tier(self) -> Tier {
        match self {
            Op::HostPut | Op::HostGet => Tier::Host,
            Op::DiskPut | Op::DiskGet => Tier::Disk,
        }
    }

    /// Whether blocks are stored, not fetched.
    #[must_use]
    pub const fn puts(self) -> bool {
        matches!(self, Op::HostPut | Op::DiskPut)
    }
}

/// A tier of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Host memory.
    Host,
    /// Disk.
    Disk,
}

impl Tier {
    /// Name of the column.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Host => "host",
            Tier::Disk => "disk",
        }
    }
}

/// When a disk put has to be durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durable {
    /// Not at all: every write call has returned.
    #[default]
    No,
    /// After the last block.
    End,
    /// After each [`GROUP`] bytes.
    Group,
}

impl Durable {
    /// Name of the column.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Durable::No => "no",
            Durable::End => "end",
            Durable::Group => "16MiB",
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// What is done.
    pub op: Op,
    /// Bytes of a block.
    pub size: usize,
    /// When puts become durable.
    pub durable: Durable,
    /// Blocks of one get call.
    pub batch: usize,
}

impl Case {
    /// All rows of a block size.
    #[must_use]
    pub fn of_size(size: usize) -> Vec<Case> {
        let case = |op, durable, batch| Case { op, size, durable, batch };
        let put = |durable| case(Op::DiskPut, durable, 1);
        vec![
            case(Op::HostPut, Durable::No, 1),
            case(Op::HostGet, Durable::No, 1),
            put(Durable::No),
            put(Durable::End),
            put(Durable::Group),
            case(Op::DiskGet, Durable::No, 1),
            case(Op::DiskGet, Durable::No, 32),
        ]
    }

    /// What distinguishes the row.
    #[must_use]
    pub fn params(&self) -> Params {
        let params = Params::new().with("op", self.op.name()).with("size", size_name(self.size));
        let params = params.with("tier", self.op.tier().name());
        match self.op {
            Op::HostPut | Op::HostGet => params,
            Op::DiskPut => params.with("durable", self.durable.name()),
            Op::DiskGet => params.with("batch", self.batch),
        }
    }

    /// Bytes moved by one repeat.
    #[must_use]
    pub fn bytes(&self, plan: &Plan) -> usize {
        match self.op.tier() {
            Tier::Host => plan.bytes,
            Tier::Disk => plan.bytes.min(DISK_BLOCKS * self.size),
        }
    }

    /// The order in which gets ask for blocks.
    #[must_use]
    pub fn order(&self, plan: &Plan) -> Vec<u32> {
        Rng::new(7).permutation(self.bytes(plan) / self.size)
    }

    /// Unit of the row, and how many bytes per second are one of it.
    #[must_use]
    pub const fn unit(&self) -> (&'static str, f64) {
        match self.op.tier() {
            Tier::Host => ("GB/s", 1e9),
            Tier::Disk => ("MB/s", 1e6),
        }
    }
}

/// `64KiB`, `2MiB`.
#[must_use]
pub fn size_name(bytes: usize) -> String {
    match bytes {
        b if b.is_multiple_of(1 << 20) => format!("{}MiB", b >> 20),
        b if b.is_multiple_of(1 << 10) => format!("{}KiB", b >> 10),
        b => format!("{b}B"),
    }
}

/// How much of everything, and where: the same for all cases of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Bytes of the caller's memory, many times the last-level cache: what one repeat moves in
    /// memory, and at most on disk.
    pub bytes: usize,
    /// The directory of the run.
    pub dir: PathBuf,
    /// Exact number of repeats, if given.
    pub repeats: Option<usize>,
    /// Else at least this many.
    pub least: usize,
    /// And as many as fit into these seconds.
    pub seconds: f64,
}

impl Plan {
    /// The plan of a run.
    #[must_use]
    pub fn new(options: &Options, dir: PathBuf) -> Plan {
        let how = options.repeats();
        Plan { bytes: 256 << 20, dir, repeats: how.exact, least: 3, seconds: how.seconds }
    }

    /// How often to repeat.
    #[must_use]
    pub fn how(&self) -> Repeats {
        Repeats { exact: self.repeats, least: self.least, seconds: self.seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_distinct_and_survive_the_wire() {
        let cases = Case::of_size(2 << 20);
        for (i, case) in cases.iter().enumerate() {
            assert!(cases[..i].iter().all(|c| c.params() != case.params()), "{case:?}");
            let text = serde_json::to_string(case).unwrap();
            assert_eq!(serde_json::from_str::<Case>(&text).unwrap(), *case);
        }
        assert_eq!(cases[0].params().get("size").unwrap(), "2MiB");
    }
}
