// The valid tokens of rows, as the host lays them out: see `TokenSets` and `Rows` of the library.
#pragma once

#include "device.cuh"

// Tokens of set u: tokens[offsets[u] .. offsets[u + 1]], ascending. Without offsets every set is the whole vocabulary.
struct TokenSetsView {
    const uint32_t* offsets;
    const uint32_t* tokens;
    uint64_t vocabulary;

    __device__ __forceinline__ uint32_t begin(uint32_t set) const { return offsets ? offsets[set] : 0; }
    __device__ __forceinline__ uint32_t end(uint32_t set) const {
        return offsets ? offsets[set + 1] : static_cast<uint32_t>(vocabulary);
    }
};
static_assert(sizeof(TokenSetsView) == 24 && offsetof(TokenSetsView, offsets) == 0 &&
    offsetof(TokenSetsView, tokens) == 8 && offsetof(TokenSetsView, vocabulary) == 16, "mirrors launch::TokenSetsView");
