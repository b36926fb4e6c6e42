// K14: tiles of the lossless codec EXPW (docs/formats.md), decoded on their way to where they belong: one
// read of the coded bytes, wherever the device can read them (mapped host memory, too), one write of rows.
//
//   macro    values
//   KV_TY    0 f32, 1 f16, 2 bf16
//
//   entry          parameters    blocks                         threads   shared memory
//   expw_decode    ExpwParams    a quota, at most the tiles     128       ExpwSpec::shared_bytes
//
// A block does a tile at a time. Coded bytes are not trusted: what is no tile is refused, for the reasons and
// in the order of the CPU's decoder, and said in the tile's status; its rows then hold anything. Nothing
// outside the two spans is touched. Coded bytes may start anywhere; rows at a multiple of the element. Rows
// and dimensions of whole 16 bytes are written in 16 bytes a lane.
#include "numbers.cuh"
#include "params_codec.cuh"

constexpr u32 THREADS = 128, WARPS = THREADS / 32, BAND = 4096, DIM_MAX = 576, TOKENS_MAX = 4096;
constexpr u32 SIZE = KV_TY == KV_F32 ? 4 : 2;
constexpr u32 EXPONENT_MAX = KV_TY == KV_F16 ? 31 : 255;
constexpr u32 REST_PLANES = KV_TY == KV_F16 ? 3 : 0, REST_BYTES = KV_TY == KV_F32 ? 3 : 1;
/// Elements of 16 bytes.
constexpr u32 WIDE = 16 / SIZE;

/// Coded bytes lie in shared memory at their position modulo the ring, which holds the longest head and band.
constexpr u32 RING = KV_TY == KV_F32 ? 32768 : 16384;
constexpr u32 HEAD_MAX = 2 + DIM_MAX;
constexpr u32 BAND_MAX = 6 + BAND * 3 / 4 + BAND + (REST_PLANES + 8 * REST_BYTES) * BAND / 8;
static_assert(HEAD_MAX + BAND_MAX + 16 <= RING, "ring");
/// A byte per channel.
constexpr u32 BASES_AT = RING;
/// Per level and 32 codes: both planes, and how many values the codes before pass on.
constexpr u32 TABLE_AT = BASES_AT + DIM_MAX, LEVEL = BAND / 32 * 16;
static_assert(BAND / 32 == THREADS, "a thread has 32 codes of each level");
constexpr u32 TOTALS_AT = TABLE_AT + 3 * LEVEL, SHARED = TOTALS_AT + WARPS * 16;

#ifdef KV_EMU
extern "C" u32 kv_shared_bytes() { return SHARED; }
#endif

KV_FN u32 least(u32 a, u32 b) { return a < b ? a : b; }

// --- Coded bytes ----------------------------------------------------------------------------------

/// A tile's bytes. Positions count from `base`, which is the multiple of 16 before its first byte.
struct Stream {
    const u8* base;
    u32 begin, end;
    u32 filled; // positions below were brought to the ring
};

/// Sixteen bytes of which some lie outside the tile: those are zeros, and not read.
KV_FN u32x4 edge(const Stream& s, u32 at) {
    u32 words[4] = {0, 0, 0, 0};
#pragma unroll
    for (u32 i = 0; i < 16; i++) {
        if (at + i >= s.begin && at + i < s.end) {
            words[i / 4] |= static_cast<u32>(kv::ldg(s.base + at + i)) << i % 4 * 8;
        }
    }
    return u32x4{words[0], words[1], words[2], words[3]};
}

/// Brings as much as the ring has room for once all before `from` is done with.
KV_FN void fill(Stream& s, u32 from) {
    KV_GUARD(1, kv::sync());
    u32 until = least(from / 16 * 16 + RING, (s.end + 15) / 16 * 16);
    for (u32 at = s.filled + kv::tid() * 16; at < until; at += THREADS * 16) {
        if (at >= s.begin && at + 16 <= s.end) {
            kv::cp16(at % RING, s.base + at, true);
        } else {
            kv::sts(at % RING, edge(s, at));
        }
    }
    s.filled = until;
    kv::cp_commit();
    KV_GUARD(2, kv::cp_wait<0>());
    KV_GUARD(3, kv::sync());
}

KV_FN u32 byte(u32 at) { return kv::lds<u8>(at % RING); }
/// Four bytes from any position on.
KV_FN u32 word(u32 at) {
    u32 low = kv::lds<u32>(at / 4 * 4 % RING), shift = at % 4 * 8;
    return shift ? low >> shift | kv::lds<u32>((at / 4 * 4 + 4) % RING) << (32 - shift) : low;
}
/// N bytes, four to a word.
template <u32 N> KV_FN void bytes(u32 at, u32 (&x)[(N + 3) / 4]) {
    if (N < 4) {
        x[0] = N == 2 ? byte(at) | byte(at + 1) << 8 : byte(at);
    } else {
#pragma unroll
        for (u32 i = 0; i < N / 4; i++) {
            x[i] = word(at + i * 4);
        }
    }
}

// --- Bit planes -----------------------------------------------------------------------------------

KV_FN u32 planes_len(u32 len, u32 n) { return n * (len / 64 * 8 + (len % 64 + 7) / 8); }
/// Bytes of a plane in the block of 64 entries that begins with `first`.
KV_FN u32 stride_of(u32 len, u32 first) { return (least(len - first, 64) + 7) / 8; }

/// Plane `j` of `n`: entries group * 32 .. + 32, of which there is at least one.
KV_FN u32 plane(u32 at, u32 len, u32 n, u32 group, u32 j) {
    u32 first = group / 2 * 64, stride = stride_of(len, first), skipped = group % 2 * 4;
    u32 from = at + first / 8 * n + j * stride + skipped, x = 0;
    if (stride - skipped >= 4) {
        return word(from);
    }
    for (u32 i = 0; i < stride - skipped; i++) {
        x |= byte(from + i) << i * 8;
    }
    return x;
}

/// Whether bits behind the last entry are set, if it is among these 32.
KV_FN bool padded_wrong(u32 x, u32 len, u32 group) {
    u32 left = len - group * 32;
    return left < 32 && x >> left;
}

KV_FN u32 below(u32 bit) { return (1u << bit) - 1; }

// --- Head and bands -------------------------------------------------------------------------------

/// Reads the head at `at`, writes the bases, and moves `at` behind it.
KV_FN u32 read_head(const Stream& s, u32 dim, u32& at) {
    if (s.end - at < 2) {
        return KV_EXPW_LENGTH;
    }
    u32 smallest = byte(at), width = byte(at + 1), planes = at + 2;
    if (smallest > EXPONENT_MAX || width > 8 || 1u << width > EXPONENT_MAX + 1) {
        return KV_EXPW_BASES;
    }
    if (s.end - planes < planes_len(dim, width)) {
        return KV_EXPW_LENGTH;
    }
    for (u32 j = 0; j < width; j++) {
        u32 last = (dim - 1) / 32;
        if (padded_wrong(plane(planes, dim, width, last, j), dim, last)) {
            return KV_EXPW_PADDING;
        }
    }
    for (u32 c = kv::tid() * 4; c < dim; c += THREADS * 4) {
        u32 four = smallest * 0x01010101u;
        u32 bases[4] = {four & 255, four & 255, four & 255, four & 255};
        for (u32 j = 0; j < width; j++) {
            u32 x = plane(planes, dim, width, c / 32, j) >> c % 32;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                bases[i] += (x >> i & 1) << j;
            }
        }
        kv::sts(BASES_AT + c, (bases[0] & 255) | (bases[1] & 255) << 8 | (bases[2] & 255) << 16 | bases[3] << 24);
    }
    at = planes + planes_len(dim, width);
    return KV_EXPW_DONE;
}

/// Where the parts of a band are.
struct Band {
    u32 n[4]; // codes of each level, escapes
    u32 level[3], escapes, rest_planes, rest, low, end;
};

/// Finds a band's parts at `at`.
KV_FN u32 read_band(const Stream& s, u32 at, u32 values, Band& b) {
    if (s.end - at < 6) {
        return KV_EXPW_LENGTH;
    }
    b.n[0] = values;
    b.level[0] = at + 6;
#pragma unroll
    for (u32 i = 1; i < 4; i++) {
        b.n[i] = byte(at + i * 2 - 2) | byte(at + i * 2 - 1) << 8;
    }
    if (b.n[1] > b.n[0] || b.n[2] > b.n[1] || b.n[3] > b.n[2]) {
        return KV_EXPW_COUNTS;
    }
    b.level[1] = b.level[0] + planes_len(b.n[0], 2);
    b.level[2] = b.level[1] + planes_len(b.n[1], 2);
    b.escapes = b.level[2] + planes_len(b.n[2], 2);
    b.rest_planes = b.escapes + b.n[3];
    b.rest = b.rest_planes + planes_len(values, REST_PLANES);
    b.low = b.rest + values;
    b.end = b.rest + REST_BYTES * values;
    return s.end < b.end ? KV_EXPW_LENGTH : KV_EXPW_DONE;
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

/// Writes the table of a band's levels, and checks what `read_band` could not.
KV_FN u32 tabulate(const Band& b) {
    u32 group = kv::tid(), planes[3][2] = {}, passed[3] = {};
    bool padding = false, escapes = false;
#pragma unroll
    for (u32 l = 0; l < 3; l++) {
        if (group * 32 < b.n[l]) {
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                planes[l][j] = plane(b.level[l], b.n[l], 2, group, j);
                padding = padding || padded_wrong(planes[l][j], b.n[l], group);
            }
            passed[l] = kv::popc(planes[l][0] & planes[l][1]);
        }
    }
    if (REST_PLANES && group * 32 < b.n[0] && b.n[0] - group * 32 < 32) {
        for (u32 j = 0; j < REST_PLANES; j++) {
            padding = padding || padded_wrong(plane(b.rest_planes, b.n[0], REST_PLANES, group, j), b.n[0], group);
        }
    }
    for (u32 i = kv::tid(); i < b.n[3] && EXPONENT_MAX < 255; i += THREADS) {
        escapes = escapes || byte(b.escapes + i) > EXPONENT_MAX;
    }
    // Two counts of up to 4096 to a word.
    u32 both = passed[0] | passed[1] << 16, third = passed[2];
    u32 both_before = before_in_warp(both), third_before = before_in_warp(third);
    u32 wrong = (kv::any(padding) ? 1 : 0) | (kv::any(escapes) ? 2 : 0);
    if (kv::lane() == 31) {
        kv::sts(TOTALS_AT + kv::warp() * 16, u32x4{both_before + both, third_before + third, wrong, 0});
    }
    KV_GUARD(4, kv::sync());
    u32 all_both = 0, all_third = 0, all_wrong = 0;
    for (u32 w = 0; w < WARPS; w++) {
        u32x4 x = kv::lds<u32x4>(TOTALS_AT + w * 16);
        both_before += w < kv::warp() ? x.x : 0;
        third_before += w < kv::warp() ? x.y : 0;
        all_both += x.x;
        all_third += x.y;
        all_wrong |= x.z;
    }
    u32 before[3] = {both_before & 0xffff, both_before >> 16, third_before};
#pragma unroll
    for (u32 l = 0; l < 3; l++) {
        kv::sts(TABLE_AT + l * LEVEL + group * 16, u32x4{planes[l][0], planes[l][1], before[l], 0});
    }
    KV_GUARD(5, kv::sync());
    if (all_wrong) {
        return all_wrong & 1 ? KV_EXPW_PADDING : KV_EXPW_ESCAPES;
    }
    bool fit = (all_both & 0xffff) == b.n[1] && all_both >> 16 == b.n[2] && all_third == b.n[3];
    return fit ? KV_EXPW_DONE : KV_EXPW_COUNTS;
}

// --- Elements -------------------------------------------------------------------------------------

/// Code of entry `bit` of 32, and which of the passed values it is if it is a 3.
KV_FN u32 code_of(const u32x4& t, u32 bit) { return (t.x >> bit & 1) | (t.y >> bit & 1) << 1; }
KV_FN u32 rank_of(const u32x4& t, u32 bit) { return t.z + kv::popc(t.x & t.y & below(bit)); }

/// Distance of the `i`-th value that the first level passes on.
KV_FN u32 passed_on(const Band& b, u32 i) {
    u32x4 t = kv::lds<u32x4>(TABLE_AT + LEVEL + i / 32 * 16);
    u32 code = code_of(t, i % 32);
    if (code < 3) {
        return 0x04ff03u >> code * 8 & 255;
    }
    i = rank_of(t, i % 32);
    t = kv::lds<u32x4>(TABLE_AT + 2 * LEVEL + i / 32 * 16);
    code = code_of(t, i % 32);
    return code < 3 ? 5 + code : byte(b.escapes + rank_of(t, i % 32));
}

/// Puts V elements together, `first` of the band being the one at channel `c`; as they lie in memory.
template <u32 V> KV_FN void elements(const Band& b, u32 first, u32 c, u32 (&out)[(V * SIZE + 3) / 4]) {
    u32x4 t = kv::lds<u32x4>(TABLE_AT + first / 32 * 16);
    u32 rank = rank_of(t, first % 32), rests[(V + 3) / 4], lows[(2 * V + 3) / 4] = {}, planes[3] = {};
    bytes<V>(b.rest + first, rests);
    if (KV_TY == KV_F32) {
        bytes<2 * V>(b.low + 2 * first, lows);
    }
    for (u32 j = 0; j < REST_PLANES; j++) {
        u32 block = first / 64 * 64, at = b.rest_planes + block / 8 * REST_PLANES + first % 64 / 8;
        planes[j] = byte(at + j * stride_of(b.n[0], block)) >> first % 8;
    }
#pragma unroll
    for (u32 i = 0; i < V; i++) {
        u32 distance = code_of(t, first % 32 + i);
        if (distance == 3) {
            distance = passed_on(b, rank++);
        }
        u32 exponent = (kv::lds<u8>(BASES_AT + c + i) - distance) & 255, rest = rests[i / 4] >> i % 4 * 8 & 255;
        u32 turned = exponent << 8 | rest, x = turned >> 1 | (turned & 1) << 15;
        if (KV_TY == KV_F16) {
            u32 high = (planes[0] >> i & 1) | (planes[1] >> i & 1) << 1;
            x = (planes[2] >> i & 1) << 15 | (exponent & 31) << 10 | high << 8 | rest;
        }
        if (KV_TY == KV_F32) {
            out[i] = x << 16 | (lows[i / 2] >> i % 2 * 16 & 0xffff);
        } else {
            out[i / 2] = i % 2 ? out[i / 2] | x << 16 : x;
        }
    }
}

/// The tile's place: rows of `dim` elements.
struct Place {
    u8* rows;
    i64 row;
    u32 tokens, dim;
};

/// Writes V elements, `first` of the tile being the first.
template <u32 V> KV_FN void put(const Place& to, u32 first, const u32 (&x)[(V * SIZE + 3) / 4]) {
    u8* at = to.rows + first / to.dim * to.row + first % to.dim * SIZE;
    if constexpr (V == WIDE) {
        kv::stg(reinterpret_cast<u32x4*>(at), u32x4{x[0], x[1], x[2], x[3]});
    } else if (SIZE == 4) {
        kv::stg(reinterpret_cast<u32*>(at), x[0]);
    } else {
        kv::stg(reinterpret_cast<u16*>(at), static_cast<u16>(x[0]));
    }
}

template <u32 V> KV_FN void put_band(const Band& b, const Place& to, u32 before) {
    for (u32 i = kv::tid() * V; i < b.n[0]; i += THREADS * V) {
        u32 x[(V * SIZE + 3) / 4];
        elements<V>(b, i, (before + i) % to.dim, x);
        put<V>(to, before + i, x);
    }
}

KV_FN u32 decode(Stream& s, const Place& to, bool wide) {
    u32 at = s.begin, values = to.tokens * to.dim;
    fill(s, at);
    u32 status = read_head(s, to.dim, at);
    for (u32 before = 0; before < values && status == KV_EXPW_DONE; before += BAND) {
        fill(s, at);
        Band b;
        status = read_band(s, at, least(values - before, BAND), b);
        status = status ? status : tabulate(b);
        if (status == KV_EXPW_DONE) {
            wide ? put_band<WIDE>(b, to, before) : put_band<1>(b, to, before);
            at = b.end;
        }
    }
    return status == KV_EXPW_DONE && at != s.end ? KV_EXPW_LENGTH : status;
}

/// Copies a tile that is not coded.
KV_FN u32 copy(const u8* from, u64 bytes, const Place& to, bool wide) {
    u32 values = to.tokens * to.dim;
    if (bytes != static_cast<u64>(values) * SIZE) {
        return KV_EXPW_LENGTH;
    }
    if (wide && reinterpret_cast<u64>(from) % 16 == 0) {
        for (u32 i = kv::tid() * WIDE; i < values; i += THREADS * WIDE) {
            u32x4 x = kv::ldg_once(reinterpret_cast<const u32x4*>(from + i * SIZE));
            put<WIDE>(to, i, {x.x, x.y, x.z, x.w});
        }
        return KV_EXPW_DONE;
    }
    for (u32 i = kv::tid(); i < values; i += THREADS) {
        u32 x[1] = {0};
        for (u32 j = 0; j < SIZE; j++) {
            x[0] |= static_cast<u32>(kv::ldg(from + i * SIZE + j)) << j * 8;
        }
        put<1>(to, i, x);
    }
    return KV_EXPW_DONE;
}

/// Whether a tile has a shape and lies in both spans.
KV_FN bool placed(const ExpwParams& p, const ExpwTile& tile) {
    if (tile.tokens - 1 >= TOKENS_MAX || tile.dim - 1 >= DIM_MAX || p.out_row < tile.dim * SIZE) {
        return false;
    }
    u64 reach = (tile.tokens - 1) * static_cast<u64>(p.out_row) + tile.dim * SIZE;
    return tile.from <= p.coded_bytes && tile.bytes <= p.coded_bytes - tile.from && tile.to <= p.out_bytes &&
           reach <= p.out_bytes - tile.to && (p.out + tile.to) % SIZE == 0 && p.out_row % SIZE == 0;
}

KV_FN u32 do_tile(const ExpwParams& p, const ExpwTile& tile) {
    if (!placed(p, tile)) {
        return KV_EXPW_OUTSIDE;
    }
    u64 from = p.coded + tile.from, out = p.out + tile.to;
    Place to{reinterpret_cast<u8*>(out), p.out_row, tile.tokens, tile.dim};
    bool wide = out % 16 == 0 && p.out_row % 16 == 0 && tile.dim % WIDE == 0;
    if (tile.raw) {
        return copy(reinterpret_cast<const u8*>(from), tile.bytes, to, wide);
    }
    // No tile is coded in more; positions stay numbers of 32 bits.
    u32 bands = (tile.tokens * tile.dim + BAND - 1) / BAND;
    if (tile.bytes > HEAD_MAX + bands * BAND_MAX) {
        return KV_EXPW_LENGTH;
    }
    u32 skipped = from % 16;
    Stream s{reinterpret_cast<const u8*>(from - skipped), skipped, skipped + tile.bytes, 0};
    return decode(s, to, wide);
}

KV_KERNEL(expw_decode, ExpwParams, THREADS, 8) {
    for (u32 i = kv::block(); i < p.tiles_n; i += kv::blocks()) {
        u32 status = do_tile(p, load<ExpwTile>(p.tiles, i));
        if (kv::tid() == 0) {
            kv::stg(reinterpret_cast<u32*>(p.status) + i, status);
        }
    }
}
