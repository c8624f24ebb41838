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
    // [rows, gradient_stride]; or none.
    float* gradient;
    uint64_t gradient_stride;
    // One a position; or none, where they are to be added up.
    float* losses;
    float* loss;
    // The sums of all blocks, field by field.
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
};
static_assert(sizeof(LinearForwardParams) == 288, "mirrors launch::LinearForwardParams");
static_assert(offsetof(LinearForwardParams, scores) == 96, "mirrors launch::LinearForwardParams");
static_assert(offsetof(LinearForwardParams, partials) == 144, "mirrors launch::LinearForwardParams");
static_assert(offsetof(LinearForwardParams, step) == 192, "mirrors launch::LinearForwardParams");
static_assert(offsetof(LinearForwardParams, tile_rows) == 264, "mirrors launch::LinearForwardParams");

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
                  params.first_block + blockIdx.x, params.all_blocks};
        if (threadIdx.x == 0) *totals.of_block = {};
        room = {totals.scratch + scratch_bytes, params.tile_rows, params.keeps_head != 0, params.keeps_hidden != 0,
                totals.scratch};
    }

    __device__ __forceinline__ double previous() const { return params.previous ? *params.previous : params.given; }

    __device__ __forceinline__ GroupedRow<T> grouped(const LinearRow& row) const {
        return GroupedRow<T>(batch, row, params.scores + row.scores, totals.scratch);
    }

    __device__ __forceinline__ void add_statistics(const Scored& scored) const {
        if (threadIdx.x != 0) return;
        // The sums take logits relative to the target's.
        Moments::Value moments = scored.moments;
        moments.mean += scored.shift - scored.target;
        totals.of_block->statistics.add(moments, scored.target);
    }
};
