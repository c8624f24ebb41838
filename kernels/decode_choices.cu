// The best `width` candidates of every user, best first: of those that lead to living paths, and of those that lead to whole
// ones. Segment 2·u holds the first of user u, segment 2·u + 1 the second.
//
// Launch: one block a segment, whole warps, `reduce::scratch_bytes` of shared memory. Every thread knows the best of its own
// candidates that was not chosen yet; whoever's is chosen looks for its next.
//
// Bytes moved: 16 a candidate once, and those of a thread once more for each that is chosen from it; 4 a chosen one; 8 a
// choice written.

#include "decode.cuh"
#include "reduce.cuh"

constexpr uint32_t no_candidate = ~0u;

// Mirrors launch::DecodeChoice.
struct DecodeChoice {
    // Among all; or none, where a segment has no more.
    uint32_t candidate;
    // Of its last token.
    float log_probability;
};
static_assert(sizeof(DecodeChoice) == 8 && offsetof(DecodeChoice, candidate) == 0 &&
    offsetof(DecodeChoice, log_probability) == 4, "mirrors launch::DecodeChoice");

// Mirrors launch::DecodeChoicesParams.
struct DecodeChoicesParams {
    const float* log_probabilities;
    const Rank* ranks;
    // Where each segment begins among the candidates, and where the last ends.
    const uint32_t* segments;
    // [segments, width].
    DecodeChoice* choices;
    uint64_t width;
};
static_assert(sizeof(DecodeChoicesParams) == 40 && offsetof(DecodeChoicesParams, log_probabilities) == 0 &&
    offsetof(DecodeChoicesParams, ranks) == 8 && offsetof(DecodeChoicesParams, segments) == 16 &&
    offsetof(DecodeChoicesParams, choices) == 24 && offsetof(DecodeChoicesParams, width) == 32,
    "mirrors launch::DecodeChoicesParams");

namespace {

struct Ranked {
    Rank rank;
    uint32_t candidate;
};

// The first of candidates, in an order that no two share.
struct First {
    using Value = Ranked;

    __device__ __forceinline__ static bool before(const Value& a, const Value& b) {
        if (a.rank.score != b.rank.score) return a.rank.score > b.rank.score;
        if (a.rank.order != b.rank.order) return a.rank.order < b.rank.order;
        return a.candidate < b.candidate;
    }

    __device__ __forceinline__ Value identity() const { return {{0, ~0ull}, no_candidate}; }
    __device__ __forceinline__ Value combine(Value a, Value b) const { return before(b, a) ? b : a; }
    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return {{__shfl_xor_sync(reduce::whole_warp, value.rank.score, lanes),
                 __shfl_xor_sync(reduce::whole_warp, value.rank.order, lanes)},
                __shfl_xor_sync(reduce::whole_warp, value.candidate, lanes)};
    }
};

// This thread's first candidate of [begin, end) that comes after one that was chosen.
__device__ __forceinline__ Ranked next(const Rank* ranks, uint32_t begin, uint32_t end, const Ranked* chosen) {
    Ranked first = First().identity();
    for (uint64_t i = static_cast<uint64_t>(begin) + threadIdx.x; i < end; i += blockDim.x) {
        const Ranked found = {Rank::load(ranks + i), static_cast<uint32_t>(i)};
        if (!chosen || First::before(*chosen, found)) first = First().combine(first, found);
    }
    return first;
}

}  // namespace

KERNEL(decode_choices, DecodeChoicesParams, 1024, 1) {
    const uint32_t begin = params.segments[blockIdx.x], end = params.segments[blockIdx.x + 1];
    DecodeChoice* choices = params.choices + blockIdx.x * params.width;

    Ranked mine = next(params.ranks, begin, end, nullptr);
    for (uint64_t i = 0; i < params.width; ++i) {
        const Ranked chosen = reduce::block(First(), mine, device::shared_memory());
        const bool none = chosen.candidate == no_candidate;
        if (threadIdx.x == 0) choices[i] = {chosen.candidate, none ? 0.0f : params.log_probabilities[chosen.candidate]};
        if (!none && mine.candidate == chosen.candidate) mine = next(params.ranks, begin, end, &chosen);
    }
}
