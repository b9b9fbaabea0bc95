/* A libcuda.so.1 over host memory, for the real cuda-bindings to call: "device" addresses are the host's.
 *
 * What it says of the machine comes from the environment, each with a default: FAKE_CUDA_INIT, FAKE_CUDA_CONTEXT and
 * FAKE_CUDA_COPY (error codes), FAKE_CUDA_VERSION, FAKE_CUDA_DEVICES, FAKE_CUDA_CAPABILITY (90), FAKE_CUDA_FREE (MiB).
 * A call without the device's context on its thread fails as CUDA's does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default"))) int
#define NEEDS_CONTEXT if (!current) return 201

typedef unsigned long long Address;

typedef struct { /* CUDA_MEMCPY2D_v2 of cuda.h */
    size_t src_x, src_y;
    int src_type;
    const char *src_host;
    Address src_device;
    void *src_array;
    size_t src_pitch, dst_x, dst_y;
    int dst_type;
    char *dst_host;
    Address dst_device;
    void *dst_array;
    size_t dst_pitch, width, height;
} Copy2D;

static __thread void *current;
static char context;
static int open_count;

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

API cuInit(unsigned flags) { (void)flags; return (int)setting("FAKE_CUDA_INIT", 0); }
API cuDriverGetVersion(int *version) { *version = (int)setting("FAKE_CUDA_VERSION", 13000); return 0; }
API cuDeviceGetCount(int *count) { *count = (int)setting("FAKE_CUDA_DEVICES", 1); return 0; }
API cuDeviceGet(int *device, int index) { *device = index; return 0; }

API cuDeviceGetAttribute(int *value, int attribute, int device) {
    long capability = setting("FAKE_CUDA_CAPABILITY", 90);
    (void)device;
    *value = attribute == 75 ? (int)(capability / 10) : attribute == 76 ? (int)(capability % 10) : 132;
    return attribute == 75 || attribute == 76 || attribute == 16 ? 0 : 1;
}

API cuDeviceGetName(char *name, int length, int device) {
    (void)device;
    strncpy(name, "NVIDIA Fake", (size_t)length);
    return 0;
}

API cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = 80ull << 30; return 0; }

API cuDevicePrimaryCtxRetain(void **made, int device) {
    (void)device;
    *made = &context;
    int code = (int)setting("FAKE_CUDA_CONTEXT", 0);
    open_count += code == 0;
    return code;
}

API cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return open_count > 0 && open_count-- ? 0 : 201; }
API cuCtxSetCurrent(void *made) { current = made; return 0; }
API cuCtxGetCurrent(void **made) { *made = current; return 0; }

API cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    NEEDS_CONTEXT;
    *free_bytes = (size_t)setting("FAKE_CUDA_FREE", 79 << 10) << 20;
    *total = 80ull << 30;
    return 0;
}

API cuStreamCreate(void **stream, unsigned flags) {
    NEEDS_CONTEXT;
    if (flags != 1) return 1; /* CU_STREAM_NON_BLOCKING */
    *stream = malloc(1);
    return 0;
}

API cuStreamDestroy_v2(void *stream) { NEEDS_CONTEXT; free(stream); return 0; }
API cuStreamSynchronize(void *stream) { NEEDS_CONTEXT; return stream ? 0 : 400; }

API cuEventCreate(void **event, unsigned flags) {
    NEEDS_CONTEXT;
    if (flags != 2) return 1; /* CU_EVENT_DISABLE_TIMING */
    *event = calloc(1, 1);
    return 0;
}

API cuEventRecord(void *event, void *stream) { NEEDS_CONTEXT; (void)stream; *(char *)event = 3; return 0; }
API cuEventSynchronize(void *event) { NEEDS_CONTEXT; *(char *)event = 0; return 0; }
API cuEventDestroy_v2(void *event) { NEEDS_CONTEXT; free(event); return 0; }

API cuEventQuery(void *event) { /* not ready twice after each record */
    NEEDS_CONTEXT;
    char *left = event;
    if (*left) --*left;
    return *left ? 600 : 0;
}

API cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
    NEEDS_CONTEXT;
    if (flags != 1) return 1; /* CU_MEMHOSTALLOC_PORTABLE */
    *memory = malloc(size);
    if (*memory) memset(*memory, 0xA5, size);
    return *memory ? 0 : 2;
}

API cuMemFreeHost(void *memory) { NEEDS_CONTEXT; free(memory); return 0; }

static int copy(void *target, const void *source, size_t size, void *stream) {
    NEEDS_CONTEXT;
    if (!stream) return 400;
    memcpy(target, source, size);
    return (int)setting("FAKE_CUDA_COPY", 0);
}

API cuMemcpyHtoDAsync_v2(Address target, const void *source, size_t size, void *stream) {
    return copy((void *)target, source, size, stream);
}

API cuMemcpyDtoHAsync_v2(void *target, Address source, size_t size, void *stream) {
    return copy(target, (const void *)source, size, stream);
}

API cuMemcpy2DAsync_v2(const Copy2D *c, void *stream) {
    int up = c->src_type == 1 && c->dst_type == 2, down = c->src_type == 2 && c->dst_type == 1;
    if (up == down) return 1;
    for (size_t row = 0; row < c->height; row++) {
        const char *source = (up ? c->src_host : (const char *)c->src_device) + row * c->src_pitch;
        int code = copy((up ? (char *)c->dst_device : c->dst_host) + row * c->dst_pitch, source, c->width, stream);
        if (code) return code;
    }
    return 0;
}

API cuGetProcAddress_v2(const char *symbol, void **function, int version, Address flags, int *status) {
    char second[128];
    (void)version, (void)flags;
    snprintf(second, sizeof second, "%s_v2", symbol);
    Dl_info here;
    dladdr(&context, &here);
    void *self = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *function = dlsym(self, second);
    if (!*function) *function = dlsym(self, symbol);
    if (status) *status = *function ? 0 : 1;
    return *function ? 0 : 500;
}
