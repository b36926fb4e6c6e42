// Merges n partial attention results of each row by their log-sum-exp (base 2). A warp a row.
#include "merge.cuh"

constexpr int LANES = 32;
constexpr int EACH = KV_D / LANES;
static_assert(KV_D % LANES == 0, "KV_D must be a multiple of a warp");

extern "C" __global__ void __launch_bounds__(128) kv_merge(const MergeParams p) {
    const int row = blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    const int lane = threadIdx.x % LANES;
    if (row >= p.rows) return;
    const float none = -__int_as_float(0x7f800000);
    float top = none;
    for (int i = 0; i < p.n; i++) top = fmaxf(top, p.lse2[i * p.rows + row]);
    const float base = top == none ? 0.0f : top;
    float sum = 0.0f, o[EACH] = {};
    for (int i = 0; i < p.n; i++) {
        const float w = exp2f(p.lse2[i * p.rows + row] - base);
        sum += w;
        const float* part = p.parts + (i * p.rows + row) * KV_D;
#pragma unroll
        for (int j = 0; j < EACH; j++) o[j] += w * part[j * LANES + lane];
    }
#pragma unroll
    for (int j = 0; j < EACH; j++)
        p.out[row * KV_D + j * LANES + lane] = sum > 0.0f ? o[j] / sum : 0.0f;
    if (lane == 0) p.out_lse2[row] = sum > 0.0f ? base + log2f(sum) : none;
}
