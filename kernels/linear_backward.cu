// The gradient of the hidden states [N, H], from what the forward pass has saved. Row t with share s of the result, unscaled
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
    const uint32_t* ignored;
    // [rows, unscaled_stride].
    const float* unscaled;
    uint64_t unscaled_stride;
    // [N, width].
    void* gradient;
    GradientScale scale;
    uint32_t width;
    uint32_t row_count;
    uint32_t ignored_count;
    uint32_t unused;
};
static_assert(sizeof(LinearBackwardParams) == 80 && offsetof(LinearBackwardParams, rows) == 0 &&
    offsetof(LinearBackwardParams, ignored) == 8 && offsetof(LinearBackwardParams, unscaled) == 16 &&
    offsetof(LinearBackwardParams, unscaled_stride) == 24 && offsetof(LinearBackwardParams, gradient) == 32 &&
    offsetof(LinearBackwardParams, scale) == 40 && offsetof(LinearBackwardParams, width) == 64 &&
    offsetof(LinearBackwardParams, row_count) == 68 && offsetof(LinearBackwardParams, ignored_count) == 72 &&
    offsetof(LinearBackwardParams, unused) == 76, "mirrors launch::LinearBackwardParams");

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
    const uint32_t count = params.row_count + params.ignored_count;
    for (uint32_t i = blockIdx.x * warps + threadIdx.x / reduce::warp_size; i < count; i += gridDim.x * warps) {
        // Its share is 0, as that of a row that has statistics alone.
        LinearRow row = {};
        if (i < params.row_count) {
            row = LinearRow::load(params.rows + i);
        } else {
            row.position = params.ignored[i - params.row_count];
        }
        T* gradient = static_cast<T*>(params.gradient) + static_cast<uint64_t>(row.position) * params.width;
        const float* unscaled = params.unscaled + i * params.unscaled_stride;
        const float factor = row.counts() ? params.scale.of(row) : 0.0f;
#pragma unroll 2
        for (uint32_t p = lane; p < packets; p += reduce::warp_size) {
            Packet<T> packet = Packet<T>::from_bits(uint4{0, 0, 0, 0});
            // Nothing has written the unscaled gradient of a row without a loss.
            if (row.counts()) packet = scaled<T>(unscaled, params.width, p, factor);
            store_packet(gradient, params.width, p, packet);
        }
    }
}

}  // namespace

KERNEL(linear_backward_f32, LinearBackwardParams, 256, 4) { linear_backward<float>(params); }
KERNEL(linear_backward_f16, LinearBackwardParams, 256, 4) { linear_backward<__half>(params); }
KERNEL(linear_backward_bf16, LinearBackwardParams, 256, 4) { linear_backward<__nv_bfloat16>(params); }
