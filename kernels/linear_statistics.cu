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
__device__ __forceinline__ void measure_ragged(const LinearPass<T>& pass, const RowPart& item, const LinearRow& row) {
    BlockSums sums = {};
    if (!row.in_statistics) {
        // Its column is added up all the same.
        if (item.in_parts && item.part == 0) pass.publish(item.row, sums, StatisticsSums::length);
        return;
    }
    const LinearParts& in_parts = pass.params.parts;
    RaggedRow<T> ragged(pass.batch, row, pass.room);
    if (item.in_parts && !ragged.narrow(item.part, in_parts.tokens)) return;
    const Scored scored = ragged.measure();
    if (!item.in_parts) {
        pass.add_statistics(*pass.totals.of_block, scored);
        return;
    }
    const PartsOfRow parts = pass.parts_of(item.row, ragged.size());
    // The block that comes last puts the row together.
    if (!pass.leave(item, scored, parts.count)) return;
    pass.add_statistics(sums, parts.measured(row.rank / in_parts.tokens));
    pass.publish(item.row, sums, StatisticsSums::length);
}

template <class T>
__device__ __forceinline__ void linear_statistics(const LinearForwardParams& params) {
    LinearPass<T> pass(params);
    // Nobody uses a head row twice here.
    pass.room.keeps_head = false;
    const uint32_t items = params.parts.items(params.batch);
    for (uint32_t i = blockIdx.x; i < items; i += gridDim.x) {
        const RowPart item = params.parts.item(params.batch, i);
        const LinearRow row = LinearRow::load(params.batch.rows + item.row);
        if (item.row >= params.batch.grouped) {
            measure_ragged(pass, item, row);
        } else if (row.in_statistics) {
            pass.add_statistics(*pass.totals.of_block, pass.grouped(row).measure());
        }
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

KERNEL(linear_statistics_f32, LinearForwardParams, 512, 2) { linear_statistics<float>(params); }
KERNEL(linear_statistics_f16, LinearForwardParams, 512, 2) { linear_statistics<__half>(params); }
KERNEL(linear_statistics_bf16, LinearForwardParams, 512, 2) { linear_statistics<__nv_bfloat16>(params); }
