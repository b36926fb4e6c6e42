// Estimates of q.k of every token from boxed codes: a box per channel of 64 keys, and each key's place in it as
// nested bit planes (layout: kernels/src/summary/boxed.rs; arithmetic and bounds: kernels/src/score/boxed.rs,
// whose numbers these are but for the order of f32 sums). A cell is read once for a KV head's whole group.
//
//   macro       values
//   KV_D        64, 80, 96, 128, 256: dimensions of K
//   KV_PLANES   2, 3, 4: planes that are read; a cell may have more
//
//   entry         parameters     blocks                  threads   shared memory
//   score_boxed   BoxedParams    workers of the plan     128       BoxedScoreSpec::shared_bytes
//
// More than 48 KiB of shared memory has to be asked for before the launch.
//
// The plan is that of attend_pages.cu over cells: a tile of it is one cell, a warp does a cell at a time. Its
// units hold whole groups, up to 16 rows. Cells and their strides are multiples of 16 bytes.
//
// t_i = q_i W_i is rounded to signed bytes with a step per cell and row. Products with codes are whole numbers
// on the tensor cores: a word of the layout, four channels of a token, is a word of their operand.
#include "numbers.cuh"
#include "params_select.cuh"

static_assert(KV_D % 16 == 0 && KV_D >= 64 && KV_D <= 256 && KV_PLANES >= 2 && KV_PLANES <= 4, "macros");

constexpr u32 WARPS = 4, ROWS = 16, TILE = 64, STAGES = 2;
constexpr u32 WORDS = KV_D / 4;              // of four channels
constexpr u32 TURNS = (WORDS + 15) / 16;     // 16 lanes take the words of a row in turns
constexpr u32 BOX = (2 * KV_D + 63) / 64 * 64, PLANE = 8 * KV_D;
constexpr u32 CELL = BOX + KV_PLANES * PLANE; // bytes that are read
/// Rows of rounded queries, an odd multiple of 16 bytes: 8 rows at the same word must not share banks.
constexpr u32 PITCH = WORDS % 8 == 4 ? KV_D : KV_D + 16;

// Shared memory: queries and the code of each one's largest channel, for the block; then for each warp rounded
// queries, a factor, an offset and a typical error a row, and two cells.
constexpr u32 TOPS_AT = ROWS * KV_D * 4, WARPS_AT = TOPS_AT + ROWS * 4;
constexpr u32 LINES_AT = ROWS * PITCH, SIGMAS_AT = LINES_AT + ROWS * 8, CELLS_AT = SIGMAS_AT + ROWS * 4;
constexpr u32 WARP_BYTES = CELLS_AT + STAGES * CELL;

// As score/boxed.rs and summary/boxed.rs have them.
constexpr i32 ONE = 127 * 4, WIDTH_BIAS = 4 * 113, CODE_MIN = 67 * 4, CODE_MAX = 255 * 4;
constexpr float CODE_SLACK = 1.125f, TINY = 1e-36f;
constexpr float SLACK = (KV_D / 16 + 16) * 0x1p-23f;
constexpr u32 OPEN = 0x8000;

#ifdef KV_EMU
extern "C" u32 kv_shared_bytes() { return WARPS_AT + WARPS * WARP_BYTES; }
#endif

/// Where a byte of a cell lies: every other pair of 64-byte blocks has its halves swapped, so that lanes that
/// read neighbouring blocks meet different banks.
KV_FN u32 place(u32 byte) { return byte ^ (byte >> 2 & 32); }

KV_FN void fetch(const u8* cell, u32 stage) {
    for (u32 at = kv::lane() * 16; at < CELL; at += 512) {
        kv::cp16(stage + place(at), cell + at, true);
    }
}

KV_FN float size_of(float x) { return kv::float_of(kv::bits(x) & 0x7fffffff); }

/// Exponent and two bits of the mantissa, rounded up.
KV_FN i32 size_code(float x) { return static_cast<i32>((kv::bits(size_of(x)) + ((1u << 21) - 1)) >> 21); }

/// The unit's queries in f32, zeros behind its rows, and their largest codes.
KV_FN void load_queries(const BoxedParams& p, const Unit& unit) {
    for (u32 row = kv::warp(); row < ROWS; row += WARPS) {
        u32 packed = unit.packed + row, token = unit.first_row + packed / p.group;
        u32 head = unit.head * p.group + packed % p.group;
        i32 top = 0;
        for (u32 word = kv::lane(); word < WORDS; word += 32) {
            f32x4 x{0, 0, 0, 0};
            if (row < unit.rows) {
                x = load4(p.q, token * p.q_row + head * p.q_head + word * 4, p.types);
            }
            kv::sts((row * KV_D + word * 4) * 4, x);
            float all[4] = {x.x, x.y, x.z, x.w};
            for (u32 i = 0; i < 4; i++) {
                i32 code = size_code(all[i]);
                top = code > top ? code : top;
            }
        }
        for (u32 mask = 1; mask < 32; mask *= 2) {
            i32 other = static_cast<i32>(kv::shfl_xor(static_cast<u32>(top), mask));
            top = other > top ? other : top;
        }
        if (kv::lane() == 0) {
            kv::sts(TOPS_AT + row * 4, top);
        }
    }
}

/// Widths and middles of the lane's channels, and the codes of the widths.
struct Boxes {
    float width[TURNS][4], middle[TURNS][4];
    i32 code[TURNS][4];
};

KV_FN u32 word_of(u32 turn) { return turn * 16 + kv::lane() % 16; }

KV_FN void unpack(u32 cell, Boxes& b) {
#pragma unroll
    for (u32 turn = 0; turn < TURNS; turn++) {
        u32x2 pairs{0, 0};
        if (word_of(turn) < WORDS) {
            pairs = kv::lds<u32x2>(cell + place(word_of(turn) * 8));
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 word = ((i < 2 ? pairs.x : pairs.y) >> i % 2 * 16) & 0xffff, code = word & 0x7f;
            float w = code ? kv::float_of((code + WIDTH_BIAS) << 21) : 0.0f;
            i32 low = static_cast<i32>(word << 16) >> 23; // the upper 9 bits, signed
            b.width[turn][i] = w;
            b.middle[turn][i] = static_cast<float>(low - 4) * (w * 0.125f) + 0.5f * w;
            b.code[turn][i] = static_cast<i32>(code);
        }
    }
}

/// Over the 16 lanes of a row.
KV_FN float sum16(float x) {
    for (u32 mask = 8; mask; mask /= 2) {
        x += kv::shfl_xor(x, mask);
    }
    return x;
}

/// What a cell's estimates of a row need besides the codes: Stage of score/boxed.rs.
struct Row {
    float base, step, spread, rounding, size, square;
    i32 sum;
};

/// Rounds the row's t_i and leaves them for the products.
KV_FN Row round_row(const Boxes& b, u32 row, u32 rounded) {
    Row r{};
    i32 top = kv::lds<i32>(TOPS_AT + row * 4), largest = 0;
    float t[TURNS][4];
#pragma unroll
    for (u32 turn = 0; turn < TURNS; turn++) {
        f32x4 q{0, 0, 0, 0};
        if (word_of(turn) < WORDS) {
            q = kv::lds<f32x4>((row * KV_D + word_of(turn) * 4) * 4);
        }
        float all[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            float c = all[i] * b.middle[turn][i], x = all[i] * b.width[turn][i];
            t[turn][i] = x;
            r.base += c;
            r.size += size_of(c);
            r.spread += size_of(x);
            r.square += x * x;
            i32 relative = size_code(all[i]) - top + 128, code = (relative > 0 ? relative : 0) + b.code[turn][i];
            largest = code > largest ? code : largest;
        }
    }
    for (u32 mask = 8; mask; mask /= 2) {
        i32 other = static_cast<i32>(kv::shfl_xor(static_cast<u32>(largest), mask));
        largest = other > largest ? other : largest;
    }
    i32 code = largest + top - 128 - ONE + WIDTH_BIAS;
    code = code < CODE_MIN ? CODE_MIN : code > CODE_MAX ? CODE_MAX : code;
    float most = kv::float_of(static_cast<u32>(code) << 21) * CODE_SLACK, inverse = 127.0f / most;
    r.step = most / 127.0f;
#pragma unroll
    for (u32 turn = 0; turn < TURNS; turn++) {
        u32 word = 0;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            constexpr float MAGIC = 12582912.0f; // 1.5 * 2^23: the sum's low bits are the integer
            u32 n = kv::bits(t[turn][i] * inverse + MAGIC) - kv::bits(MAGIC);
            i32 whole = static_cast<i32>(n << 24) >> 24;
            r.sum += whole;
            r.rounding += size_of(t[turn][i] - r.step * static_cast<float>(whole));
            word |= (n & 255) << i * 8;
        }
        if (word_of(turn) < WORDS) {
            kv::sts(rounded + row * PITCH + word_of(turn) * 4, word);
        }
    }
    r.base = sum16(r.base);
    r.size = sum16(r.size);
    r.spread = sum16(r.spread);
    r.square = sum16(r.square);
    r.rounding = sum16(r.rounding);
    for (u32 mask = 8; mask; mask /= 2) {
        r.sum += static_cast<i32>(kv::shfl_xor(static_cast<u32>(r.sum), mask));
    }
    return r;
}

/// Infinite where nothing is known.
KV_FN float known(const Row& r, float x) { return r.base != r.base || x != x ? -KV_NEG_INF : x; }

/// Largest possible error of the cell's estimates.
KV_FN float bound(const Row& r) {
    constexpr float half = 0.5f / (1u << KV_PLANES);
    float model = r.spread * half + r.rounding * (0.5f - half);
    return known(r, model + SLACK * (r.spread + r.size + r.rounding) + TINY);
}

/// Typical error: keys uniform inside their part of the box.
KV_FN float sigma(const Row& r) {
    constexpr float half = 0.5f / (1u << KV_PLANES);
    return known(r, kv::sqrt(r.square * (1.0f / 12.0f)) * 2.0f * half);
}

KV_FN i64 q_head_row(const BoxedParams& p, const Unit& unit, u32 row) {
    u32 packed = unit.packed + row, token = unit.first_row + packed / p.group;
    return (static_cast<i64>(token) * p.kv_heads + unit.head) * p.group + packed % p.group;
}

/// Rounds all rows for a cell, two at a time; `at` is the warp's memory.
KV_FN void round_rows(const BoxedParams& p, const Unit& unit, u32 at, u32 cell, u32 tile) {
    Boxes b;
    unpack(cell, b);
    bool open = (kv::lds<u32>(cell + place(0)) & 0xffff) == OPEN;
#pragma unroll 1
    for (u32 pair = 0; pair < unit.rows; pair += 2) {
        u32 row = pair + kv::lane() / 16; // of zeros, if there are no more
        Row r = round_row(b, row, at);
        if (open || !(r.step < -KV_NEG_INF && size_of(r.base) < -KV_NEG_INF)) {
            r.base = kv::float_of(0x7fc00000);
        }
        if (kv::lane() % 16 == 0) {
            constexpr float cells = 1u << KV_PLANES;
            float factor = r.step / cells;
            float offset = r.base - factor * ((cells - 1.0f) * 0.5f) * static_cast<float>(r.sum);
            kv::sts(at + LINES_AT + row * 8, f32x2{factor, offset});
            kv::sts(at + SIGMAS_AT + row * 4, sigma(r));
            if (p.bounds && row < unit.rows) {
                float* to = reinterpret_cast<float*>(p.bounds) + q_head_row(p, unit, row) * p.bounds_row;
                kv::stg(to + tile, bound(r));
            }
        }
    }
}

/// The largest typical error of each group's heads.
KV_FN void put_sigmas(const BoxedParams& p, const Unit& unit, u32 at, u32 tile) {
    u32 first = kv::lane() * p.group;
    if (first >= unit.rows) {
        return;
    }
    float most = 0.0f;
    for (u32 g = 0; g < p.group; g++) {
        most = kv::max(most, kv::lds<float>(at + SIGMAS_AT + (first + g) * 4));
    }
    i64 row = q_head_row(p, unit, first) / p.group;
    kv::stg(reinterpret_cast<float*>(p.sigma) + row * p.bounds_row + tile, most);
}

/// The words of codes of channels 4 `group`.. of tokens `token`, + 16, + 32, + 48.
KV_FN void codes(u32 cell, u32 group, u32 token, u32 (&out)[4]) {
    u32 pair = kv::lds<u32>(cell + place(BOX + group * 64 + token * 4)), third = 0, fourth = 0;
    u32 later = BOX + 2 * PLANE + group / 2 * 64 + token * 4;
    if (KV_PLANES > 2) {
        third = kv::lds<u32>(cell + place(later)) >> group % 2 * 2;
    }
    if (KV_PLANES > 3) {
        fourth = kv::lds<u32>(cell + place(later + PLANE)) >> group % 2 * 2;
    }
#pragma unroll
    for (u32 field = 0; field < 4; field++) {
        u32 bit = field % 2 + field / 2 * 4;
        out[field] = pair >> field * 2 & 0x03030303;
        if (KV_PLANES > 2) {
            out[field] = out[field] * 2 + (third >> bit & 0x01010101);
        }
        if (KV_PLANES > 3) {
            out[field] = out[field] * 2 + (fourth >> bit & 0x01010101);
        }
    }
}

KV_FN void put(const BoxedParams& p, const Unit& unit, u32 at, u32 tile, const i32 (&dots)[4][2][4]) {
    for (u32 half = 0; half < 2; half++) {
        u32 row = kv::lane() / 4 + half * 8;
        if (row >= unit.rows) {
            return;
        }
        f32x2 line = kv::lds<f32x2>(at + LINES_AT + row * 8);
        float* to = reinterpret_cast<float*>(p.est) + q_head_row(p, unit, row) * p.est_row;
#pragma unroll
        for (u32 field = 0; field < 4; field++) {
#pragma unroll
            for (u32 eight = 0; eight < 2; eight++) {
                const i32* d = dots[field][eight] + half * 2;
                f32x2 x{line.y + line.x * static_cast<float>(d[0]), line.y + line.x * static_cast<float>(d[1])};
                u32 token = tile * TILE + field * 16 + eight * 8 + kv::lane() % 4 * 2;
                kv::stg(reinterpret_cast<f32x2*>(to + token), x);
            }
        }
    }
}

/// Products of rounded queries and codes, 32 channels a step.
KV_FN void multiply(u32 rounded, u32 cell, i32 (&dots)[4][2][4]) {
    u32 quad = kv::lane() % 4, eighth = kv::lane() / 4;
#pragma unroll
    for (u32 step = 0; step < (KV_D + 31) / 32; step++) {
        bool whole = step * 32 + 16 < KV_D;
        u32 from = rounded + eighth * PITCH + step * 32 + quad * 4;
        u32 a[4] = {kv::lds<u32>(from), kv::lds<u32>(from + 8 * PITCH), 0, 0};
        if (whole) {
            a[2] = kv::lds<u32>(from + 16);
            a[3] = kv::lds<u32>(from + 8 * PITCH + 16);
        }
#pragma unroll
        for (u32 eight = 0; eight < 2; eight++) {
            u32 low[4], high[4] = {0, 0, 0, 0};
            codes(cell, step * 8 + quad, eight * 8 + eighth, low);
            if (whole) {
                codes(cell, step * 8 + 4 + quad, eight * 8 + eighth, high);
            }
#pragma unroll
            for (u32 field = 0; field < 4; field++) {
                kv::mma_s8(dots[field][eight], a, low[field], high[field]);
            }
        }
    }
}

/// Takes the warp through its cells of a segment, every fourth.
KV_FN void walk(const BoxedParams& p, const Unit& unit, const Segment& segment, u32 at) {
    u32 first = load<u32>(p.indptr, unit.list);
    const u8* cells = reinterpret_cast<const u8*>(p.cells) + unit.head * p.cell_head;
    auto stage_at = [&](u32 stage) { return at + CELLS_AT + stage * CELL; };
    auto ask = [&](u32 tile, u32 stage) {
        if (tile < segment.end) {
            fetch(cells + load<u32>(p.items, first + tile) * p.cell, stage_at(stage));
        }
        kv::cp_commit();
    };
    u32 stage = 0;
    ask(segment.begin + kv::warp(), 0);
    for (u32 tile = segment.begin + kv::warp(); tile < segment.end; tile += WARPS) {
        KV_GUARD(1, kv::cp_wait<0>());
        // Others' copies have landed, and all have read the other cell and the rounded queries.
        KV_GUARD(2, kv::syncwarp());
        ask(tile + WARPS, 1 - stage);
        round_rows(p, unit, at, stage_at(stage), tile);
        KV_GUARD(3, kv::syncwarp());
        if (p.sigma) {
            put_sigmas(p, unit, at, tile);
        }
        i32 dots[4][2][4] = {};
        multiply(at, stage_at(stage), dots);
        put(p, unit, at, tile, dots);
        stage = 1 - stage;
    }
}

KV_KERNEL(score_boxed, BoxedParams, WARPS * 32, 3) {
    u32 end = load<u32>(p.workers, kv::block() + 1), at = WARPS_AT + kv::warp() * WARP_BYTES;
    for (u32 word = kv::lane(); word < LINES_AT / 4; word += 32) {
        kv::sts(at + word * 4, 0u); // rows that are not there are multiplied, too
    }
    for (u32 i = load<u32>(p.workers, kv::block()); i < end; i++) {
        Segment segment = load<Segment>(p.segments, i);
        Unit unit = load<Unit>(p.units, segment.unit);
        KV_GUARD(4, kv::sync()); // the queries before were read
        load_queries(p, unit);
        KV_GUARD(5, kv::sync());
        walk(p, unit, segment, at);
    }
}
