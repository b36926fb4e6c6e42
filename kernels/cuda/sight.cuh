// Which tokens of a list the rows of a unit see, by causal mask and window: everybody the same without one.
#pragma once

#include "state.cuh"

/// Tokens that some row of the unit sees (what is fetched), some row of the warp, and all rows of the warp.
struct Sight {
    Range wanted, reach, alike;
};

/// The query row of a unit's row; rows there are not take the last one's.
KV_FN u32 q_row_of(const AttendParams& p, const Unit& unit, u32 row) {
    u32 last = unit.rows - 1;
    return unit.first_row + (unit.packed + (row < last ? row : last)) / p.group;
}

KV_FN u32 least(u32 a, u32 b) { return a < b ? a : b; }
KV_FN u32 most(u32 a, u32 b) { return a > b ? a : b; }

/// Folds over all lanes.
template <class Fold> KV_FN u32 across(u32 x, Fold fold) {
    for (u32 mask = 1; mask < 32; mask *= 2) {
        x = fold(x, kv::shfl_xor(x, mask));
    }
    return x;
}

/// What a row of a unit sees.
KV_FN Range seen_by(const AttendParams& p, const Unit& unit, const List& list, u32 row) {
    return p.causal || p.window ? seen(p, list, q_row_of(p, unit, row)) : Range{0, list.len};
}

/// What a warp's `rows` rows from `first` on see.
KV_FN Sight look(const AttendParams& p, const Unit& unit, const List& list, u32 first, u32 rows) {
    Range all{0, list.len};
    Sight s{all, all, all};
    if (!p.causal && !p.window) {
        return s;
    }
    auto fold = [&](u32 from, u32 to, Range& some, Range& each) {
        some = Range{list.len, 0}, each = all;
        for (u32 row = from + kv::lane(); row < to; row += 32) {
            Range r = seen(p, list, q_row_of(p, unit, row));
            some = Range{least(some.lo, r.lo), most(some.hi, r.hi)};
            each = Range{most(each.lo, r.lo), least(each.hi, r.hi)};
        }
        some = Range{across(some.lo, least), across(some.hi, most)};
        each = Range{across(each.lo, most), across(each.hi, least)};
    };
    fold(0, unit.rows, s.wanted, s.alike);
    fold(first, first + rows, s.reach, s.alike);
    return s;
}
