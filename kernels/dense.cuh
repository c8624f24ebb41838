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
static_assert(sizeof(DenseRow) == 16 && offsetof(DenseRow, position) == 0 && offsetof(DenseRow, set) == 4 &&
    offsetof(DenseRow, rank) == 8 && offsetof(DenseRow, share) == 12, "mirrors launch::DenseRow");

// Mirrors launch::DenseBatch. Rows [0, counting) have a loss, rows [first_statistics, row_count) enter the statistics.
// The loss and the gradient of rows [counting, row_count) are 0.
struct DenseBatch {
    const void* logits;
    // BEAR changes their shares.
    DenseRow* rows;
    // The positions at which no row is: their loss and gradient are 0, and nothing reads their logits.
    const uint32_t* ignored;
    TokenSetsView sets;
    // Elements between the logits of two positions, and those of one.
    uint64_t row_stride;
    uint64_t width;
    uint32_t counting;
    uint32_t first_statistics;
    uint32_t row_count;
    uint32_t ignored_count;

    // The product passes 2³¹ on real batches.
    template <class T>
    __device__ __forceinline__ const T* logits_of(uint32_t position) const {
        return static_cast<const T*>(logits) + position * row_stride;
    }
};
static_assert(sizeof(DenseBatch) == 80 && offsetof(DenseBatch, logits) == 0 && offsetof(DenseBatch, rows) == 8 &&
    offsetof(DenseBatch, ignored) == 16 && offsetof(DenseBatch, sets) == 24 && offsetof(DenseBatch, row_stride) == 48 &&
    offsetof(DenseBatch, width) == 56 && offsetof(DenseBatch, counting) == 64 && offsetof(DenseBatch, first_statistics)
    == 68 && offsetof(DenseBatch, row_count) == 72 && offsetof(DenseBatch, ignored_count) == 76,
    "mirrors launch::DenseBatch");

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

    // Whether the logits lie one beside the other, from token 0 on: here.
    __device__ __forceinline__ bool stream() const { return !tokens; }
    __device__ __forceinline__ PacketRow<const T> packets() const { return {kept ? kept : logits, size}; }

    // Shows every logit to one thread of the block, as visit(first index, logits): one logit, or a packet of them.
    template <class Visit>
    __device__ __forceinline__ void visit(Visit visit) const {
        const auto visit_one = [&](uint32_t index) {
            float logit[1] = {(*this)[index]};
            visit(index, logit);
        };
        if (!stream()) {
            for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) visit_one(i);
            return;
        }
        const PacketRow<const T> row = packets();
#pragma unroll 2
        for (uint32_t p = row.whole_begin() + threadIdx.x; p < row.whole_end(); p += blockDim.x) {
            const Packet<T> packet = Packet<T>::load(row.address(p));
            float widened[Packet<T>::size];
#pragma unroll
            for (uint32_t k = 0; k < Packet<T>::size; ++k) widened[k] = number::widen(packet.values[k]);
            visit(row.first(p), widened);
        }
        // What is left at both ends.
        for (uint32_t i = threadIdx.x; i < row.first(row.whole_begin()); i += blockDim.x) visit_one(i);
        for (uint32_t i = row.first(row.whole_end()) + threadIdx.x; i < size; i += blockDim.x) visit_one(i);
    }

    // Returns how many elements of shared memory `keep` needs: packets of a stream lie there as they do in memory.
    __device__ __forceinline__ uint32_t kept_elements() const {
        return stream() ? packets().packets() * Packet<T>::size : size;
    }

    // Keeps the logits in shared memory. Other threads may read them after the next barrier.
    __device__ __forceinline__ void keep(T* memory) {
        if (stream()) {
            keep_packets(memory);
        } else {
            keep_listed(memory);
        }
        kept_at(memory);
    }

    // As `keep` left them.
    __device__ __forceinline__ void kept_at(const T* memory) { kept = memory + (stream() ? packets().skew : 0); }

private:
    __device__ __forceinline__ void keep_packets(T* memory) const {
        const PacketRow<const T> row = packets();
#pragma unroll 4
        for (uint32_t p = threadIdx.x; p < row.packets(); p += blockDim.x) {
            T* target = memory + p * Packet<T>::size;
            if (row.is_whole(p)) {
                Packet<T>::load(row.address(p)).store(target);
            } else {
                for (uint32_t i = row.first(p); i < row.first(p + 1); ++i) target[row.place(i, p)] = logits[i];
            }
        }
    }

    // Several at once: a token must come before its logit, but need not wait for other logits.
    __device__ __forceinline__ void keep_listed(T* memory) const {
        constexpr uint32_t several = 4;
        for (uint32_t first = threadIdx.x; first < size; first += several * blockDim.x) {
            T values[several];
#pragma unroll
            for (uint32_t k = 0; k < several; ++k) {
                const uint32_t i = first + k * blockDim.x;
                if (i < size) values[k] = logits[tokens[i]];
            }
#pragma unroll
            for (uint32_t k = 0; k < several; ++k) {
                const uint32_t i = first + k * blockDim.x;
                if (i < size) memory[i] = values[k];
            }
        }
    }
};
