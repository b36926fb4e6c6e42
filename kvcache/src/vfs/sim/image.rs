//! What a crash may leave.
//!
//! A disk may keep any part of what was written since the last sync. An image is one choice: how many
//! of each directory's changes are there, which writes are there, and perhaps one write that is torn.
//! Choices are numbered, so that millions of them cost nothing until one is built.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::SimVfs;
use super::content::Write;
use super::disk::{Body, Disk, Ino, Meta};
use super::rng::{Rng, mix};
use super::tear::{Tear, Tears};

/// Above this many combinations of directories' prefixes, only those near "all" and "none" are taken.
const PREFIXES_MAX: usize = 64;
/// Up to this many writes, each pair of them is left out.
const PAIRS_MAX: usize = 12;

/// The possible images of one moment, numbered from 0.
#[derive(Debug)]
pub struct Images {
    plans: Vec<Plan>,
    salt: u64,
}

/// The images that share what became of the directories.
#[derive(Debug)]
struct Plan {
    /// All but the writes.
    base: Disk,
    /// Writes to files that can be reached, in order.
    writes: Vec<(Ino, Arc<Write>)>,
    subsets: Vec<Subset>,
    tears: Vec<Tears>,
    torn: u64,
    /// For each changed directory, how many of how many changes are there.
    prefixes: Vec<(Ino, usize, usize)>,
}

/// Which writes are there, by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subset {
    None,
    All,
    First(usize),
    Only(usize),
    Without(usize),
    WithoutBoth(usize, usize),
}

impl Subset {
    fn has(self, write: usize) -> bool {
        match self {
            Subset::None => false,
            Subset::All => true,
            Subset::First(n) => write < n,
            Subset::Only(i) => write == i,
            Subset::Without(i) => write != i,
            Subset::WithoutBoth(i, j) => write != i && write != j,
        }
    }

    /// All that are tried of `n` writes, "none" and "all" first.
    fn list(n: usize) -> Vec<Subset> {
        if n == 0 {
            return vec![Subset::All];
        }
        let mut list = vec![Subset::None, Subset::All];
        list.extend((1..n).map(Subset::First));
        // The first alone is a prefix, as is all but the last.
        list.extend((1..n).map(Subset::Only));
        if n > 2 {
            list.extend((0..n - 1).map(Subset::Without));
        }
        if (4..=PAIRS_MAX).contains(&n) {
            let pairs = (0..n).flat_map(|i| (i + 1..n).map(move |j| Subset::WithoutBoth(i, j)));
            list.extend(pairs);
        }
        list
    }
}

impl Images {
    /// What a crash right after `point` calls of a recorded run may leave.
    ///
    /// # Panics
    /// If `point` is beyond [`Log::points`](super::Log::points).
    #[must_use]
    pub fn new(log: &super::Log, point: usize) -> Images {
        log.images(point)
    }

    pub(super) fn of(disk: &Disk) -> Images {
        let changed = disk.inodes.keys().copied();
        let changed = changed.filter_map(|ino| Some((ino, disk.dir(ino)?.pending.len())));
        let changed: Vec<(Ino, usize)> = changed.filter(|(_, changes)| *changes > 0).collect();
        let choices = prefixes(&changed.iter().map(|(_, n)| *n).collect::<Vec<_>>());
        let plan = |prefix: Vec<usize>| {
            let prefixes = changed.iter().zip(prefix).map(|(&(ino, of), n)| (ino, n, of));
            Plan::new(disk, prefixes.collect())
        };
        Images { plans: choices.into_iter().map(plan).collect(), salt: disk.version() }
    }

    /// How many there are; some may be equal.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.plans.iter().map(Plan::count).sum()
    }

    /// The image `index`, as a machine that has just started.
    ///
    /// # Panics
    /// If `index` is not below [`Images::count`].
    #[must_use]
    pub fn get(&self, index: u64) -> SimVfs {
        let (plan, choice) = self.locate(index);
        let seed = mix(index ^ self.salt.rotate_left(32));
        SimVfs::from_disk(Arc::new(plan.build(choice, &mut Rng::new(seed))), seed)
    }

    /// What the image `index` keeps and loses, for people.
    #[must_use]
    pub fn describe(&self, index: u64) -> String {
        let (plan, choice) = self.locate(index);
        let part = match choice {
            Choice::Subset(subset) => format!("{subset:?}"),
            Choice::Torn(tear) => format!("{tear:?}"),
        };
        let dirs = plan.prefixes.iter().map(|(ino, n, of)| format!("{n} of {of} in #{ino}"));
        let dirs = dirs.collect::<Vec<_>>().join(", ");
        format!("image {index}: names [{dirs}], {part} of {} writes", plan.writes.len())
    }

    /// At most `cap` images, each with its number: all of them, or a seeded choice in which those
    /// with whole writes and those with a torn one have equal shares and the extremes (nothing, all,
    /// names without data, data without names) are always present.
    pub fn sample(&self, cap: usize, seed: u64) -> impl Iterator<Item = (u64, SimVfs)> + '_ {
        self.choose(cap, seed).into_iter().map(|index| (index, self.get(index)))
    }

    fn choose(&self, cap: usize, seed: u64) -> BTreeSet<u64> {
        if self.count() <= cap as u64 {
            return (0..self.count()).collect();
        }
        let mut rng = Rng::new(mix(seed ^ self.salt));
        let mut chosen = BTreeSet::new();
        // Plan 0 has none of the changed names, plan 1 all; subset 0 has no write, subset 1 all.
        let mut start = 0;
        for plan in self.plans.iter().take(2) {
            chosen.extend(start..start + plan.subsets.len().min(2) as u64);
            start += plan.count();
        }
        let whole: u64 = self.plans.iter().map(|plan| plan.subsets.len() as u64).sum();
        let torn: u64 = self.plans.iter().map(|plan| plan.torn).sum();
        let cap = (cap as u64).max(chosen.len() as u64);
        let torn_share = torn.min((cap / 2).max(cap.saturating_sub(whole)));
        let whole_share = cap - torn_share;
        self.draw(
            &mut chosen,
            whole_share.min(whole),
            whole,
            &mut rng,
            |p| p.subsets.len() as u64,
            |_| 0,
        );
        self.draw(&mut chosen, cap, torn, &mut rng, |p| p.torn, |p| p.subsets.len() as u64);
        chosen
    }

    /// Adds images to `chosen` until it has `goal`, out of a class of `total` that takes `share` of
    /// each plan's numbers, from `skip` on.
    fn draw(
        &self,
        chosen: &mut BTreeSet<u64>,
        goal: u64,
        total: u64,
        rng: &mut Rng,
        share: impl Fn(&Plan) -> u64,
        skip: impl Fn(&Plan) -> u64,
    ) {
        // Repeats are rare until a class is used up; a bounded number of tries is enough.
        for _ in 0..goal * 8 {
            if chosen.len() as u64 >= goal || total == 0 {
                return;
            }
            let (mut left, mut start) = (rng.below(total), 0);
            for plan in &self.plans {
                if left < share(plan) {
                    chosen.insert(start + skip(plan) + left);
                    break;
                }
                left -= share(plan);
                start += plan.count();
            }
        }
    }

    fn locate(&self, index: u64) -> (&Plan, Choice) {
        let mut left = index;
        for plan in &self.plans {
            if left < plan.count() {
                return (plan, plan.choice(left));
            }
            left -= plan.count();
        }
        panic!("image {index} of {}", self.count());
    }
}

/// What became of the writes.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Subset(Subset),
    Torn(Tear),
}

impl Plan {
    fn new(disk: &Disk, prefixes: Vec<(Ino, usize, usize)>) -> Plan {
        let mut base = disk.clone();
        settle_names(&mut base, &prefixes);
        let reached = base.named();
        base.inodes.retain(|ino, _| reached.contains(ino));
        let mut writes = Vec::new();
        let inos: Vec<Ino> = base.inodes.keys().copied().collect();
        for ino in inos {
            let Some(file) = base.file(ino) else { continue };
            if file.pending.is_empty() && file.current.same(&file.durable) {
                continue;
            }
            writes.extend(file.pending.iter().map(|write| (ino, write.clone())));
            let durable = file.durable.clone();
            base.settle_file(ino, durable);
        }
        writes.sort_by_key(|(_, write)| write.seq);
        let last = writes.len().saturating_sub(1);
        let tears = writes.iter().enumerate().map(|(i, (ino, write))| {
            let old_len = base.file(*ino).map_or(0, |file| file.durable.len());
            Tears::new(write, i, i == last, old_len)
        });
        let tears: Vec<Tears> = tears.collect();
        let torn = tears.iter().map(Tears::count).sum();
        Plan { subsets: Subset::list(writes.len()), base, writes, tears, torn, prefixes }
    }

    fn count(&self) -> u64 {
        self.subsets.len() as u64 + self.torn
    }

    fn choice(&self, index: u64) -> Choice {
        if let Some(subset) = self.subsets.get(index as usize) {
            return Choice::Subset(*subset);
        }
        let mut left = index - self.subsets.len() as u64;
        for tears in &self.tears {
            if left < tears.count() {
                return Choice::Torn(tears.get(left));
            }
            left -= tears.count();
        }
        unreachable!("image {index} of {}", self.count())
    }

    fn build(&self, choice: Choice, rng: &mut Rng) -> Disk {
        let mut disk = self.base.clone();
        let (subset, tear) = match choice {
            Choice::Subset(subset) => (subset, None),
            Choice::Torn(tear) if tear.others => (Subset::All, Some(tear)),
            Choice::Torn(tear) => (Subset::First(tear.write + 1), Some(tear)),
        };
        for (i, (ino, write)) in self.writes.iter().enumerate() {
            if !subset.has(i) {
                continue;
            }
            let Some(file) = disk.file_mut(*ino) else { continue };
            match tear.filter(|tear| tear.write == i) {
                Some(tear) => tear.apply(&mut file.durable, write, &self.base, rng),
                None => file.durable.apply(write, 0..write.len),
            }
            file.current = file.durable.clone();
        }
        disk
    }
}

/// Combinations of prefixes of lists with these lengths, "none" and "all" first.
fn prefixes(lens: &[usize]) -> Vec<Vec<usize>> {
    let none = vec![0; lens.len()];
    let all = lens.to_vec();
    let mut list = vec![none.clone()];
    if lens.is_empty() {
        return list;
    }
    list.push(all.clone());
    let product = lens.iter().try_fold(1usize, |product, len| product.checked_mul(len + 1));
    if product.is_some_and(|product| product <= PREFIXES_MAX) {
        let mut next = none.clone();
        while let Some(at) = (0..lens.len()).find(|&i| next[i] < lens[i]) {
            next[..at].fill(0);
            next[at] += 1;
            if next != all {
                list.push(next.clone());
            }
        }
        return list;
    }
    for (i, len) in lens.iter().enumerate() {
        for others in [&none, &all] {
            for n in 0..=*len {
                let mut one = others.clone();
                one[i] = n;
                if one != none && one != all {
                    list.push(one);
                }
            }
        }
    }
    list
}

/// Leaves of each directory what is durable and a prefix of its changes.
fn settle_names(disk: &mut Disk, prefixes: &[(Ino, usize, usize)]) {
    let lost = |(ino, n, _): &(Ino, usize, usize)| {
        let pending = disk.dir(*ino).map(|dir| &dir.pending[*n..]).unwrap_or_default();
        let arrivals = pending.iter().filter_map(|meta| match meta {
            Meta::MoveIn(_, _, seq) => Some(*seq),
            _ => None,
        });
        arrivals.collect::<Vec<_>>()
    };
    let lost: Vec<u64> = prefixes.iter().flat_map(lost).collect();
    let inos: Vec<Ino> = disk.inodes.keys().copied().collect();
    for ino in inos {
        let Some(dir) = disk.dir(ino) else { continue };
        if dir.pending.is_empty() && dir.current == dir.durable {
            continue;
        }
        let n = prefixes.iter().find(|(d, ..)| *d == ino).map_or(0, |(_, n, _)| *n);
        let mut names = dir.durable.clone();
        for meta in &dir.pending[..n] {
            // A departure whose arrival was lost would lose the file.
            if !matches!(meta, Meta::MoveOut(_, seq) if lost.contains(seq)) {
                meta.apply(&mut names);
            }
        }
        if let Some(inode) = disk.inode_mut(ino)
            && let Body::Dir(dir) = &mut inode.body
        {
            dir.current = names.clone();
            dir.durable = names;
            dir.pending.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_are_distinct() {
        for n in 0..20 {
            let masks: Vec<Vec<bool>> =
                Subset::list(n).iter().map(|s| (0..n).map(|i| s.has(i)).collect()).collect();
            let distinct: BTreeSet<_> = masks.iter().collect();
            // Leaving out the last two is a prefix, too.
            let pairs = usize::from((4..=PAIRS_MAX).contains(&n));
            assert_eq!(masks.len() - distinct.len(), pairs, "{n} writes");
        }
    }

    #[test]
    fn small_combinations_of_prefixes_are_complete_and_large_ones_bounded() {
        assert_eq!(prefixes(&[]), vec![Vec::<usize>::new()]);
        let all = prefixes(&[2, 3]);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 12);
        assert_eq!((&all[0], &all[1]), (&vec![0, 0], &vec![2, 3]));
        let some = prefixes(&[50, 50, 50]);
        assert!(some.len() <= 6 * 51 + 2);
        assert_eq!((&some[0], &some[1]), (&vec![0, 0, 0], &vec![50, 50, 50]));
    }
}
