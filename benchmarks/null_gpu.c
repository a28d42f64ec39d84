/* CUDA's runtime library with a GPU that is not there: memory is the process's own, copies are made, kernels are counted
   and do nothing. null_gpu.py adds what has no behaviour of its own. Layouts of structures are those of CUDA 13. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
typedef struct { unsigned x, y, z; } dim3;

/* While a graph is captured, calls that wait for the device fail, in every thread, and the capture with them */
enum { UNSUPPORTED = 900, INVALIDATED = 901 }; /* cudaErrorStreamCapture... */

static long launched, copied, captured, replayed, destroyed;
static int capturing, disturbed;

__attribute__((destructor)) static void report(void) {
    const char *file = getenv("NULL_GPU_REPORT");
    FILE *out = file ? fopen(file, "w") : NULL;
    if (!out) return;
    fprintf(out, "{\"kernels launched\": %ld, \"copies\": %ld, \"graphs captured\": %ld, \"graphs replayed\": %ld, "
                 "\"graphs released\": %ld}\n", launched, copied, captured, replayed, destroyed);
    fclose(out);
}

static int disturbs(void) {
    if (capturing) disturbed = 1;
    return capturing ? UNSUPPORTED : 0;
}

static int give(void **pointer, size_t size) {
    return posix_memalign(pointer, 256, size ? size : 1) ? 2 : 0;
}

/* Memory */
int cudaMalloc(void **p, size_t n) { return disturbs() ? UNSUPPORTED : give(p, n); }
int cudaMallocHost(void **p, size_t n) { return give(p, n); }
int cudaHostAlloc(void **p, size_t n, unsigned flags) { return give(p, n); }
int cudaMallocFromPoolAsync(void **p, size_t n, void *pool, void *stream) { return give(p, n); }
int cudaFree(void *p) { if (disturbs()) return UNSUPPORTED; free(p); return 0; }
int cudaFreeHost(void *p) { if (disturbs()) return UNSUPPORTED; free(p); return 0; }
int cudaFreeAsync(void *p, void *stream) { free(p); return 0; }
int cudaMemset(void *p, int value, size_t n) { memset(p, value, n); return 0; }
int cudaMemsetAsync(void *p, int value, size_t n, void *stream) { memset(p, value, n); return 0; }
int cudaMemGetInfo(size_t *free_bytes, size_t *total) { *free_bytes = 70ull << 30; *total = 80ull << 30; return 0; }

int cudaMemcpy(void *to, const void *from, size_t n, int kind) {
    if (disturbs()) return UNSUPPORTED;
    copied++;
    memmove(to, from, n);
    return 0;
}
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) {
    copied++;
    memmove(to, from, n);
    return 0;
}
int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                      int kind, void *stream) {
    for (size_t row = 0; row < height; row++)
        memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    return 0;
}
int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t n, size_t offset, int kind) { memset(to, 0, n); return 0; }
int cudaPointerGetAttributes(void *attributes, const void *p) {
    memset(attributes, 0, 88);
    *(int *)attributes = 2; /* cudaMemoryTypeDevice */
    ((const void **)attributes)[1] = ((const void **)attributes)[2] = p;
    return 0;
}

/* The device: a Hopper */
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaGetDeviceProperties(char *properties, int device) {
    static const struct { int at; u64 value; int size; } FIELDS[] = {
        {288, 80ull << 30, 8}, {296, 49152, 8},   {304, 65536, 4},   {308, 32, 4},      {320, 1024, 4},  {324, 1024, 4},
        {328, 1024, 4},        {332, 64, 4},      {336, 2147483647, 4}, {340, 65535, 4}, {344, 65535, 4}, {360, 9, 4},
        {384, 132, 4},         {596, 50 << 20, 4}, {604, 2048, 4},   {624, 233472, 8},  {632, 65536, 4}, {672, 232448, 8},
        {720, 1, 4},
    };
    memset(properties, 0, 1008);
    strcpy(properties, "no GPU");
    for (size_t i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++)
        memcpy(properties + FIELDS[i].at, &FIELDS[i].value, FIELDS[i].size);
    return 0;
}
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    static const int KNOWN[][2] = {{1, 1024}, {8, 49152}, {16, 132}, {39, 2048}, {75, 9}, {76, 0}, {81, 233472}, {97, 232448}};
    *value = 1;
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
        if (KNOWN[i][0] == attribute) *value = KNOWN[i][1];
    return 0;
}

/* Streams, events and graphs */
int cudaStreamCreate(void **stream) { return give(stream, 8); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return give(stream, 8); }
int cudaStreamDestroy(void *stream) { if (disturbs()) return UNSUPPORTED; free(stream); return 0; }
int cudaDeviceSynchronize(void) { return disturbs(); }
int cudaStreamSynchronize(void *stream) { return disturbs(); }
int cudaStreamIsCapturing(void *stream, int *status) { *status = capturing; return 0; }
int cudaStreamBeginCapture(void *stream, int mode) { capturing = 1; disturbed = 0; usleep(1000); return 0; } /* time to be disturbed */
int cudaStreamEndCapture(void *stream, void **graph) {
    capturing = 0;
    if (disturbed) return INVALIDATED;
    captured++;
    return give(graph, 8);
}
int cudaGraphInstantiate(void **ready, void *graph, u64 flags) { return give(ready, 8); }
int cudaGraphLaunch(void *ready, void *stream) { replayed++; return 0; }
int cudaGraphExecDestroy(void *ready) { destroyed++; return 0; }
int cudaEventCreate(void **event) { return give(event, 8); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return give(event, 8); }
int cudaEventElapsedTime(float *ms, void *from, void *to) { *ms = 1; return 0; }

/* Kernels */
int cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
    launched++;
    return 0;
}
int __cudaLaunchKernel(void *f, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
    launched++;
    return 0;
}
int __cudaGetKernel(void **kernel, const void *f) { *kernel = (void *)f; return 0; }
void **__cudaRegisterFatBinary(void *binary) { static void *handle[4]; return handle; }
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) { return 0; }
int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void **stream) {
    *grid = *block = (dim3){1, 1, 1};
    *shared = 0;
    *stream = NULL;
    return 0;
}
int cudaFuncGetAttributes(char *attributes, const void *f) {
    memset(attributes, 0, 144);
    *(int *)(attributes + 24) = 1024; /* maxThreadsPerBlock */
    *(int *)(attributes + 32) = *(int *)(attributes + 36) = 90;
    return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int block, size_t shared, unsigned flags) {
    *n = 2;
    return 0;
}
int cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version, u64 flags, int *found) {
    *f = NULL;
    if (found) *found = 1; /* cudaDriverEntryPointSymbolNotFound */
    return 0;
}
int cudaMemPoolCreate(void **pool, const void *properties) { return give(pool, 8); }
const char *cudaGetErrorName(int error) { return "an error of the GPU that is not there"; }
const char *cudaGetErrorString(int error) { return "an error of the GPU that is not there"; }
