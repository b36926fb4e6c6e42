//! K13: items from one arrangement to another, bytes beside them untouched.

use kvist_kernels::cuda::params::{CopyParams, SKIP};

use crate::common::Random;
use crate::machine::{Grid, Kernels, Memory, SCHEDULES};

/// Where items and their pieces lie, in units of 16 bytes.
#[derive(Clone, Copy)]
struct Place {
    item: usize,
    piece: usize,
}

fn check(kernels: &Kernels, pieces: usize, piece: usize, (from, to): (Place, Place), listed: bool) {
    const ITEMS: usize = 7;
    let mut random = Random(piece as u64);
    let reach = |place: Place| ITEMS * place.item + pieces * place.piece + piece;
    let source: Vec<u128> = (0..reach(from)).map(|_| u128::from(random.next())).collect();
    let mut target = vec![1u128; reach(to)];
    let mut want = target.clone();
    let (from_items, to_items) = ([3, SKIP, 0, 6, 2], [1, 0, 5, SKIP, 2]);
    let count = if listed { from_items.len() } else { ITEMS };
    for i in 0..count {
        let (a, b) = if listed { (from_items[i], to_items[i]) } else { (i as u32, i as u32) };
        for p in (0..pieces).filter(|_| a != SKIP && b != SKIP) {
            let at = |n: u32, place: Place| n as usize * place.item + p * place.piece;
            let (a, b) = (at(a, from), at(b, to));
            want[b..b + piece].copy_from_slice(&source[a..a + piece]);
        }
    }
    let address = |list: &[u32]| if listed { list.as_ptr() as u64 } else { 0 };
    for (i, schedule) in SCHEDULES.into_iter().enumerate() {
        target.fill(1);
        let params = CopyParams {
            from: source.as_ptr() as u64,
            to: target.as_ptr() as u64,
            from_items: address(&from_items),
            to_items: address(&to_items),
            from_item: from.item as i64 * 16,
            from_piece: from.piece as i64 * 16,
            to_item: to.item as i64 * 16,
            to_piece: to.piece as i64 * 16,
            items: count as u32,
            pieces: pieces as u32,
            piece_bytes: piece as u32 * 16,
            zero: 0,
        };
        let memory = [
            Memory::read(&source),
            Memory::read(&from_items),
            Memory::read(&to_items),
            Memory::write(&mut target),
        ];
        let grid = Grid { blocks: 1 + i, shared_bytes: 0, schedule, left_out: 0 };
        kernels.run("copy_items", &params, grid, &memory).expect_clean(&(piece, schedule));
        assert!(target == want, "{pieces} pieces of {piece}, {schedule:?}");
    }
}

pub(crate) fn items() {
    let kernels = Kernels::compile("transfer.cu", &[]);
    for piece in [1, 31, 32, 33, 300] {
        let first = |gap: usize| Place { item: piece + gap, piece: 7 * (piece + gap) };
        let beside = Place { item: 3 * piece, piece };
        check(&kernels, 3, piece, (first(0), beside), true);
        check(&kernels, 3, piece, (beside, first(1)), false);
    }
}
