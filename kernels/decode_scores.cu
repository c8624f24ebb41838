// Scores every candidate of a step of beam search. A beam at a node with token set C and logits z, and with
// log-probability L so far, gives its token v at temperature τ
//
//     ln p_v = min(z_v/τ − ln Σ_{u ∈ C} exp(z_u/τ), 0)        and the score (L + ln p_v) ÷ divisor_v
//
// The sum is over the whole vocabulary instead of C if `over_vocabulary` is not 0. If all logits of the sum are −∞, its
// tokens count as equally probable. A logit that is NaN or +∞ is reported as the fault of its beam, whose scores are
// then undefined.
//
// Launch: blocks of whole warps, with `reduce::scratch_bytes` of shared memory. A block takes every gridDim-th beam,
// and for each
//
//     1. reads the logits of the sum: their running maximum and sum of exponentials, and the first token at fault,
//     2. reduces these over the block, and
//     3. writes the log-probability and the rank of every candidate.
//
// Bytes moved: each valid logit is read once, in the order of the tokens. Over the vocabulary every logit is read once,
// in 16-byte loads, and those of candidates once more. A token (4 bytes) is read once. A beam reads 32 bytes and writes
// 8. A candidate reads 16 bytes of its edge, writes 16 bytes of rank, and writes its log-probability (4 bytes); over C
// these 4 bytes first hold the logit, and are written, read and written again.

#include "decode.cuh"
#include "softmax.cuh"

// The first logit of a beam that is NaN or +∞. Mirrors launch::DecodeFault.
struct DecodeFault {
    // The smallest such token; no_token if all logits are finite or −∞.
    uint32_t token;
    // Its logit; 0 for no_token.
    float value;
};
static_assert(sizeof(DecodeFault) == 8 && offsetof(DecodeFault, token) == 0 && offsetof(DecodeFault, value) == 4,
    "mirrors launch::DecodeFault");

// Mirrors launch::DecodeScoresParams.
struct DecodeScoresParams {
    // [beam_count, width] of the kernel's element type.
    const void* logits;
    // Row stride of `logits`, in elements.
    uint64_t row_stride;
    // [beam_count].
    const DecodeBeam* beams;
    // [edges].
    const DecodeEdge* edges;
    // [edges]: the column of the logits that belongs to each edge.
    const uint32_t* tokens;
    // [candidates]: ln p of each candidate's last token.
    float* log_probabilities;
    // [candidates].
    Rank* ranks;
    // [beam_count].
    DecodeFault* faults;
    // The logits of a beam.
    uint32_t width;
    uint32_t beam_count;
    // 1/τ.
    float inverse_temperature;
    // 1 if probabilities are normalised over all `width` logits, 0 if over the beam's edges.
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

struct Minimum {
    using Value = uint32_t;
    __device__ __forceinline__ Value identity() const { return no_token; }
    __device__ __forceinline__ Value combine(Value a, Value b) const { return a < b ? a : b; }
    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return __shfl_xor_sync(reduce::full_warp_mask, value, lanes);
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
        const ValidLogits<T> logits = normaliser_logits();
        logits.visit([&](uint32_t index, const auto& several) {
            sum = exponentials.add(sum, several);
            for (const float logit : several) {
                if (!(logit < INFINITY)) fault = Minimum().combine(fault, logits.token(index));
                // write_candidates reads this again in the same thread, so no barrier is needed.
                if (!params.over_vocabulary && index < beam.candidates()) log_probability(index) = logit;
                ++index;
            }
        });
        sum = reduce::block(exponentials, sum, scratch);
        fault = reduce::block(Minimum(), fault, scratch);
        if (threadIdx.x == 0) params.faults[b] = {fault, fault == no_token ? 0.0f : number::widen(row[fault])};
        write_candidates(sum);
    }

private:
    const DecodeScoresParams& params;
    uint32_t b;
    DecodeBeam beam;
    const uint32_t* tokens;
    const T* row;

    // Returns the logits over which the probabilities are normalised.
    __device__ __forceinline__ ValidLogits<T> normaliser_logits() const {
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
            // If all logits are −∞, the difference would be NaN.
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
