// One step of a beam search, as the host lays it out. Every beam is a row of logits and the edges that leave its node:
// first those that lead to living paths, then those that lead to whole ones, then those that are left out and count for the
// probabilities of the others alone. The first two are its candidates.
#pragma once

#include "dense.cuh"

// Mirrors launch::DecodeBeam.
struct DecodeBeam {
    // Of the path so far.
    double log_probability;
    uint32_t first_edge;
    uint32_t edges;
    uint32_t living;
    uint32_t whole;
    // Where its candidates are among all: a user's living ones lie together, and so do its whole ones.
    uint32_t first_living;
    uint32_t first_whole;

    __device__ __forceinline__ static DecodeBeam load(const DecodeBeam* address) {
        const unsigned char* bytes = reinterpret_cast<const unsigned char*>(address);
        const uint4 halves[2] = {device::load128(bytes), device::load128(bytes + 16)};
        DecodeBeam beam;
        memcpy(&beam, halves, sizeof(beam));
        return beam;
    }

    __device__ __forceinline__ uint32_t candidates() const { return living + whole; }

    __device__ __forceinline__ uint32_t candidate(uint32_t edge) const {
        return edge < living ? first_living + edge : first_whole + (edge - living);
    }
};
static_assert(sizeof(DecodeBeam) == 32 && offsetof(DecodeBeam, log_probability) == 0 &&
    offsetof(DecodeBeam, first_edge) == 8 && offsetof(DecodeBeam, edges) == 12 && offsetof(DecodeBeam, living) == 16 &&
    offsetof(DecodeBeam, whole) == 20 && offsetof(DecodeBeam, first_living) == 24 &&
    offsetof(DecodeBeam, first_whole) == 28, "mirrors launch::DecodeBeam");

// What an edge's path is ranked by, but for its probability. Mirrors launch::DecodeEdge.
struct DecodeEdge {
    // Of equal scores the smaller comes first.
    uint64_t order;
    // What the log-probability is divided by to be the score.
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

// The place of a candidate among others: the greater score first, then the smaller order.
struct Rank {
    // The score as a number that compares as Rust's f64::total_cmp does: NaN has a place too.
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
static_assert(sizeof(Rank) == 16, "the host makes room for two u64 a candidate");
