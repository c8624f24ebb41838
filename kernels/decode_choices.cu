// Chooses the best `width` candidates of every segment, best first. A user has two segments: segment 2·u holds the
// candidates of user u that are unfinished paths, and segment 2·u + 1 those that are complete paths.
//
// Launch: one block for each segment, of whole warps, with sizeof(ChoicesShared) bytes of shared memory. A block:
//
//     1. Selects the key of the width-th best candidate. It takes the bounds of the scores, counts the candidates in 256
//        equal parts of the range between them, and goes on with the part that the width-th best is in, until all of that
//        part are wanted. Candidates of equal scores are told apart in the same way by their orders and indices.
//     2. Lists the candidates that are no worse, in any order.
//     3. Sorts the list: the place of a choice is the number of choices before it.
//
// A segment of few candidates is its own list, of which the first `width` places are written.
//
// Bytes moved: each candidate's rank (16 bytes) is read twice for each range, of which scores that are spread evenly need
// log₂₅₆ of their number, and once for the list. Each choice writes 12 bytes, and reads the ranks of all choices, which are
// in the L1 cache up to some thousands.

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
    // [segments, width]: scratch for the list of step 2.
    uint32_t* listed;
    // The number of candidates to choose from each segment.
    uint64_t width;
};
static_assert(sizeof(DecodeChoicesParams) == 48 && offsetof(DecodeChoicesParams, log_probabilities) == 0 &&
    offsetof(DecodeChoicesParams, ranks) == 8 && offsetof(DecodeChoicesParams, segments) == 16 &&
    offsetof(DecodeChoicesParams, choices) == 24 && offsetof(DecodeChoicesParams, listed) == 32 &&
    offsetof(DecodeChoicesParams, width) == 40,
    "mirrors launch::DecodeChoicesParams");

namespace {

// The sort key of a candidate: the greater comes first. The index makes the order total.
struct Key {
    static constexpr int fields = 3;
    uint64_t field[fields];

    __device__ __forceinline__ static Key load(const Rank* ranks, uint32_t candidate) {
        const Rank rank = Rank::load(ranks + candidate);
        return {{rank.score, ~rank.order, ~static_cast<uint64_t>(candidate)}};
    }

    __device__ __forceinline__ bool operator<(const Key& other) const {
        if (field[0] != other.field[0]) return field[0] < other.field[0];
        if (field[1] != other.field[1]) return field[1] < other.field[1];
        return field[2] < other.field[2];
    }
};

// The keys from `low` to `high`, both included.
struct KeyRange {
    Key low = {{0, 0, 0}};
    Key high = {{~0ull, ~0ull, ~0ull}};

    __device__ __forceinline__ bool contains(const Key& key) const { return !(key < low) && !(high < key); }
};

// The reduction to the smallest and the largest number.
struct Bounds {
    struct Value {
        uint64_t low, high;
    };

    __device__ __forceinline__ Value identity() const { return {~0ull, 0}; }
    __device__ __forceinline__ Value combine(Value a, Value b) const {
        return {a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
    }
    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return {__shfl_xor_sync(reduce::full_warp_mask, value.low, lanes),
                __shfl_xor_sync(reduce::full_warp_mask, value.high, lanes)};
    }
};

// Mirrors CHOICE_SHARED_BYTES of the launch plan.
struct ChoicesShared {
    static constexpr uint32_t parts = 256;

    alignas(16) unsigned char scratch[reduce::scratch_bytes<Bounds>()];
    // The candidates in each part of the range.
    uint32_t counts[parts];
    // The part that the last wanted candidate is in, and the number of candidates in the parts above it.
    uint32_t part;
    uint32_t above;
    uint32_t listed;
    uint32_t unused;
};
static_assert(sizeof(ChoicesShared) == 1552, "mirrors CHOICE_SHARED_BYTES");

// The candidates [begin, end) of a segment.
struct Segment {
    const Rank* ranks;
    uint32_t begin;
    uint32_t end;

    __device__ __forceinline__ uint32_t count() const { return end - begin; }

    // Calls `use` with every candidate of this thread and its key.
    template <class Use>
    __device__ __forceinline__ void each(Use use) const {
        for (uint64_t i = static_cast<uint64_t>(begin) + threadIdx.x; i < end; i += blockDim.x) {
            use(static_cast<uint32_t>(i), Key::load(ranks, static_cast<uint32_t>(i)));
        }
    }
};

// Counts the candidates of a range in equal parts of one of its fields, 2^shift wide, and finds the part that the
// `wanted`-th best of them is in.
__device__ __forceinline__ void find_part(const Segment& segment, const KeyRange& range, int field, int shift, uint32_t wanted,
                                          ChoicesShared& shared) {
    for (uint32_t part = threadIdx.x; part < shared.parts; part += blockDim.x) shared.counts[part] = 0;
    // All counts are 0 before any is raised.
    __syncthreads();
    segment.each([&](uint32_t, const Key& key) {
        if (range.contains(key)) atomicAdd(&shared.counts[(key.field[field] - range.low.field[field]) >> shift], 1u);
    });
    // The counts are complete.
    __syncthreads();
    for (uint32_t part = threadIdx.x; part < shared.parts; part += blockDim.x) {
        uint32_t above = 0;
        for (uint32_t other = part + 1; other < shared.parts; ++other) above += shared.counts[other];
        // Exactly one part has the wanted candidate.
        if (above < wanted && wanted <= above + shared.counts[part]) shared.part = part, shared.above = above;
    }
    // Every thread reads the part that one of them found.
    __syncthreads();
}

// Returns the key of the `width`-th best candidate of a segment, or one that none is below if there are no more.
__device__ __forceinline__ Key least_wanted(const Segment& segment, uint64_t width, ChoicesShared& shared) {
    uint32_t count = segment.count();
    uint32_t wanted = width < count ? static_cast<uint32_t>(width) : count;
    KeyRange range;
#pragma unroll
    for (int field = 0; field < Key::fields; ++field) {
        uint64_t &low = range.low.field[field], &high = range.high.field[field];
        while (count > wanted) {
            Bounds::Value bounds = Bounds().identity();
            segment.each([&](uint32_t, const Key& key) {
                if (range.contains(key)) bounds = Bounds().combine(bounds, {key.field[field], key.field[field]});
            });
            // Its barriers also keep the counts until every thread has read them.
            bounds = reduce::block(Bounds(), bounds, shared.scratch);
            low = bounds.low, high = bounds.high;
            // All candidates in the range are alike in this field.
            if (low == high) break;
            int shift = 0;
            while ((high - low) >> shift >= shared.parts) ++shift;
            find_part(segment, range, field, shift, wanted, shared);
            wanted -= shared.above;
            count = shared.counts[shared.part];
            low += static_cast<uint64_t>(shared.part) << shift;
            // The last part may reach beyond the largest number.
            const uint64_t span = (1ull << shift) - 1;
            if (high - low > span) high = low + span;
        }
    }
    return range.low;
}

// Writes the best of `count` candidates, which `at` names, to their places, and no_candidate behind them.
template <class At>
__device__ __forceinline__ void sort(const DecodeChoicesParams& params, uint32_t count, DecodeChoice* choices, At at) {
    for (uint64_t i = threadIdx.x; i < count; i += blockDim.x) {
        const uint32_t candidate = at(static_cast<uint32_t>(i));
        const Key key = Key::load(params.ranks, candidate);
        uint32_t place = 0;
        for (uint32_t other = 0; other < count; ++other) place += key < Key::load(params.ranks, at(other));
        if (place < params.width) choices[place] = {candidate, params.log_probabilities[candidate]};
    }
    for (uint64_t i = count + threadIdx.x; i < params.width; i += blockDim.x) choices[i] = {no_candidate, 0.0f};
}

}  // namespace

KERNEL(decode_choices, DecodeChoicesParams, 1024, 1) {
    ChoicesShared& shared = *reinterpret_cast<ChoicesShared*>(device::shared_memory());
    const Segment segment = {params.ranks, params.segments[blockIdx.x], params.segments[blockIdx.x + 1]};
    uint32_t* listed = params.listed + blockIdx.x * params.width;
    DecodeChoice* choices = params.choices + blockIdx.x * params.width;

    // So few are sorted sooner than the best of them are found.
    if (segment.count() <= 2 * blockDim.x) {
        sort(params, segment.count(), choices, [&](uint32_t i) { return segment.begin + i; });
        return;
    }
    const Key least = least_wanted(segment, params.width, shared);
    if (threadIdx.x == 0) shared.listed = 0;
    // The number is 0 before any thread raises it.
    __syncthreads();
    segment.each([&](uint32_t candidate, const Key& key) {
        if (!(key < least)) listed[atomicAdd(&shared.listed, 1u)] = candidate;
    });
    // The list is complete, and all threads see it.
    __syncthreads();
    sort(params, shared.listed, choices, [&](uint32_t i) { return listed[i]; });
}
