// The registers of each lane after ldmatrix, and those that mma takes, for a test of their layouts.

#include "device.cuh"

// Mirrors `LayoutParams` of tests/matrix_layouts.rs.
struct LayoutParams {
    const uint16_t* content;      // of shared memory
    const uint32_t* rows;         // [32]: the offset of the row that each lane names, in bytes
    const uint32_t* a;            // [32, 4]
    const uint32_t* b;            // [32, 2]
    const float* c;               // [32, 4]
    uint32_t* loaded;             // [32, count]
    float* sums;                  // [32, 4]
    uint64_t content_bytes;
};

namespace {

__device__ __forceinline__ void fill_shared_memory(const LayoutParams& params) {
    uint16_t* shared = reinterpret_cast<uint16_t*>(device::shared_memory());
    for (uint32_t i = threadIdx.x; i < params.content_bytes / 2; i += blockDim.x) shared[i] = params.content[i];
    __syncthreads();
}

template <int count, bool transposed>
__device__ __forceinline__ void load(const LayoutParams& params) {
    fill_shared_memory(params);
    const unsigned char* row = device::shared_memory() + params.rows[threadIdx.x];
    uint32_t r[count];
    if constexpr (transposed) device::ldmatrix_transposed(r, row);
    else device::ldmatrix(r, row);
    for (int j = 0; j < count; ++j) params.loaded[threadIdx.x * count + j] = r[j];
}

template <class T>
__device__ __forceinline__ void multiply(const LayoutParams& params) {
    uint32_t a[4], b[2];
    float c[4];
    for (int i = 0; i < 4; ++i) a[i] = params.a[threadIdx.x * 4 + i];
    for (int i = 0; i < 2; ++i) b[i] = params.b[threadIdx.x * 2 + i];
    for (int i = 0; i < 4; ++i) c[i] = params.c[threadIdx.x * 4 + i];
    device::multiply(c, a, b, T());
    for (int i = 0; i < 4; ++i) params.sums[threadIdx.x * 4 + i] = c[i];
}

}  // namespace

KERNEL(layout_load_two, LayoutParams, 32, 1) { load<2, false>(params); }
KERNEL(layout_load_four, LayoutParams, 32, 1) { load<4, false>(params); }
KERNEL(layout_load_two_transposed, LayoutParams, 32, 1) { load<2, true>(params); }
KERNEL(layout_load_four_transposed, LayoutParams, 32, 1) { load<4, true>(params); }

KERNEL(layout_multiply_f16, LayoutParams, 32, 1) { multiply<__half>(params); }
KERNEL(layout_multiply_bf16, LayoutParams, 32, 1) { multiply<__nv_bfloat16>(params); }
