// The conversions of the emulated headers, for a test of all values against another implementation.

#include "number.cuh"

struct NumbersParams {
    const float* wide;
    const uint16_t* narrow;
    __half* to_half;
    __nv_bfloat16* to_bfloat16;
    float* from_half;
    float* from_bfloat16;
    uint64_t count;
};

KERNEL(numbers, NumbersParams, 1024, 1) {
    for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < params.count; i += gridDim.x * blockDim.x) {
        params.to_half[i] = number::narrow<__half>(params.wide[i]);
        params.to_bfloat16[i] = number::narrow<__nv_bfloat16>(params.wide[i]);
        params.from_half[i] = number::widen(reinterpret_cast<const __half*>(params.narrow)[i]);
        params.from_bfloat16[i] = number::widen(reinterpret_cast<const __nv_bfloat16*>(params.narrow)[i]);
    }
}
