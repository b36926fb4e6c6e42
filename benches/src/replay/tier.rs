//! A tier that holds blocks by name.

use std::collections::HashMap;

use kvist::policies::replace::{Admission, Arrival, Order, Replace, Uses};

use super::trace::Request;

/// Source of hints in a trace.
const SOURCE: u8 = 0;

/// Blocks of one tier.
pub(super) struct Tier {
    capacity: usize,
    order: Order,
    admission: Option<Admission>,
    numbers: HashMap<u64, u32>,
    names: Vec<u64>,
    free: Vec<u32>,
    /// Blocks written to it so far.
    pub(super) written: u64,
    pub(super) evicted: u64,
}

impl Tier {
    pub(super) fn new(replace: Replace, capacity: usize, admission: Option<Admission>) -> Tier {
        Tier {
            capacity,
            order: Order::new(replace, capacity),
            admission,
            numbers: HashMap::new(),
            names: Vec::new(),
            free: Vec::new(),
            written: 0,
            evicted: 0,
        }
    }

    pub(super) fn holds(&self, name: u64) -> bool {
        self.numbers.contains_key(&name)
    }

    /// Uses a request's blocks: those that are there are touched, others come if they are let in, the last of
    /// them first; then what is too much leaves.
    pub(super) fn request(&mut self, request: &Request, names: &[u64]) {
        let now = request.at as u32;
        self.order.request(&Uses::all(names));
        for &name in names.iter().rev() {
            match self.numbers.get(&name) {
                Some(&number) => self.order.touch(number),
                None => self.add(request, name, now),
            }
        }
        let numbers: Vec<u32> = names.iter().filter_map(|n| self.numbers.get(n).copied()).collect();
        for pair in names.windows(2) {
            if let [Some(&parent), Some(&block)] = [pair[0], pair[1]].map(|n| self.numbers.get(&n))
            {
                self.order.link(block, parent);
            }
        }
        if request.closed {
            self.order.session_closed(&numbers, SOURCE);
        } else if let Some(until) = request.wanted {
            self.order.wanted(&numbers, until.ceil().max(0.0) as u32, SOURCE);
        }
        while self.order.len() > self.capacity {
            let Some(number) = self.order.evict(now, |_| true) else { break };
            self.numbers.remove(&self.names[number as usize]);
            self.free.push(number);
            self.evicted += 1;
        }
    }

    fn add(&mut self, request: &Request, name: u64, now: u32) {
        let wanted = request.wanted.is_some();
        let admitted = self.admission.as_mut().is_none_or(|a| a.offer(name, 1, wanted, now));
        if !admitted {
            return;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.names.push(0);
            (self.names.len() - 1) as u32
        });
        self.names[number as usize] = name;
        self.numbers.insert(name, number);
        let Request { tenant, priority, .. } = *request;
        self.order.insert(number, &Arrival { key: name, parent: None, tenant, priority });
        self.written += 1;
    }
}
