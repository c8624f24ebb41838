// The device-side view of one step of a beam search. A beam is a partial path that ends at a node of the trie; it has a
// row of logits and a list of edges, one for each valid token. The edges are in three groups: first those to unfinished
// paths, then those to complete paths (items), then excluded ones, whose logits count in the normaliser only. The edges
// of the first two groups are the beam's candidates.
#pragma once

#include "dense.cuh"

// Mirrors launch::DecodeBeam.
struct DecodeBeam {
    // ln p of the path so far.
    double log_probability;
    // The beam's edges are [first_edge, first_edge + edges) of the edges of all beams.
    uint32_t first_edge;
    uint32_t edges;
    // How many of the edges lead to unfinished paths, and how many to complete ones.
    uint32_t unfinished;
    uint32_t complete;
    // The indices of its first candidate of each kind among those of all beams. For each user, the candidates of one
    // kind are contiguous.
    uint32_t first_unfinished;
    uint32_t first_complete;

    __device__ __forceinline__ static DecodeBeam load(const DecodeBeam* address) {
        const unsigned char* bytes = reinterpret_cast<const unsigned char*>(address);
        const uint4 halves[2] = {device::load128(bytes), device::load128(bytes + 16)};
        DecodeBeam beam;
        memcpy(&beam, halves, sizeof(beam));
        return beam;
    }

    __device__ __forceinline__ uint32_t candidates() const { return unfinished + complete; }

    // Returns the index of the candidate that an edge of this beam leads to.
    __device__ __forceinline__ uint32_t candidate(uint32_t edge) const {
        return edge < unfinished ? first_unfinished + edge : first_complete + (edge - unfinished);
    }
};
static_assert(sizeof(DecodeBeam) == 32 && offsetof(DecodeBeam, log_probability) == 0 &&
    offsetof(DecodeBeam, first_edge) == 8 && offsetof(DecodeBeam, edges) == 12 && offsetof(DecodeBeam, unfinished) == 16 &&
    offsetof(DecodeBeam, complete) == 20 && offsetof(DecodeBeam, first_unfinished) == 24 &&
    offsetof(DecodeBeam, first_complete) == 28, "mirrors launch::DecodeBeam");

// What the path of an edge is ranked by besides its probability. Mirrors launch::DecodeEdge.
struct DecodeEdge {
    // Breaks ties: of equal scores, the smaller order comes first.
    uint64_t order;
    // The length normalisation: the score is the log-probability divided by this.
    double divisor;

    __device__ __forceinline__ static DecodeEdge load(const DecodeEdge* address) {
        const uint4 bits = device::load128(address);
        DecodeEdge edge;
        memcpy(&edge, &bits, sizeof(edge));
        return edge;
    }
};
static_assert(sizeof(DecodeEdge) == 16 && offsetof(DecodeEdge, order) == 0 && offsetof(DecodeEdge, divisor) == 8,
    "mirrors launch::DecodeEdge");

// The sort key of a candidate: the greater score comes first, and of equal scores the smaller order.
struct Rank {
    // The score as an integer in the total order of Rust's f64::total_cmp, which orders NaN too.
    uint64_t score;
    uint64_t order;

    __device__ __forceinline__ static Rank of(double score, uint64_t order) {
        uint64_t bits;
        memcpy(&bits, &score, sizeof(bits));
        constexpr uint64_t sign = 1ull << 63;
        return {bits & sign ? ~bits : bits | sign, order};
    }

    __device__ __forceinline__ static Rank load(const Rank* address) {
        const uint4 bits = device::load128(address);
        Rank rank;
        memcpy(&rank, &bits, sizeof(rank));
        return rank;
    }

    __device__ __forceinline__ void store(Rank* address) const {
        uint4 bits;
        memcpy(&bits, this, sizeof(bits));
        device::store128(address, bits);
    }
};
static_assert(sizeof(Rank) == 16, "mirrors RANK_BYTES of the launch plan");
