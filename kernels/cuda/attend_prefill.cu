// K3: attention of many query rows over pages, such as those of a prompt's chunk; K4: over listed blocks of
// them (KV_BLOCKS). A unit is up to 128 rows, [token][query heads that share a list], 64 where registers have
// no room for more; K and V are read once for all of them.
//
//   macro       values
//   KV_D        64, 80, 96, 128, 256 (a multiple of 16): dimensions of K and of V
//   KV_TY       0 f32 (KV_D <= 128), 1 f16, 2 bf16: type of K and V
//   KV_BLOCKS   0 all tokens that the mask leaves, 1 listed blocks of them
//   KV_SLOTS    0
//   KV_STAGES   2
//   KV_WGMMA    0 mma.sync, 1 wgmma (sm_90a; 16 bits; KV_D 64, 128)
//
//   entry             parameters      blocks                  threads                shared memory
//   attend_prefill    PrefillParams   workers of the plan     128, 256 with wgmma    PrefillSpec::shared_bytes
//
// More than 48 KiB of shared memory has to be asked for before the launch. The plan is that of K1: workers
// do runs of equal length of 64-token tiles, and merge.cu joins units that were cut.
//
// A tile that every row of a warp sees takes no mask; one that none sees is passed over. Where rows of a warp
// see different tokens, weights of 0 are multiplied as others are, unless a value is a NaN or infinite: then
// the tile's values are added by ordinary arithmetic, row by row. Numerics otherwise are those of K1.
#include "params_prefill.cuh"
#include "tall.cuh"

static_assert(KV_D % 16 == 0 && KV_D >= 64 && KV_D <= (KV_TY == KV_F32 ? 128 : 256), "KV_D");
static_assert(!KV_SLOTS && KV_STAGES == 2, "pages, two stages");
static_assert(!KV_WGMMA || (KV_TY != KV_F32 && KV_D % 64 == 0 && KV_D <= 128), "what wgmma is for");

/// Where the groups of a stage begin in the list.
constexpr u32 BASES = TALL_BYTES;

#ifdef KV_EMU
extern "C" u32 kv_shared_bytes() { return TALL_BYTES + (KV_BLOCKS ? KV_STAGES * WARPS * 4 : 0); }
#endif

KV_FN u32 base_at(u32 stage, u32 group) { return BASES + (stage * WARPS + group) * 4; }

/// What the warp fetches of a tile: 16 tokens from this one on, and the frame they are in.
struct Next {
    u32 token, item;
};

/// What a warp needs to find its tokens.
struct Walk {
    List list;
    Picked picked;
    Range wanted;
};

KV_FN List open_unit(const PrefillParams& p, const Unit& unit) {
    return open_list(p.call, unit.list, unit.head / p.lists_per_head);
}

/// The first of the warp's tokens of a tile; the list's end if there are none.
KV_FN u32 token_at(const PrefillParams& p, const Walk& w, u32 tile) {
    u32 group = tile * WARPS + kv::warp() % WARPS;
#if KV_BLOCKS
    u32 each = p.key_block / GROUP, block = group / each;
    bool real = block < w.picked.n;
    return real ? load<u32>(p.blocks, w.picked.first + block) * p.key_block + group % each * GROUP : w.list.len;
#else
    return group * GROUP;
#endif
}

KV_FN Next next_at(const PrefillParams& p, const Walk& w, u32 token) {
    return Next{token, item(p.call, w.list, w.wanted, token)};
}

KV_FN void fetch_next(const PrefillParams& p, const Walk& w, const Next& next, u32 stage) {
    if (kv::warp() < WARPS) {
        fetch(p.call, w.list, w.wanted, next.token, next.item, stage_at(kv::warp(), stage));
        if (KV_BLOCKS && kv::lane() == 0) {
            kv::sts(base_at(stage, kv::warp()), next.token);
        }
    }
}

KV_FN Span open_span(u32 tile, u32 stage, u32 first, const Sight& sight) {
    Span t{stage, first, {}, 0, 0};
    const Range &alike = sight.alike, &reach = sight.reach;
#pragma unroll
    for (u32 g = 0; g < SPAN; g++) {
        u32 base = KV_BLOCKS ? kv::lds<u32>(base_at(stage, first + g)) : tile * TILE + (first + g) * GROUP;
        t.base[g] = base;
        t.full |= static_cast<u32>(base >= alike.lo && base + GROUP <= alike.hi) << g;
        t.none |= static_cast<u32>(base >= reach.hi || base + GROUP <= reach.lo) << g;
    }
    // Said by one lane, so that the compiler sees no lanes part.
    t.full = kv::shfl(t.full, 0), t.none = kv::shfl(t.none, 0);
    return t;
}

/// Takes the warp's rows through a segment's tiles.
KV_FN void walk(const PrefillParams& p, const Segment& segment, State (&x)[M]) {
    u32 first = kv::warp() * WARP_ROWS;
    Unit unit = load<Unit>(p.call.units, segment.unit);
    Walk w;
    w.list = open_unit(p, unit);
    w.picked = KV_BLOCKS ? load<Picked>(p.picked, segment.unit) : Picked{0, 0};
    u32 team = kv::warp() / TEAM * TEAM * WARP_ROWS;
    Sight sight = look(p.call, unit, w.list, team, TEAM * WARP_ROWS);
    u32 number = segment.unit;
    auto view = [&p, number, first](u32 m) {
        // Read once more: registers are short.
        Unit unit = load<Unit>(p.call.units, number);
        List list = open_unit(p, unit);
        auto row = [&](u32 half) { return seen_by(p.call, unit, list, first + m * GROUP + row_of(half)); };
        return Seen<Range>{{row(0), row(1)}};
    };
    w.wanted = sight.wanted;

    if (segment.begin < segment.end) {
        fetch_next(p, w, next_at(p, w, token_at(p, w, segment.begin)), 0);
    }
    kv::cp_commit();
    Queries q = load_all_queries(p.call, unit, first); // while those are under way

    // Blocks say where tokens are, and tokens in which frame: each is asked for a tile ahead of its use.
    Next ahead = next_at(p, w, token_at(p, w, segment.begin + 1));
    u32 then = token_at(p, w, segment.begin + 2), stage = 0;
#pragma unroll 1
    for (u32 tile = segment.begin; tile < segment.end; tile++) {
        KV_GUARD(2, kv::cp_wait<0>());
        if (KV_WGMMA) {
            kv::publish();
        }
        // One barrier for two ends: the tile is visible to all, and all have read what lay in the stage that
        // is filled next.
        KV_GUARD(3, kv::sync());
        if (tile + 1 < segment.end) {
            fetch_next(p, w, ahead, stage ^ 1);
            ahead = next_at(p, w, then);
            then = token_at(p, w, tile + 3);
        }
        kv::cp_commit();
#pragma unroll 1
        for (u32 g = 0; g < WARPS; g += SPAN) {
            Span t = open_span(tile, stage, g, sight);
            if (kv::shfl(static_cast<u32>(team < unit.rows), 0) && t.none != EVERY) {
                attend_span(p.call, q, t, view, x);
            }
        }
        stage ^= 1;
    }
}

KV_KERNEL(attend_prefill, PrefillParams, ALL_WARPS * 32, M) {
    u32 end = load<u32>(p.call.workers, kv::block() + 1);
    for (u32 i = load<u32>(p.call.workers, kv::block()); i < end; i++) {
        State x[M];
        for (u32 m = 0; m < M; m++) {
            clear(x[m]);
        }
        walk(p, load<Segment>(p.call.segments, i), x);
        // Read once more: registers are short.
        Segment segment = load<Segment>(p.call.segments, i);
        write_rows(p.call, load<Unit>(p.call.units, segment.unit), kv::warp() * WARP_ROWS, segment.partial, x);
        KV_GUARD(4, kv::sync()); // the rings are read, the next unit fills them
    }
}
