//! Orders of replacement as lists of numbers that are searched from end to end: what the others are tested against.

use super::Replace;

/// What a plain order does, told in the words of its paper. Front is oldest.
pub(super) trait Plain {
    fn insert(&mut self, key: u32, capacity: usize);
    fn touch(&mut self, key: u32, capacity: usize);
    fn remove(&mut self, key: u32);
    /// Takes out the one that leaves next of those that may.
    fn evict(&mut self, capacity: usize, may: &dyn Fn(u32) -> bool) -> Option<u32>;
}

fn pull(list: &mut Vec<u32>, key: u32) -> bool {
    let at = list.iter().position(|&k| k == key);
    at.map(|at| list.remove(at)).is_some()
}

fn first(list: &[u32], may: &dyn Fn(u32) -> bool) -> Option<u32> {
    list.iter().copied().find(|&key| may(key))
}

#[derive(Default)]
struct Lru(Vec<u32>);

impl Plain for Lru {
    fn insert(&mut self, key: u32, _: usize) {
        self.0.push(key);
    }
    fn touch(&mut self, key: u32, _: usize) {
        pull(&mut self.0, key);
        self.0.push(key);
    }
    fn remove(&mut self, key: u32) {
        pull(&mut self.0, key);
    }
    fn evict(&mut self, _: usize, may: &dyn Fn(u32) -> bool) -> Option<u32> {
        let key = first(&self.0, may)?;
        self.remove(key);
        Some(key)
    }
}

#[derive(Default)]
struct Slru {
    once: Vec<u32>,
    again: Vec<u32>,
}

impl Plain for Slru {
    fn insert(&mut self, key: u32, _: usize) {
        self.once.push(key);
    }
    fn touch(&mut self, key: u32, capacity: usize) {
        self.remove(key);
        self.again.push(key);
        if self.again.len() > capacity / 2 {
            self.once.push(self.again.remove(0));
        }
    }
    fn remove(&mut self, key: u32) {
        pull(&mut self.once, key);
        pull(&mut self.again, key);
    }
    fn evict(&mut self, _: usize, may: &dyn Fn(u32) -> bool) -> Option<u32> {
        let key = first(&self.once, may).or_else(|| first(&self.again, may))?;
        self.remove(key);
        Some(key)
    }
}

#[derive(Default)]
struct Sieve {
    all: Vec<(u32, bool)>,
    hand: usize,
}

impl Plain for Sieve {
    fn insert(&mut self, key: u32, _: usize) {
        self.all.push((key, false));
    }
    fn touch(&mut self, key: u32, _: usize) {
        let found = self.all.iter_mut().find(|(k, _)| *k == key);
        found.unwrap().1 = true;
    }
    fn remove(&mut self, key: u32) {
        let at = self.all.iter().position(|(k, _)| *k == key).unwrap();
        self.all.remove(at);
        // At the newest end the hand has nothing to look at: it starts at the oldest then.
        self.hand -= usize::from(at < self.hand);
        if self.hand == self.all.len() {
            self.hand = 0;
        }
    }
    fn evict(&mut self, _: usize, may: &dyn Fn(u32) -> bool) -> Option<u32> {
        for _ in 0..2 * self.all.len() {
            let (key, used) = &mut self.all[self.hand];
            if !*used && may(*key) {
                let key = *key;
                self.remove(key);
                return Some(key);
            }
            *used = false;
            self.hand = (self.hand + 1) % self.all.len();
        }
        None
    }
}

#[derive(Default)]
struct Arc {
    once: Vec<u32>,
    again: Vec<u32>,
    once_gone: Vec<u32>,
    again_gone: Vec<u32>,
    target: f64,
    from_again: bool,
}

impl Plain for Arc {
    fn insert(&mut self, key: u32, capacity: usize) {
        let (b1, b2) = (self.once_gone.len() as f64, self.again_gone.len() as f64);
        self.from_again = false;
        if pull(&mut self.once_gone, key) {
            let step = if b1 >= b2 { 1.0 } else { b2 / b1 };
            self.target = (self.target + step).min(capacity as f64);
            self.again.push(key);
        } else if pull(&mut self.again_gone, key) {
            let step = if b2 >= b1 { 1.0 } else { b1 / b2 };
            self.target = (self.target - step).max(0.0);
            self.from_again = true;
            self.again.push(key);
        } else {
            self.once.push(key);
        }
    }
    fn touch(&mut self, key: u32, _: usize) {
        self.remove(key);
        self.again.push(key);
    }
    fn remove(&mut self, key: u32) {
        pull(&mut self.once, key);
        pull(&mut self.again, key);
    }
    fn evict(&mut self, capacity: usize, may: &dyn Fn(u32) -> bool) -> Option<u32> {
        let len = self.once.len() as f64;
        let once_first =
            len >= 1.0 && (len > self.target || (self.from_again && len == self.target));
        let lists = match once_first {
            true => [&self.once, &self.again],
            false => [&self.again, &self.once],
        };
        let key = first(lists[0], may).or_else(|| first(lists[1], may))?;
        let from_once = self.once.contains(&key);
        self.remove(key);
        if from_once {
            self.once_gone.push(key);
            let most = capacity.saturating_sub(self.once.len());
            self.once_gone.drain(..self.once_gone.len().saturating_sub(most));
        } else {
            self.again_gone.push(key);
            let others = self.once.len() + self.again.len() + self.once_gone.len();
            let most = (2 * capacity).saturating_sub(others);
            self.again_gone.drain(..self.again_gone.len().saturating_sub(most));
        }
        Some(key)
    }
}

#[derive(Default)]
struct S3 {
    small: Vec<(u32, u8)>,
    main: Vec<(u32, u8)>,
    gone: Vec<u32>,
    share: f32,
}

impl Plain for S3 {
    fn insert(&mut self, key: u32, _: usize) {
        match pull(&mut self.gone, key) {
            true => self.main.push((key, 0)),
            false => self.small.push((key, 0)),
        }
    }
    fn touch(&mut self, key: u32, _: usize) {
        let mut all = self.small.iter_mut().chain(&mut self.main);
        let (_, uses) = all.find(|(k, _)| *k == key).unwrap();
        *uses = (*uses + 1).min(3);
    }
    fn remove(&mut self, key: u32) {
        self.small.retain(|(k, _)| *k != key);
        self.main.retain(|(k, _)| *k != key);
    }
    fn evict(&mut self, capacity: usize, may: &dyn Fn(u32) -> bool) -> Option<u32> {
        for _ in 0..6 * (self.small.len() + self.main.len()) {
            if self.small.len() > (self.share * capacity as f32) as usize || self.main.is_empty() {
                let (key, uses) = self.small.remove(0);
                if uses == 0 && may(key) {
                    self.gone.push(key);
                    self.gone.drain(..self.gone.len().saturating_sub(4 * capacity));
                    return Some(key);
                }
                self.main.push((key, 0));
            } else {
                let (key, uses) = self.main.remove(0);
                if uses == 0 && may(key) {
                    return Some(key);
                }
                self.main.push((key, uses.saturating_sub(1)));
            }
        }
        let at = self.small.iter().position(|&(key, _)| may(key))?;
        let (key, _) = self.small.remove(at);
        self.gone.push(key);
        self.gone.drain(..self.gone.len().saturating_sub(4 * capacity));
        Some(key)
    }
}

pub(super) fn plain(replace: Replace) -> Box<dyn Plain> {
    match replace {
        Replace::Lru => Box::<Lru>::default(),
        Replace::Slru => Box::<Slru>::default(),
        Replace::Arc => Box::<Arc>::default(),
        Replace::Sieve => Box::<Sieve>::default(),
        Replace::S3Fifo => Box::new(S3 { share: 0.1, ..S3::default() }),
        Replace::Adaptive => Box::new(S3 { share: 0.3, ..S3::default() }),
    }
}
