// A driver for tests: as many GPUs as FAKE_DEVICES says (2), of CUDA FAKE_VERSION (13000) and compute
// capability FAKE_ARCH / 10 (9.0). FAKE_FAIL="cuLaunchKernel=700" makes a function fail. Every kernel
// writes grid and block sizes to an address that is its first parameter. Stream 0x10 is being captured.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static int fails(const char* name) {
    const char* text = getenv("FAKE_FAIL");
    size_t n = strlen(name);
    return text && !strncmp(text, name, n) && text[n] == '=' ? atoi(text + n + 1) : 0;
}

#define CHECK if (fails(__func__)) return fails(__func__)

struct Kernel {
    uint64_t* out;
    uint64_t value;
};

static void* current;
static int context, module, function, shared = 48 << 10;

int cuInit(unsigned flags) { (void)flags; CHECK; return 0; }
int cuDriverGetVersion(int* v) { CHECK; *v = number("FAKE_VERSION", 13000); return 0; }
int cuDeviceGetCount(int* n) { CHECK; *n = number("FAKE_DEVICES", 2); return 0; }
int cuDeviceGet(int* d, int n) { CHECK; *d = n; return 0; }
int cuDeviceGetName(char* name, int len, int d) { CHECK; snprintf(name, len, "Fake %d", d); return 0; }
int cuDeviceTotalMem_v2(size_t* n, int d) { CHECK; *n = ((size_t)80 + d) << 30; return 0; }
int cuDevicePrimaryCtxRetain(void** c, int d) { (void)d; CHECK; *c = &context; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { (void)d; CHECK; return 0; }
int cuCtxGetCurrent(void** c) { CHECK; *c = current; return 0; }
int cuCtxSetCurrent(void* c) { CHECK; current = c; return 0; }
int cuModuleUnload(void* m) { (void)m; CHECK; return 0; }
int cuStreamSynchronize(void* s) { (void)s; CHECK; return 0; }

int cuDeviceGetAttribute(int* out, int which, int d) {
    (void)d;
    CHECK;
    int arch = number("FAKE_ARCH", 90);
    switch (which) {
        case 75: *out = arch / 10; break;
        case 76: *out = arch % 10; break;
        case 16: *out = 132; break;
        case 97: *out = 227 << 10; break;
        case 38: *out = 60 << 20; break;
        default: *out = 0;
    }
    return 0;
}

int cuModuleLoadData(void** m, const void* image) {
    CHECK;
    if (memcmp(image, "\x7f" "ELF", 4) && memcmp(image, "//", 2)) return 200;
    *m = &module;
    return 0;
}

int cuModuleGetFunction(void** f, void* m, const char* name) {
    (void)m;
    CHECK;
    if (strcmp(name, "fake")) return 500;
    *f = &function;
    return 0;
}

int cuFuncSetAttribute(void* f, int which, int value) {
    (void)f;
    CHECK;
    if (which == 8) shared = value;
    return 0;
}

int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, void* f, int threads, size_t bytes, unsigned flags) {
    (void)f, (void)flags;
    CHECK;
    int by_threads = 2048 / threads, by_shared = bytes ? (int)((228 << 10) / bytes) : by_threads;
    *n = by_threads < by_shared ? by_threads : by_shared;
    return 0;
}

#ifndef OLD
int cuStreamIsCapturing(void* stream, int* status) {
    CHECK;
    *status = stream == (void*)0x10;
    return 0;
}
#endif

int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned bytes, void* stream, void** parameters, void** extra) {
    (void)f, (void)by, (void)bz, (void)stream, (void)extra;
    CHECK;
    if ((int)bytes > shared) return 1;
    const struct Kernel* p = parameters[0];
    p->out[0] = p->value;
    p->out[1] = (uint64_t)gx * gy * gz;
    p->out[2] = bx;
    p->out[3] = bytes;
    return 0;
}

int cuGetErrorName(int code, const char** text) {
    *text = "CUDA_ERROR_FAKE";
    return code < 0;
}

int cuGetErrorString(int code, const char** text) {
    static char words[32];
    snprintf(words, sizeof words, "code %d", code);
    *text = words;
    return 0;
}
