/* A CUDA library for tests: it checks what it is given, and computes nothing. A kernel that is
 * launched leaves the stamps of one of two processes that take turns of 2,000 us; which of them it
 * is, a file in STAND_IN says. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OK 0
#define INVALID_VALUE 1
#define OUT_OF_MEMORY 2
#define INVALID_IMAGE 200
#define INVALID_CONTEXT 201
#define ILLEGAL_ADDRESS 700
#define SLICE_NS 2000000ull
#define LOW_NS 100000ull
#define FULL_NS 300000ull
#define CONTEXT_BYTES (480ull << 20)
#define CONTEXT ((void *)7l)
#define FUNCTION ((void *)9l)

static int role = -1;
static size_t room;
static char *memory;
static int shared_most;

static const char *file_of(int number) {
    static char path[512];
    snprintf(path, sizeof path, "%s/process-%d", getenv("STAND_IN") ? getenv("STAND_IN") : "/tmp", number);
    return path;
}

int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int *version) { *version = 13050; return OK; }
int cuCtxGetApiVersion(void *context, unsigned *version) { (void)context; *version = 13050; return OK; }
int cuDeviceGet(int *device, int number) { *device = number + 7; return OK; }

int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = CONTEXT;
    if (device != 7) return 101;
    for (role = 0; getenv("STAND_IN"); role++) {
        int file = open(file_of(role), O_CREAT | O_EXCL, 0600);
        if (file >= 0) { close(file); break; }
    }
    return OK;
}

int cuDevicePrimaryCtxRelease(int device) { return device == 7 ? OK : 101; }
int cuCtxSetCurrent(void *context) { return context == CONTEXT ? OK : INVALID_CONTEXT; }
int cuCtxSynchronize(void) { return OK; }

int cuMemGetInfo(size_t *left, size_t *total) {
    int contexts = 0;
    while (access(file_of(contexts), F_OK) == 0) contexts++;
    *total = 24ull << 30;
    *left = *total - CONTEXT_BYTES * contexts;
    return OK;
}

int cuMemAlloc(uint64_t *pointer, size_t size) {
    if (getenv("STAND_IN_IS_FULL")) return OUT_OF_MEMORY;
    room = size;
    /* What is on a real GPU cannot be read from here: only what the kernel writes is kept. */
    memory = malloc(size < (1 << 20) ? size : 1);
    *pointer = 0x7f0000000000ull;
    return OK;
}

int cuMemFree(uint64_t pointer) { free(memory); memory = 0; return pointer == 0x7f0000000000ull ? OK : ILLEGAL_ADDRESS; }

int cuMemsetD32(uint64_t pointer, unsigned value, size_t count) {
    if (pointer != 0x7f0000000000ull || 4 * count != room) return ILLEGAL_ADDRESS;
    if (room < (1 << 20)) memset(memory, value, room);
    return OK;
}

int cuMemcpyDtoH(void *target, uint64_t source, size_t size) {
    if (source != 0x7f0000000000ull || size != room) return ILLEGAL_ADDRESS;
    memcpy(target, memory, size);
    return OK;
}

int cuModuleLoadData(void **module, const char *image) {
    *module = (void *)8l;
    return strstr(image, ".visible .entry stamp(") ? OK : INVALID_IMAGE;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = FUNCTION;
    return module == (void *)8l && !strcmp(name, "stamp") ? OK : 500;
}

/* An A100: 108 SMs with 164 KiB of shared memory each, 163 for a block, 1 is kept. */
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device != 7) return 101;
    switch (attribute) {
    case 16: *value = 108; return OK;
    case 81: *value = 164 << 10; return OK;
    case 97: *value = 163 << 10; return OK;
    case 111: *value = 1 << 10; return OK;
    }
    return INVALID_VALUE;
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared) {
    if (function != FUNCTION || threads != 256) return INVALID_VALUE;
    int most = (164 << 10) / ((int)shared + (1 << 10));
    *blocks = most < 6 ? most : 6;
    return OK;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
    if (function != FUNCTION || attribute != 8) return INVALID_VALUE;
    shared_most = value;
    return OK;
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
    int full = bx == 256 && x == 6 * 108 && shared == (26 << 10) && shared_most >= (int)shared;
    if (function != FUNCTION || y != 1 || z != 1 || by != 1 || bz != 1 || stream || extra) return INVALID_VALUE;
    if (!full && !(x == 1 && bx == 32 && shared == 0)) return INVALID_VALUE;
    uint64_t out = *(uint64_t *)parameters[0], span = *(uint64_t *)parameters[1];
    uint64_t least = *(uint64_t *)parameters[2];
    uint32_t most = *(uint32_t *)parameters[3], turns = *(uint32_t *)parameters[4];
    if (out != 0x7f0000000000ull || least != 10000 || turns != 1u << 31) return INVALID_VALUE;
    if (room != 32 + 16ull * most) return INVALID_VALUE;
    uint64_t switch_ns = full ? FULL_NS : LOW_NS, round = 2 * (SLICE_NS + switch_ns);
    uint64_t begin = 1000000000ull + role * (SLICE_NS + switch_ns), seen = 0;
    uint64_t *words = (uint64_t *)memory, at;
    for (at = begin; at + round < begin + span && seen < most; at += round, seen++) {
        words[4 + 2 * seen] = at + SLICE_NS;
        words[5 + 2 * seen] = at + round;
    }
    words[0] = begin, words[1] = at + SLICE_NS, words[2] = seen;
    return OK;
}

int cuGetErrorName(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_INVALID_VALUE";
    return OK;
}

int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    (void)version, (void)flags;
    *function = dlsym(RTLD_DEFAULT, name);
    return *function ? OK : 500;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    int code = cuGetProcAddress(name, function, version, flags);
    if (status) *status = code ? 1 : 0;
    return code;
}
