// K10 and K11: the k largest scores of each row, or the fewest that reach a mass; ids ascending; ties go to the
// lower id, NaN counts as +inf, -0 as +0. Forced ranges are always part of the result and of k; more forced ids
// than k are all kept.
//
//   entry    parameters    blocks    threads   shared memory
//   top_k    TopKParams    rows      512       8336
//   top_p    TopPParams    rows      512       24992
//
// No macros. Radix descent over sortable keys, digits of 11, 11 and 10 bits, counted in shared memory; then
// one pass that writes ids in order by prefix sums. Scores are read four times, from L2 after the first; top_p
// reads them once or twice more.
//
// Masses are summed as whole numbers, so that no order of threads shows: in units of 2^-(62 - b) of the largest
// one's power of two, for less than 2^b ids in a row. NaN, infinite and negative ones count as 0.
#include "numbers.cuh"
#include "params_select.cuh"
#include "scan.cuh"

constexpr u32 BINS = 2048, OWN = BINS / THREADS;
constexpr u32 TOTALS_AT = BINS * 4;
constexpr u32 FOUND_AT = TOTALS_AT + TURNS_BYTES<u32>; // bin, how many lie above it
constexpr u32 SHARED = FOUND_AT + 16;
constexpr u32 MASSES_AT = SHARED;
constexpr u32 MASS_TOTALS_AT = MASSES_AT + BINS * 8;
constexpr u32 MASS_FOUND_AT = MASS_TOTALS_AT + TURNS_BYTES<u64>;
constexpr u32 SHARED_P = MASS_FOUND_AT + 16;
static_assert(SHARED == 8336 && SHARED_P == 24992, "as the table says");

/// An integer of the same order.
KV_FN u32 sortable(float x) {
    u32 u = kv::bits(x + 0.0f);
    return x != x ? 0xff800000u : u ^ ((u >> 31 ? 0xffffffffu : 0u) | 0x80000000u);
}

/// The number of a sortable key.
KV_FN float number_of(u32 key) { return kv::float_of(key >> 31 ? key ^ 0x80000000u : ~key); }

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

/// How many are taken, from the largest on, and their mass (top_p alone).
struct Taken {
    u32 count;
    u64 mass;
};

/// When enough are taken: at `most`, or before if there are `least` that have the mass.
struct Goal {
    u32 least, most;
    u64 mass;
};
template <bool MASS> KV_FN bool enough(const Goal& goal, const Taken& t) {
    return t.count >= goal.most || (MASS && t.count >= goal.least && t.mass >= goal.mass);
}

/// A mass as a whole number; `shift` is the power of two that it is multiplied by.
KV_FN u64 whole(float x, i32 shift) {
    u32 u = kv::bits(x), exponent = u >> 23;
    if (exponent >= 255) { // not finite, or negative
        return 0;
    }
    u64 digits = (u & 0x7fffff) | (exponent ? 0x800000 : 0);
    i32 by = static_cast<i32>(exponent ? exponent : 1) - 150 + shift;
    return by >= 0 ? digits << by : by > -24 ? digits >> -by : 0;
}

/// Takes whole bins, from the highest, until the next would be enough; returns that bin.
template <bool MASS> KV_FN u32 find_bin(const Goal& goal, Taken& taken, u32 turn) {
    // Thread t has the t-th group of bins from above.
    u32 top = BINS - 1 - kv::tid() * OWN;
    auto bin = [&](u32 i) {
        return Taken{kv::lds<u32>((top - i) * 4), MASS ? kv::lds<u64>(MASSES_AT + (top - i) * 8) : 0};
    };
    Taken mine{0, 0};
    for (u32 i = 0; i < OWN; i++) {
        mine = Taken{mine.count + bin(i).count, mine.mass + bin(i).mass};
    }
    Taken above{taken.count + scan(mine.count, TOTALS_AT, turn).before, 0};
    if (MASS) {
        above.mass = taken.mass + scan(mine.mass, MASS_TOTALS_AT, turn).before;
    }
    for (u32 i = 0; i < OWN; i++) {
        Taken next{above.count + bin(i).count, above.mass + bin(i).mass};
        if (!enough<MASS>(goal, above) && enough<MASS>(goal, next)) {
            kv::sts(FOUND_AT, u32x2{top - i, above.count});
            if (MASS) {
                kv::sts(MASS_FOUND_AT, above.mass);
            }
        }
        above = next;
    }
    KV_GUARD(2, kv::sync());
    u32x2 found = kv::lds<u32x2>(FOUND_AT);
    taken = Taken{found.y, MASS ? kv::lds<u64>(MASS_FOUND_AT) : 0};
    return found.x;
}

/// The key at which enough free scores are taken; `taken` becomes what lies above it. All of them are enough.
template <bool MASS> KV_FN u32 descend(const Row& row, const Goal& goal, i32 shift, Taken& taken, u32& turn) {
    u32 key = 0, known = 0;
    for (u32 digit = 0; digit < 3; digit++) {
        u32 from = digit == 0 ? 21 : digit == 1 ? 10 : 0, mask = digit == 2 ? 1023 : 2047;
        for (u32 i = kv::tid(); i < BINS; i += THREADS) {
            kv::sts(i * 4, 0u);
            if (MASS) {
                kv::sts(MASSES_AT + i * 8, static_cast<u64>(0));
            }
        }
        KV_GUARD(3, kv::sync());
        for (u32 id = kv::tid(); id < row.n; id += THREADS) {
            float score = kv::ldg(row.scores + id);
            u32 x = sortable(score);
            if ((x & known) == key && !is_forced(row, id)) {
                kv::count((x >> from & mask) * 4);
                if (MASS) {
                    kv::add(MASSES_AT + (x >> from & mask) * 8, whole(score, shift));
                }
            }
        }
        KV_GUARD(4, kv::sync());
        key |= find_bin<MASS>(goal, taken, turn++) << from;
        known |= mask << from;
    }
    return key;
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
    if (p.out_items) {
        u32 frame = load<u32>(p.frames, load<u32>(p.indptr, row) + id / p.page_units);
        u32 mark = p.page_items > 1 ? frame & 0x80000000 : 0;
        u32 item = (frame ^ mark) * p.page_items + id % p.page_units;
        kv::stg(reinterpret_cast<u32*>(p.out_items) + to, item | mark);
    }
}

/// The row's count, and the tokens of the chosen units: all are full but the row's last.
KV_FN void put_counts(const TopKParams& p, u32 row, u32 units, u32 chosen, bool last) {
    kv::stg(reinterpret_cast<u32*>(p.out_n) + row, chosen);
    if (p.out_lens) {
        u32 missing = last ? units * p.unit_tokens - load<u32>(p.lens, row) : 0;
        kv::stg(reinterpret_cast<u32*>(p.out_lens) + row, chosen * p.unit_tokens - missing);
    }
}

/// The block's row.
KV_FN Row open_row(const TopKParams& p) {
    u32 number = kv::block();
    const float* scores = reinterpret_cast<const float*>(p.scores) + number * p.scores_row;
    Row row{scores, load<u32>(p.counts, number), nullptr, 0};
    if (p.forced_ptr) {
        u32 first = load<u32>(p.forced_ptr, number);
        row.forced = reinterpret_cast<const u32x2*>(p.forced) + first;
        row.ranges = load<u32>(p.forced_ptr, number + 1) - first;
    }
    return row;
}

/// Which free scores are taken: all above a key, and the first `ties` of it.
struct Cut {
    u32 key, ties;
};

/// Writes the ids that are forced or above the cut, in order.
KV_FN void put_all(const TopKParams& p, const Row& row, Cut cut, u32 turn) {
    u32 number = kv::block(), sure = 0, ties = 0; // of the ids before this round
    for (u32 base = 0; base < row.n; base += THREADS) {
        u32 id = base + kv::tid(), x = id < row.n ? sortable(kv::ldg(row.scores + id)) : 0;
        bool keep = id < row.n && (x > cut.key || is_forced(row, id));
        bool tie = id < row.n && !keep && x == cut.key;
        u32 kept = kv::ballot(keep), tied = kv::ballot(tie);
        Sums<u32> sums = sums_of_warps(kv::popc(kept) | kv::popc(tied) << 16, TOTALS_AT, turn++);
        u32 sure_before = sure + (sums.before & 0xffff) + bits_below(kept);
        u32 ties_before = ties + (sums.before >> 16) + bits_below(tied);
        u32 at = sure_before + (ties_before < cut.ties ? ties_before : cut.ties);
        bool taken = keep || (tie && ties_before < cut.ties);
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

/// What is left of a budget behind the forced ids.
KV_FN u32 behind(u32 forced, u32 budget) { return budget > forced ? budget - forced : 0; }

KV_KERNEL(top_k, TopKParams, THREADS, 1) {
    Row row = open_row(p);
    u32 k = p.wanted ? load<u32>(p.wanted, kv::block()) : p.k;
    u32 forced = count_forced(row), wanted = behind(forced, k), turn = 0;
    // All of the free ones: every key is above the cut. None: the cut is above every key.
    Cut cut{0, 0xffffffffu};
    if (wanted == 0) {
        cut = Cut{0xffffffffu, 0};
    } else if (wanted < row.n - forced) {
        Taken taken{0, 0};
        u32 key = descend<false>(row, Goal{0, wanted, 0}, 0, taken, turn);
        cut = Cut{key, wanted - taken.count};
    }
    put_all(p, row, cut, turn);
}

/// The power of two that makes whole numbers of a row's masses, whose sum stays below 2^63.
KV_FN i32 shift_of(const Row& row, u32& turn) {
    u32 most = 0;
    for (u32 id = kv::tid(); id < row.n; id += THREADS) {
        u32 x = kv::bits(kv::ldg(row.scores + id));
        most = x < 0x7f800000 && x > most ? x : most;
    }
    for (u32 mask = 1; mask < 32; mask *= 2) {
        u32 other = kv::shfl_xor(most, mask);
        most = other > most ? other : most;
    }
    over_warps(most, TOTALS_AT, turn++, [&](u32, u32 x) { most = x > most ? x : most; });
    i32 log_n = 0, exponent = static_cast<i32>(most >> 23) - 127;
    while (log_n < 32 && row.n >> log_n) {
        log_n++;
    }
    return 62 - exponent - log_n;
}

/// 2^n in two factors: it may be outside the range of f32.
KV_FN f32x2 power(i32 n) {
    auto one = [](i32 n) { return kv::float_of(static_cast<u32>(127 + n) << 23); };
    return f32x2{one(n / 2), one(n - n / 2)};
}

/// A mass to reach as a whole number, rounded up; one that no sum has if it is too large.
KV_FN u64 whole_target(double target, i32 shift) {
    f32x2 by = power(shift);
    double scaled = target * by.x * by.y;
    if (!(scaled < 0x1p63)) {
        return 1ull << 63;
    }
    u64 n = scaled > 0.0 ? static_cast<u64>(scaled) : 0;
    return n + (static_cast<double>(n) < scaled);
}

KV_FN u64 mass_of_forced(const Row& row, i32 shift, u32& turn) {
    u64 mine = 0;
    for (u32 i = 0; i < row.ranges; i++) {
        u32x2 r = kv::ldg(row.forced + i);
        for (u32 id = r.x + kv::tid(); id < r.y; id += THREADS) {
            mine += whole(kv::ldg(row.scores + id), shift);
        }
    }
    return scan(mine, MASS_TOTALS_AT, turn++).all;
}

/// How many scores of the cut's key are taken: the fewest that are enough, one at least.
KV_FN u32 ties_of(const Goal& goal, const Taken& above, u64 one) {
    u64 missing = goal.mass > above.mass ? goal.mass - above.mass : 0;
    u64 ties = one ? missing / one + (missing % one != 0) : missing ? ~0ull : 0;
    u64 least = goal.least > above.count ? goal.least - above.count : 1, most = goal.most - above.count;
    ties = ties > least ? ties : least;
    return static_cast<u32>(ties < most ? ties : most);
}

KV_KERNEL(top_p, TopPParams, THREADS, 2) {
    Row row = open_row(p.of);
    u32 forced = count_forced(row), turn = 0, free = row.n - forced;
    i32 shift = shift_of(row, turn);
    u64 kept = mass_of_forced(row, shift, turn), target = whole_target(p.target, shift);
    u32 most = behind(forced, p.of.k), least = behind(forced, p.least);
    most = most < free ? most : free;
    Goal goal{least < most ? least : most, most, target > kept ? target - kept : 0};
    Taken taken{0, 0};
    Cut cut{0xffffffffu, 0};
    if (!enough<true>(goal, taken)) {
        u32 key = descend<true>(row, goal, shift, taken, turn);
        u64 one = whole(number_of(key), shift);
        cut = Cut{key, ties_of(goal, taken, one)};
        taken.mass += one * cut.ties;
    }
    if (p.out_mass && kv::tid() == 0) {
        f32x2 by = power(-shift);
        float mass = static_cast<float>(kept + taken.mass) * by.x * by.y;
        kv::stg(reinterpret_cast<float*>(p.out_mass) + kv::block(), mass);
    }
    put_all(p.of, row, cut, turn);
}
