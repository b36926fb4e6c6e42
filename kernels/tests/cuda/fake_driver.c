// A driver for tests: as many GPUs as FAKE_DEVICES says (2), of CUDA FAKE_VERSION (13000) and compute
// capability FAKE_ARCH / 10 (9.0). FAKE_FAIL="cuLaunchKernel=700" makes a function fail. Every kernel
// writes grid and block sizes to an address that is its first parameter. Stream 0x10 is being captured.
//
// With FAKE_EMULATE, modules are libraries of kernels for the emulator (cuda/kvemu.h), which may touch what
// cuMemAlloc and cuMemHostAlloc gave out and what cuMemHostRegister pinned, and nothing else; a fault is a launch
// that failed. There are two multiprocessors then, and FAKE_MEMORY bytes.
//
// With FAKE_DEFER, work on streams is done when somebody waits for it and not before: whoever forgets to wait
// finds old data. The work of a stream that nobody waits for is never done. A fault then loses the GPU: all later
// calls fail. FAKE_FAIL_AT="5=719" makes the fifth call from now on fail, and 719 loses the GPU, too; another text
// gives a GPU that was lost back.
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

enum { MEMORIES = 4096 };
static struct Memory memory[MEMORIES];
static int memories;
static uint64_t taken;
static int lost;

static int number(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static int fails(const char* name) {
    const char* text = getenv("FAKE_FAIL");
    size_t n = strlen(name);
    return text && !strncmp(text, name, n) && text[n] == '=' ? atoi(text + n + 1) : 0;
}

// Whether this is the call that FAKE_FAIL_AT means; counts from when that was set.
static int due(void) {
    static char now[32];
    static int calls;
    const char* text = getenv("FAKE_FAIL_AT");
    if (!text) text = "";
    if (strcmp(text, now)) {
        snprintf(now, sizeof now, "%s", text);
        // Nobody gives back what a GPU had that was lost.
        if (lost) memories = taken = 0;
        calls = lost = 0;
    }
    const char* code = strchr(now, '=');
    if (!code || ++calls != atoi(now)) return 0;
    if (atoi(code + 1) != 2) lost = atoi(code + 1);
    return atoi(code + 1);
}

#define CHECK                                      \
    do {                                           \
        int failed = due();                        \
        if (lost) return lost;                     \
        if (!failed) failed = fails(__func__);     \
        if (failed) return failed;                 \
    } while (0)

struct Kernel {
    uint64_t* out;
    uint64_t value;
};

static __thread void* current;
static int contexts[8], module, function, shared = 48 << 10;

struct Event {
    int recorded, done; // how often
    struct Stream* by;
};

// An entry point of a library of kernels.
struct Entry {
    void (*run)(const void*, const struct Launch*, struct Report*);
    uint32_t parameter_bytes;
};

struct Op {
    enum { LAUNCH, COPY, RECORD, WAIT } kind;
    void* f;
    unsigned blocks, threads, bytes;
    uint64_t to, from;
    size_t length;
    struct Event* event;
    int version;
    unsigned char parameters[4096];
};

struct Stream {
    struct Op* ops;
    int first, end, room;
    struct Stream* capture; // work goes there
};

static struct Stream* streams[64];
static int stream_count;

static int deferred(const struct Stream* s) {
    return s && s != (void*)0x10 && (s->capture || number("FAKE_DEFER", 0));
}

static void add(struct Stream* s, const struct Op* op) {
    if (s->end == s->room) {
        s->room = s->room ? 2 * s->room : 64;
        s->ops = realloc(s->ops, s->room * sizeof *s->ops);
    }
    s->ops[s->end++] = *op;
}

static int launch(const struct Op* op);
static void run_until(struct Stream* s, const struct Event* event, int version);

static int run(const struct Op* op) {
    switch (op->kind) {
        case LAUNCH: return launch(op);
        case COPY: memcpy((void*)op->to, (const void*)op->from, op->length); return 0;
        case RECORD: if (op->event->done < op->version) op->event->done = op->version; return 0;
        case WAIT: if (op->event->by) run_until(op->event->by, op->event, op->version); return 0;
    }
    return 0;
}

// Does a stream's work: all of it, or until an event has happened so often.
static void run_until(struct Stream* s, const struct Event* event, int version) {
    while (s->first < s->end && !(event && event->done >= version)) {
        struct Op op = s->ops[s->first++];
        int failed = lost ? 0 : run(&op);
        if (failed) lost = failed;
    }
    if (s->first == s->end) s->first = s->end = 0;
}

static int queue(struct Stream* s, const struct Op* op) {
    if (!deferred(s)) return run(op);
    add(s->capture ? s->capture : s, op);
    return 0;
}

static void run_all(void) {
    for (int i = 0; i < stream_count; i++) run_until(streams[i], NULL, 0);
}

int cuInit(unsigned flags) { (void)flags; CHECK; return 0; }
int cuDriverGetVersion(int* v) { CHECK; *v = number("FAKE_VERSION", 13000); return 0; }
int cuDeviceGetCount(int* n) { CHECK; *n = number("FAKE_DEVICES", 2); return 0; }
int cuDeviceGet(int* d, int n) { CHECK; *d = n; return 0; }
int cuDeviceGetName(char* name, int len, int d) { CHECK; snprintf(name, len, "Fake %d", d); return 0; }
int cuDevicePrimaryCtxRetain(void** c, int d) { CHECK; *c = &contexts[d & 7]; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { (void)d; CHECK; return 0; }
int cuCtxGetCurrent(void** c) { CHECK; *c = current; return 0; }
int cuCtxSetCurrent(void* c) { CHECK; current = c; return 0; }

int cuStreamCreate(struct Stream** s, unsigned flags) {
    (void)flags;
    CHECK;
    if (stream_count == 64) return 2;
    *s = streams[stream_count++] = calloc(1, sizeof **s);
    return 0;
}

int cuStreamDestroy_v2(struct Stream* s) {
    run_until(s, NULL, 0);
    for (int i = 0; i < stream_count; i++) {
        if (streams[i] == s) streams[i] = streams[--stream_count];
    }
    free(s->ops);
    free(s);
    return 0;
}

int cuStreamSynchronize(struct Stream* s) {
    CHECK;
    if (deferred(s)) {
        if (s->capture) return 900;
        run_until(s, NULL, 0);
    }
    return lost;
}

int cuStreamWaitEvent(struct Stream* s, struct Event* e, unsigned flags) {
    (void)flags;
    CHECK;
    struct Op op = {.kind = WAIT, .event = e, .version = e->recorded};
    return e->recorded ? queue(s, &op) : 0;
}

int cuEventCreate(struct Event** e, unsigned flags) {
    (void)flags;
    CHECK;
    *e = calloc(1, sizeof **e);
    return 0;
}

int cuEventDestroy_v2(struct Event* e) {
    run_all();
    free(e);
    return 0;
}

int cuEventRecord(struct Event* e, struct Stream* s) {
    CHECK;
    e->by = s == (void*)0x10 ? NULL : s;
    struct Op op = {.kind = RECORD, .event = e, .version = ++e->recorded};
    return queue(s, &op);
}

int cuEventQuery(struct Event* e) {
    CHECK;
    return e->done < e->recorded ? 600 : 0;
}

int cuEventSynchronize(struct Event* e) {
    CHECK;
    if (e->done < e->recorded && e->by) run_until(e->by, e, e->recorded);
    return lost;
}

int cuStreamBeginCapture_v2(struct Stream* s, int mode) {
    (void)mode;
    CHECK;
    if (!s) return 900;
    s->capture = calloc(1, sizeof *s);
    return 0;
}

int cuStreamEndCapture(struct Stream* s, struct Stream** graph) {
    CHECK;
    *graph = s->capture;
    s->capture = NULL;
    return 0;
}

int cuGraphInstantiateWithFlags(struct Stream** exec, struct Stream* graph, uint64_t flags) {
    (void)flags;
    CHECK;
    *exec = calloc(1, sizeof **exec);
    for (int i = 0; i < graph->end; i++) add(*exec, &graph->ops[i]);
    return 0;
}

int cuGraphDestroy(struct Stream* graph) {
    free(graph->ops);
    free(graph);
    return 0;
}

int cuGraphExecDestroy(struct Stream* exec) { return cuGraphDestroy(exec); }

int cuGraphLaunch(struct Stream* exec, struct Stream* s) {
    CHECK;
    for (int i = 0; i < exec->end; i++) {
        int failed = queue(s, &exec->ops[i]);
        if (failed) return failed;
    }
    return 0;
}

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

/// Kernels for the emulator. Their file stays open: the loader takes a name that comes again for the same library.
struct Module {
    void* code;
    int file;
};

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
    struct Module own = {dlopen(path, RTLD_NOW | RTLD_LOCAL), file};
    if (!own.code) {
        fprintf(stderr, "%s\n", dlerror());
        return 200;
    }
    *m = memcpy(malloc(sizeof own), &own, sizeof own);
    return 0;
}

int cuModuleUnload(struct Module* m) {
    CHECK;
    if ((void*)m == &module) return 0;
    dlclose(m->code);
    close(m->file);
    free(m);
    return 0;
}

int cuModuleGetFunction(void** f, void* m, const char* name) {
    CHECK;
    if (m != &module) {
        char run[64], size[64];
        snprintf(run, sizeof run, "kv_run_%s", name);
        snprintf(size, sizeof size, "kv_size_%s", name);
        void* code = ((struct Module*)m)->code;
        struct Entry entry = {dlsym(code, run), 0};
        const uint32_t* bytes = dlsym(code, size);
        if (!entry.run || !bytes || *bytes > 4096) return 500;
        entry.parameter_bytes = *bytes;
        *f = memcpy(malloc(sizeof entry), &entry, sizeof entry);
        return 0;
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
int cuStreamIsCapturing(struct Stream* stream, int* status) {
    CHECK;
    *status = stream == (void*)0x10 || (stream && stream->capture);
    return 0;
}
#endif

static int launch(const struct Op* op) {
    if (op->f != &function) {
        struct Launch launch = {op->blocks, op->bytes, 2, 0, 7, memory, (uint64_t)memories};
        struct Report report = {0};
        ((const struct Entry*)op->f)->run(op->parameters, &launch, &report);
        for (int i = 0; i < 10; i++) {
            if (report.faults[i]) {
                fprintf(stderr, "%s\n", report.first);
                return 719;
            }
        }
        return 0;
    }
    struct Kernel p;
    memcpy(&p, op->parameters, sizeof p);
    p.out[0] = p.value;
    p.out[1] = op->blocks;
    p.out[2] = op->threads;
    p.out[3] = op->bytes;
    return 0;
}

int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned bytes, struct Stream* stream, void** parameters, void** extra) {
    (void)by, (void)bz, (void)extra;
    CHECK;
    if ((int)bytes > shared) return 1;
    struct Op op = {.kind = LAUNCH, .f = f, .blocks = gx * gy * gz, .threads = bx, .bytes = bytes};
    size_t length = f == &function ? sizeof(struct Kernel) : ((const struct Entry*)f)->parameter_bytes;
    memcpy(op.parameters, parameters[0], length);
    return queue(stream, &op);
}

static int take(uint64_t* at, size_t bytes, int fill) {
    void* found = NULL;
    if (memories == MEMORIES || posix_memalign(&found, 4096, (bytes + 255) & ~(size_t)255)) return 2;
    memset(found, fill, bytes);
    *at = (uint64_t)found;
    memory[memories++] = (struct Memory){*at, bytes, 1};
    return 0;
}

static struct Memory* find(uint64_t at) {
    for (int i = 0; i < memories; i++) {
        if (memory[i].begin == at) return &memory[i];
    }
    return NULL;
}

static void forget(struct Memory* m) {
    run_all(); // A driver waits, too.
    *m = memory[--memories];
}

static uint64_t all_memory(void) {
    const char* text = getenv("FAKE_MEMORY");
    return text ? strtoull(text, NULL, 10) : (uint64_t)80 << 30;
}

int cuDeviceTotalMem_v2(size_t* n, int d) {
    CHECK;
    *n = all_memory() + ((size_t)d << 30);
    return 0;
}

int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    CHECK;
    if (taken + bytes > all_memory()) return 2;
    int failed = take(at, bytes, 0xff);
    if (!failed) taken += bytes;
    return failed;
}

int cuMemFree_v2(uint64_t at) {
    struct Memory* m = find(at);
    if (!m) return 1;
    taken -= m->bytes;
    forget(m);
    free((void*)at);
    return 0;
}

int cuMemGetInfo_v2(size_t* left, size_t* all) {
    CHECK;
    *all = all_memory();
    *left = *all - taken;
    return 0;
}

int cuMemHostAlloc(uint64_t* at, size_t bytes, unsigned flags) {
    (void)flags;
    CHECK;
    return take(at, bytes, 0xff);
}

int cuMemFreeHost(uint64_t at) {
    struct Memory* m = find(at);
    if (!m) return 1;
    forget(m);
    free((void*)at);
    return 0;
}

int cuMemHostRegister_v2(uint64_t at, size_t bytes, unsigned flags) {
    (void)flags;
    CHECK;
    if (memories == MEMORIES || find(at)) return 712;
    memory[memories++] = (struct Memory){at, bytes, 1};
    return 0;
}

int cuMemHostUnregister(uint64_t at) {
    struct Memory* m = find(at);
    if (!m) return 713;
    forget(m);
    return 0;
}

int cuMemHostGetDevicePointer_v2(uint64_t* address, uint64_t at, unsigned flags) {
    (void)flags;
    CHECK;
    if (!find(at)) return 1;
    *address = at;
    return 0;
}

static int inside(uint64_t at, size_t bytes) {
    for (int i = 0; i < memories; i++) {
        uint64_t offset = at - memory[i].begin;
        if (at >= memory[i].begin && offset + bytes <= memory[i].bytes) return 1;
    }
    return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, struct Stream* stream) {
    CHECK;
    if (!(inside(to, bytes))) return 1;
    struct Op op = {.kind = COPY, .to = (uint64_t)to, .from = (uint64_t)from, .length = bytes};
    return queue(stream, &op);
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, struct Stream* stream) {
    CHECK;
    if (!(inside(to, bytes) && inside(from, bytes))) return 1;
    struct Op op = {.kind = COPY, .to = (uint64_t)to, .from = (uint64_t)from, .length = bytes};
    return queue(stream, &op);
}

int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, struct Stream* stream) {
    CHECK;
    if (!(inside(from, bytes))) return 1;
    struct Op op = {.kind = COPY, .to = (uint64_t)to, .from = (uint64_t)from, .length = bytes};
    return queue(stream, &op);
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
