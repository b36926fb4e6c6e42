// Column sums of attention probabilities: how much a window of query rows looks at each token, for H2O, SnapKV,
// PyramidKV, MInference and whoever ranks tokens by attention. A second pass over the keys, exact given the rows'
// log-sum-exps: p = 2^(s - lse2), summed over rows, and over the query heads of a KV head (KV_FOLD_SUM) or not.
//
//   macro       values
//   KV_D        64, 80, 96, 128, 256 (a multiple of 16): dimensions of K
//   KV_TY       0 f32 (KV_D <= 128), 1 f16, 2 bf16: type of K
//   KV_SLOTS    0
//   KV_WIDE     0
//   KV_STAGES   2
//
//   entry      parameters       blocks                 threads   shared memory
//   columns    ColumnsParams    tiles of 256 tokens    128       ColumnsSpec::shared_bytes
//
// More than 48 KiB of shared memory has to be asked for before the launch.
//
// A block keeps its 256 keys in shared memory, 64 a warp, and takes all rows past them, 16 of a query head at a
// time: keys are read once, and sums need no other block. Rows of q and k start at 16 bytes. A row that sees
// nothing adds nothing; NaN goes where it is seen and nowhere else. Sums are f32, in one order.
#include "params_codec.cuh"
#include "state.cuh"

static_assert(KV_D % 16 == 0 && KV_D >= 64 && KV_D <= (KV_TY == KV_F32 ? 128 : 256) && !KV_SLOTS, "macros");

/// Groups of 16 tokens of a warp, and of a block.
constexpr u32 MINE = 4, GROUPS = MINE * WARPS, TOKENS = GROUPS * GROUP;
/// Two stages of 16 query rows behind the keys.
constexpr u32 ROWS_AT = GROUPS * SIDE, SHARED = ROWS_AT + 2 * SIDE;

#ifdef KV_EMU
extern "C" u32 kv_shared_bytes() { return SHARED; }
#endif

/// Sums of the lane's columns: [group][tokens 0..8 | 8..16][two tokens].
typedef float Sums[MINE][2][2];

KV_FN void clear(Sums& sums) {
#pragma unroll
    for (u32 g = 0; g < MINE; g++) {
        sums[g][0][0] = sums[g][0][1] = sums[g][1][0] = sums[g][1][1] = 0.0f;
    }
}

KV_FN u32 token_in(const ColumnsTile& tile, u32 g) { return tile.base + (kv::warp() * MINE + g) * GROUP; }
KV_FN u32 keys_at(u32 g) { return (kv::warp() * MINE + g) * SIDE; }
KV_FN bool none_seen(const ColumnsTile& tile, u32 token) { return token >= tile.hi || token + GROUP <= tile.lo; }

/// Starts the copies of 16 of the warp's keys; those that nobody sees become zeros.
KV_FN void fetch_keys(const AttendParams& p, const ColumnsTile& tile, const List& list, u32 g) {
    u32 token = token_in(tile, g);
    Range wanted{tile.lo, tile.hi};
    if (none_seen(tile, token)) {
        return;
    }
    // A group lies in one page: page_tokens is a multiple of 16.
    u32 frame = item(p, list, wanted, token), offset = token % p.page_tokens;
    i64 first = tile.head * p.k_head + frame * p.k_frame + offset * p.k_token;
    const u8* k = reinterpret_cast<const u8*>(p.k) + first * ELEMENT;
#pragma unroll
    for (u32 i = 0; i < GROUP * CHUNKS / 32; i++) {
        u32 at = i * 32 + kv::lane(), row = at / CHUNKS, chunk = at % CHUNKS;
        kv::cp16(keys_at(g) + chunk_at(row, chunk), k + row * p.k_token * ELEMENT + chunk * 16,
                 has(wanted, token + row));
    }
}

/// The block brings rows first..first + 16 of a query head to shared memory; zeros for those there are not.
KV_FN void fetch_rows(const AttendParams& p, const ColumnsTile& tile, u32 head, u32 first, u32 to) {
    for (u32 i = kv::tid(); i < GROUP * CHUNKS; i += WARPS * 32) {
        u32 row = first + i / CHUNKS, chunk = i % CHUNKS;
        i64 from = (tile.first_row + row) * p.q_row + head * p.q_head + chunk * (16 / ELEMENT);
        u32x4 x = query_chunk(p, from, row < tile.rows, [](f32x4 x) { return x; });
        kv::sts(to + chunk_at(i / CHUNKS, chunk), x);
    }
}

/// Adds the probabilities of 16 rows of a head.
KV_FN void add_rows(const AttendParams& p, const ColumnsTile& tile, const List& list, u32 head, u32 first,
                    const Queries& q, Sums& sums) {
    Range rows[2];
    float lse[2];
    for (u32 half = 0; half < 2; half++) {
        u32 row = first + row_of(half), q_row = tile.first_row + row;
        bool real = row < tile.rows;
        rows[half] = real ? seen(p, list, q_row) : Range{0, 0};
        lse[half] = real ? load<float>(p.lse2, static_cast<i64>(q_row) * p.q_heads + head) : 0.0f;
    }
#pragma unroll
    for (u32 g = 0; g < MINE; g++) {
        u32 token = token_in(tile, g);
        if (!none_seen(tile, token)) {
            Scores s = {};
            dot(q, keys_at(g), s);
            scale_and_mask(p, token, false, rows, s);
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                float x = s[i / 4][i % 4];
                sums[g][i / 4][i % 2] += x == KV_NEG_INF ? 0.0f : kv::exp2(x - lse[i % 4 / 2]);
            }
        }
    }
}

/// Writes the sums over all rows so far.
KV_FN void write(const ColumnsParams& p, const ColumnsTile& tile, u32 len, u32 row, Sums& sums) {
    float* out = reinterpret_cast<float*>(p.out) + row * p.out_row;
#pragma unroll
    for (u32 g = 0; g < MINE; g++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            float& x = sums[g][i / 2][i % 2];
            for (u32 mask = 4; mask < 32; mask *= 2) {
                x += kv::shfl_xor(x, mask);
            }
            u32 token = token_in(tile, g) + token_of(i / 2, i % 2);
            if (kv::lane() < 4 && token < len) {
                kv::stg(out + token, x);
            }
        }
    }
}

KV_KERNEL(columns, ColumnsParams, WARPS * 32, KV_D * ELEMENT <= 256 ? 3 : 1) {
    ColumnsTile tile = load<ColumnsTile>(p.tiles, kv::block());
    List list = open_list(p.a, tile.list, tile.head);
    for (u32 g = 0; g < MINE; g++) {
        fetch_keys(p.a, tile, list, g);
    }
    kv::cp_commit();
    Sums sums;
    clear(sums);
    u32 stage = 0;
    for (u32 g = 0; g < p.a.group; g++) {
        u32 head = tile.head * p.a.group + g;
        for (u32 first = 0; first < tile.rows && tile.lo < tile.hi; first += GROUP) {
            u32 at = ROWS_AT + stage * SIDE;
            fetch_rows(p.a, tile, head, first, at);
            KV_GUARD(2, kv::cp_wait<0>());
            // The rows are visible, and all are done with those of the stage that is filled next.
            KV_GUARD(3, kv::sync());
            Queries q;
            keep(at, q);
            add_rows(p.a, tile, list, head, first, q, sums);
            stage = 1 - stage;
        }
        if (p.fold == KV_FOLD_NONE) {
            write(p, tile, list.len, tile.out + g, sums);
            clear(sums);
        }
    }
    if (p.fold != KV_FOLD_NONE) {
        write(p, tile, list.len, tile.out, sums);
    }
}
