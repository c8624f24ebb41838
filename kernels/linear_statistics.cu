// The statistics of a batch over hidden states [N, H] and a head [V, H], and the step that the temperature takes with them
// (temperature.cuh): what must be known before any softmax of the batch (linear_forward.cu).
//
// Launch: as linear_forward.cu. The last block to come adds up and steps.
//
// Bytes moved: each head row of a ragged row that has statistics once, and its hidden state; 4 a score of a group that
// has; 4 a token, and its bias; 32 a row.

#include "linear_pass.cuh"

namespace {

template <class T>
__device__ __forceinline__ void linear_statistics(const LinearForwardParams& params) {
    LinearPass<T> pass(params);
    // Nobody uses a head row twice here.
    pass.room.keeps_head = false;
    for (uint32_t r = blockIdx.x; r < params.batch.row_count; r += gridDim.x) {
        const LinearRow row = LinearRow::load(params.batch.rows + r);
        if (!row.in_statistics) continue;
        pass.add_statistics(r < params.batch.grouped ? pass.grouped(row).measure()
                                                     : RaggedRow<T>(params.batch, row, pass.room).measure());
    }
    pass.totals.publish(0, StatisticsSums::length);
    if (!reduce::is_last_block(params.arrived, params.all_blocks)) return;
    const Statistics statistics = pass.totals.statistics(params.sizes);
    if (threadIdx.x == 0) {
        *params.statistics = statistics;
        *params.temperature = stepped(params.step, statistics, pass.previous());
    }
}

}  // namespace

KERNEL(linear_statistics_f32, LinearForwardParams, 512) { linear_statistics<float>(params); }
KERNEL(linear_statistics_f16, LinearForwardParams, 512) { linear_statistics<__half>(params); }
KERNEL(linear_statistics_bf16, LinearForwardParams, 512) { linear_statistics<__nv_bfloat16>(params); }
