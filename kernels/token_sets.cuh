// The device-side view of token sets: see `TokenSets` of the library.
#pragma once

#include "device.cuh"

// Token sets in compressed sparse rows: set u is tokens[offsets[u] .. offsets[u + 1]], ascending.
struct TokenSetsView {
    // [sets + 1]; null if every set is the whole vocabulary.
    const uint32_t* offsets;
    // [offsets[sets]]; null if every set is the whole vocabulary.
    const uint32_t* tokens;
    // The size of the whole vocabulary.
    uint64_t vocabulary;

    __device__ __forceinline__ uint32_t begin(uint32_t set) const { return offsets ? offsets[set] : 0; }
    __device__ __forceinline__ uint32_t end(uint32_t set) const {
        return offsets ? offsets[set + 1] : static_cast<uint32_t>(vocabulary);
    }
};
static_assert(sizeof(TokenSetsView) == 24 && offsetof(TokenSetsView, offsets) == 0 &&
    offsetof(TokenSetsView, tokens) == 8 && offsetof(TokenSetsView, vocabulary) == 16, "mirrors launch::TokenSetsView");
