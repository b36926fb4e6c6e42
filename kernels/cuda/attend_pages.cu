// K1: attention of few query rows over listed pages; K2: over listed slots (KV_SLOTS). One unit is up to
// 16 (KV_WIDE 0) or 64 (KV_WIDE 1) rows of one KV head's group, so K and V are read once.
//
//   macro       values
//   KV_D        64, 80, 96, 128, 256 (a multiple of 16): dimensions of K and of V
//   KV_TY       0 f32 (KV_D <= 128), 1 f16, 2 bf16: type of K and V
//   KV_SLOTS    0 pages, 1 slots
//   KV_WIDE     0: warps share the tokens of a tile; 1: warps share the rows
//   KV_STAGES   3 up to 256 bytes a row, 2 above
//   KV_BITS     8: K and V are codes of eight bits (kvist_kernels::quant), pages only, KV_D <= 128; KV_TY
//               is then the type of queries and of widened keys, 1 or 2. Not defined: K and V have KV_TY
//
//   entry             parameters           blocks                  threads   shared memory
//   attend_pages      AttendParams         workers of the plan     128       AttendSpec::shared_bytes
//   attend_codes      AttendCodesParams    (with KV_BITS)          128       AttendCodesSpec::shared_bytes
//
// More than 48 KiB of shared memory has to be asked for before the launch.
//
// A block is a worker of the stream-K plan (LeanAttention, arXiv 2405.10480): a run of equal length of
// 64-token tiles, across borders of units. Plan with at most (SMs x blocks an SM) workers, so that all run
// at once. Pages hold a multiple of 16 tokens; rows of q, k, v, o start at 16 bytes.
//
// Numerics: f32 scores and sums, base 2; weights are rounded to the type of V before they meet it and
// summed unrounded. No tokens: o = 0, lse = -inf. Tokens behind a list's end are never read.
#include "sight.cuh"
#if KV_BITS
#include "codes.cuh"
#endif

static_assert(KV_D % 16 == 0 && KV_D >= 64 && KV_D <= (KV_TY == KV_F32 ? 128 : 256), "KV_D");

#define KV_ROWS (KV_WIDE ? 64 : 16)
constexpr u32 PARTS = KV_WIDE ? 1 : WARPS;
/// Floats between the rows of an output on its way between warps: 8 rows must not share banks.
constexpr u32 O_PITCH = KV_D + 8;
constexpr u32 ML_AT = WARPS * GROUP * O_PITCH * 4;
constexpr u32 Q_AT = WARPS * RING;
static_assert(ML_AT + WARPS * GROUP * 8 <= Q_AT, "outputs fit where the rings were");

/// Tiles that codes are widened to, one a warp, behind everything else.
constexpr u32 TILES_AT = Q_AT + WARPS * Q_BYTES, SHARED = TILES_AT + (KV_BITS ? WARPS * 2 * SIDE : 0);

#ifdef KV_EMU
extern "C" u32 kv_shared_bytes() { return SHARED; }
#endif

#if KV_BITS
typedef AttendCodesParams Params;
KV_FN const AttendParams& rules(const Params& p) { return p.a; }
#else
typedef AttendParams Params;
KV_FN const AttendParams& rules(const Params& p) { return p; }
#endif
KV_FN u32 tile_at(u32 warp) { return TILES_AT + warp * 2 * SIDE; }

/// Takes the warp's rows through a segment's tiles.
KV_FN void walk(const Params& params, const Unit& unit, const Segment& segment, State& x) {
    const AttendParams& p = rules(params);
    u32 warp = kv::warp(), first = KV_WIDE ? warp * GROUP : 0;
    List list = open_list(p, unit.list, unit.head);
    Sight sight = look(p, unit, list, first, GROUP);
    Range rows[2] = {seen_by(p, unit, list, first + row_of(0)), seen_by(p, unit, list, first + row_of(1))};
    auto mine = [&](u32 tile) { return tile * TILE + warp * GROUP; };
    auto next_item = [&](u32 tile) { return item(p, list, sight.wanted, mine(tile)); };
    auto start = [&](u32 tile, u32 item, u32 stage) {
#if KV_BITS
        fetch_codes(params, list, sight.wanted, mine(tile), item, stage_at(warp, stage));
#else
        fetch(p, list, sight.wanted, mine(tile), item, stage_at(warp, stage));
#endif
    };

    for (u32 i = 0; i < KV_STAGES - 1; i++) {
        u32 tile = segment.begin + i;
        if (tile < segment.end) {
            start(tile, next_item(tile), i);
        }
        kv::cp_commit();
    }
    // While those are under way. The last stage, or the tile, is free until the first tile was waited for.
    Queries q;
    u32 free = KV_BITS ? tile_at(warp) : stage_at(warp, KV_STAGES - 1);
    u32 q_at = Q_KEPT ? free : Q_AT + warp * Q_BYTES;
    load_queries(p, unit, first, q_at, q, [](f32x4 x) { return x; });

    u32 stage = 0, ahead = next_item(segment.begin + KV_STAGES - 1);
    for (u32 tile = segment.begin; tile < segment.end; tile++) {
        KV_GUARD(2, kv::cp_wait<KV_STAGES - 2>());
        // One barrier for two ends: the tile's rows are visible to all who read them, and all have read
        // what lay in the stage that is filled next.
        KV_GUARD(3, KV_WIDE ? kv::sync() : kv::syncwarp());
        u32 fill = stage == 0 ? KV_STAGES - 1 : stage - 1, then = tile + KV_STAGES - 1;
        if (then < segment.end) {
            start(then, ahead, fill);
            ahead = next_item(then + 1);
        }
        kv::cp_commit();
#if KV_BITS
        widen_codes(stage_at(warp, stage), tile_at(warp));
        KV_GUARD(7, KV_WIDE ? kv::sync() : kv::syncwarp());
#endif
#pragma unroll 1
        for (u32 from = KV_WIDE ? 0 : warp; from < (KV_WIDE ? WARPS : warp + 1); from++) {
            u32 base = tile * TILE + from * GROUP;
#if KV_BITS
            Scaled scaled{stage_at(from, stage), groups_of(params), shift_of(params), base, sight.wanted};
            attend_codes(p, q, tile_at(from), scaled, sight.alike, rows, x);
#else
            attend_group(p, q, stage_at(from, stage), base, sight.alike, rows, x);
#endif
        }
        stage = stage + 1 == KV_STAGES ? 0 : stage + 1;
    }
}

/// Puts the warp's outputs where all can read them.
KV_FN void lay_out(State& x) {
    for (u32 half = 0; half < 2; half++) {
        u32 row = kv::warp() * GROUP + row_of(half);
        float l = x.l[half] + kv::shfl_xor(x.l[half], 1);
        l += kv::shfl_xor(l, 2);
#pragma unroll
        for (u32 n = 0; n < KV_D / 8; n++) {
            u32 at = (row * O_PITCH + n * 8 + quad() * 2) * 4;
            kv::sts(at, f32x2{x.o[n][half * 2], x.o[n][half * 2 + 1]});
        }
        if (quad() == 0) {
            kv::sts(ML_AT + row * 8, f32x2{x.m[half], l});
        }
    }
}

/// Four elements of a row of the block, joined from the warps in order; returns the row's lse.
KV_FN float join(u32 row, u32 c, f32x4& o) {
    f32x2 ml[PARTS];
    float highest = KV_NEG_INF;
    for (u32 w = 0; w < PARTS; w++) {
        ml[w] = kv::lds<f32x2>(ML_AT + (w * GROUP + row) * 8);
        highest = kv::max(highest, ml[w].x);
    }
    float sum = 0.0f;
    o = f32x4{0, 0, 0, 0};
    for (u32 w = 0; w < PARTS; w++) {
        float weight = kv::exp2(ml[w].x - reference(highest));
        sum += ml[w].y * weight;
        o = plus(o, kv::lds<f32x4>(((w * GROUP + row) * O_PITCH + c * 4) * 4), weight);
    }
    if (sum == 0.0f) {
        o = f32x4{0, 0, 0, 0};
        return KV_NEG_INF;
    }
    o = times(o, 1.0f / sum);
    return highest + kv::log2(sum);
}

KV_FN void write(const AttendParams& p, const Unit& unit, const Segment& segment) {
    constexpr u32 quarters = KV_D / 4;
    for (u32 i = kv::tid(); i < unit.rows * quarters; i += WARPS * 32) {
        u32 row = i / quarters, c = i % quarters;
        f32x4 o;
        float lse = join(row, c, o);
        if (segment.partial >= 0) {
            i64 at = static_cast<i64>(segment.partial) * KV_ROWS + row;
            finish4(p.part_o, at * KV_D + c * 4, KV_F32, p.part_lse2, at, c == 0, 0, 0, o, lse);
        } else {
            u32 packed = unit.packed + row, token = unit.first_row + packed / p.group;
            u32 head = unit.head * p.group + packed % p.group;
            i64 at = token * p.o_row + head * p.o_head + c * 4;
            i64 lse_at = static_cast<i64>(token) * p.q_heads + head;
            finish4(p.o, at, p.types >> 8, p.lse2, lse_at, c == 0, p.sinks, head, o, lse);
        }
    }
}

KV_FN void attend(const Params& p) {
    const AttendParams& rule = rules(p);
    u32 end = load<u32>(rule.workers, kv::block() + 1);
    for (u32 i = load<u32>(rule.workers, kv::block()); i < end; i++) {
        Segment segment = load<Segment>(rule.segments, i);
        Unit unit = load<Unit>(rule.units, segment.unit);
        State x;
        clear(x);
        walk(p, unit, segment, x);
        KV_GUARD(4, kv::sync()); // the rings are read; outputs take their place
        lay_out(x);
        KV_GUARD(5, kv::sync());
        write(rule, unit, segment);
        KV_GUARD(6, kv::sync()); // outputs are read; the rings come back
    }
}

#if KV_BITS
KV_KERNEL(attend_codes, Params, WARPS * 32, 2) { attend(p); }
#else
KV_KERNEL(attend_pages, Params, WARPS * 32, KV_D * ELEMENT <= 256 ? 2 : 1) { attend(p); }
#endif
