// dlogits [N, V] of the masked softmax loss, from the softmax statistics that the forward pass saved. Row t with token
// set C, target y, loss weight w and upstream gradient g has, at temperature τ,
//
//     gradient_v = g·w/τ·(p_v − [v = y]) for v in C, else 0
//
// (times τ where the convention multiplies the loss by τ). It is computed in f32 and rounded once, after it is scaled.
//
// Launch: blocks of whole warps, with one tile of shared memory for each warp. A warp takes every (gridDim·warps)-th
// chunk of 512 packets of a row: first the chunks of rows with a loss, then the zeros of rows without one and of
// ignored positions.
//
// Bytes moved: each byte of the gradient is written once, in 16-byte stores. Each valid logit is read once, and its
// token (4 bytes, none for the whole vocabulary) about once. A chunk reads 28 bytes of its row (DenseRow and Softmax),
// and a chunk of an ignored position 4.

#include "gradient.cuh"
#include "softmax.cuh"

// Mirrors launch::DenseBackwardParams.
struct DenseBackwardParams {
    DenseBatch batch;
    // [N, width]. It may be the same memory as the logits.
    void* gradient;
    // Row stride of `gradient`, in elements.
    uint64_t gradient_stride;
    // [loss_row_count], as the forward pass saved them.
    const Softmax* softmaxes;
    // [1]: τ, as the forward pass wrote it.
    const double* temperature;
    // [1], or [N] if `upstream_by_position` is not 0: the gradient of the loss.
    const float* upstream;
    uint32_t upstream_by_position;
    // 1 if the loss is multiplied by τ, which cancels the 1/τ of the chain rule.
    uint32_t times_temperature;
};
static_assert(sizeof(DenseBackwardParams) == 128 && offsetof(DenseBackwardParams, batch) == 0 &&
    offsetof(DenseBackwardParams, gradient) == 80 && offsetof(DenseBackwardParams, gradient_stride) == 88 &&
    offsetof(DenseBackwardParams, softmaxes) == 96 && offsetof(DenseBackwardParams, temperature) == 104 &&
    offsetof(DenseBackwardParams, upstream) == 112 && offsetof(DenseBackwardParams, upstream_by_position) == 120 &&
    offsetof(DenseBackwardParams, times_temperature) == 124, "mirrors launch::DenseBackwardParams");

namespace {

// The packets that a warp writes at a time: eight tiles, so that the search for the first token is a small part of the
// work.
constexpr uint32_t chunk = 512;

template <class T>
__device__ __forceinline__ void dense_backward(const DenseBackwardParams& params) {
    const DenseBatch& batch = params.batch;
    const Tile<T> tile = Tile<T>::of_warp(device::shared_memory());
    const float inverse_temperature = static_cast<float>(1.0 / *params.temperature);
    const float factor = params.times_temperature ? 1.0f : inverse_temperature;

    const uint32_t warps = blockDim.x / reduce::warp_size;
    const uint64_t chunks = (batch.width + 2 * Packet<T>::size - 2) / Packet<T>::size / chunk + 1;
    const uint64_t count = (static_cast<uint64_t>(batch.row_count) + batch.ignored_count) * chunks;
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * warps;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * warps + threadIdx.x / reduce::warp_size; i < count; i += step) {
        const uint32_t r = static_cast<uint32_t>(i / chunks);
        const DenseRow row = r < batch.row_count ? DenseRow::load(batch.rows + r)
                                                 : DenseRow{batch.ignored[r - batch.row_count], 0, 0, 0.0f};
        const GradientRow<T> gradient(static_cast<T*>(params.gradient) + row.position * params.gradient_stride,
                                      static_cast<uint32_t>(batch.width));
        const uint32_t packets = gradient.packets(), begin = static_cast<uint32_t>(i % chunks) * chunk;
        const uint32_t end = begin + chunk < packets ? begin + chunk : packets;
        if (r >= batch.loss_row_count) {
            write_zeros(gradient, begin, end);
            continue;
        }
        const ValidLogits<T> logits = ValidLogits<T>::of(batch, row);
        const float upstream = params.upstream[params.upstream_by_position ? row.position : 0];
        const RowGradient<T> value(logits, params.softmaxes[r], inverse_temperature, row.rank,
                                      upstream * row.loss_weight * factor);
        write_gradient(gradient, begin, end, tile, value);
    }
}

}  // namespace

KERNEL(dense_backward_f32, DenseBackwardParams, 512, 2) { dense_backward<float>(params); }
KERNEL(dense_backward_f16, DenseBackwardParams, 512, 2) { dense_backward<__half>(params); }
KERNEL(dense_backward_bf16, DenseBackwardParams, 512, 2) { dense_backward<__nv_bfloat16>(params); }
