// What the gradient of the head is summed from (linear_head_gradient.cu): for each row t with hidden state h, share s of
// the result and upstream gradient g, at temperature τ, the H + 1 numbers
//
//     g·s/τ·(h, 1)
//
// (times τ where the convention says so; 0 where the row does not count), the last of them for the bias; and for each
// ragged row its errors p_v − [v = y], from its scores, which are made once more. Those of groups the forward pass left.
//
// Launch: a block takes every gridDim-th row and one row at a time. Shared memory holds what `block` needs,
// 2·tile_rows + warps numbers and, where it fits, a hidden state.
//
// Bytes moved: each head row of a ragged row once, its hidden state twice (once more a tile where it does not fit), that
// of a grouped row once; 4 H + 4 a row written, in 16-byte stores; 4 a ragged token, and its bias; 4 an error, written
// twice and read once; 32 a row.

#include "linear_ragged.cuh"
#include "totals.cuh"

// Mirrors launch::LinearErrorsParams.
struct LinearErrorsParams {
    LinearBatch batch;
    GradientScale scale;
    // [rows, scaled_stride]: whole packets of numbers, zeros behind the H + 1.
    float* scaled;
    uint64_t scaled_stride;
    // Of the ragged rows.
    float* errors;
    uint32_t tile_rows;
    uint32_t keeps_hidden;
};
static_assert(sizeof(LinearErrorsParams) == 152, "mirrors launch::LinearErrorsParams");
static_assert(offsetof(LinearErrorsParams, scaled) == 120, "mirrors launch::LinearErrorsParams");
static_assert(offsetof(LinearErrorsParams, tile_rows) == 144, "mirrors launch::LinearErrorsParams");

namespace {

template <class T>
__device__ __forceinline__ void write_scaled(const LinearErrorsParams& params, uint32_t r, const LinearRow& row) {
    const LinearBatch& batch = params.batch;
    const T* hidden = static_cast<const T*>(batch.hidden) + row.position * batch.hidden_stride;
    float* scaled = params.scaled + r * params.scaled_stride;
    // A hidden state that does not count may be NaN.
    const float factor = row.counts() ? params.scale.of(row) : 0.0f;
    for (uint32_t p = threadIdx.x; p < params.scaled_stride / Packet<float>::size; p += blockDim.x) {
        Packet<float> packet;
#pragma unroll
        for (uint32_t k = 0; k < Packet<float>::size; ++k) {
            const uint32_t column = p * Packet<float>::size + k;
            const float value = column < batch.width && row.counts() ? number::widen(hidden[column]) : 0.0f;
            packet.values[k] = factor * (column == batch.width ? 1.0f : value);
        }
        packet.store(scaled + p * Packet<float>::size);
    }
}

template <class T>
__device__ __forceinline__ void linear_errors(const LinearErrorsParams& params) {
    unsigned char* scratch = device::shared_memory();
    // Nobody uses a head row twice here.
    const RaggedRoom room = {scratch + scratch_bytes, params.tile_rows, false, params.keeps_hidden != 0, scratch};
    const float inverse_temperature = params.scale.inverse_temperature();
    for (uint32_t r = blockIdx.x; r < params.batch.row_count; r += gridDim.x) {
        const LinearRow row = LinearRow::load(params.batch.rows + r);
        write_scaled<T>(params, r, row);
        if (r < params.batch.grouped || !row.counts()) continue;
        RaggedRow<T>(params.batch, row, room).write_errors(inverse_temperature, params.errors + row.scores);
        // The next row's hidden state and sums are kept where this one's are.
        __syncthreads();
    }
}

}  // namespace

KERNEL(linear_errors_f32, LinearErrorsParams, 512, 2) { linear_errors<float>(params); }
KERNEL(linear_errors_f16, LinearErrorsParams, 512, 2) { linear_errors<__half>(params); }
KERNEL(linear_errors_bf16, LinearErrorsParams, 512, 2) { linear_errors<__nv_bfloat16>(params); }
