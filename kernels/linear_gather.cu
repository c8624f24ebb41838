// Gathers what the matrix products of the groups read: the hidden states of their rows and, where no frozen head has
// them, the head rows of their sets. Row i of a result is row indices[i] of its source; the indices of hidden states come
// first.
//
// Launch: whole warps, each of which takes every (gridDim·warps)-th row. No shared memory.
//
// Bytes moved: each row read once and written once, in 16-byte accesses where its width and places allow; 4 an index.

#include "reduce.cuh"
#include "vector.cuh"

// Mirrors launch::GatherSide: rows of `width`, those of the source `stride` apart.
struct GatherSide {
    const void* source;
    uint64_t stride;
    void* result;
    uint64_t rows;
};
static_assert(sizeof(GatherSide) == 32, "mirrors launch::GatherSide");

// Mirrors launch::LinearGatherParams.
struct LinearGatherParams {
    GatherSide hidden;
    GatherSide head;
    const uint32_t* indices;
    uint64_t width;
};
static_assert(sizeof(LinearGatherParams) == 80, "mirrors launch::LinearGatherParams");
static_assert(offsetof(LinearGatherParams, indices) == 64, "mirrors launch::LinearGatherParams");

namespace {

template <class T>
__device__ __forceinline__ void gather(const LinearGatherParams& params) {
    const uint32_t warps = blockDim.x / reduce::warp_size, lane = threadIdx.x % reduce::warp_size;
    const uint32_t width = static_cast<uint32_t>(params.width);
    const uint64_t count = params.hidden.rows + params.head.rows, step = static_cast<uint64_t>(gridDim.x) * warps;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * warps + threadIdx.x / reduce::warp_size; i < count; i += step) {
        const bool of_hidden = i < params.hidden.rows;
        const GatherSide& side = of_hidden ? params.hidden : params.head;
        const Vector<T> source(static_cast<const T*>(side.source) + params.indices[i] * side.stride, width);
        T* result = static_cast<T*>(side.result) + (of_hidden ? i : i - params.hidden.rows) * width;
#pragma unroll 4
        for (uint32_t p = lane; p < Vector<T>::packets(width); p += reduce::warp_size) {
            store_packet(result, width, p, source.load(p));
        }
    }
}

}  // namespace

KERNEL(linear_gather_f32, LinearGatherParams, 256, 4) { gather<float>(params); }
KERNEL(linear_gather_f16, LinearGatherParams, 256, 4) { gather<__half>(params); }
KERNEL(linear_gather_bf16, LinearGatherParams, 256, 4) { gather<__nv_bfloat16>(params); }
