// Chooses the best `width` candidates of every segment, best first. A user has two segments: segment 2·u holds the
// candidates of user u that are unfinished paths, and segment 2·u + 1 those that are complete paths.
//
// Launch: one block for each segment, of whole warps, with `reduce::scratch_bytes` of shared memory. A block:
//
//     1. Every thread finds the best of its candidates, which are every blockDim-th of the segment.
//     2. A reduction over the block chooses the best of all, and thread 0 writes it.
//     3. The thread that had it rescans its candidates for the next best. Repeat from step 2, `width` times.
//
// Bytes moved: each candidate's rank (16 bytes) is read once, and the ranks of a thread once more for each candidate
// that is chosen from them. Each choice reads 4 bytes and writes 8.

#include "decode.cuh"
#include "reduce.cuh"

constexpr uint32_t no_candidate = ~0u;

// Mirrors launch::DecodeChoice.
struct DecodeChoice {
    // Its index among the candidates of all beams; no_candidate if the segment has fewer than `width`.
    uint32_t candidate;
    // ln p of its last token; 0 for no_candidate.
    float log_probability;
};
static_assert(sizeof(DecodeChoice) == 8 && offsetof(DecodeChoice, candidate) == 0 &&
    offsetof(DecodeChoice, log_probability) == 4, "mirrors launch::DecodeChoice");

// Mirrors launch::DecodeChoicesParams.
struct DecodeChoicesParams {
    // [candidates]: ln p of each candidate's last token.
    const float* log_probabilities;
    // [candidates].
    const Rank* ranks;
    // [segments + 1]: segment s is the candidates [segments[s], segments[s + 1]).
    const uint32_t* segments;
    // [segments, width].
    DecodeChoice* choices;
    // The number of candidates to choose from each segment.
    uint64_t width;
};
static_assert(sizeof(DecodeChoicesParams) == 40 && offsetof(DecodeChoicesParams, log_probabilities) == 0 &&
    offsetof(DecodeChoicesParams, ranks) == 8 && offsetof(DecodeChoicesParams, segments) == 16 &&
    offsetof(DecodeChoicesParams, choices) == 24 && offsetof(DecodeChoicesParams, width) == 32,
    "mirrors launch::DecodeChoicesParams");

namespace {

struct RankedCandidate {
    Rank rank;
    uint32_t candidate;
};

// The reduction to the best candidate. The index breaks ties, so the order is total.
struct BestFirst {
    using Value = RankedCandidate;

    __device__ __forceinline__ static bool before(const Value& a, const Value& b) {
        if (a.rank.score != b.rank.score) return a.rank.score > b.rank.score;
        if (a.rank.order != b.rank.order) return a.rank.order < b.rank.order;
        return a.candidate < b.candidate;
    }

    __device__ __forceinline__ Value identity() const { return {{0, ~0ull}, no_candidate}; }
    __device__ __forceinline__ Value combine(Value a, Value b) const { return before(b, a) ? b : a; }
    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return {{__shfl_xor_sync(reduce::full_warp_mask, value.rank.score, lanes),
                 __shfl_xor_sync(reduce::full_warp_mask, value.rank.order, lanes)},
                __shfl_xor_sync(reduce::full_warp_mask, value.candidate, lanes)};
    }
};

// Returns the best of this thread's candidates in [begin, end) that ranks after `chosen`, or of all of them if that is
// null.
__device__ __forceinline__ RankedCandidate next_best(const Rank* ranks, uint32_t begin, uint32_t end,
                                                     const RankedCandidate* chosen) {
    RankedCandidate first = BestFirst().identity();
    for (uint64_t i = static_cast<uint64_t>(begin) + threadIdx.x; i < end; i += blockDim.x) {
        const RankedCandidate found = {Rank::load(ranks + i), static_cast<uint32_t>(i)};
        if (!chosen || BestFirst::before(*chosen, found)) first = BestFirst().combine(first, found);
    }
    return first;
}

}  // namespace

KERNEL(decode_choices, DecodeChoicesParams, 1024, 1) {
    const uint32_t begin = params.segments[blockIdx.x], end = params.segments[blockIdx.x + 1];
    DecodeChoice* choices = params.choices + blockIdx.x * params.width;

    RankedCandidate mine = next_best(params.ranks, begin, end, nullptr);
    for (uint64_t i = 0; i < params.width; ++i) {
        const RankedCandidate chosen = reduce::block(BestFirst(), mine, device::shared_memory());
        const bool none = chosen.candidate == no_candidate;
        if (threadIdx.x == 0) choices[i] = {chosen.candidate, none ? 0.0f : params.log_probabilities[chosen.candidate]};
        if (!none && mine.candidate == chosen.candidate) mine = next_best(params.ranks, begin, end, &chosen);
    }
}
