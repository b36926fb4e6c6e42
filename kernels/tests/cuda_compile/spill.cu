// More live numbers than 64 registers hold: the compiler has to spill.
extern "C" __global__ void __launch_bounds__(1024) kv_spill(float* x, int n) {
    float a[200];
#pragma unroll
    for (int i = 0; i < 200; i++) a[i] = x[i * n];
#pragma unroll 1
    for (int k = 0; k < n; k++) {
#pragma unroll
        for (int i = 0; i < 200; i++) a[i] = a[i] * a[(i + 7) % 200] + x[i];
    }
#pragma unroll
    for (int i = 0; i < 200; i++) x[i] = a[i];
}
