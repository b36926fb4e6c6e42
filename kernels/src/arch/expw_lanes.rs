//! EXPW in lanes of bytes: what an instruction set offers for 64 bytes, and what encoding and decoding
//! share. The loops are written once over it.

use std::mem::MaybeUninit;

use crate::DType;
use crate::entropy::layout::{BAND, Bases};
use crate::entropy::planes::CHUNK;

/// Sixty-four lanes of bytes.
///
/// # Safety
/// Every function needs the implementor's instruction set; pointers must be valid for 64 bytes, or for
/// 64 elements where a function says so. Planes are two words.
pub(crate) trait Bytes {
    /// 64 bytes.
    type V: Copy;
    /// 64 words.
    type W: Copy;

    unsafe fn splat(x: u8) -> Self::V;
    unsafe fn load(from: *const u8) -> Self::V;
    /// Asks for a line, which need not exist.
    unsafe fn prefetch(from: *const u8);
    unsafe fn store(x: Self::V, to: *mut u8);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn and(a: Self::V, b: Self::V) -> Self::V;
    /// Words shifted left by 2, bit by bit: bytes keep what they get from each other.
    unsafe fn shl2(x: Self::V) -> Self::V;
    /// The same to the right.
    unsafe fn shr2(x: Self::V) -> Self::V;
    /// Entries of a table of 16; all lanes are below 16.
    unsafe fn lookup(table: &[u8; 16], x: Self::V) -> Self::V;
    /// Bit `BIT` of every lane.
    unsafe fn bit<const BIT: u32>(x: Self::V) -> u64;
    /// Adds `c` to the lanes of `mask`.
    unsafe fn add_at(x: Self::V, mask: u64, c: u8) -> Self::V;
    /// Distances that the codes of two planes stand for, those of code 3 taken from `next` in order.
    unsafe fn decode(level: [i8; 3], planes: *const u8, next: *const u8) -> Self::V;
    /// Inverse of `decode`: the planes of the codes, and to `next` the distances of code 3, then anything
    /// up to 64 bytes.
    unsafe fn encode(codes: Self::V, distances: Self::V, planes: *mut u8, next: *mut u8);

    /// 64 words.
    unsafe fn load_words(from: *const u8) -> Self::W;
    unsafe fn store_words(x: Self::W, to: *mut u8);
    /// The upper halves of 64 double words.
    unsafe fn load_upper(from: *const u8) -> Self::W;
    /// The lower halves of 64 double words.
    unsafe fn load_lower(from: *const u8) -> Self::W;
    /// 64 double words of their halves.
    unsafe fn store_wide(lower: Self::W, upper: Self::W, to: *mut u8);
    /// Words rotated left by one bit.
    unsafe fn rotate_left(x: Self::W) -> Self::W;
    /// Words rotated right by one bit.
    unsafe fn rotate_right(x: Self::W) -> Self::W;
    /// Low and high bytes of words.
    unsafe fn unzip(x: Self::W) -> (Self::V, Self::V);
    /// Inverse of `unzip`.
    unsafe fn zip(low: Self::V, high: Self::V) -> Self::W;
}

/// Exponents, rest bytes and, of f16, high bytes of 64 elements.
#[inline(always)]
pub(crate) unsafe fn split<B: Bytes>(dtype: DType, from: *const u8) -> [B::V; 3] {
    // SAFETY: passed on from the caller (so below): 64 elements are readable.
    unsafe {
        if dtype == DType::F16 {
            let (rest, high) = B::unzip(B::load_words(from));
            return [B::and(B::shr2(high), B::splat(31)), rest, high];
        }
        let words = if dtype == DType::F32 { B::load_upper(from) } else { B::load_words(from) };
        let (rest, e) = B::unzip(B::rotate_left(words));
        [e, rest, e]
    }
}

/// Room for the distances of one level, and behind them 64 bytes that hold anything.
pub(super) type Room = MaybeUninit<[u8; BAND + 2 * CHUNK]>;

/// The distances of one level. Apart from its room, which would be zeroed if this held it.
pub(super) struct Dense<'a> {
    room: &'a mut Room,
    pub(super) len: usize,
}

impl<'a> Dense<'a> {
    #[inline(always)]
    pub(super) fn new(room: &'a mut Room) -> Dense<'a> {
        Dense { room, len: 0 }
    }

    #[inline(always)]
    pub(super) fn ptr(&self) -> *const u8 {
        self.room.as_ptr().cast()
    }

    #[inline(always)]
    pub(super) fn ptr_mut(&mut self) -> *mut u8 {
        self.room.as_mut_ptr().cast()
    }

    /// The distances so far.
    pub(super) fn get(&self) -> &[u8] {
        // SAFETY: every level fills its first `len` bytes, at most a band's.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.len) }
    }

    /// Ends the distances and makes the 64 bytes behind them readable.
    #[inline(always)]
    pub(super) unsafe fn close<B: Bytes>(&mut self, len: usize) {
        debug_assert!(len <= BAND);
        self.len = len;
        // SAFETY: the buffer is longer than a band by more than that.
        unsafe { B::store(B::splat(0), self.ptr_mut().add(len)) }
    }
}

/// How many of 64 codes are 3.
#[inline(always)]
pub(super) unsafe fn passed(planes: *const u8) -> usize {
    // Volatile, so that the words are read once more: as masks they come from memory, too, which is
    // twice as fast as by way of these registers.
    #[repr(C, packed)]
    struct Word(u64);
    // SAFETY: two words are readable, by the caller; a packed one needs no alignment.
    unsafe {
        let planes = planes.cast::<Word>();
        (planes.read_volatile().0 & planes.add(1).read_volatile().0).count_ones() as usize
    }
}

/// Copies `from` to the front of an array.
pub(super) fn extended<const N: usize>(from: &[u8]) -> [u8; N] {
    let mut to = [0; N];
    to[..from.len()].copy_from_slice(from);
    to
}

/// The bases of the chunk that begins at value `first`.
pub(crate) struct Cycle<'a> {
    bases: &'a Bases,
    at: usize,
    step: usize,
    dim: usize,
}

impl<'a> Cycle<'a> {
    pub(super) fn new(bases: &'a Bases, dim: usize) -> Cycle<'a> {
        Cycle { bases, at: 0, step: CHUNK % dim, dim }
    }

    #[inline(always)]
    pub(super) fn next(&mut self) -> *const u8 {
        let bases = self.bases.from(self.at).as_ptr();
        self.at += self.step;
        self.at -= if self.at >= self.dim { self.dim } else { 0 };
        bases
    }
}
