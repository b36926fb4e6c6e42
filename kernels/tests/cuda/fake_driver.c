// A driver for tests: as many GPUs as FAKE_DEVICES says (2), of CUDA FAKE_VERSION (13000) and compute
// capability FAKE_ARCH / 10 (9.0). FAKE_FAIL="cuLaunchKernel=700" makes a function fail. Every kernel
// writes grid and block sizes to an address that is its first parameter. Stream 0x10 is being captured.
//
// With FAKE_EMULATE, modules are libraries of kernels for the emulator (cuda/kvemu.h), which may touch what
// cuMemAlloc gave out and nothing else; a fault is a launch that failed. There are two multiprocessors then.
#include <dlfcn.h>
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// As kvemu.h has them.
struct Memory {
    uint64_t begin, bytes, writable;
};
struct Launch {
    uint32_t blocks, shared_bytes, schedule, left_out;
    uint64_t seed;
    const struct Memory* memory;
    uint64_t memories;
};
struct Report {
    uint64_t faults[10], switches;
    char first[200];
};

static struct Memory memory[256];
static int memories;

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
        case 16: *out = getenv("FAKE_EMULATE") ? 2 : 132; break;
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
    if (!getenv("FAKE_EMULATE")) return 0;
    // The section headers are a library's end.
    const Elf64_Ehdr* head = image;
    size_t bytes = head->e_shoff + (size_t)head->e_shnum * head->e_shentsize;
    int file = memfd_create("kernel", 0);
    if (file < 0 || write(file, image, bytes) != (ssize_t)bytes) return 200;
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    *m = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!*m) fprintf(stderr, "%s\n", dlerror());
    return *m ? 0 : 200;
}

int cuModuleGetFunction(void** f, void* m, const char* name) {
    CHECK;
    if (m != &module) {
        char entry[64];
        snprintf(entry, sizeof entry, "kv_run_%s", name);
        *f = dlsym(m, entry);
        return *f ? 0 : 500;
    }
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
    (void)by, (void)bz, (void)stream, (void)extra;
    CHECK;
    if ((int)bytes > shared) return 1;
    if (f != &function) {
        struct Launch launch = {gx * gy * gz, bytes, 2, 0, 7, memory, (uint64_t)memories};
        struct Report report = {0};
        ((void (*)(const void*, const struct Launch*, struct Report*))f)(parameters[0], &launch, &report);
        for (int i = 0; i < 10; i++) {
            if (report.faults[i]) {
                fprintf(stderr, "%s\n", report.first);
                return 719;
            }
        }
        return 0;
    }
    const struct Kernel* p = parameters[0];
    p->out[0] = p->value;
    p->out[1] = (uint64_t)gx * gy * gz;
    p->out[2] = bx;
    p->out[3] = bytes;
    return 0;
}

int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    CHECK;
    void* found = NULL;
    if (memories == 256 || posix_memalign(&found, 256, (bytes + 255) & ~(size_t)255)) return 2;
    memset(found, 0xff, bytes);
    *at = (uint64_t)found;
    memory[memories++] = (struct Memory){*at, bytes, 1};
    return 0;
}

int cuMemFree_v2(uint64_t at) {
    CHECK;
    for (int i = 0; i < memories; i++) {
        if (memory[i].begin == at) {
            memory[i] = memory[--memories];
            free((void*)at);
            return 0;
        }
    }
    return 1;
}

static int inside(uint64_t at, size_t bytes) {
    for (int i = 0; i < memories; i++) {
        uint64_t offset = at - memory[i].begin;
        if (at >= memory[i].begin && offset + bytes <= memory[i].bytes) return 1;
    }
    return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    (void)stream;
    CHECK;
    if (!inside(to, bytes)) return 1;
    memcpy((void*)to, from, bytes);
    return 0;
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    (void)stream;
    CHECK;
    if (!inside(to, bytes) || !inside(from, bytes)) return 1;
    memcpy((void*)to, (const void*)from, bytes);
    return 0;
}

int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    (void)stream;
    CHECK;
    if (!inside(from, bytes)) return 1;
    memcpy(to, (const void*)from, bytes);
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
