// K6: joins partial results over disjoint tokens by their log-sum-exp, in the order of their numbers, so
// the same parts give the same bits: o = sum 2^(lse_i - M) o_i / sum 2^(lse_i - M), M = max lse_i. A part
// with lse = -inf counts for nothing; none or only such give (0, -inf); a NaN part gives NaN.
//
//   entry          parameters          blocks                            threads   shared memory
//   merge_units    MergeUnitsParams    ceil(units_n * unit_rows / 4)     128       0
//   merge_parts    MergePartsParams    ceil(rows * heads / 4)            128       0
//
// No macros. A warp does a row; lanes take 4 elements each. dim is a multiple of 4; rows start at 16 bytes.
#include "numbers.cuh"

/// The running sum of a row's parts.
struct Merged {
    float highest, weight;
};

KV_FN float higher(float a, float b) { return b > a || b != b ? b : a; }

KV_FN void add(Merged& m, f32x4& sum, float lse, f32x4 o) {
    float w = kv::exp2(lse - m.highest);
    m.weight += w;
    sum = plus(sum, o, w);
}

KV_FN float finish(const Merged& m, f32x4& sum) {
    if (m.weight == 0.0f) {
        return KV_NEG_INF;
    }
    sum = times(sum, 1.0f / m.weight);
    return m.highest + kv::log2(m.weight);
}

KV_KERNEL(merge_units, MergeUnitsParams, 128, 8) {
    u32 task = kv::block() * 4 + kv::warp(), row = task % p.unit_rows;
    if (task / p.unit_rows >= p.units_n) {
        return;
    }
    Unit unit = load<Unit>(p.units, task / p.unit_rows);
    if (row >= unit.rows || unit.reduce == 0) {
        return;
    }
    u32 packed = unit.packed + row, token = unit.first_row + packed / p.group;
    u32 head = unit.head * p.group + packed % p.group;
    auto at = [&](u32 i) { return static_cast<i64>(unit.partial + i) * p.unit_rows + row; };
    float highest = KV_NEG_INF;
    for (u32 i = 0; i < unit.reduce; i++) {
        highest = higher(highest, load<float>(p.part_lse2, at(i)));
    }
    for (u32 c = kv::lane() * 4; c < p.dim; c += 128) {
        Merged m{highest, 0.0f};
        f32x4 sum{0, 0, 0, 0};
        for (u32 i = 0; i < unit.reduce; i++) {
            float lse = load<float>(p.part_lse2, at(i));
            if (lse != KV_NEG_INF) {
                add(m, sum, lse, load4(p.part_o, at(i) * p.dim + c, KV_F32));
            }
        }
        float lse = finish(m, sum);
        i64 to = token * p.o_row + head * p.o_head + c, lse_at = static_cast<i64>(token) * p.q_heads + head;
        finish4(p.o, to, p.o_type, p.lse2, lse_at, c == 0, p.sinks, head, sum, lse);
    }
}

KV_KERNEL(merge_parts, MergePartsParams, 128, 8) {
    u32 task = kv::block() * 4 + kv::warp();
    if (task >= p.rows * p.heads) {
        return;
    }
    u32 row = task / p.heads, head = task % p.heads;
    float highest = KV_NEG_INF;
    for (u32 i = 0; i < p.parts_n; i++) {
        highest = higher(highest, load<float>(load<Part>(p.parts, i).lse2, task));
    }
    for (u32 c = kv::lane() * 4; c < p.dim; c += 128) {
        Merged m{highest, 0.0f};
        f32x4 sum{0, 0, 0, 0};
        for (u32 i = 0; i < p.parts_n; i++) {
            Part part = load<Part>(p.parts, i);
            float lse = load<float>(part.lse2, task);
            if (lse != KV_NEG_INF) {
                add(m, sum, lse, load4(part.o, row * part.row + head * part.head + c, p.part_type));
            }
        }
        float lse = finish(m, sum);
        finish4(p.o, row * p.o_row + head * p.o_head + c, p.o_type, p.lse2, task, c == 0, 0, head, sum, lse);
    }
}
