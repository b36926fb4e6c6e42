// K10: the k largest scores of each row, ids ascending; ties go to the lower id, NaN counts as +inf, -0 as
// +0. Forced ranges are always part of the result and of k; more forced ids than k are all kept.
//
//   entry    parameters    blocks    threads   shared memory
//   top_k    TopKParams    rows      512       8336
//
// No macros. Radix descent over sortable keys, digits of 11, 11 and 10 bits, counted in shared memory; then
// one pass that writes ids in order by prefix sums. Scores are read four times, from L2 after the first.
#include "numbers.cuh"

constexpr u32 THREADS = 512, BINS = 2048, OWN = BINS / THREADS;
constexpr u32 TOTALS_AT = BINS * 4;               // two rows of a word per warp, used in turn
constexpr u32 FOUND_AT = TOTALS_AT + 2 * 16 * 4;  // bin, how many lie above it
constexpr u32 SHARED = FOUND_AT + 16;
static_assert(SHARED == 8336, "as the table says");

/// An integer of the same order.
KV_FN u32 sortable(float x) {
    u32 u = kv::bits(x + 0.0f);
    return x != x ? 0xff800000u : u ^ ((u >> 31 ? 0xffffffffu : 0u) | 0x80000000u);
}

/// A row's scores and the ids that are not up for choice.
struct Row {
    const float* scores;
    u32 n;
    const u32x2* forced;
    u32 ranges;
};

KV_FN bool is_forced(const Row& row, u32 id) {
    for (u32 i = 0; i < row.ranges; i++) {
        u32x2 r = kv::ldg(row.forced + i);
        if (id >= r.x && id < r.y) {
            return true;
        }
    }
    return false;
}

/// Sum over the warp's lanes before this one.
KV_FN u32 before_in_warp(u32 x) {
    u32 sum = x;
    for (u32 d = 1; d < 32; d *= 2) {
        u32 other = kv::shfl(sum, (kv::lane() - d) % 32);
        sum += kv::lane() >= d ? other : 0;
    }
    return sum - x;
}

/// Sums of a word over the warps: of those before this one, and of all.
struct Sums {
    u32 before, all;
};

/// `turn` alternates between calls, so that one barrier is enough.
KV_FN Sums over_warps(u32 total, u32 turn) {
    u32 at = TOTALS_AT + turn % 2 * 64;
    if (kv::lane() == 0) {
        kv::sts(at + kv::warp() * 4, total);
    }
    KV_GUARD(1, kv::sync());
    Sums s{0, 0};
    for (u32 w = 0; w < THREADS / 32; w++) {
        u32 x = kv::lds<u32>(at + w * 4);
        s.before += w < kv::warp() ? x : 0;
        s.all += x;
    }
    return s;
}

/// Finds the bin, from the highest, at which the count reaches `wanted`.
KV_FN u32x2 find_bin(u32 wanted, u32 turn) {
    // Thread t has the t-th group of bins from above.
    u32 top = BINS - 1 - kv::tid() * OWN, mine = 0, bins[OWN];
    for (u32 i = 0; i < OWN; i++) {
        bins[i] = kv::lds<u32>((top - i) * 4);
        mine += bins[i];
    }
    u32 in_warp = before_in_warp(mine), total = kv::shfl(in_warp + mine, 31);
    u32 above = over_warps(total, turn).before + in_warp;
    for (u32 i = 0; i < OWN; i++) {
        if (above < wanted && wanted <= above + bins[i]) {
            kv::sts(FOUND_AT, u32x2{top - i, above});
        }
        above += bins[i];
    }
    KV_GUARD(2, kv::sync());
    return kv::lds<u32x2>(FOUND_AT);
}

/// Key of the `wanted`-th largest free score, and how many of that key are wanted.
KV_FN u32x2 descend(const Row& row, u32 wanted, u32& turn) {
    u32 key = 0, known = 0;
    for (u32 digit = 0; digit < 3; digit++) {
        u32 shift = digit == 0 ? 21 : digit == 1 ? 10 : 0, mask = digit == 2 ? 1023 : 2047;
        for (u32 i = kv::tid(); i < BINS; i += THREADS) {
            kv::sts(i * 4, 0u);
        }
        KV_GUARD(3, kv::sync());
        for (u32 id = kv::tid(); id < row.n; id += THREADS) {
            u32 x = sortable(kv::ldg(row.scores + id));
            if ((x & known) == key && !is_forced(row, id)) {
                kv::count((x >> shift & mask) * 4);
            }
        }
        KV_GUARD(4, kv::sync());
        u32x2 found = find_bin(wanted, turn++);
        key |= found.x << shift;
        known |= mask << shift;
        wanted -= found.y;
    }
    return u32x2{key, wanted};
}

KV_FN u32 count_forced(const Row& row) {
    u32 n = 0;
    for (u32 i = 0; i < row.ranges; i++) {
        u32x2 r = kv::ldg(row.forced + i);
        n += r.y - r.x;
    }
    return n;
}

KV_FN u32 bits_below(u32 ballot) { return kv::popc(ballot & ((1u << kv::lane()) - 1)); }

KV_FN void put(const TopKParams& p, u32 row, u32 id, u32 at) {
    i64 to = row * p.out_row + at;
    kv::stg(reinterpret_cast<u32*>(p.out) + to, id);
    if (p.out_frames) {
        u32 frame = load<u32>(p.frames, load<u32>(p.indptr, row) + id);
        kv::stg(reinterpret_cast<u32*>(p.out_frames) + to, frame);
    }
}

/// The row's count, and the tokens of the chosen pages: all are full but the row's last.
KV_FN void put_counts(const TopKParams& p, u32 row, u32 pages, u32 chosen, bool last) {
    kv::stg(reinterpret_cast<u32*>(p.out_n) + row, chosen);
    if (p.out_lens) {
        u32 missing = last ? pages * p.page_tokens - load<u32>(p.lens, row) : 0;
        kv::stg(reinterpret_cast<u32*>(p.out_lens) + row, chosen * p.page_tokens - missing);
    }
}

KV_KERNEL(top_k, TopKParams, THREADS, 1) {
    u32 number = kv::block();
    const float* scores = reinterpret_cast<const float*>(p.scores) + number * p.scores_row;
    Row row{scores, load<u32>(p.counts, number), nullptr, 0};
    if (p.forced_ptr) {
        u32 first = load<u32>(p.forced_ptr, number);
        row.forced = reinterpret_cast<const u32x2*>(p.forced) + first;
        row.ranges = load<u32>(p.forced_ptr, number + 1) - first;
    }
    u32 forced = count_forced(row), wanted = p.k > forced ? p.k - forced : 0, turn = 0;
    // All of the free ones: every key is above the cut. None: the cut is above every key.
    u32x2 cut{0, 0xffffffffu};
    if (wanted == 0) {
        cut = u32x2{0xffffffffu, 0};
    } else if (wanted < row.n - forced) {
        cut = descend(row, wanted, turn);
    }
    u32 sure = 0, ties = 0; // of the ids before this round
    for (u32 base = 0; base < row.n; base += THREADS) {
        u32 id = base + kv::tid(), x = id < row.n ? sortable(kv::ldg(scores + id)) : 0;
        bool keep = id < row.n && (x > cut.x || is_forced(row, id));
        bool tie = id < row.n && !keep && x == cut.x;
        u32 kept = kv::ballot(keep), tied = kv::ballot(tie);
        Sums sums = over_warps(kv::popc(kept) | kv::popc(tied) << 16, turn++);
        u32 sure_before = sure + (sums.before & 0xffff) + bits_below(kept);
        u32 ties_before = ties + (sums.before >> 16) + bits_below(tied);
        u32 at = sure_before + (ties_before < cut.y ? ties_before : cut.y);
        bool taken = keep || (tie && ties_before < cut.y);
        if (taken) {
            put(p, number, id, at);
        }
        if (id == row.n - 1) {
            put_counts(p, number, row.n, at + taken, taken);
        }
        sure += sums.all & 0xffff;
        ties += sums.all >> 16;
    }
    if (row.n == 0 && kv::tid() == 0) {
        put_counts(p, number, 0, 0, false);
    }
}
