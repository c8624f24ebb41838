// A batch of rows over hidden states [N, H] and a head [V, H] as the host lays it out.
//
// Rows [0, grouped) have their scores made by matrix products, set by set; the others, the ragged ones, follow.
#pragma once

#include "moments.cuh"
#include "softmax.cuh"
#include "token_sets.cuh"
#include "vector.cuh"

// A row that has something to compute. Mirrors launch::LinearRow.
struct LinearRow {
    uint32_t position;
    uint32_t set;
    // Which token of the set is the target.
    uint32_t rank;
    // What the row's loss counts in the result; 0 for a row that has nothing but statistics.
    float share;
    // Where its scores begin among those of the groups; of a ragged row, where its errors do among those of the ragged.
    uint64_t scores;
    uint32_t in_statistics;
    uint32_t unused;

    __device__ __forceinline__ static LinearRow load(const LinearRow* address) {
        const uint4 first = device::load128(address);
        const uint4 second = device::load128(reinterpret_cast<const unsigned char*>(address) + sizeof(uint4));
        return {first.x, first.y, first.z, __uint_as_float(first.w), second.x | static_cast<uint64_t>(second.y) << 32,
                second.z, second.w};
    }

    __device__ __forceinline__ bool counts() const { return share != 0.0f; }
};
static_assert(sizeof(LinearRow) == 32, "mirrors launch::LinearRow");
static_assert(offsetof(LinearRow, scores) == 16 && offsetof(LinearRow, in_statistics) == 24, "mirrors launch::LinearRow");

// Mirrors launch::LinearBatch.
struct LinearBatch {
    const void* hidden;
    uint64_t hidden_stride;
    const void* head;
    uint64_t head_stride;
    // One a token, or none.
    const void* bias;
    const LinearRow* rows;
    // The positions without a loss.
    const uint32_t* idle;
    TokenSets sets;
    uint32_t width;
    uint32_t grouped;
    uint32_t row_count;
    uint32_t idle_count;
};
static_assert(sizeof(LinearBatch) == 96, "mirrors launch::LinearBatch");
static_assert(offsetof(LinearBatch, sets) == 56 && offsetof(LinearBatch, width) == 80, "mirrors launch::LinearBatch");

// What the errors of a row are multiplied by to give gradients. Mirrors launch::GradientScale.
struct GradientScale {
    const double* temperature;
    // One number, or one a position.
    const float* upstream;
    uint32_t upstream_by_position;
    uint32_t times_temperature;

    __device__ __forceinline__ float inverse_temperature() const { return static_cast<float>(1.0 / *temperature); }

    // The upstream gradient times the row's share, over the temperature that the chain rule leaves.
    __device__ __forceinline__ float of(const LinearRow& row) const {
        const float scaled = upstream[upstream_by_position ? row.position : 0] * row.share;
        return times_temperature ? scaled : scaled * inverse_temperature();
    }
};
static_assert(sizeof(GradientScale) == 24, "mirrors launch::GradientScale");
static_assert(offsetof(GradientScale, upstream_by_position) == 16, "mirrors launch::GradientScale");

// The tokens of a row's set, with their head rows and biases.
template <class T>
struct ValidRows {
    const LinearBatch& batch;
    // None for the whole vocabulary.
    const uint32_t* tokens;
    uint32_t size;

    __device__ __forceinline__ ValidRows(const LinearBatch& batch, const LinearRow& row) : batch(batch) {
        const uint32_t begin = batch.sets.begin(row.set);
        tokens = batch.sets.tokens + begin;
        size = batch.sets.end(row.set) - begin;
    }

    __device__ __forceinline__ Vector<T> head_row(uint32_t index) const {
        return Vector<T>(static_cast<const T*>(batch.head) + tokens[index] * batch.head_stride, batch.width);
    }

    __device__ __forceinline__ float bias(uint32_t index) const {
        if (!batch.bias) return 0.0f;
        return number::widen(static_cast<const T*>(batch.bias)[tokens ? tokens[index] : index]);
    }
};

// What one look at a row's scores gives.
struct Scored {
    // Of a ragged row: of its tokens other than the target, or of those of a part.
    Exponentials::Value others;
    Softmax softmax;
    // Relative to `shift`. Whole with the first thread alone.
    Moments::Value moments;
    float shift;
    float target;
};

// p_v − [v = y] of scores, in the end; on the way there, what v weighs relative to the largest score so far.
struct Errors {
    float maximum;
    float inverse_temperature;
    float scale;
    float of_target;
    uint32_t rank;

    __device__ __forceinline__ static Errors of(const Softmax& softmax, float inverse_temperature, uint32_t rank) {
        return {softmax.maximum, inverse_temperature, softmax.inverse_sum(), softmax.target_error(), rank};
    }

    // The same for the scores up to the largest so far, without the target.
    __device__ __forceinline__ static Errors so_far(float maximum, float inverse_temperature, uint32_t rank) {
        return {maximum, inverse_temperature, 1.0f, 0.0f, rank};
    }

    __device__ __forceinline__ float operator()(uint32_t index, float score) const {
        return index == rank ? of_target : relative(score) * scale;
    }

    // exp((z − m)/τ), also where both are −∞.
    __device__ __forceinline__ float relative(float score) const {
        return score == maximum ? 1.0f : expf((score - maximum) * inverse_temperature);
    }
};
