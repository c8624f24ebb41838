// What the two passes over the rows of a batch have in common: their parameters, and what a block keeps and adds up.
#pragma once

#include "linear_grouped.cuh"
#include "linear_ragged.cuh"
#include "totals.cuh"

// Mirrors launch::LinearForwardParams.
struct LinearForwardParams {
    LinearBatch batch;
    // Of the groups; with a gradient, p_v − [v = y] in the end.
    float* scores;
    // The same, rounded; or none.
    void* errors;
    // [rows, gradient_stride], and behind them those of parts, [parts.rows, parts.most, gradient_stride]; or none.
    float* gradient;
    uint64_t gradient_stride;
    // One a position; or none, where they are to be added up.
    float* losses;
    float* loss;
    // The sums of all blocks, and of the rows in parts, field by field.
    double* partials;
    // None for a pass that comes after the statistics.
    Statistics* statistics;
    double* temperature;
    // The temperature so far: on the device, or else as given.
    const double* previous;
    double given;
    // 0 before and after.
    uint32_t* arrived;
    TemperatureStep step;
    StatisticsSizes sizes;
    // Head rows of a tile, and whether shared memory has room for them and for a hidden state.
    uint32_t tile_rows;
    uint32_t keeps_head;
    uint32_t keeps_hidden;
    uint32_t times_temperature;
    // The launches of a pass share their sums: which blocks of how many are this one's.
    uint32_t first_block;
    uint32_t all_blocks;
    LinearParts parts;
};
static_assert(sizeof(LinearForwardParams) == 320, "mirrors launch::LinearForwardParams");
static_assert(offsetof(LinearForwardParams, scores) == 96, "mirrors launch::LinearForwardParams");
static_assert(offsetof(LinearForwardParams, partials) == 144, "mirrors launch::LinearForwardParams");
static_assert(offsetof(LinearForwardParams, step) == 192, "mirrors launch::LinearForwardParams");
static_assert(offsetof(LinearForwardParams, tile_rows) == 264, "mirrors launch::LinearForwardParams");
static_assert(offsetof(LinearForwardParams, parts) == 288, "mirrors launch::LinearForwardParams");

template <class T>
struct LinearPass {
    const LinearForwardParams& params;
    const LinearBatch& batch;
    Totals totals;
    RaggedRoom room;

    __device__ __forceinline__ explicit LinearPass(const LinearForwardParams& params)
        : params(params), batch(params.batch) {
        unsigned char* shared = device::shared_memory();
        totals = {reinterpret_cast<BlockSums*>(shared), params.partials, shared + BlockSums::bytes,
                  params.first_block + blockIdx.x, params.all_blocks + params.parts.rows};
        if (threadIdx.x == 0) *totals.of_block = {};
        room = {totals.scratch + scratch_bytes, params.tile_rows, params.keeps_head != 0, params.keeps_hidden != 0,
                totals.scratch};
    }

    __device__ __forceinline__ double previous() const { return params.previous ? *params.previous : params.given; }

    __device__ __forceinline__ GroupedRow<T> grouped(const LinearRow& row) const {
        return GroupedRow<T>(batch, row, params.scores + row.scores, totals.scratch);
    }

    __device__ __forceinline__ static void add_statistics(BlockSums& sums, const Scored& scored) {
        if (threadIdx.x != 0) return;
        // The sums take logits relative to the target's.
        Moments::Value moments = scored.moments;
        moments.mean += scored.shift - scored.target;
        sums.statistics.add(moments, scored.target);
    }

    __device__ __forceinline__ PartsOfRow parts_of(uint32_t r, uint32_t size) const {
        return {params.parts.scored + (r - batch.grouped) * params.parts.most, params.parts.count(size)};
    }

    // Leaves what a part has given, by all threads of a block. Whether it is the last of its row: its block goes on, and
    // sees what all the others have left.
    __device__ __forceinline__ bool leave(const RowPart& item, const Scored& scored, uint32_t parts) const {
        const uint32_t row = item.row - batch.grouped;
        if (threadIdx.x == 0) params.parts.scored[row * params.parts.most + item.part] = ScoredPart::of(scored);
        return reduce::is_last_block(params.parts.arrived + row, parts);
    }

    // A row in parts has a column of its own, for which block puts it together hangs on chance.
    __device__ __forceinline__ void publish(uint32_t r, const BlockSums& sums, int length) const {
        totals.publish(sums, params.all_blocks + r - batch.grouped, 0, length);
    }
};
