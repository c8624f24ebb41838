// The device-side view of a batch over hidden states [N, H] and a head [V, H]. Rows are sorted by token set. The rows
// of one set form a group, whose scores are one problem of a grouped GEMM: [rows, H] times the set's head rows [tokens,
// H]ᵀ.
#pragma once

#include "softmax.cuh"
#include "token_sets.cuh"
#include "vector.cuh"

// A row that has a loss, or whose scores enter the statistics. Mirrors launch::LinearRow.
struct LinearRow {
    // The flattened position of the row's hidden state, in [0, N).
    uint32_t position;
    // The index of its group.
    uint32_t group;
    // The index of the target in the token set.
    uint32_t rank;
    // The factor of the row's loss in the result: the caller's row weight divided by the denominator of the reduction.
    // 0 for a row without a loss, which only enters the statistics.
    float loss_weight;
    // 1 if the row's scores enter the statistics.
    uint32_t in_statistics;
    // The ordered bits (selection.cuh) of the largest score other than the target's. The host sets 0, and blocks raise
    // it by atomicMax, which gives the same bits in every order.
    uint32_t maximum;
    uint32_t unused[2];

    __device__ __forceinline__ static LinearRow load(const LinearRow* address) {
        const uint4 first = device::load128(address);
        const uint4 second = device::load128(reinterpret_cast<const unsigned char*>(address) + sizeof(uint4));
        return {first.x, first.y, first.z, __uint_as_float(first.w), second.x, second.y, {}};
    }

    __device__ __forceinline__ bool has_loss() const { return loss_weight != 0.0f; }
};
static_assert(sizeof(LinearRow) == 32 && offsetof(LinearRow, position) == 0 && offsetof(LinearRow, group) == 4 &&
    offsetof(LinearRow, rank) == 8 && offsetof(LinearRow, loss_weight) == 12 && offsetof(LinearRow, in_statistics) == 16 &&
    offsetof(LinearRow, maximum) == 20 && offsetof(LinearRow, unused) == 24, "mirrors launch::LinearRow");

// The rows of one token set, or of a part of the whole vocabulary. Mirrors launch::LinearGroup.
struct LinearGroup {
    // The tokens of a tile: one item computes their scores, and each row has one ScoreRecord for them.
    static constexpr uint32_t tile = 64;

    // The index of the set's first token in LinearBatch::tokens. Over the whole vocabulary, the first token itself.
    uint32_t first_token;
    uint32_t tokens;
    // The group's rows are [first_row, first_row + rows) of the batch.
    uint32_t first_row;
    uint32_t rows;
    // The index of its first score [rows, stride()] in `scores`, and of its first record [rows, tiles()] in `records`.
    uint64_t scores;
    uint64_t records;
    // The rank of its first token in the set: 0, except for a part of the whole vocabulary.
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

    // Row stride of the scores, in f32: a multiple of a packet.
    __device__ __forceinline__ uint32_t stride() const { return (tokens + 3) / 4 * 4; }
    __device__ __forceinline__ uint32_t tiles() const { return (tokens + tile - 1) / tile; }
};
static_assert(sizeof(LinearGroup) == 48 && offsetof(LinearGroup, first_token) == 0 && offsetof(LinearGroup, tokens)
    == 4 && offsetof(LinearGroup, first_row) == 8 && offsetof(LinearGroup, rows) == 12 && offsetof(LinearGroup, scores)
    == 16 && offsetof(LinearGroup, records) == 24 && offsetof(LinearGroup, first_rank) == 32 && offsetof(LinearGroup,
    unused) == 36, "mirrors launch::LinearGroup");

// Mirrors launch::LinearBatch.
struct LinearBatch {
    // [N, width] of the kernel's element type.
    const void* hidden;
    // Row stride of `hidden`, in elements.
    uint64_t hidden_stride;
    // [V − base_rows, width]: the rows of the tokens from base_rows on, which are all tokens of a head in one part.
    const void* head;
    // Row stride of `head`, in elements.
    uint64_t head_stride;
    // [base_rows, width]: the frozen rows of the tokens before them; null for a head in one part.
    const void* base;
    // Row stride of `base`, in elements.
    uint64_t base_stride;
    // [V]; null if the head has no bias.
    const void* bias;
    // [row_count]. The score items raise their maxima, and BEAR overwrites their loss weights.
    LinearRow* rows;
    // [groups].
    const LinearGroup* groups;
    // The tokens of all sets; null for the whole vocabulary.
    const uint32_t* tokens;
    // [ignored_count]: the positions without a row.
    const uint32_t* ignored;
    uint32_t row_count;
    uint32_t ignored_count;
    // H, the elements of a hidden state.
    uint32_t width;
    // The number of rows of `base`; 0 for a head in one part.
    uint32_t base_rows;

    __device__ __forceinline__ uint32_t token(const LinearGroup& group, uint32_t index) const {
        return tokens ? tokens[group.first_token + index] : group.first_token + index;
    }

    template <class T>
    __device__ __forceinline__ Vector<T> hidden_row(uint32_t position) const {
        return Vector<T>(static_cast<const T*>(hidden) + position * hidden_stride, width);
    }

    template <class T>
    __device__ __forceinline__ Vector<T> head_row(uint32_t token) const {
        // A head in one part pays one compare.
        const void* part = head;
        uint64_t offset = (token - base_rows) * head_stride;
        if (token < base_rows) {
            part = base;
            offset = token * base_stride;
        }
        return Vector<T>(static_cast<const T*>(part) + offset, width);
    }

    template <class T>
    __device__ __forceinline__ float bias_of(uint32_t token) const {
        return bias ? number::widen(static_cast<const T*>(bias)[token]) : 0.0f;
    }
};
static_assert(sizeof(LinearBatch) == 104 && offsetof(LinearBatch, hidden) == 0 && offsetof(LinearBatch,
    hidden_stride) == 8 && offsetof(LinearBatch, head) == 16 && offsetof(LinearBatch, head_stride) == 24 &&
    offsetof(LinearBatch, base) == 32 && offsetof(LinearBatch, base_stride) == 40 && offsetof(LinearBatch, bias) == 48
    && offsetof(LinearBatch, rows) == 56 && offsetof(LinearBatch, groups) == 64 && offsetof(LinearBatch, tokens) == 72
    && offsetof(LinearBatch, ignored) == 80 && offsetof(LinearBatch, row_count) == 88 && offsetof(LinearBatch,
    ignored_count) == 92 && offsetof(LinearBatch, width) == 96 && offsetof(LinearBatch, base_rows) == 100,
    "mirrors launch::LinearBatch");

// The factor of the unscaled gradient of a row. Mirrors launch::GradientScale.
struct GradientScale {
    // [1]: τ, as the forward pass wrote it.
    const double* temperature;
    // [1], or [N] if `upstream_by_position` is not 0: the gradient of the loss.
    const float* upstream;
    uint32_t upstream_by_position;
    // 1 if the loss is multiplied by τ, which cancels the 1/τ of the chain rule.
    uint32_t times_temperature;

    __device__ __forceinline__ float inverse_temperature() const { return static_cast<float>(1.0 / *temperature); }

    // Returns the upstream gradient times the loss weight, divided by τ unless the loss is multiplied by τ.
    __device__ __forceinline__ float of(const LinearRow& row) const {
        const float scaled = upstream[upstream_by_position ? row.position : 0] * row.loss_weight;
        return times_temperature ? scaled : scaled * inverse_temperature();
    }
};
static_assert(sizeof(GradientScale) == 24 && offsetof(GradientScale, temperature) == 0 && offsetof(GradientScale,
    upstream) == 8 && offsetof(GradientScale, upstream_by_position) == 16 && offsetof(GradientScale, times_temperature)
    == 20, "mirrors launch::GradientScale");
