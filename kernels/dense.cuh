// A batch of rows of logits [N, V] as the host lays it out, and the valid logits of one row.
#pragma once

#include "number.cuh"
#include "packet.cuh"
#include "token_sets.cuh"

// A row that has something to compute. Mirrors launch::DenseRow.
struct DenseRow {
    uint32_t position;
    uint32_t set;
    // Which token of the set is the target.
    uint32_t rank;
    // What the row's loss counts in the result.
    float share;

    __device__ __forceinline__ static DenseRow load(const DenseRow* address) {
        const uint4 bits = device::load128(address);
        return {bits.x, bits.y, bits.z, __uint_as_float(bits.w)};
    }
};
static_assert(sizeof(DenseRow) == 16, "mirrors launch::DenseRow");

// Mirrors launch::DenseBatch. Rows [0, counting) have a loss, rows [first_statistics, row_count) enter the statistics.
struct DenseBatch {
    const void* logits;
    const DenseRow* rows;
    // The positions without a loss: their gradient is 0.
    const uint32_t* idle;
    TokenSets sets;
    // Elements between the logits of two positions, and those of one.
    uint64_t row_stride;
    uint64_t width;
    uint32_t counting;
    uint32_t first_statistics;
    uint32_t row_count;
    uint32_t idle_count;

    // The product passes 2³¹ on real batches.
    template <class T>
    __device__ __forceinline__ const T* logits_of(uint32_t position) const {
        return static_cast<const T*>(logits) + position * row_stride;
    }
};
static_assert(sizeof(DenseBatch) == 80, "mirrors launch::DenseBatch");
static_assert(offsetof(DenseBatch, sets) == 24 && offsetof(DenseBatch, row_stride) == 48, "mirrors launch::DenseBatch");
static_assert(offsetof(DenseBatch, counting) == 64, "mirrors launch::DenseBatch");

// The valid logits of a row, in the order of its set: kept on chip, or where they are.
template <class T>
struct ValidLogits {
    const T* logits;
    // None for the whole vocabulary.
    const uint32_t* tokens;
    uint32_t size;
    const T* kept;

    __device__ __forceinline__ static ValidLogits of(const DenseBatch& batch, const DenseRow& row) {
        const uint32_t begin = batch.sets.begin(row.set);
        return {batch.logits_of<T>(row.position), batch.sets.offsets ? batch.sets.tokens + begin : nullptr,
                batch.sets.end(row.set) - begin, nullptr};
    }

    __device__ __forceinline__ uint32_t token(uint32_t index) const { return tokens ? tokens[index] : index; }

    __device__ __forceinline__ float operator[](uint32_t index) const {
        return number::widen(kept ? kept[index] : logits[token(index)]);
    }

    // Whether the logits lie one beside the other in memory, from token 0 on.
    __device__ __forceinline__ bool stream() const { return !tokens && !kept; }

    // Shows every logit to one thread of the block, as visit(index, logit).
    template <class Visit>
    __device__ __forceinline__ void visit(Visit visit) const {
        if (!stream()) {
            for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) visit(i, (*this)[i]);
            return;
        }
        const PacketRow<const T> row(logits, size);
        for (uint32_t p = threadIdx.x; p < row.packets(); p += blockDim.x) {
            if (row.is_whole(p)) {
                const Packet<T> packet = Packet<T>::load(row.address(p));
#pragma unroll
                for (uint32_t k = 0; k < Packet<T>::size; ++k) {
                    visit(row.first(p) + k, number::widen(packet.values[k]));
                }
            } else {
                for (uint32_t i = row.first(p); i < row.first(p + 1); ++i) visit(i, (*this)[i]);
            }
        }
    }

    // Keeps the logits in shared memory. Other threads may read them after the next barrier.
    __device__ __forceinline__ void keep(T* memory) {
        for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) memory[i] = logits[token(i)];
        kept = memory;
    }
};
