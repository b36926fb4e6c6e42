// K5: attention of draft trees among themselves. Each node sees itself and the nodes above it, as bits say; what
// comes out is merged with the attention over the context (merge_parts of merge.cu). A tree has up to 64 nodes.
//
//   macro       values
//   KV_D        64, 80, 96, 128, 256 (a multiple of 16): dimensions of K and of V
//   KV_TY       0 f32 (KV_D <= 128), 1 f16, 2 bf16: type of K and V
//   KV_SLOTS    1
//   KV_STAGES   1
//
//   entry          parameters   blocks   threads   shared memory
//   attend_tree    TreeParams   units    128       TreeSpec::shared_bytes
//
// A unit is up to 128 (node, query head) rows of a tree and KV head, 64 where registers have no room for more.
// More than 48 KiB of shared memory has to be asked for before the launch. Numerics are those of K3.
#include "params_prefill.cuh"
#include "tall.cuh"

static_assert(KV_D % 16 == 0 && KV_D >= 64 && KV_D <= (KV_TY == KV_F32 ? 128 : 256), "KV_D");
static_assert(KV_SLOTS && KV_STAGES == 1, "slots, one stage");

#ifdef KV_EMU
extern "C" u32 kv_shared_bytes() { return TALL_BYTES; }
#endif

/// The nodes that a row sees.
struct Bits {
    u64 nodes;
};
KV_FN bool has(const Bits& b, u32 node) { return b.nodes >> (node & 63) & 1; }

KV_KERNEL(attend_tree, TreeParams, WARPS * 32, M) {
    Unit unit = load<Unit>(p.call.units, kv::block());
    u32 first = kv::warp() * WARP_ROWS, mine = kv::warp() * GROUP;
    List list = open_list(p.call, unit.list, unit.head);
    Range all{0, list.len};
    fetch(p.call, list, all, mine, item(p.call, list, all, mine), stage_at(kv::warp(), 0));
    kv::cp_commit();
    Queries q = load_all_queries(p.call, unit, first);
    auto view = [&](u32 m) {
        auto row = [&](u32 half) {
            return Bits{load<u64>(p.ancestors, q_row_of(p.call, unit, first + m * GROUP + row_of(half)))};
        };
        return Seen<Bits>{{row(0), row(1)}};
    };
    KV_GUARD(2, kv::cp_wait<0>());
    KV_GUARD(3, kv::sync());
    State x[M];
    for (u32 m = 0; m < M; m++) {
        clear(x[m]);
    }
#pragma unroll 1
    for (u32 g = 0; g < WARPS; g += SPAN) {
        Span t{0, g, {}, 0, 0};
        for (u32 i = 0; i < SPAN; i++) {
            t.base[i] = (g + i) * GROUP;
            t.none |= static_cast<u32>(t.base[i] >= list.len) << i;
        }
        if (first < unit.rows && t.none != EVERY) {
            attend_span(p.call, q, t, view, x);
        }
    }
    write_rows(p.call, unit, first, -1, x);
}
