// K7 (KV_BOXES 1): upper bounds of q.k over units of tokens, from the box of each unit's keys: sum
// max(q_i M_i, q_i m_i) (Quest, arXiv 2406.10774). For q_i >= 0 that is q_i M_i, else q_i m_i: two products,
// q+ M + q- m, so the tensor cores do it and a row of summaries is read once for a KV head's whole group.
// K8 (KV_BOXES 0): q.c of a row a unit, the mean of its keys or the centroid of a cluster: one product.
//
//   macro       values
//   KV_BOXES    0 one row a unit, 1 maxima and minima
//   KV_D        64, 80, 96, 128: dimensions of K; 256 too without boxes
//   KV_TY       1 f16, 2 bf16: type of the rows
//   KV_SLOTS    1 (units are found one by one)
//   KV_WIDE     0
//   KV_STAGES   2
//
//   entry         parameters     blocks                  threads   shared memory
//   score_units   ScoreParams    workers of the plan     128       ScoreSpec::shared_bytes
//
// More than 48 KiB of shared memory has to be asked for before the launch.
//
// The plan is that of attend_pages.cu, over units instead of tokens and without partial results; its units
// hold whole groups, up to 16 rows. Queries are rounded to the type of the rows; sums are f32.
#define KV_SIDES (KV_BOXES ? 2 : 1)
#include "state.cuh"

static_assert(KV_D % 16 == 0 && KV_D >= 64 && KV_D <= (KV_BOXES ? 128 : 256), "KV_D");
static_assert(KV_TY != KV_F32 && KV_SLOTS && !KV_WIDE, "macros");

/// Scores of 16 rows and a warp's 16 units, before they are folded.
constexpr u32 FOLD_AT = WARPS * RING, FOLD_BYTES = GROUP * GROUP * 4;
/// Queries that registers have no room for.
constexpr u32 Q_AT = FOLD_AT + WARPS * FOLD_BYTES;

#ifdef KV_EMU
extern "C" u32 kv_shared_bytes() { return Q_AT + WARPS * Q_BYTES; }
#endif

/// Folds and writes the warp's scores of units base..base + 16.
KV_FN void write(const ScoreParams& p, const Unit& unit, const Scores& s, u32 base, u32 len) {
    u32 at = FOLD_AT + kv::warp() * FOLD_BYTES, height = p.fold == KV_FOLD_NONE ? 1 : p.group;
    for (u32 n = 0; n < 2; n++) {
        for (u32 half = 0; half < 2; half++) {
            u32 word = row_of(half) * GROUP + token_of(n, 0);
            kv::sts(at + word * 4, f32x2{s[n][half * 2], s[n][half * 2 + 1]});
        }
    }
    KV_GUARD(4, kv::syncwarp());
    u32 mine = kv::lane() % GROUP;
    for (u32 row = kv::lane() / GROUP; row * height < unit.rows && base + mine < len; row += 2) {
        float x = kv::lds<float>(at + (row * height * GROUP + mine) * 4);
        for (u32 g = 1; g < height; g++) {
            x = fold(p.fold, x, kv::lds<float>(at + ((row * height + g) * GROUP + mine) * 4));
        }
        x = p.fold == KV_FOLD_MEAN ? x / p.group : x;
        u32 packed = unit.packed + row * height, token = unit.first_row + packed / p.group;
        i64 head = p.fold == KV_FOLD_NONE ? unit.head * p.group + packed % p.group : unit.head;
        i64 heads = p.fold == KV_FOLD_NONE ? p.kv_heads * p.group : p.kv_heads;
        float* out = reinterpret_cast<float*>(p.out) + (token * heads + head) * p.out_row;
        kv::stg(out + base + mine, x);
    }
}

KV_FN void walk(const ScoreParams& p, const Unit& unit, const Segment& segment) {
    u32 warp = kv::warp(), first_item = load<u32>(p.indptr, unit.list), len = load<u32>(p.lens, unit.list);
    List list{first_item, len, 0, unit.head};
    Range wanted{0, len};
    // The slot of the lane's unit, as attention over slots has it.
    auto next_item = [&](u32 tile) {
        u32 mine = tile * TILE + warp * GROUP + kv::lane() % GROUP;
        u32 frame = mine < len ? load<u32>(p.items, first_item + mine / p.page_tokens) : 0;
        return frame * p.page_tokens + mine % p.page_tokens;
    };
    for (u32 i = 0; i < KV_STAGES - 1; i++) {
        u32 tile = segment.begin + i;
        if (tile < segment.end) {
            fetch(p, list, wanted, tile * TILE + warp * GROUP, next_item(tile), stage_at(warp, i));
        }
        kv::cp_commit();
    }
    Queries plus, minus;
    u32 at = Q_KEPT ? stage_at(warp, KV_STAGES - 1) : Q_AT + warp * Q_BYTES;
#if KV_BOXES
    // A NaN is in both parts.
    auto positive = [](float x) { return x < 0.0f ? 0.0f : x; };
    auto negative = [](float x) { return x > 0.0f ? 0.0f : x; };
    load_queries(p, unit, 0, at, plus, [&](f32x4 x) {
        return f32x4{positive(x.x), positive(x.y), positive(x.z), positive(x.w)};
    });
    load_queries(p, unit, 0, at + SIDE, minus, [&](f32x4 x) {
        return f32x4{negative(x.x), negative(x.y), negative(x.z), negative(x.w)};
    });
#else
    load_queries(p, unit, 0, at, plus, [](f32x4 x) { return x; });
#endif
    u32 stage = 0, ahead = next_item(segment.begin + KV_STAGES - 1);
    for (u32 tile = segment.begin; tile < segment.end; tile++) {
        KV_GUARD(2, kv::cp_wait<KV_STAGES - 2>());
        KV_GUARD(3, kv::syncwarp());
        u32 fill = stage == 0 ? KV_STAGES - 1 : stage - 1, then = tile + KV_STAGES - 1;
        if (then < segment.end) {
            fetch(p, list, wanted, then * TILE + warp * GROUP, ahead, stage_at(warp, fill));
            ahead = next_item(then + 1);
        }
        kv::cp_commit();
        Scores s = {};
        dot(plus, stage_at(warp, stage), s);
        if (KV_BOXES) {
            dot(minus, stage_at(warp, stage) + SIDE, s);
        }
        write(p, unit, s, tile * TILE + warp * GROUP, len);
        stage = stage + 1 == KV_STAGES ? 0 : stage + 1;
    }
    // The next segment may fill the stages: the last one, and the queries, were read before the barrier in
    // `write`.
}

KV_KERNEL(score_units, ScoreParams, WARPS * 32, 3) {
    u32 end = load<u32>(p.workers, kv::block() + 1);
    for (u32 i = load<u32>(p.workers, kv::block()); i < end; i++) {
        Segment segment = load<Segment>(p.segments, i);
        if (segment.begin < segment.end) {
            walk(p, load<Unit>(p.units, segment.unit), segment);
        }
    }
}
