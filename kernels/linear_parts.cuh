// A ragged row whose set is long, in parts: blocks take its tokens side by side, each with a largest score m_k of its own
// (the target's left out) and a gradient relative to that,
//
//     gradient_k = Σ_{v ∈ part k, v ≠ y} exp((z_v − m_k)/τ) W_v
//
// and the block that comes last puts them together, always in the order of the parts. With m the largest score of all,
//
//     gradient = Σ_k exp((m_k − m)/τ)/Σ_v exp((z_v − m)/τ)·gradient_k + (p_y − 1)·W_y
#pragma once

#include "linear.cuh"

// What a part leaves of its scores.
struct alignas(16) ScoredPart {
    Exponentials::Value others;
    float target;
    // The moments are relative to it.
    float shift;
    Moments::Value moments;
    float unused;

    __device__ __forceinline__ static ScoredPart of(const Scored& scored) {
        return {scored.others, scored.target, scored.shift, scored.moments, 0.0f};
    }
};
static_assert(sizeof(ScoredPart) == 32, "the host makes room for four f64 a part");

// What a block takes at a time.
struct RowPart {
    uint32_t row;
    uint32_t part;
    bool in_parts;
};

// Which rows are taken in parts. Mirrors launch::LinearParts.
struct LinearParts {
    // [rows, most].
    ScoredPart* scored;
    // One a row: 0 before and after.
    uint32_t* arrived;
    // The first ragged rows; the longest has the most parts. A part has so many tokens, the last of a row what is left.
    uint32_t rows;
    uint32_t most;
    uint32_t tokens;
    uint32_t unused;

    __device__ __forceinline__ uint32_t count(uint32_t size) const { return (size + tokens - 1) / tokens; }

    // The grouped rows, the parts, the other rows: some rows may have fewer parts than there are here.
    __device__ __forceinline__ uint32_t items(const LinearBatch& batch) const { return batch.row_count + rows * (most - 1); }
    __device__ __forceinline__ RowPart item(const LinearBatch& batch, uint32_t index) const {
        if (index < batch.grouped) return {index, 0, false};
        const uint32_t ragged = index - batch.grouped;
        if (ragged < rows * most) return {batch.grouped + ragged % rows, ragged / rows, true};
        return {index - rows * (most - 1), 0, false};
    }
};
static_assert(sizeof(LinearParts) == 32, "mirrors launch::LinearParts");
static_assert(offsetof(LinearParts, rows) == 16, "mirrors launch::LinearParts");

// What all parts of a row have left, by any thread behind the last.
struct PartsOfRow {
    const ScoredPart* parts;
    uint32_t count;

    // Without the softmax.
    __device__ __forceinline__ Scored measured(uint32_t part_of_target) const {
        Scored scored = {};
        scored.shift = parts[0].shift;
        scored.target = parts[part_of_target].target;
        for (uint32_t k = 0; k < count; ++k) {
            Moments::Value moments = parts[k].moments;
            moments.mean += parts[k].shift - scored.shift;
            scored.moments = Moments().combine(scored.moments, moments);
        }
        return scored;
    }

    __device__ __forceinline__ Exponentials::Value others(const Exponentials& exponentials) const {
        Exponentials::Value others = exponentials.identity();
        for (uint32_t k = 0; k < count; ++k) others = exponentials.combine(others, parts[k].others);
        return others;
    }
};
