// The gradient of the hidden states [N, H], from the unscaled gradient that the forward pass saved. Row t with loss
// weight w and upstream gradient g has, at temperature τ,
//
//     gradient_t = g·w/τ·(Σ_{v ∈ C} p_v W_v − W_y)
//
// (times τ where the convention multiplies the loss by τ). It is rounded once, after it is scaled. A position without a
// loss has gradient 0.
//
// Launch: blocks of whole warps without shared memory. A warp takes every (gridDim·warps)-th position: first those of
// the rows, then the ignored ones.
//
// Bytes moved: each byte of the gradient is written once, in 16-byte stores if H·sizeof(T) is a multiple of 16. A row
// with a loss reads 4·H + 32 bytes, a row without one 32, and an ignored position 4.

#include "linear.cuh"

// Mirrors launch::LinearBackwardParams.
struct LinearBackwardParams {
    // [row_count].
    const LinearRow* rows;
    // [ignored_count]: the positions without a row.
    const uint32_t* ignored;
    // [row_count, width]: Σ p_v W_v − W_y of each row; uninitialised for a row without a loss.
    const float* unscaled;
    // Row stride of `unscaled`, in elements.
    uint64_t unscaled_stride;
    // [N, width], contiguous.
    void* gradient;
    GradientScale scale;
    // H, the elements of a hidden state.
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

// Returns packet `index` of a row of the gradient.
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
        // An ignored position is a row with loss weight 0.
        LinearRow row = {};
        if (i < params.row_count) {
            row = LinearRow::load(params.rows + i);
        } else {
            row.position = params.ignored[i - params.row_count];
        }
        T* gradient = static_cast<T*>(params.gradient) + static_cast<uint64_t>(row.position) * params.width;
        const float* unscaled = params.unscaled + i * params.unscaled_stride;
        const float factor = row.has_loss() ? params.scale.of(row) : 0.0f;
#pragma unroll 2
        for (uint32_t p = lane; p < packets; p += reduce::warp_size) {
            Packet<T> packet = Packet<T>::from_bits(uint4{0, 0, 0, 0});
            // The unscaled gradient of a row without a loss is uninitialised.
            if (row.has_loss()) packet = scaled<T>(unscaled, params.width, p, factor);
            store_packet(gradient, params.width, p, packet);
        }
    }
}

}  // namespace

KERNEL(linear_backward_f32, LinearBackwardParams, 256, 4) { linear_backward<float>(params); }
KERNEL(linear_backward_f16, LinearBackwardParams, 256, 4) { linear_backward<__half>(params); }
KERNEL(linear_backward_bf16, LinearBackwardParams, 256, 4) { linear_backward<__nv_bfloat16>(params); }
