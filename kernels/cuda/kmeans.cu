// Lloyd's k-means over keys in pages: `targets` of the centroids, `assign`ment of every key to the best one, and
// `update` of the centroids to the means of their members; many KV heads and segments in one launch.
//
//   macro       values
//   KV_D        64, 80, 96, 128, 256 (a multiple of 16): dimensions of K
//   KV_TY       0 f32 (KV_D <= 128), 1 f16, 2 bf16: type of K
//   KV_SLOTS    0
//   KV_WIDE     0
//   KV_STAGES   2
//
//   entry             parameters      blocks                         threads   shared memory
//   kmeans_targets    KMeansParams    pieces of 4 clusters           128       0
//   kmeans_assign     KMeansParams    pieces of 128 points           256       KMeansSpec::shared_bytes
//   kmeans_update     KMeansParams    pieces of 4 clusters           128       0
//
// More than 48 KiB of shared memory has to be asked for before the launch.
//
// What is maximised is x.w + b. Euclidean: w = c, b = -|c|^2 / 2. Cosine: w = (c - m) / |c - m|, b = -m.w, where
// m is the middle that is taken off. On the tensor cores w is two numbers of the type of K, its rounding and what
// that lost, so that 16 bits cost 2^-17 of |x||w| (f16: 2^-22), not 2^-9. Of equal scores the lowest cluster's
// counts. A key that is not finite belongs to none. Means are f32 sums in the order of the tokens, divided by
// their number; a centroid without members stays. Magnitudes are meant to be within 2^-40 and 2^40, as squares
// must be numbers.
#include "params_codec.cuh"
#include "state.cuh"

static_assert(KV_D % 16 == 0 && KV_D >= 64 && KV_D <= (KV_TY == KV_F32 ? 128 : 256) && !KV_SLOTS, "macros");

constexpr u32 POINT_WARPS = 8, POINTS = POINT_WARPS * GROUP;
/// Numbers that stand for one of a target.
constexpr u32 PARTS = KV_TY == KV_F32 ? 1 : 2;
/// Targets of a stage.
constexpr u32 TARGETS = 2 * GROUP;
constexpr u32 RINGS_AT = POINTS * PITCH, RING_STAGE = TARGETS * PARTS * PITCH;
constexpr u32 SHARED = RINGS_AT + KV_STAGES * RING_STAGE;
/// Pairs of elements that a lane has of a row.
constexpr u32 PAIRS = (KV_D / 2 + 31) / 32;

#ifdef KV_EMU
extern "C" u32 kv_shared_bytes() { return SHARED; }
#endif

/// The block's task, and the number of what it begins with.
struct Piece {
    KMeansTask task;
    u32 first;
};
KV_FN Piece piece(const KMeansParams& p) {
    u32x2 x = load<u32x2>(p.pieces, kv::block());
    return Piece{load<KMeansTask>(p.tasks, x.x), x.y};
}

/// First byte of a point's row.
KV_FN const u8* row(const KMeansParams& p, const KMeansTask& task, u32 point) {
    u32 token = task.first + point, frame = load<u32>(p.items, task.list + token / p.page_tokens);
    i64 at = frame * p.k_frame + task.head * p.k_head + token % p.page_tokens * p.k_token;
    return reinterpret_cast<const u8*>(p.k) + at * ELEMENT;
}

/// Elements 2i and 2i + 1 of a row.
KV_FN f32x2 pair(const u8* row, u32 i) {
    if (KV_TY == KV_F32) {
        return kv::ldg(reinterpret_cast<const f32x2*>(row) + i);
    }
    return wide2(KV_TY, kv::ldg(reinterpret_cast<const u32*>(row) + i));
}

KV_FN float sum_of_warp(float x) {
    for (u32 mask = 1; mask < 32; mask *= 2) {
        x += kv::shfl_xor(x, mask);
    }
    return x;
}

// --- Targets --------------------------------------------------------------------------------------

/// Writes elements 2i and 2i + 1 of a target.
KV_FN void put_target(const KMeansParams& p, u32 centroid, u32 i, f32x2 w) {
    i64 at = static_cast<i64>(centroid) * PARTS * KV_D + 2 * i;
    if (KV_TY == KV_F32) {
        kv::stg(reinterpret_cast<f32x2*>(reinterpret_cast<float*>(p.targets) + at), w);
        return;
    }
    u32 rounded = pack(KV_TY, w.x, w.y);
    f32x2 back = wide2(KV_TY, rounded);
    u16* to = reinterpret_cast<u16*>(p.targets) + at;
    kv::stg(reinterpret_cast<u32*>(to), rounded);
    kv::stg(reinterpret_cast<u32*>(to + KV_D), pack(KV_TY, w.x - back.x, w.y - back.y));
}

KV_KERNEL(kmeans_targets, KMeansParams, 128, 8) {
    Piece x = piece(p);
    u32 cluster = x.first + kv::warp(), centroid = x.task.centroid + cluster;
    if (cluster >= x.task.clusters) {
        return;
    }
    bool cosine = p.metric == KV_COSINE, away = cosine && p.middle;
    u32 task = load<u32x2>(p.pieces, kv::block()).x;
    f32x2 w[PAIRS], m[PAIRS];
    float square = 0.0f, dot = 0.0f;
#pragma unroll
    for (u32 j = 0; j < PAIRS; j++) {
        u32 i = kv::lane() + j * 32;
        w[j] = m[j] = f32x2{0, 0};
        if (i < KV_D / 2) {
            w[j] = load<f32x2>(p.centroids, static_cast<i64>(centroid) * (KV_D / 2) + i);
            m[j] = away ? load<f32x2>(p.middle, static_cast<i64>(task) * (KV_D / 2) + i) : m[j];
        }
        w[j] = f32x2{w[j].x - m[j].x, w[j].y - m[j].y};
        square += w[j].x * w[j].x + w[j].y * w[j].y;
    }
    square = sum_of_warp(square);
    float by = !cosine ? 1.0f : square > 0.0f ? 1.0f / kv::sqrt(square) : 0.0f;
#pragma unroll
    for (u32 j = 0; j < PAIRS; j++) {
        u32 i = kv::lane() + j * 32;
        w[j] = f32x2{w[j].x * by, w[j].y * by};
        dot += w[j].x * m[j].x + w[j].y * m[j].y;
        if (i < KV_D / 2) {
            put_target(p, centroid, i, w[j]);
        }
    }
    dot = sum_of_warp(dot);
    if (kv::lane() == 0) {
        kv::stg(reinterpret_cast<float*>(p.bias) + centroid, cosine ? -dot : -0.5f * square);
    }
}

// --- Assignment -----------------------------------------------------------------------------------

/// Starts the copies of the warp's points; those there are not become zeros.
KV_FN void fetch_points(const KMeansParams& p, const Piece& x, u32 to) {
    for (u32 i = kv::lane(); i < GROUP * CHUNKS; i += 32) {
        u32 point = x.first + kv::warp() * GROUP + i / CHUNKS;
        bool real = point < x.task.points;
        kv::cp16(to + chunk_at(i / CHUNKS, i % CHUNKS), row(p, x.task, real ? point : 0) + i % CHUNKS * 16, real);
    }
}

/// Where 16 targets lie in shared memory: those of a stage's half, and which of their numbers.
KV_FN u32 side_at(u32 stage, u32 half, u32 part) {
    return RINGS_AT + stage * RING_STAGE + (half * PARTS + part) * SIDE;
}

/// Starts the block's copies of targets first..first + 32.
KV_FN void fetch_targets(const KMeansParams& p, const KMeansTask& task, u32 first, u32 stage) {
    u64 before = static_cast<u64>(task.centroid) * PARTS * KV_D * ELEMENT;
    const u8* from = reinterpret_cast<const u8*>(p.targets) + before;
    for (u32 i = kv::tid(); i < TARGETS * PARTS * CHUNKS; i += POINT_WARPS * 32) {
        u32 chunk = i % CHUNKS, part = i / CHUNKS % PARTS, target = i / CHUNKS / PARTS;
        bool real = first + target < task.clusters;
        u64 at = (static_cast<u64>(real ? first + target : 0) * PARTS + part) * KV_D * ELEMENT + chunk * 16;
        u32 to = side_at(stage, target / GROUP, part) + chunk_at(target % GROUP, chunk);
        kv::cp16(to, from + at, real);
    }
}

/// Whether a word holds an element that is not finite.
KV_FN bool wild(u32 x) {
    constexpr u32 exponent = KV_TY == KV_F32 ? 0x7f800000 : KV_TY == KV_BF16 ? 0x7f80 : 0x7c00;
    bool low = (x & exponent) == exponent;
    return KV_TY == KV_F32 ? low : low || (x >> 16 & exponent) == exponent;
}

/// Two bits for each of the warp's rows, not 0 if it has an element that is not finite.
KV_FN u32 wild_rows(u32 at) {
    bool found = false;
    for (u32 c = kv::lane() % 2; c < CHUNKS; c += 2) {
        u32x4 x = kv::lds<u32x4>(at + chunk_at(kv::lane() / 2, c));
        found = found || wild(x.x) || wild(x.y) || wild(x.z) || wild(x.w);
    }
    return kv::ballot(found);
}

/// The best target of a row so far.
struct Best {
    float score;
    u32 id;
};
KV_FN void better(Best& a, float score, u32 id) {
    if (score > a.score || (score == a.score && id < a.id)) {
        a = Best{score, id};
    }
}

/// Takes the warp's points past the targets of a stage.
KV_FN void compare(const KMeansParams& p, const KMeansTask& task, const Queries& q, u32 first, u32 stage,
                   Best (&best)[2]) {
#pragma unroll 1
    for (u32 half = 0; half < TARGETS / GROUP; half++) {
        Scores s = {};
#pragma unroll 1
        for (u32 part = 0; part < PARTS; part++) {
            dot(q, side_at(stage, half, part), s);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 n = i / 2, j = i % 2, id = first + half * GROUP + token_of(n, j);
            if (id < task.clusters) {
                float b = load<float>(p.bias, task.centroid + id);
                better(best[0], s[n][j] + b, id);
                better(best[1], s[n][2 + j] + b, id);
            }
        }
    }
}

KV_KERNEL(kmeans_assign, KMeansParams, POINT_WARPS * 32, KV_D * ELEMENT <= 256 ? 2 : 1) {
    Piece x = piece(p);
    u32 at = kv::warp() * SIDE;
    fetch_points(p, x, at);
    fetch_targets(p, x.task, 0, 0);
    kv::cp_commit();
    Queries q;
    u32 wild = 0, stage = 0;
    Best best[2] = {{KV_NEG_INF, KV_SKIP}, {KV_NEG_INF, KV_SKIP}};
    for (u32 first = 0; first < x.task.clusters; first += TARGETS) {
        KV_GUARD(2, kv::cp_wait<0>());
        // One barrier for two ends: the targets are visible, and all are done with those before.
        KV_GUARD(3, kv::sync());
        if (first == 0) {
            wild = wild_rows(at);
            keep(at, q);
        }
        if (first + TARGETS < x.task.clusters) {
            fetch_targets(p, x.task, first + TARGETS, 1 - stage);
            kv::cp_commit();
        }
        compare(p, x.task, q, first, stage, best);
        stage = 1 - stage;
    }
    for (u32 half = 0; half < 2; half++) {
        for (u32 mask = 1; mask < 4; mask *= 2) {
            float score = kv::shfl_xor(best[half].score, mask);
            better(best[half], score, kv::shfl_xor(best[half].id, mask));
        }
        u32 point = x.first + kv::warp() * GROUP + row_of(half);
        if (quad() == 0 && point < x.task.points) {
            u32 id = wild >> row_of(half) * 2 & 3 ? KV_SKIP : best[half].id;
            kv::stg(reinterpret_cast<u32*>(p.labels) + x.task.label + point, id);
        }
    }
}

// --- Update ---------------------------------------------------------------------------------------

/// Adds the points of 32 that are `members`, in order.
KV_FN u32 add_members(const KMeansParams& p, const KMeansTask& task, u32 base, u32 members, f32x2 (&sum)[PAIRS]) {
    u32 n = kv::popc(members);
    for (; members; members &= members - 1) {
        const u8* from = row(p, task, base + kv::popc((members & (0 - members)) - 1));
#pragma unroll
        for (u32 j = 0; j < PAIRS; j++) {
            u32 i = kv::lane() + j * 32;
            if (i < KV_D / 2) {
                f32x2 x = pair(from, i);
                sum[j] = f32x2{sum[j].x + x.x, sum[j].y + x.y};
            }
        }
    }
    return n;
}

/// A warp looks through the labels of its task for those of its cluster: 1/KV_D of what labelling took.
KV_KERNEL(kmeans_update, KMeansParams, 128, 8) {
    constexpr u32 AHEAD = 4;
    Piece x = piece(p);
    u32 cluster = x.first + kv::warp(), centroid = x.task.centroid + cluster;
    if (cluster >= x.task.clusters) {
        return;
    }
    f32x2 sum[PAIRS] = {};
    u32 n = 0;
    for (u32 base = 0; base < x.task.points; base += 32 * AHEAD) {
        u32 label[AHEAD];
#pragma unroll
        for (u32 j = 0; j < AHEAD; j++) {
            u32 point = base + j * 32 + kv::lane();
            label[j] = point < x.task.points ? load<u32>(p.labels, x.task.label + point) : KV_SKIP;
        }
#pragma unroll
        for (u32 j = 0; j < AHEAD; j++) {
            n += add_members(p, x.task, base + j * 32, kv::ballot(label[j] == cluster), sum);
        }
    }
#pragma unroll
    for (u32 j = 0; j < PAIRS; j++) {
        u32 i = kv::lane() + j * 32;
        if (i < KV_D / 2 && n > 0) {
            f32x2 mean{sum[j].x / n, sum[j].y / n};
            kv::stg(reinterpret_cast<f32x2*>(p.centroids) + static_cast<u64>(centroid) * (KV_D / 2) + i, mean);
        }
    }
    if (p.counts && kv::lane() == 0) {
        kv::stg(reinterpret_cast<u32*>(p.counts) + centroid, n);
    }
}
