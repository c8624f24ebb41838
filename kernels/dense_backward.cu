// The gradient of the masked softmax loss over logits [N, V], from what the forward pass has saved. Row t with token set C,
// target y, share s of the result and upstream gradient g, at temperature τ, has
//
//     gradient_v = g·s/τ·(p_v − [v = y]) for v in C, else 0
//
// (times τ where the convention says so), computed in f32 and rounded once, after it has been scaled.
//
// Launch: whole warps, each of which takes every (gridDim·warps)-th chunk of a row: those of the rows that have a loss,
// then the zeros of those that have none and of the positions without a row. A tile of shared memory for each warp.
//
// Bytes moved: each byte of the gradient once, in 16-byte stores; each valid logit once and its token (4, but not for the
// whole vocabulary) about once; 28 a chunk of a row, or 4.

#include "gradient.cuh"
#include "softmax.cuh"

// Mirrors launch::DenseBackwardParams.
struct DenseBackwardParams {
    DenseBatch batch;
    // [N, width], rows `gradient_stride` apart. It may be the logits.
    void* gradient;
    uint64_t gradient_stride;
    const Softmax* softmaxes;
    const double* temperature;
    // One number, or one a position.
    const float* upstream;
    uint32_t upstream_by_position;
    uint32_t times_temperature;
};
static_assert(sizeof(DenseBackwardParams) == 128 && offsetof(DenseBackwardParams, batch) == 0 &&
    offsetof(DenseBackwardParams, gradient) == 80 && offsetof(DenseBackwardParams, gradient_stride) == 88 &&
    offsetof(DenseBackwardParams, softmaxes) == 96 && offsetof(DenseBackwardParams, temperature) == 104 &&
    offsetof(DenseBackwardParams, upstream) == 112 && offsetof(DenseBackwardParams, upstream_by_position) == 120 &&
    offsetof(DenseBackwardParams, times_temperature) == 124, "mirrors launch::DenseBackwardParams");

namespace {

// Packets: some eight tiles.
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
        if (r >= batch.counting) {
            write_zeros(gradient, begin, end);
            continue;
        }
        const ValidLogits<T> logits = ValidLogits<T>::of(batch, row);
        const float upstream = params.upstream[params.upstream_by_position ? row.position : 0];
        const RowGradient<T> value(logits, params.softmaxes[r], inverse_temperature, row.rank,
                                      upstream * row.share * factor);
        write_gradient(gradient, begin, end, tile, value);
    }
}

}  // namespace

KERNEL(dense_backward_f32, DenseBackwardParams, 512, 2) { dense_backward<float>(params); }
KERNEL(dense_backward_f16, DenseBackwardParams, 512, 2) { dense_backward<__half>(params); }
KERNEL(dense_backward_bf16, DenseBackwardParams, 512, 2) { dense_backward<__nv_bfloat16>(params); }
