/* A stand-in for NVIDIA's driver, for the test of what the package asks it for. Device memory is that of the host, copies are
   copies, and launches are written to the file that LAUNCHES names and run nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int result;

result cuInit(unsigned flags) { return 0; }
result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal == 0 ? 0 : 101; }
result cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x10; return 0; }
result cuCtxSetCurrent(void *context) { return 0; }
result cuCtxGetCurrent(void **context) { *context = (void *)0x10; return 0; }
result cuGetErrorString(result error, const char **text) { *text = "an error of the stand-in"; return 0; }

result cuDeviceGetAttribute(int *value, int attribute, int device)
{
    switch (attribute) {
    case 16: *value = 132; break;         /* multiprocessors */
    case 81: *value = 228 << 10; break;   /* shared memory of a multiprocessor */
    case 97: *value = 227 << 10; break;   /* shared memory of a block */
    default: *value = 1;
    }
    return 0;
}

result cuModuleLoadData(void **module, const void *image) { *module = (void *)image; return 0; }
result cuModuleUnload(void *module) { return 0; }
result cuModuleGetFunction(void **function, void *module, const char *name) { *function = strdup(name); return 0; }
result cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }

result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared)
{
    *blocks = 2;
    return 0;
}

result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, void *function, int threads, size_t shared, unsigned flags)
{
    *blocks = 2;
    return 0;
}

result cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) { *memory = malloc(bytes); return 0; }
result cuEventCreate(void **event, unsigned flags) { *event = (void *)0x20; return 0; }
result cuEventSynchronize(void *event) { return 0; }
result cuEventRecord(void *event, void *stream) { return 0; }
result cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) { memcpy(to, from, bytes); return 0; }

static result launched(const char *kind, const char *name, unsigned blocks, unsigned threads, size_t stream)
{
    FILE *file = fopen(getenv("LAUNCHES"), "a");
    fprintf(file, "%s %s %u %u %zu\n", kind, name, blocks, threads, stream);
    return fclose(file);
}

result cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                      unsigned shared, void *stream, void **parameters, void **extra)
{
    return launched("plain", function, x * y * z, threads * ty * tz, (size_t)stream);
}

result cuLaunchCooperativeKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty,
                                 unsigned tz, unsigned shared, void *stream, void **parameters)
{
    return launched("cooperative", function, x * y * z, threads * ty * tz, (size_t)stream);
}
