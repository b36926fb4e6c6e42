//! EXPW in lanes of bytes: what an instruction set offers for 64 bytes, and what encoding and decoding
//! share. The loops are written once over it.

use std::mem::MaybeUninit;

use crate::DType;
use crate::entropy::layout::{BAND, Bases};
use crate::entropy::planes::CHUNK;

/// Sixty-four lanes of bytes. The features of an implementor are those that `arch::expw` enables for
/// it; only a function that enables them makes the functions inline. Planes are two words. Pointers
/// need no alignment.
pub(crate) trait Bytes {
    /// 64 bytes.
    type V: Copy;
    /// 64 words.
    type W: Copy;

    /// `x` in every lane.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn splat(x: u8) -> Self::V;

    /// 64 bytes.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `from` must be readable for 64 bytes.
    unsafe fn load(from: *const u8) -> Self::V;

    /// Asks for a line, which need not exist.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn prefetch(from: *const u8);

    /// Writes 64 bytes.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `to` must be writable for 64 bytes.
    unsafe fn store(x: Self::V, to: *mut u8);

    /// `a + b`, wrapping.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;

    /// `a - b`, wrapping.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;

    /// Larger lanes.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;

    /// Smaller lanes.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;

    /// `a & b`
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn and(a: Self::V, b: Self::V) -> Self::V;

    /// Words shifted left by 2, bit by bit: bytes keep what they get from each other.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn shl2(x: Self::V) -> Self::V;

    /// The same to the right.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn shr2(x: Self::V) -> Self::V;

    /// Entries of a table of 16; all lanes are below 16.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn lookup(table: &[u8; 16], x: Self::V) -> Self::V;

    /// Bit `BIT` of every lane.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn bit<const BIT: u32>(x: Self::V) -> u64;

    /// Adds `c` to the lanes of `mask`.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn add_at(x: Self::V, mask: u64, c: u8) -> Self::V;

    /// Distances that the codes of two planes stand for, those of code 3 taken from `next` in order.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `planes` must be readable for 16 bytes, `next` for
    /// 64.
    unsafe fn decode(level: [i8; 3], planes: *const u8, next: *const u8) -> Self::V;

    /// Inverse of `decode`: the planes of the codes, and to `next` the distances of code 3, then anything
    /// up to 64 bytes.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `planes` must be writable for 16 bytes, `next` for
    /// 64.
    unsafe fn encode(codes: Self::V, distances: Self::V, planes: *mut u8, next: *mut u8);

    /// 64 words.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `from` must be readable for 128 bytes.
    unsafe fn load_words(from: *const u8) -> Self::W;

    /// Writes 64 words.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `to` must be writable for 128 bytes.
    unsafe fn store_words(x: Self::W, to: *mut u8);

    /// The upper halves of 64 double words.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `from` must be readable for 256 bytes.
    unsafe fn load_upper(from: *const u8) -> Self::W;

    /// The lower halves of 64 double words.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `from` must be readable for 256 bytes.
    unsafe fn load_lower(from: *const u8) -> Self::W;

    /// 64 double words of their halves.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`; `to` must be writable for 256 bytes.
    unsafe fn store_wide(lower: Self::W, upper: Self::W, to: *mut u8);

    /// Words rotated left by one bit.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn rotate_left(x: Self::W) -> Self::W;

    /// Words rotated right by one bit.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn rotate_right(x: Self::W) -> Self::W;

    /// Low and high bytes of words.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn unzip(x: Self::W) -> (Self::V, Self::V);

    /// Inverse of `unzip`.
    ///
    /// # Safety
    /// The CPU must have the features of `Self`.
    unsafe fn zip(low: Self::V, high: Self::V) -> Self::W;
}

/// Exponents, rest bytes and, of f16, high bytes of 64 elements.
///
/// # Safety
/// The CPU must have the features of `B`; `from` must be readable for 64 elements of `dtype`.
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
    ///
    /// # Safety
    /// The CPU must have the features of `B`; the first `len <= BAND` bytes of the room must have
    /// been written.
    #[inline(always)]
    pub(super) unsafe fn close<B: Bytes>(&mut self, len: usize) {
        debug_assert!(len <= BAND);
        self.len = len;
        // SAFETY: the buffer is longer than a band by more than that.
        unsafe { B::store(B::splat(0), self.ptr_mut().add(len)) }
    }
}

/// How many of 64 codes are 3.
///
/// # Safety
/// `planes` must be readable for 16 bytes.
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
