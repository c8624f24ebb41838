// The sums of the blocks of one launch or of several over their rows: the statistics and the loss. Each block publishes
// its sums in a column of its own, and the last block done adds up those of all, in the order of the columns.
#pragma once

#include "softmax.cuh"
#include "temperature.cuh"

// What a block adds up, in shared memory: the first thread's alone.
struct BlockSums {
    static constexpr int length = StatisticsSums::length + 1;
    static constexpr int bytes = 64;

    StatisticsSums statistics;
    double loss;
};
static_assert(sizeof(BlockSums) == BlockSums::length * sizeof(double), "sums are published field by field");
static_assert(BlockSums::bytes >= sizeof(BlockSums), "room for what a block adds up");

// What a block reduces its rows and these sums with.
constexpr int scratch_bytes = 512;
static_assert(scratch_bytes >= reduce::scratch_bytes<Moments>(), "room for every reduction");
static_assert(scratch_bytes >= reduce::scratch_bytes<Exponentials>(), "room for every reduction");
static_assert(scratch_bytes >= reduce::scratch_bytes<reduce::Sum<double>>(), "room for every reduction");

struct Totals {
    BlockSums* of_block;
    // The columns, field by field.
    double* partials;
    unsigned char* scratch;
    // Which of how many is this block's.
    uint32_t column;
    uint32_t columns;

    __device__ __forceinline__ void publish(int first, int end) const { publish(*of_block, column, first, end); }

    __device__ __forceinline__ void publish(const BlockSums& sums, uint32_t at, int first, int end) const {
        if (threadIdx.x != 0) return;
        const double* fields = reinterpret_cast<const double*>(&sums);
        for (int field = first; field < end; ++field) partials[field * columns + at] = fields[field];
    }

    // By the last block, which sees what all have published: the sums of fields from `first` on. No field's loads wait
    // for another's sum.
    template <int count>
    __device__ __forceinline__ void add_up(int first, double (&sums)[count]) const {
#pragma unroll
        for (int k = 0; k < count; ++k) sums[k] = 0.0;
        for (uint32_t other = threadIdx.x; other < columns; other += blockDim.x) {
#pragma unroll
            for (int k = 0; k < count; ++k) sums[k] += partials[(first + k) * columns + other];
        }
#pragma unroll
        for (int k = 0; k < count; ++k) sums[k] = reduce::block(reduce::Sum<double>(), sums[k], scratch);
    }

    __device__ __forceinline__ Statistics statistics(const StatisticsSizes& sizes) const {
        double sums[StatisticsSums::length];
        add_up(0, sums);
        return StatisticsSums{sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]}.statistics(sizes);
    }

    // None where each position has a loss of its own.
    __device__ __forceinline__ void write_loss(float* loss) const {
        if (!loss) return;
        double sum[1];
        add_up(StatisticsSums::length, sum);
        if (threadIdx.x == 0) *loss = static_cast<float>(sum[0]);
    }
};
