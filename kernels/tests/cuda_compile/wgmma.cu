// An instruction that only the accelerated form of Hopper has.
extern "C" __global__ void kv_wgmma() {
#if KV_ALWAYS || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.fence.sync.aligned;");
#endif
}
