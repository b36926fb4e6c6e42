// K15: the stream-K plan (LeanAttention, arXiv 2405.10480) from the lengths of lists, on the device: what
// kernels/src/plan.rs does with tiles of one cost, and Work::cut makes of it. Nobody has to read a length, so a
// captured graph can be replayed with others.
//
//   entry    parameters    blocks    threads   shared memory
//   plan     PlanParams    1         512       384
//
// No macros. How many segments, workers and partial results there can be depends on the numbers of units and of
// workers alone: PlanRoom. Workers without work have no segments.
//
// With T tiles in all for R workers, worker w has tiles T w / R .. T (w + 1) / R, rounded down. So units find
// their workers by division, and two prefix sums place their tiles, and their segments and partial results.
#include "numbers.cuh"
#include "params_select.cuh"
#include "scan.cuh"

constexpr u32 TILES_AT = 0, PLACES_AT = TURNS_BYTES<u32>;
static_assert(PLACES_AT + TURNS_BYTES<u64> == 384, "as the table says");

KV_FN u32 tiles_of(const PlanParams& p, u32 unit) {
    u32 list = load<Unit>(p.units, unit).list;
    u32 len = p.lens ? load<u32>(p.lens, list) : load<u32>(p.indptr, list + 1) - load<u32>(p.indptr, list);
    return len / p.tile + (len % p.tile != 0);
}

/// The cut: `tiles` for `ranges` workers.
struct Shares {
    u32 tiles, ranges;
};

/// The worker that has a tile.
KV_FN u32 worker_of(const Shares& s, u32 tile) {
    return static_cast<u32>(((tile + 1ull) * s.ranges - 1) / s.tiles);
}

/// Where a worker's share begins; moves on to the next worker without a division.
struct Begin {
    u32 tile, rest;
};
KV_FN Begin begin_of(const Shares& s, u32 worker) {
    u64 product = static_cast<u64>(s.tiles) * worker;
    return Begin{static_cast<u32>(product / s.ranges), static_cast<u32>(product % s.ranges)};
}
KV_FN void next(const Shares& s, u32 each, u32 rest, Begin& b) {
    b.tile += each;
    b.rest += rest;
    if (b.rest >= s.ranges) {
        b.rest -= s.ranges;
        b.tile++;
    }
}

/// A unit's tiles in the line of all, and its workers.
struct Cut {
    u32 first_tile, tiles, worker, segments;
};

/// An empty unit has an empty segment, with the worker of the tile before.
KV_FN Cut cut_of(const Shares& s, u32 first_tile, u32 tiles) {
    if (tiles == 0) {
        return Cut{first_tile, 0, first_tile ? worker_of(s, first_tile - 1) : 0, 1};
    }
    u32 worker = worker_of(s, first_tile), last = worker_of(s, first_tile + tiles - 1);
    return Cut{first_tile, tiles, worker, last - worker + 1};
}

/// Writes a unit's segments from number `at`, its workers' first segments, and its partial results from
/// `partial`.
KV_FN void put(const PlanParams& p, const Shares& s, u32 unit, const Cut& cut, u32 at, u32 partial) {
    bool whole = cut.segments == 1;
    u32 each = s.tiles / s.ranges, rest = s.tiles % s.ranges;
    Begin begin = begin_of(s, cut.worker);
    for (u32 i = 0; i < cut.segments; i++) {
        u32 share = begin.tile;
        if (cut.tiles && share >= cut.first_tile && cut.worker + i > 0) {
            kv::stg(reinterpret_cast<u32*>(p.workers) + cut.worker + i, at + i);
        }
        next(s, each, rest, begin);
        u32 from = i ? share - cut.first_tile : 0;
        u32 to = i + 1 < cut.segments ? begin.tile - cut.first_tile : cut.tiles;
        Segment segment{unit, from, to, whole ? -1 : static_cast<i32>(partial + i)};
        kv::stg(reinterpret_cast<Segment*>(p.segments) + at + i, segment);
    }
    Unit* to = reinterpret_cast<Unit*>(p.units) + unit;
    kv::stg(&to->reduce, whole ? 0 : cut.segments);
    kv::stg(&to->partial, partial);
}

KV_KERNEL(plan, PlanParams, THREADS, 1) {
    u32 turn = 0, mine = 0;
    for (u32 unit = kv::tid(); unit < p.units_n; unit += THREADS) {
        mine += tiles_of(p, unit);
    }
    u32 tiles = scan(mine, TILES_AT, turn++).all, ranges = tiles / p.tiles_min;
    ranges = ranges < 1 ? 1 : ranges < p.workers_n ? ranges : p.workers_n;
    Shares shares{tiles, ranges};
    u32 done = 0;
    u64 placed = 0; // segments, and partial results in the upper half
    for (u32 base = 0; base < p.units_n; base += THREADS) {
        u32 unit = base + kv::tid(), own = unit < p.units_n ? tiles_of(p, unit) : 0;
        Sums<u32> before = scan(own, TILES_AT, turn);
        Cut cut{0, 0, 0, 0};
        if (unit < p.units_n) {
            cut = cut_of(shares, done + before.before, own);
        }
        u64 places = cut.segments | static_cast<u64>(cut.segments > 1 ? cut.segments : 0) << 32;
        Sums<u64> at = scan(places, PLACES_AT, turn++);
        if (unit < p.units_n) {
            u64 first = placed + at.before;
            put(p, shares, unit, cut, static_cast<u32>(first), static_cast<u32>(first >> 32));
        }
        done += before.all;
        placed += at.all;
    }
    for (u32 w = kv::tid(); w <= p.workers_n; w += THREADS) {
        if (w == 0 || w >= ranges) {
            kv::stg(reinterpret_cast<u32*>(p.workers) + w, w ? static_cast<u32>(placed) : 0);
        }
    }
}
