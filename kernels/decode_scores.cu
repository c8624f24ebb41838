// What every candidate of a step of beam search is worth: beam b at a node with tokens C and logits z, at temperature τ, and
// with log-probability L so far, gives its token v
//
//     log p_v = min(z_v/τ − ln Σ_{u ∈ C} exp(z_u/τ), 0)        and the rank of (L + log p_v) ÷ divisor_v
//
// or with the sum over the whole vocabulary. Logits that are all −∞ say nothing: their tokens are equally probable. A logit
// that is NaN or +∞ is a fault of its beam, whose candidates then mean nothing.
//
// Launch: a block takes every gridDim-th beam; whole warps, `reduce::scratch_bytes` of shared memory.
//
// Bytes moved: each valid logit once, in the order of the tokens; over the vocabulary every logit once, in 16-byte loads, and
// those of candidates once more; a token (4) once, or twice where it is left out of the scores; 32 and 8 a beam; for a
// candidate 16 of its edge, and 4 written, read and written again, and 16 written.

#include "decode.cuh"
#include "softmax.cuh"

// The logit of a beam that is NaN or +∞: that of the smallest such token.
struct DecodeFault {
    uint32_t token;
    float value;
};
static_assert(sizeof(DecodeFault) == 8 && offsetof(DecodeFault, token) == 0 && offsetof(DecodeFault, value) == 4,
    "mirrors launch::DecodeFault");

// Mirrors launch::DecodeScoresParams.
struct DecodeScoresParams {
    // [beams, width], rows `row_stride` apart.
    const void* logits;
    uint64_t row_stride;
    const DecodeBeam* beams;
    const DecodeEdge* edges;
    // One an edge.
    const uint32_t* tokens;
    // One a candidate.
    float* log_probabilities;
    Rank* ranks;
    // One a beam.
    DecodeFault* faults;
    uint32_t width;
    uint32_t beam_count;
    float inverse_temperature;
    uint32_t over_vocabulary;
};
static_assert(sizeof(DecodeScoresParams) == 80 && offsetof(DecodeScoresParams, logits) == 0 &&
    offsetof(DecodeScoresParams, row_stride) == 8 && offsetof(DecodeScoresParams, beams) == 16 &&
    offsetof(DecodeScoresParams, edges) == 24 && offsetof(DecodeScoresParams, tokens) == 32 &&
    offsetof(DecodeScoresParams, log_probabilities) == 40 && offsetof(DecodeScoresParams, ranks) == 48 &&
    offsetof(DecodeScoresParams, faults) == 56 && offsetof(DecodeScoresParams, width) == 64 &&
    offsetof(DecodeScoresParams, beam_count) == 68 && offsetof(DecodeScoresParams, inverse_temperature) == 72 &&
    offsetof(DecodeScoresParams, over_vocabulary) == 76, "mirrors launch::DecodeScoresParams");

namespace {

constexpr uint32_t no_token = ~0u;

struct Smallest {
    using Value = uint32_t;
    __device__ __forceinline__ Value identity() const { return no_token; }
    __device__ __forceinline__ Value combine(Value a, Value b) const { return a < b ? a : b; }
    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return __shfl_xor_sync(reduce::whole_warp, value, lanes);
    }
};

template <class T>
class Scores {
public:
    __device__ __forceinline__ Scores(const DecodeScoresParams& params, uint32_t b)
        : params(params), b(b), beam(DecodeBeam::load(params.beams + b)), tokens(params.tokens + beam.first_edge) {
        row = static_cast<const T*>(params.logits) + b * params.row_stride;
    }

    __device__ __forceinline__ void write() const {
        unsigned char* scratch = device::shared_memory();
        const Exponentials exponentials = {params.inverse_temperature};
        Exponentials::Value sum = exponentials.identity();
        uint32_t fault = no_token;
        const ValidLogits<T> logits = normalised();
        logits.visit([&](uint32_t index, const auto& several) {
            sum = exponentials.add(sum, several);
            for (const float logit : several) {
                if (!(logit < INFINITY)) fault = Smallest().combine(fault, logits.token(index));
                // Whoever looks at it again is this very thread.
                if (!params.over_vocabulary && index < beam.candidates()) log_probability(index) = logit;
                ++index;
            }
        });
        sum = reduce::block(exponentials, sum, scratch);
        fault = reduce::block(Smallest(), fault, scratch);
        if (threadIdx.x == 0) params.faults[b] = {fault, fault == no_token ? 0.0f : number::widen(row[fault])};
        write_candidates(sum);
    }

private:
    const DecodeScoresParams& params;
    uint32_t b;
    DecodeBeam beam;
    const uint32_t* tokens;
    const T* row;

    // The logits that the probabilities add up to 1 over.
    __device__ __forceinline__ ValidLogits<T> normalised() const {
        if (params.over_vocabulary) return {row, nullptr, params.width, nullptr};
        return {row, tokens, beam.edges, nullptr};
    }

    __device__ __forceinline__ float& log_probability(uint32_t edge) const {
        return params.log_probabilities[beam.candidate(edge)];
    }

    __device__ __forceinline__ void write_candidates(const Exponentials::Value& sum) const {
        const float log_sum = logf(sum.sum);
        for (uint32_t i = threadIdx.x; i < beam.candidates(); i += blockDim.x) {
            const float logit = params.over_vocabulary ? number::widen(row[tokens[i]]) : log_probability(i);
            // −∞ apart from −∞ is no number.
            const float scaled = sum.maximum == -INFINITY ? 0.0f : (logit - sum.maximum) * params.inverse_temperature;
            const float step = fminf(scaled - log_sum, 0.0f);
            const DecodeEdge edge = DecodeEdge::load(params.edges + beam.first_edge + i);
            log_probability(i) = step;
            Rank::of((beam.log_probability + step) / edge.divisor, edge.order).store(params.ranks + beam.candidate(i));
        }
    }
};

template <class T>
__device__ __forceinline__ void write_scores(const DecodeScoresParams& params) {
    for (uint32_t b = blockIdx.x; b < params.beam_count; b += gridDim.x) Scores<T>(params, b).write();
}

}  // namespace

KERNEL(decode_scores_f32, DecodeScoresParams, 256, 4) { write_scores<float>(params); }
KERNEL(decode_scores_f16, DecodeScoresParams, 256, 4) { write_scores<__half>(params); }
KERNEL(decode_scores_bf16, DecodeScoresParams, 256, 4) { write_scores<__nv_bfloat16>(params); }
