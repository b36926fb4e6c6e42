// A compiler for tests: version MAJOR.MINOR, and machine code that is only its first bytes. It adds a
// line to the file FAKE_COMPILED each time it compiles.
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char CODE[] = "\x7f" "ELF of a fake";

int nvrtcVersion(int* major, int* minor) { *major = MAJOR; *minor = MINOR; return 0; }
int nvrtcGetNumSupportedArchs(int* n) { *n = 3; return 0; }
int nvrtcGetSupportedArchs(int* archs) { archs[0] = 90; archs[1] = 75; archs[2] = 80; return 0; }
const char* nvrtcGetErrorString(int status) { return status == 6 ? "NVRTC_ERROR_COMPILATION" : 0; }
int nvrtcCreateProgram(void** p, const char* source, const char* name, int n, const char** texts, const char** names) {
    (void)name, (void)n, (void)texts, (void)names;
    *p = strdup(source);
    return 0;
}
int nvrtcDestroyProgram(void** p) { free(*p); *p = 0; return 0; }
int nvrtcCompileProgram(void* p, int n, const char** options) {
    (void)n, (void)options;
    FILE* file = fopen(getenv("FAKE_COMPILED") ? getenv("FAKE_COMPILED") : "/dev/null", "a");
    fputs("compiled\n", file);
    fclose(file);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, 0);
    return strcmp(p, "wrong") ? 0 : 6;
}
int nvrtcGetProgramLogSize(void* p, size_t* n) { (void)p; *n = 4; return 0; }
int nvrtcGetProgramLog(void* p, char* out) { (void)p; memcpy(out, "log", 4); return 0; }
int nvrtcGetCUBINSize(void* p, size_t* n) { *n = strcmp(p, "empty") ? sizeof CODE : 0; return 0; }
#ifndef PARTIAL
int nvrtcGetCUBIN(void* p, char* out) { if (strcmp(p, "empty")) memcpy(out, CODE, sizeof CODE); return 0; }
#endif
int nvrtcGetPTXSize(void* p, size_t* n) { (void)p; *n = 3; return 0; }
int nvrtcGetPTX(void* p, char* out) { (void)p; memcpy(out, "//", 3); return 0; }
