// The gradient of the hidden states [N, H], from what the forward pass left. Row t with share s of the result, unscaled
// gradient Σ p_v W_v − W_y and upstream gradient g, at temperature τ, has
//
//     gradient_t = g·s/τ·(Σ_{v ∈ C} p_v W_v − W_y)
//
// (times τ where the convention says so), rounded once, after it has been scaled; a position without a loss has 0.
//
// Launch: whole warps, each of which takes every (gridDim·warps)-th position. No shared memory.
//
// Bytes moved: each byte of the gradient once, in 16-byte stores where H allows; 4 H + 32 a row that has a loss; 4 a
// position that has none.

#include "linear.cuh"

// Mirrors launch::LinearBackwardParams.
struct LinearBackwardParams {
    const LinearRow* rows;
    const uint32_t* idle;
    // [rows, unscaled_stride].
    const float* unscaled;
    uint64_t unscaled_stride;
    // [N, width].
    void* gradient;
    GradientScale scale;
    uint32_t width;
    uint32_t row_count;
    uint32_t idle_count;
    uint32_t unused;
};
static_assert(sizeof(LinearBackwardParams) == 80, "mirrors launch::LinearBackwardParams");
static_assert(offsetof(LinearBackwardParams, width) == 64, "mirrors launch::LinearBackwardParams");

namespace {

template <class T>
__device__ __forceinline__ Packet<T> scaled(const float* unscaled, uint32_t width, uint32_t index, float factor) {
    Packet<T> packet;
    const Vector<float> row(unscaled, width);
#pragma unroll
    for (uint32_t k = 0; k < Packet<T>::size; k += Packet<float>::size) {
        const uint32_t part = (index * Packet<T>::size + k) / Packet<float>::size;
        const Packet<float> numbers = row.load(part);
#pragma unroll
        for (uint32_t j = 0; j < Packet<float>::size; ++j) {
            packet.values[k + j] = number::narrow<T>(numbers.values[j] * factor);
        }
    }
    return packet;
}

template <class T>
__device__ __forceinline__ void linear_backward(const LinearBackwardParams& params) {
    const uint32_t warps = blockDim.x / reduce::warp_size, lane = threadIdx.x % reduce::warp_size;
    const uint32_t packets = Vector<T>::packets(params.width);
    const uint32_t count = params.row_count + params.idle_count;
    for (uint32_t i = blockIdx.x * warps + threadIdx.x / reduce::warp_size; i < count; i += gridDim.x * warps) {
        const bool idle = i >= params.row_count;
        const LinearRow row = idle ? LinearRow{params.idle[i - params.row_count], 0, 0, 0.0f, 0, 0, 0}
                                   : LinearRow::load(params.rows + i);
        // A row of statistics alone is among the idle positions.
        if (!idle && !row.counts()) continue;
        T* gradient = static_cast<T*>(params.gradient) + static_cast<uint64_t>(row.position) * params.width;
        const float* unscaled = params.unscaled + i * params.unscaled_stride;
        const float factor = idle ? 0.0f : params.scale.of(row);
#pragma unroll 2
        for (uint32_t p = lane; p < packets; p += reduce::warp_size) {
            const Packet<T> packet =
                idle ? Packet<T>::from_bits(uint4{0, 0, 0, 0}) : scaled<T>(unscaled, params.width, p, factor);
            store_packet(gradient, params.width, p, packet);
        }
    }
}

}  // namespace

KERNEL(linear_backward_f32, LinearBackwardParams, 256, 4) { linear_backward<float>(params); }
KERNEL(linear_backward_f16, LinearBackwardParams, 256, 4) { linear_backward<__half>(params); }
KERNEL(linear_backward_bf16, LinearBackwardParams, 256, 4) { linear_backward<__nv_bfloat16>(params); }
