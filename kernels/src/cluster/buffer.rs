//! Zeroed memory that begins at a cache line.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line and of the widest register.
const LINE: usize = 64;

/// A fixed number of `T`s, the first at a multiple of 64 bytes.
#[derive(Debug)]
pub(crate) struct Buffer<T> {
    data: Vec<T>,
    from: usize,
    len: usize,
}

impl<T: Default + Copy> Buffer<T> {
    pub(crate) fn zeroed(len: usize) -> Buffer<T> {
        let data = vec![T::default(); len + LINE / size_of::<T>()];
        let from = data.as_ptr().align_offset(LINE);
        Buffer { data, from, len }
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data[self.from..self.from + self.len]
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[self.from..self.from + self.len]
    }
}
