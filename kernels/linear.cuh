// A batch of rows over hidden states [N, H] and a head [V, H] as the host lays it out: rows in the order of their token
// sets. The rows of one set are a group, whose scores are one small matrix [rows, tokens].
#pragma once

#include "softmax.cuh"
#include "token_sets.cuh"
#include "vector.cuh"

// A row that has something to compute. Mirrors launch::LinearRow.
struct LinearRow {
    // Which of the N hidden states is its own.
    uint32_t position;
    uint32_t group;
    // Which token of the set is the target.
    uint32_t rank;
    // What the row's loss counts in the result; 0 for a row that has statistics alone.
    float share;
    uint32_t in_statistics;
    // The ordered bits (selection.cuh) of its largest score but the target's: the least of all at first.
    uint32_t maximum;
    uint32_t unused[2];

    __device__ __forceinline__ static LinearRow load(const LinearRow* address) {
        const uint4 first = device::load128(address);
        const uint4 second = device::load128(reinterpret_cast<const unsigned char*>(address) + sizeof(uint4));
        return {first.x, first.y, first.z, __uint_as_float(first.w), second.x, second.y, {}};
    }

    __device__ __forceinline__ bool counts() const { return share != 0.0f; }
};
static_assert(sizeof(LinearRow) == 32 && offsetof(LinearRow, position) == 0 && offsetof(LinearRow, group) == 4 &&
    offsetof(LinearRow, rank) == 8 && offsetof(LinearRow, share) == 12 && offsetof(LinearRow, in_statistics) == 16 &&
    offsetof(LinearRow, maximum) == 20 && offsetof(LinearRow, unused) == 24, "mirrors launch::LinearRow");

// Mirrors launch::LinearGroup.
struct LinearGroup {
    // Tokens whose scores are one item's, and share a record of each row.
    static constexpr uint32_t tile = 64;

    // Where the set begins among the tokens of all sets; of the whole vocabulary, its first token.
    uint32_t first_token;
    uint32_t tokens;
    uint32_t first_row;
    uint32_t rows;
    // Where its scores [rows, stride] begin, and its records [rows, tiles].
    uint64_t scores;
    uint64_t records;
    // The rank of its first token: 0 but for a part of the whole vocabulary.
    uint32_t first_rank;
    uint32_t unused[3];

    __device__ __forceinline__ static LinearGroup load(const LinearGroup* address) {
        uint4 parts[3];
#pragma unroll
        for (uint32_t k = 0; k < 3; ++k) parts[k] = device::load128(reinterpret_cast<const unsigned char*>(address) + 16 * k);
        LinearGroup group;
        memcpy(&group, parts, sizeof(group));
        return group;
    }

    // Whole packets of f32.
    __device__ __forceinline__ uint32_t stride() const { return (tokens + 3) / 4 * 4; }
    __device__ __forceinline__ uint32_t tiles() const { return (tokens + tile - 1) / tile; }
};
static_assert(sizeof(LinearGroup) == 48 && offsetof(LinearGroup, first_token) == 0 && offsetof(LinearGroup, tokens)
    == 4 && offsetof(LinearGroup, first_row) == 8 && offsetof(LinearGroup, rows) == 12 && offsetof(LinearGroup, scores)
    == 16 && offsetof(LinearGroup, records) == 24 && offsetof(LinearGroup, first_rank) == 32 && offsetof(LinearGroup,
    unused) == 36, "mirrors launch::LinearGroup");

// Mirrors launch::LinearBatch.
struct LinearBatch {
    const void* hidden;
    uint64_t hidden_stride;
    const void* head;
    uint64_t head_stride;
    // One a token, or none.
    const void* bias;
    // Scores raise their maxima, and BEAR changes their shares.
    LinearRow* rows;
    const LinearGroup* groups;
    // The tokens of all sets; none for the whole vocabulary.
    const uint32_t* tokens;
    // The positions that are no row's.
    const uint32_t* ignored;
    uint32_t row_count;
    uint32_t ignored_count;
    uint32_t width;
    uint32_t unused;

    __device__ __forceinline__ uint32_t token(const LinearGroup& group, uint32_t index) const {
        return tokens ? tokens[group.first_token + index] : group.first_token + index;
    }

    template <class T>
    __device__ __forceinline__ Vector<T> hidden_row(uint32_t position) const {
        return Vector<T>(static_cast<const T*>(hidden) + position * hidden_stride, width);
    }

    template <class T>
    __device__ __forceinline__ Vector<T> head_row(uint32_t token) const {
        return Vector<T>(static_cast<const T*>(head) + token * head_stride, width);
    }

    template <class T>
    __device__ __forceinline__ float bias_of(uint32_t token) const {
        return bias ? number::widen(static_cast<const T*>(bias)[token]) : 0.0f;
    }
};
static_assert(sizeof(LinearBatch) == 88 && offsetof(LinearBatch, hidden) == 0 && offsetof(LinearBatch,
    hidden_stride) == 8 && offsetof(LinearBatch, head) == 16 && offsetof(LinearBatch, head_stride) == 24 &&
    offsetof(LinearBatch, bias) == 32 && offsetof(LinearBatch, rows) == 40 && offsetof(LinearBatch, groups) == 48 &&
    offsetof(LinearBatch, tokens) == 56 && offsetof(LinearBatch, ignored) == 64 && offsetof(LinearBatch, row_count) ==
    72 && offsetof(LinearBatch, ignored_count) == 76 && offsetof(LinearBatch, width) == 80 && offsetof(LinearBatch,
    unused) == 84, "mirrors launch::LinearBatch");

// What the unscaled gradient of a row is multiplied by. Mirrors launch::GradientScale.
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
static_assert(sizeof(GradientScale) == 24 && offsetof(GradientScale, temperature) == 0 && offsetof(GradientScale,
    upstream) == 8 && offsetof(GradientScale, upstream_by_position) == 16 && offsetof(GradientScale, times_temperature)
    == 20, "mirrors launch::GradientScale");
