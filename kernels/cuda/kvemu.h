// The body of kvdev.cuh on a CPU (x86-64, g++ or clang): for tests, never shipped.
//
// The threads of a block are fibers of one OS thread; blocks run one after the other. A fiber goes on
// until it has to wait; who is next is the schedule's choice. What this checks and does not: docs/cuda.md.
#pragma once

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define KV_ASAN 1
#else
#define KV_ASAN 0
#endif

#define KV_FN static inline
/// Exports `kv_run_<name>(&params, &launch, &report)`, and the size of its parameters.
#define KV_KERNEL(name, Params, threads, blocks_per_sm)                                               \
    static void name(const Params& p);                                                                \
    extern "C" const u32 kv_size_##name = sizeof(Params);                                             \
    extern "C" void kv_run_##name(const void* p, const kv::Launch* launch, kv::Report* report) {      \
        auto body = [](const void* p) { name(*static_cast<const Params*>(p)); };                      \
        kv::run(body, p, *launch, threads, *report);                                                  \
    }                                                                                                 \
    static void name(const Params& p)
#define KV_GUARD(n, call)                 \
    do {                                  \
        if (kv::machine.left_out != (n)) { \
            call;                         \
        }                                 \
    } while (0)

namespace kv {

/// Global memory that a kernel may touch.
struct Memory {
    u64 begin, bytes, writable;
};

/// How to run a grid. Mirrored in kernels/tests/emu/machine.rs.
struct Launch {
    u32 blocks, shared_bytes;
    u32 schedule; // 0 forward, 1 reverse, 2 random
    u32 left_out; // the KV_GUARD to leave out, 0 for none
    u64 seed;
    const Memory* memory;
    u64 memories;
};

enum Fault {
    READ_AFTER_WRITE, // another thread's write, no barrier between
    WRITE_AFTER_READ,
    WRITE_AFTER_WRITE,
    IN_FLIGHT,     // shared memory that a copy is still to fill
    UNWRITTEN,     // shared memory that nobody wrote
    SHARED_BOUNDS, // outside dynamic shared memory, misaligned, or the canary behind it died
    GLOBAL_BOUNDS, // outside the launch's memory, misaligned, or a write to what is only read
    WRITTEN_TWICE, // global memory written by two threads of a launch
    DEADLOCK,
    DIVERGED, // lanes of a warp in different collectives
    FAULTS
};

struct Report {
    u64 faults[FAULTS];
    u64 switches;
    char first[200];
};

enum Kind { BARRIER, SHUFFLE, SHUFFLE_XOR, BALLOT, LDM, LDM_T, MMA_BF16, MMA_F16, MMA_S8, WGMMA };
enum { LANES = 32, WARPS_MAX = 32, WORDS_IN = 12, COPIES = 512, PRODUCTS = 32, CANARY = 64 };
enum { STACK = KV_ASAN ? 256 << 10 : 64 << 10 };

/// Writer of words that threads count in: with each other they may, with reads and writes they race.
enum : u32 { COUNTERS = 0xffffffff };

/// What happened last to a word of shared memory. A reader or writer is ordered before the present if a
/// block barrier came since, or a barrier of the warp that both belong to.
struct Word {
    u32 writer; // thread + 1; 0: nobody
    u32 write_block, write_warp;
    bool in_flight;
    u32 read_block; // block epoch of the reads below
    u32 readers;    // warps that read, a bit each
    u32 read_warp;  // warp epoch of the reads of the last warp that did
    u32 lanes;      // its lanes
};

struct Copy {
    u32 to, group;
    const void* from;
    bool real;
};

/// A wgmma that was not waited for: what lies at c is in `kept` of the first product of that c.
struct Product {
    float* c;
    u32 first, a[4], at;
    bool bf16, turned;
    float kept[32];
};

enum State { READY, WAITING, DONE };

struct Fiber {
    void* stack_pointer;
    State state;
    char* stack;
    void* fake; // the address sanitizer's
    Copy* copies;
    u32 copies_begin, copies_end, group;
    Product* products;
    u32 product_count;
};

/// A collective that lanes are arriving at, and the one before, which some still read.
struct Meeting {
    u32 arrived;
    Kind kind;
    u32 in[LANES][WORDS_IN];
    u32 out[2][LANES][4];
    u32 generation;
};

struct Warp {
    Meeting meeting;
    u32 epoch;
    u32 products; // wgmmas so far: four warps do the same ones
};

struct Machine {
    void (*body)(const void*);
    const void* params;
    Launch launch;
    Report* report;
    u32 left_out;
    u32 threads, block, current, alive;
    Fiber* fibers;
    Warp* warps;
    u32 block_arrived, block_epoch;
    u8* shared;
    Word* words;
    u32** written; // by memory: who wrote each pair of bytes
    u64 random;
    void* home;
    void* home_fake;
    const void* home_stack;
    size_t home_bytes;
};

static Machine machine;

KV_FN u32 tid() { return machine.current; }
KV_FN u32 lane() { return machine.current % LANES; }
KV_FN u32 warp() { return machine.current / LANES; }
KV_FN u32 block() { return machine.block; }
KV_FN u32 blocks() { return machine.launch.blocks; }

__attribute__((noinline, format(printf, 2, 3))) static void fault(Fault kind, const char* text, ...) {
    if (machine.report->faults[kind]++ || machine.report->first[0]) {
        return;
    }
    char* to = machine.report->first;
    size_t room = sizeof machine.report->first;
    int n = snprintf(to, room, "block %u, thread %u: ", machine.block, machine.current);
    va_list args;
    va_start(args, text);
    vsnprintf(to + n, room - n, text, args);
    va_end(args);
}

// --- Fibers ---------------------------------------------------------------------------------------

extern "C" void kv_switch(void** from, void* to);
// Saves what a function must keep, on the stack it leaves, and takes up the other stack.
asm(R"(
.text
.p2align 4
.type kv_switch,@function
kv_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size kv_switch,.-kv_switch
)");

static void leave(void** save, void** fake, void* to, const void* stack, size_t bytes) {
#if KV_ASAN
    __sanitizer_start_switch_fiber(fake, stack, bytes);
#else
    (void)fake, (void)stack, (void)bytes;
#endif
    machine.report->switches++;
    kv_switch(save, to);
}

static void arrived(void* fake) {
#if KV_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    (void)fake;
#endif
}

KV_FN u64 random_number() {
    u64 z = machine.random += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/// The thread that goes on, or `threads` if none can.
static u32 choose() {
    u32 n = machine.threads, at = machine.current, step = 1;
    if (machine.launch.schedule == 1) {
        step = n - 1;
    } else if (machine.launch.schedule == 2) {
        u64 r = random_number();
        at = static_cast<u32>(r % n);
        step = static_cast<u32>(r >> 32) % n | 1; // odd, so it visits all of a power of two
        step = n & (n - 1) ? 1 : step;
    }
    for (u32 i = 0; i < n; i++) {
        at = (at + step) % n;
        if (machine.fibers[at].state == READY) {
            return at;
        }
    }
    return n;
}

/// Ends the block; no thread of it goes on.
[[noreturn]] static void go_home() {
    Fiber& from = machine.fibers[machine.current];
    leave(&from.stack_pointer, &from.fake, machine.home, machine.home_stack, machine.home_bytes);
    abort();
}

/// Lets others run; comes back when this thread is chosen again.
static void yield() {
    u32 me = machine.current, next = choose();
    if (next == machine.threads) {
        if (machine.alive) {
            fault(DEADLOCK, "deadlock: %u threads wait, %u of them at the block barrier", machine.alive,
                  machine.block_arrived);
        }
        go_home();
    }
    if (next != me) {
        Fiber &from = machine.fibers[me], &to = machine.fibers[next];
        machine.current = next;
        // A thread that is done gives its fake stack back.
        void** fake = from.state == DONE ? nullptr : &from.fake;
        leave(&from.stack_pointer, fake, to.stack_pointer, to.stack, STACK);
        arrived(from.fake);
    }
}

static void fiber_main() {
#if KV_ASAN
    const void* stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
    if (!machine.home_stack) { // the first of a run comes from home
        machine.home_stack = stack;
        machine.home_bytes = bytes;
    }
#endif
    machine.body(machine.params);
    if (machine.fibers[machine.current].product_count) {
        fault(IN_FLIGHT, "ends before its wgmmas do");
    }
    machine.fibers[machine.current].state = DONE;
    machine.alive--;
    yield();
    abort();
}

static void start(Fiber& fiber) {
#if KV_ASAN
    __asan_unpoison_memory_region(fiber.stack, STACK); // what a deadlock left
#endif
    void** top = reinterpret_cast<void**>(fiber.stack + STACK);
    *--top = nullptr; // no caller; keeps the stack aligned as the ABI wants at a function's entry
    *--top = reinterpret_cast<void*>(fiber_main);
    top -= 6;
    memset(top, 0, 6 * sizeof(void*));
    fiber = Fiber{top, READY, fiber.stack, nullptr, fiber.copies, 0, 0, 0, fiber.products, 0};
}

// --- Barriers and collectives ---------------------------------------------------------------------

static void wait_for_others() {
    machine.fibers[machine.current].state = WAITING;
    yield();
}

static void wake(u32 from, u32 to) {
    for (u32 t = from; t < to; t++) {
        if (machine.fibers[t].state == WAITING) {
            machine.fibers[t].state = READY;
        }
    }
}

KV_FN void sync() {
    if (++machine.block_arrived < machine.threads) {
        return wait_for_others();
    }
    machine.block_arrived = 0;
    machine.block_epoch++;
    wake(0, machine.threads);
}

/// Meets the other lanes; the last one does the work. Results stay until the collective after the next.
static u32* meet(Kind kind, const u32* in, u32 words, void (*work)(Meeting&, u32 (*out)[4])) {
    Meeting& m = machine.warps[warp()].meeting;
    if (m.arrived && m.kind != kind) {
        fault(DIVERGED, "collective %d while other lanes are in %d", kind, m.kind);
        go_home(); // what the others brought is not what this one's work is on
    }
    m.kind = kind;
    for (u32 i = 0; i < words; i++) {
        m.in[lane()][i] = in[i];
    }
    u32(*out)[4] = m.out[m.generation % 2];
    if (++m.arrived < LANES) {
        wait_for_others();
    } else {
        if (work) {
            work(m, out);
        }
        m.arrived = 0;
        m.generation++;
        wake(warp() * LANES, (warp() + 1) * LANES);
    }
    return out[lane()];
}

KV_FN void syncwarp() {
    auto pass = [](Meeting&, u32 (*)[4]) { machine.warps[warp()].epoch++; };
    meet(BARRIER, nullptr, 0, pass);
}

KV_FN u32 bits(float x) {
    u32 r;
    memcpy(&r, &x, 4);
    return r;
}
KV_FN float float_of(u32 x) {
    float r;
    memcpy(&r, &x, 4);
    return r;
}

KV_FN u32 shfl(u32 x, u32 from) {
    u32 in[2] = {x, from};
    return *meet(SHUFFLE, in, 2, [](Meeting& m, u32 (*out)[4]) {
        for (u32 l = 0; l < LANES; l++) {
            out[l][0] = m.in[m.in[l][1] % LANES][0];
        }
    });
}
KV_FN u32 shfl_xor(u32 x, u32 mask) {
    u32 in[2] = {x, mask};
    return *meet(SHUFFLE_XOR, in, 2, [](Meeting& m, u32 (*out)[4]) {
        for (u32 l = 0; l < LANES; l++) {
            out[l][0] = m.in[(l ^ m.in[l][1]) % LANES][0];
        }
    });
}
KV_FN u32 ballot(bool x) {
    u32 in = x;
    return *meet(BALLOT, &in, 1, [](Meeting& m, u32 (*out)[4]) {
        u32 all = 0;
        for (u32 l = 0; l < LANES; l++) {
            all |= m.in[l][0] << l;
        }
        for (u32 l = 0; l < LANES; l++) {
            out[l][0] = all;
        }
    });
}
KV_FN float shfl(float x, u32 from) { return float_of(shfl(bits(x), from)); }
KV_FN float shfl_xor(float x, u32 mask) { return float_of(shfl_xor(bits(x), mask)); }
KV_FN bool any(bool x) { return ballot(x) != 0; }

// --- Memory ---------------------------------------------------------------------------------------

static void check_shared(u32 at, u32 bytes) {
    if (at % bytes == 0 && at + bytes <= machine.launch.shared_bytes) {
        return;
    }
    fault(SHARED_BOUNDS, "%u bytes at %u of %u of shared memory", bytes, at, machine.launch.shared_bytes);
    go_home(); // the block ends here, as it would on the device
}

static void note_read(u32 at, u32 bytes) {
    u32 me = machine.current, w = warp(), epoch = machine.warps[w].epoch;
    for (Word* x = machine.words + at / 4; x < machine.words + (at + bytes + 3) / 4; x++) {
        if (x->in_flight) {
            fault(IN_FLIGHT, "reads byte %u, which thread %u is still copying", at, x->writer - 1);
        } else if (!x->writer) {
            fault(UNWRITTEN, "reads byte %u, which nobody wrote", at);
        } else if (x->writer - 1 != me && x->write_block == machine.block_epoch &&
                   !((x->writer - 1) / LANES == w && x->write_warp != epoch)) {
            fault(READ_AFTER_WRITE, "reads byte %u, written by thread %u with no barrier since", at,
                  x->writer - 1);
        }
        if (x->read_block != machine.block_epoch || !x->readers) {
            x->read_block = machine.block_epoch;
            x->readers = 0;
        }
        if (x->readers != 1u << w || x->read_warp != epoch) {
            x->lanes = 0;
        }
        x->readers |= 1u << w;
        x->read_warp = epoch;
        x->lanes |= 1u << lane();
    }
}

/// `landing`: the end of a copy whose start was noted.
static void note_write(u32 at, u32 bytes, bool in_flight, bool landing) {
    u32 me = machine.current, w = warp(), epoch = machine.warps[w].epoch;
    for (Word* x = machine.words + at / 4; x < machine.words + (at + bytes + 3) / 4; x++) {
        if (x->in_flight && !landing) {
            fault(IN_FLIGHT, "writes byte %u, which thread %u is still copying", at, x->writer - 1);
        }
        if (x->writer && x->writer - 1 != me && x->write_block == machine.block_epoch &&
            !((x->writer - 1) / LANES == w && x->write_warp != epoch)) {
            fault(WRITE_AFTER_WRITE, "writes byte %u after thread %u with no barrier between", at,
                  x->writer - 1);
        }
        if (x->readers && x->read_block == machine.block_epoch) {
            bool other_lane = x->read_warp == epoch && (x->lanes & ~(1u << lane()));
            if ((x->readers & ~(1u << w)) || other_lane) {
                fault(WRITE_AFTER_READ, "writes byte %u after warps %x read it, with no barrier between", at,
                      x->readers);
            }
        }
        *x = Word{me + 1, machine.block_epoch, epoch, in_flight, 0, 0, 0, 0};
    }
}

template <class T> KV_FN T lds(u32 at) {
    T x;
    check_shared(at, sizeof x);
    note_read(at, sizeof x);
    memcpy(&x, machine.shared + at, sizeof x);
    return x;
}
template <class T> KV_FN void sts(u32 at, T x) {
    check_shared(at, sizeof x);
    note_write(at, sizeof x, false, false);
    memcpy(machine.shared + at, &x, sizeof x);
}

template <class T> static void add_to(u32 at, T more) {
    check_shared(at, sizeof more);
    for (u32 word = at / 4; word < (at + sizeof more) / 4; word++) {
        Word& x = machine.words[word];
        if (!x.writer) {
            fault(UNWRITTEN, "counts at byte %u, which nobody wrote", at);
        }
        if (x.writer != COUNTERS || x.write_block != machine.block_epoch) {
            note_write(word * 4, 4, false, false);
            x.writer = COUNTERS;
        }
    }
    T n;
    memcpy(&n, machine.shared + at, sizeof n);
    n += more;
    memcpy(machine.shared + at, &n, sizeof n);
}
KV_FN void count(u32 at) { add_to<u32>(at, 1); }
KV_FN void add(u32 at, u64 x) { add_to<u64>(at, x); }

/// The number of the memory that has these bytes.
static u64 find(const void* p, u64 bytes, u64 alignment, bool write) {
    u64 at = reinterpret_cast<u64>(p);
    for (u64 i = 0; i < machine.launch.memories && at % alignment == 0; i++) {
        const Memory& m = machine.launch.memory[i];
        if (at >= m.begin && at + bytes <= m.begin + m.bytes && (m.writable || !write)) {
            return i;
        }
    }
    fault(GLOBAL_BOUNDS, "%s %llu bytes at %p", write ? "writes" : "reads", bytes, p);
    go_home();
}

template <class T> KV_FN T ldg(const T* p) {
    T x;
    find(p, sizeof x, alignof(T), false);
    memcpy(&x, p, sizeof x);
    return x;
}
KV_FN u32x4 ldg_once(const u32x4* p) { return ldg(p); }
template <class T> KV_FN void stg(T* p, T x) {
    u64 memory = find(p, sizeof x, alignof(T), true);
    u32 who = machine.block * machine.threads + machine.current + 1;
    u64 at = reinterpret_cast<u64>(p) - machine.launch.memory[memory].begin;
    for (u64 i = at / 2; i < (at + sizeof x + 1) / 2; i++) {
        u32& before = machine.written[memory][i];
        if (before && before != who) {
            fault(WRITTEN_TWICE, "writes byte %llu of a buffer that thread %u of block %u wrote", at,
                  (before - 1) % machine.threads, (before - 1) / machine.threads);
        }
        before = who;
    }
    memcpy(p, &x, sizeof x);
}

// --- Asynchronous copies --------------------------------------------------------------------------

/// Lands when it is waited for, and not before: until then the bytes are 0xFF.
KV_FN void cp16(u32 to, const void* from, bool real) {
    Fiber& f = machine.fibers[machine.current];
    check_shared(to, 16);
    if (real) {
        find(from, 16, 16, false);
    }
    note_write(to, 16, true, false);
    memset(machine.shared + to, 0xFF, 16);
    if (f.copies_end - f.copies_begin == COPIES) {
        fprintf(stderr, "kvemu: more than %d copies in flight\n", COPIES);
        abort();
    }
    f.copies[f.copies_end++ % COPIES] = Copy{to, f.group, from, real};
}
KV_FN void cp_commit() { machine.fibers[machine.current].group++; }
template <int N> KV_FN void cp_wait() {
    Fiber& f = machine.fibers[machine.current];
    while (f.copies_begin != f.copies_end) {
        Copy& c = f.copies[f.copies_begin % COPIES];
        if (c.group + N >= f.group) {
            return;
        }
        f.copies_begin++;
        note_write(c.to, 16, false, true);
        if (c.real) {
            memcpy(machine.shared + c.to, c.from, 16);
        } else {
            memset(machine.shared + c.to, 0, 16);
        }
    }
}

// --- Arithmetic -----------------------------------------------------------------------------------

KV_FN u32 opaque(u32 x) { return x; }
KV_FN u32 popc(u32 x) { return static_cast<u32>(__builtin_popcount(x)); }
KV_FN float rint(float x) { return ::rintf(x); }
KV_FN float exp2(float x) { return ::exp2f(x); }
KV_FN float log2(float x) { return ::log2f(x); }
KV_FN float sqrt(float x) { return ::sqrtf(x); }
KV_FN float max(float a, float b) { return ::fmaxf(a, b); }

KV_FN u16 to_bf16(float x) {
    u32 u = bits(x);
    return x != x ? 0x7fff : static_cast<u16>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
KV_FN float wide_bf16(u16 x) { return float_of(static_cast<u32>(x) << 16); }

KV_FN float wide_f16(u16 x) {
    u32 sign = (x & 0x8000u) << 16, exponent = x >> 10 & 31, fraction = x & 1023;
    if (exponent == 31) {
        return float_of(sign | 0x7f800000 | fraction << 13);
    }
    float magnitude = exponent ? float_of((exponent + 112) << 23 | fraction << 13) : fraction * 0x1p-24f;
    return float_of(sign | bits(magnitude));
}
KV_FN u16 to_f16(float x) {
    u16 sign = bits(x) >> 16 & 0x8000;
    float m = fabsf(x);
    if (!(m < 65520.0f)) {
        return m != m ? 0x7fff : sign | 0x7c00;
    }
    // One unit of the last place at this size; rint rounds to nearest even.
    int exponent;
    frexpf(m, &exponent);
    exponent = exponent < -13 || m == 0.0f ? -13 : exponent;
    u32 units = static_cast<u32>(rintf(ldexpf(m, 11 - exponent)));
    return static_cast<u16>(sign | ((exponent + 13) * 1024 + units));
}
KV_FN u32 pack_bf16(float low, float high) { return to_bf16(low) | static_cast<u32>(to_bf16(high)) << 16; }
KV_FN u32 pack_f16(float low, float high) { return to_f16(low) | static_cast<u32>(to_f16(high)) << 16; }

// --- Tensor cores ---------------------------------------------------------------------------------

/// Element (row, column) of matrix m, as lane m * 8 + row gave its address.
static u16 matrix_element(const Meeting& meeting, u32 m, u32 row, u32 column) {
    u16 x;
    memcpy(&x, machine.shared + meeting.in[m * 8 + row][0] + column * 2, 2);
    return x;
}
static void load_matrices(Meeting& meeting, u32 (*out)[4]) {
    bool turned = meeting.kind == LDM_T;
    for (u32 l = 0; l < LANES; l++) {
        for (u32 m = 0; m < 4; m++) {
            u32 r = l / 4, c = l % 4 * 2;
            u32 low = turned ? matrix_element(meeting, m, c, r) : matrix_element(meeting, m, r, c);
            u32 high = turned ? matrix_element(meeting, m, c + 1, r) : matrix_element(meeting, m, r, c + 1);
            out[l][m] = low | high << 16;
        }
    }
}
static void load(Kind kind, u32 at, u32 (&r)[4]) {
    check_shared(at, 16);
    note_read(at, 16);
    memcpy(r, meet(kind, &at, 1, load_matrices), sizeof r);
}
KV_FN void ldm4(u32 at, u32 (&r)[4]) { load(LDM, at, r); }
KV_FN void ldm4t(u32 at, u32 (&r)[4]) { load(LDM_T, at, r); }

static void multiply(Meeting& m, u32 (*out)[4]) {
    auto wide = [&](u32 pair, u32 half) {
        u16 x = static_cast<u16>(half ? pair >> 16 : pair);
        return m.kind == MMA_BF16 ? wide_bf16(x) : wide_f16(x);
    };
    float a[16][16], b[16][8], c[16][8];
    for (u32 l = 0; l < LANES; l++) {
        u32 row = l / 4, column = l % 4 * 2;
        const u32* in = m.in[l]; // a0..a3, b0, b1, c0..c3
        for (u32 h = 0; h < 2; h++) {
            for (u32 i = 0; i < 4; i++) {
                a[row + i % 2 * 8][column + i / 2 * 8 + h] = wide(in[i], h);
            }
            for (u32 i = 0; i < 2; i++) {
                b[column + i * 8 + h][row] = wide(in[4 + i], h);
                c[row + i * 8][column + h] = float_of(in[6 + i * 2 + h]);
            }
        }
    }
    for (u32 i = 0; i < 16; i++) {
        for (u32 k = 0; k < 16; k++) {
            for (u32 j = 0; j < 8; j++) {
                c[i][j] += a[i][k] * b[k][j];
            }
        }
    }
    for (u32 l = 0; l < LANES; l++) {
        for (u32 i = 0; i < 4; i++) {
            out[l][i] = bits(c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2]);
        }
    }
}
static void mma(Kind kind, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u32 in[10] = {a[0], a[1], a[2], a[3], b0, b1, bits(c[0]), bits(c[1]), bits(c[2]), bits(c[3])};
    memcpy(c, meet(kind, in, 10, multiply), sizeof c);
}
KV_FN void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma(MMA_BF16, c, a, b0, b1); }
KV_FN void mma_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma(MMA_F16, c, a, b0, b1); }

static void multiply_bytes(Meeting& m, u32 (*out)[4]) {
    auto byte = [](u32 word, u32 i) { return static_cast<int>(static_cast<signed char>(word >> 8 * i)); };
    int a[16][32], b[32][8];
    for (u32 l = 0; l < LANES; l++) {
        for (u32 i = 0; i < 4; i++) {
            for (u32 word = 0; word < 4; word++) { // a0..a3
                a[l / 4 + word % 2 * 8][l % 4 * 4 + word / 2 * 16 + i] = byte(m.in[l][word], i);
            }
            for (u32 word = 0; word < 2; word++) {
                b[l % 4 * 4 + word * 16 + i][l / 4] = byte(m.in[l][4 + word], i);
            }
        }
    }
    for (u32 l = 0; l < LANES; l++) {
        for (u32 i = 0; i < 4; i++) {
            int sum = static_cast<int>(m.in[l][6 + i]);
            for (u32 k = 0; k < 32; k++) {
                sum += a[l / 4 + i / 2 * 8][k] * b[k][l % 4 * 2 + i % 2];
            }
            out[l][i] = static_cast<u32>(sum);
        }
    }
}
KV_FN void mma_s8(i32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u32 in[10] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(in + 6, c, sizeof c);
    memcpy(c, meet(MMA_S8, in, 10, multiply_bytes), sizeof c);
}

/// Element (k, column) of a product's b. Bits 4 to 6 of an address are swapped by bits 7 to 9.
static u16 wgmma_element(const Product& p, u32 k, u32 column) {
    u32 at = p.at + (p.turned ? k * 128 + column * 2 : column * 128 + k * 2);
    u16 x;
    memcpy(&x, machine.shared + (at ^ (at >> 7 & 7) << 4), 2);
    return x;
}
static void read_b(const Product& p) {
    if (p.at / 128 * 128 % 1024 || p.at % 16) {
        fault(SHARED_BOUNDS, "wgmma reads from byte %u, inside a group of 8 rows", p.at);
    }
    u32 rows = p.turned ? 16 : 64, chunks = p.turned ? 8 : 2;
    for (u32 i = 0; i < rows * chunks; i++) {
        u32 at = p.at + i / chunks * 128 + i % chunks * 16;
        at ^= (at >> 7 & 7) << 4;
        check_shared(at, 16);
        note_read(at, 16);
    }
}
/// The warp's 16 rows of all products that its lanes have in flight.
static void multiply_all(Meeting& m, u32 (*)[4]) {
    Fiber* lanes = machine.fibers + warp() * LANES;
    for (u32 l = 0; l < LANES; l++) {
        if (m.in[l][0] != m.in[0][0]) {
            fault(DIVERGED, "lanes wait for %u and for %u wgmmas", m.in[0][0], m.in[l][0]);
            go_home();
        }
    }
    for (u32 n = 0; n < m.in[0][0]; n++) {
        const Product& one = lanes[0].products[n];
        read_b(one);
        float a[16][16], b[16][64];
        for (u32 k = 0; k < 16; k++) {
            for (u32 j = 0; j < 64; j++) {
                u16 x = wgmma_element(one, k, j);
                b[k][j] = one.bf16 ? wide_bf16(x) : wide_f16(x);
            }
        }
        for (u32 l = 0; l < LANES; l++) {
            for (u32 i = 0; i < 8; i++) {
                u16 x = static_cast<u16>(lanes[l].products[n].a[i / 2] >> i % 2 * 16);
                a[l / 4 + i / 2 % 2 * 8][l % 4 * 2 + i / 4 * 8 + i % 2] = one.bf16 ? wide_bf16(x) : wide_f16(x);
            }
        }
        for (u32 l = 0; l < LANES; l++) {
            float* c = lanes[l].products[lanes[l].products[n].first].kept;
            for (u32 i = 0; i < 32; i++) {
                for (u32 k = 0; k < 16; k++) {
                    c[i] += a[l / 4 + i / 2 % 2 * 8][k] * b[k][i / 4 * 8 + l % 4 * 2 + i % 2];
                }
            }
        }
    }
}
/// Until it is waited for, what lies at c is 0xFF.
template <bool BF16, bool TURNED> static void wgmma(float* c, const u32 (&a)[4], u32 at) {
    Fiber& f = machine.fibers[machine.current];
    if (f.product_count == PRODUCTS) {
        fprintf(stderr, "kvemu: more than %d wgmmas in flight\n", PRODUCTS);
        abort();
    }
    u32 first = 0;
    while (first < f.product_count && f.products[first].c != c) {
        first++;
    }
    Product& p = f.products[f.product_count];
    p = Product{c, first, {a[0], a[1], a[2], a[3]}, at, BF16, TURNED, {}};
    if (first == f.product_count++) {
        memcpy(p.kept, c, sizeof p.kept);
        memset(c, 0xFF, sizeof p.kept);
    }
    machine.warps[warp()].products += lane() == 0;
}
/// All before were waited for: kernels here keep no two kinds in flight.
KV_FN void wgmma_begin() {
    if (machine.fibers[machine.current].product_count) {
        fault(IN_FLIGHT, "begins wgmmas while others are in flight");
    }
}
KV_FN void wgmma_wait() {
    Fiber& f = machine.fibers[machine.current];
    meet(WGMMA, &f.product_count, 1, multiply_all);
    for (u32 i = 0; i < f.product_count; i++) {
        if (f.products[i].first == i) {
            memcpy(f.products[i].c, f.products[i].kept, sizeof f.products[i].kept);
        }
    }
    f.product_count = 0;
}
KV_FN void publish() {}
KV_FN void settle(float*) {}

// --- A grid ---------------------------------------------------------------------------------------

static void* zeroed(u64 count, u64 bytes) {
    void* p = calloc(count ? count : 1, bytes);
    if (!p) {
        abort();
    }
    return p;
}

static void run_block(u32 block) {
    machine.block = block;
    machine.alive = machine.threads;
    machine.block_arrived = machine.block_epoch = 0;
    u32 bytes = machine.launch.shared_bytes;
    memset(machine.shared, 0xFF, bytes);
    memset(machine.shared + bytes, 0xC5, CANARY);
    memset(machine.words, 0, (bytes / 4 + 1) * sizeof(Word));
    memset(machine.warps, 0, machine.threads / LANES * sizeof(Warp));
    for (u32 t = 0; t < machine.threads; t++) {
        start(machine.fibers[t]);
    }
    u32 first = machine.current = machine.launch.schedule == 1 ? machine.threads - 1 : 0;
    Fiber& to = machine.fibers[first];
#if KV_ASAN
    __sanitizer_start_switch_fiber(&machine.home_fake, to.stack, STACK);
#endif
    kv_switch(&machine.home, to.stack_pointer);
    arrived(machine.home_fake);
    for (u32 w = 0; w < machine.threads / LANES; w++) {
        if (machine.warps[w].products != machine.warps[w / 4 * 4].products) {
            fault(DIVERGED, "warps %u and %u did not do the same wgmmas", w / 4 * 4, w);
        }
    }
    for (u32 i = 0; i < CANARY; i++) {
        if (machine.shared[bytes + i] != 0xC5) {
            fault(SHARED_BOUNDS, "byte %u behind shared memory was written", i);
        }
    }
}

/// Runs a grid, one block after the other. One caller at a time: the machine is one.
static void run(void (*body)(const void*), const void* params, const Launch& launch, u32 threads,
                Report& report) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    memset(&report, 0, sizeof report);
    machine = Machine{};
    machine.body = body;
    machine.params = params;
    machine.launch = launch;
    machine.report = &report;
    machine.left_out = launch.left_out;
    machine.threads = threads;
    machine.random = launch.seed;
    machine.fibers = static_cast<Fiber*>(zeroed(threads, sizeof(Fiber)));
    machine.warps = static_cast<Warp*>(zeroed(threads / LANES, sizeof(Warp)));
    machine.words = static_cast<Word*>(zeroed(launch.shared_bytes / 4 + 1, sizeof(Word)));
    machine.shared = static_cast<u8*>(zeroed(launch.shared_bytes + CANARY, 1));
    machine.written = static_cast<u32**>(zeroed(launch.memories, sizeof(u32*)));
    for (u64 i = 0; i < launch.memories; i++) {
        u64 pairs = launch.memory[i].writable ? launch.memory[i].bytes / 2 + 1 : 0;
        machine.written[i] = static_cast<u32*>(zeroed(pairs, sizeof(u32)));
    }
    for (u32 t = 0; t < threads; t++) {
        machine.fibers[t].stack = static_cast<char*>(aligned_alloc(64, STACK));
        machine.fibers[t].copies = static_cast<Copy*>(zeroed(COPIES, sizeof(Copy)));
        machine.fibers[t].products = static_cast<Product*>(zeroed(PRODUCTS, sizeof(Product)));
    }
    for (u32 i = 0; i < launch.blocks; i++) {
        run_block(launch.schedule == 1 ? launch.blocks - 1 - i : i);
    }
    for (u32 t = 0; t < threads; t++) {
        free(machine.fibers[t].stack);
        free(machine.fibers[t].copies);
        free(machine.fibers[t].products);
    }
    for (u64 i = 0; i < launch.memories; i++) {
        free(machine.written[i]);
    }
    free(machine.written);
    free(machine.shared);
    free(machine.words);
    free(machine.warps);
    free(machine.fibers);
    pthread_mutex_unlock(&lock);
}

} // namespace kv
