// The reduction over blocks of the statistics and the loss. Each block publishes its sums to its own column of a
// workspace in global memory, and the last block done adds up all columns in an order that depends on the launch shape
// alone.
#pragma once

#include "softmax.cuh"
#include "temperature.cuh"

// The sums of one block over its rows, in shared memory. Only thread 0 reads and writes them.
struct BlockSums {
    static constexpr int length = StatisticsSums::length + 1;
    static constexpr int bytes = 64;

    StatisticsSums statistics;
    double loss;
};
static_assert(sizeof(BlockSums) == BlockSums::length * sizeof(double), "sums are published field by field");
static_assert(BlockSums::bytes >= sizeof(BlockSums), "shared memory for the sums of a block");

// The scratch of block reductions, in bytes.
constexpr int scratch_bytes = 512;
static_assert(scratch_bytes >= reduce::scratch_bytes<Moments>(), "scratch for every reduction");
static_assert(scratch_bytes >= reduce::scratch_bytes<Exponentials>(), "scratch for every reduction");
static_assert(scratch_bytes >= reduce::scratch_bytes<reduce::Sum<double>>(), "scratch for every reduction");

struct Totals {
    // The sums of this block, in shared memory.
    BlockSums* block_sums;
    // [BlockSums::length, columns] in global memory.
    double* partials;
    // [scratch_bytes] in shared memory.
    unsigned char* scratch;
    // The column of this block.
    uint32_t column;
    uint32_t columns;

    // Writes fields [first, end) of the block's sums to its column.
    __device__ __forceinline__ void publish(int first, int end) const { publish(*block_sums, column, first, end); }

    __device__ __forceinline__ void publish(const BlockSums& sums, uint32_t at, int first, int end) const {
        if (threadIdx.x != 0) return;
        const double* fields = reinterpret_cast<const double*>(&sums);
        for (int field = first; field < end; ++field) partials[field * columns + at] = fields[field];
    }

    // Adds up `count` fields from `first` on over all columns, with all threads of the last block done. All fields are
    // loaded before any is reduced, so that the latencies of the loads overlap.
    template <int count>
    __device__ __forceinline__ void sum_columns(int first, double (&sums)[count]) const {
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
        sum_columns(0, sums);
        return StatisticsSums{sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]}.statistics(sizes);
    }

    // Writes the sum of the losses to `loss`, unless it is null because each position has its own loss.
    __device__ __forceinline__ void write_loss(float* loss) const {
        if (!loss) return;
        double sum[1];
        sum_columns(StatisticsSums::length, sum);
        if (threadIdx.x == 0) *loss = static_cast<float>(sum[0]);
    }
};
