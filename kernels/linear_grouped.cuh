// A row whose scores a matrix product has made: its softmax, and p_v − [v = y] for the product that makes its gradient.
#pragma once

#include "linear.cuh"

template <class T>
class GroupedRow {
public:
    // `scores` are the row's own, without the bias.
    __device__ __forceinline__ GroupedRow(const LinearBatch& batch, const LinearRow& row, float* scores,
                                          unsigned char* scratch)
        : row(row), valid(batch, row), scores(scores), scratch(scratch) {}

    // By all threads of a block.
    __device__ __forceinline__ Scored compute(float inverse_temperature) const {
        const Exponentials exponentials = {inverse_temperature};
        Exponentials::Value others = exponentials.identity();
        Scored scored = {};
        scored.shift = score(0);
        scored.target = score(row.rank);
        for (uint32_t i = threadIdx.x; i < valid.size; i += blockDim.x) {
            const float z = score(i);
            if (i != row.rank) others = exponentials.add(others, z);
            scored.moments = Moments().add(scored.moments, z - scored.shift);
        }
        others = reduce::block(exponentials, others, scratch);
        scored.moments = reduce::block(Moments(), scored.moments, scratch);
        scored.softmax = Softmax::of(others, scored.target, inverse_temperature);
        return scored;
    }

    // The statistics alone.
    __device__ __forceinline__ Scored measure() const {
        Scored scored = {};
        scored.shift = score(0);
        scored.target = score(row.rank);
        for (uint32_t i = threadIdx.x; i < valid.size; i += blockDim.x) {
            scored.moments = Moments().add(scored.moments, score(i) - scored.shift);
        }
        scored.moments = reduce::block(Moments(), scored.moments, scratch);
        return scored;
    }

    // In place of the scores, and rounded where `rounded` is.
    __device__ __forceinline__ void write_errors(const Errors& error, T* rounded) const {
        for (uint32_t i = threadIdx.x; i < valid.size; i += blockDim.x) {
            write(i, row.counts() ? error(i, score(i)) : 0.0f, rounded);
        }
    }

private:
    const LinearRow& row;
    ValidRows<T> valid;
    float* scores;
    unsigned char* scratch;

    __device__ __forceinline__ float score(uint32_t index) const { return scores[index] + valid.bias(index); }

    __device__ __forceinline__ void write(uint32_t index, float error, T* rounded) const {
        scores[index] = error;
        if (rounded) rounded[index] = number::narrow<T>(error);
    }
};
