//! One at a time, without a lock held meanwhile: whoever has the turn owns the value.

use std::time::Duration;

use crate::sync::{Condvar, Mutex};

/// A value that one caller at a time takes, works with, and gives back.
#[derive(Debug)]
pub(crate) struct Turn<T> {
    free: Mutex<Option<T>>,
    given_back: Condvar,
}

/// The value, for as long as it is this caller's turn.
#[derive(Debug)]
pub(crate) struct Taken<'a, T> {
    turn: &'a Turn<T>,
    value: Option<T>,
}

impl<T> Turn<T> {
    pub(crate) fn new(value: T) -> Turn<T> {
        Turn { free: Mutex::new(Some(value)), given_back: Condvar::new() }
    }

    /// Waits for the turn; `None` if it does not come in time.
    pub(crate) fn take(&self, patience: Duration) -> Option<Taken<'_, T>> {
        let mut free = self.free.lock();
        if free.is_none() {
            self.given_back.wait_while_for(&mut free, |free| free.is_none(), patience);
        }
        free.take().map(|value| Taken { turn: self, value: Some(value) })
    }
}

impl<T> Turn<T> {
    /// Takes the value for good: nobody gets the turn any more. `None` if it does not come in time.
    pub(crate) fn retire(&self, patience: Duration) -> Option<T> {
        self.take(patience).and_then(|mut taken| taken.value.take())
    }
}

impl<T> std::ops::Deref for Taken<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("held until dropped")
    }
}

impl<T> std::ops::DerefMut for Taken<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("held until dropped")
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            *self.turn.free.lock() = Some(value);
            self.turn.given_back.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_one_by_one() {
        let turn = Turn::new(0u32);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let mut value = turn.take(Duration::from_secs(60)).unwrap();
                        *value += 1;
                    }
                });
            }
        });
        let held = turn.take(Duration::ZERO).unwrap();
        assert_eq!(*held, 800);
        assert!(turn.take(Duration::from_millis(1)).is_none());
        drop(held);
        assert!(turn.take(Duration::ZERO).is_some());
        assert_eq!(turn.retire(Duration::ZERO), Some(800));
        assert!(turn.take(Duration::ZERO).is_none());
    }
}
