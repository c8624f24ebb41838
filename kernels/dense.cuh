// The device-side view of a batch over logits [N, V], and iteration over the valid logits of one row.
#pragma once

#include "number.cuh"
#include "packet.cuh"
#include "token_sets.cuh"

// A row that has a loss, or whose logits enter the statistics. Mirrors launch::DenseRow.
struct DenseRow {
    // The flattened position of the row's logits, in [0, N).
    uint32_t position;
    // The index of its token set.
    uint32_t set;
    // The index of the target in the token set.
    uint32_t rank;
    // The factor of the row's loss in the result: the caller's row weight divided by the denominator of the reduction.
    float loss_weight;

    __device__ __forceinline__ static DenseRow load(const DenseRow* address) {
        const uint4 bits = device::load128(address);
        return {bits.x, bits.y, bits.z, __uint_as_float(bits.w)};
    }
};
static_assert(sizeof(DenseRow) == 16 && offsetof(DenseRow, position) == 0 && offsetof(DenseRow, set) == 4 &&
    offsetof(DenseRow, rank) == 8 && offsetof(DenseRow, loss_weight) == 12, "mirrors launch::DenseRow");

// Mirrors launch::DenseBatch. Rows [0, loss_row_count) have a loss, and rows [first_statistics, row_count) enter the
// statistics. The ranges may overlap. Rows [loss_row_count, row_count) have loss 0 and gradient 0.
struct DenseBatch {
    // [N, width] of the kernel's element type.
    const void* logits;
    // [row_count]. BEAR overwrites their loss weights.
    DenseRow* rows;
    // [ignored_count]: the positions without a row. Their loss and gradient are 0, and their logits are never read.
    const uint32_t* ignored;
    TokenSetsView sets;
    // Row stride of `logits`, in elements.
    uint64_t row_stride;
    // V, the logits of a position.
    uint64_t width;
    uint32_t loss_row_count;
    uint32_t first_statistics;
    uint32_t row_count;
    uint32_t ignored_count;

    // The offset is computed in 64 bits, because N·V exceeds 2³¹ on real batches.
    template <class T>
    __device__ __forceinline__ const T* logits_of(uint32_t position) const {
        return static_cast<const T*>(logits) + position * row_stride;
    }
};
static_assert(sizeof(DenseBatch) == 80 && offsetof(DenseBatch, logits) == 0 && offsetof(DenseBatch, rows) == 8 &&
    offsetof(DenseBatch, ignored) == 16 && offsetof(DenseBatch, sets) == 24 && offsetof(DenseBatch, row_stride) == 48 &&
    offsetof(DenseBatch, width) == 56 && offsetof(DenseBatch, loss_row_count) == 64 && offsetof(DenseBatch, first_statistics)
    == 68 && offsetof(DenseBatch, row_count) == 72 && offsetof(DenseBatch, ignored_count) == 76,
    "mirrors launch::DenseBatch");

// The valid logits of a row, indexed by the order of its token set. They are read from global memory, or from shared
// memory once `cache` has copied them there.
template <class T>
struct ValidLogits {
    // [V] in global memory.
    const T* logits;
    // [size], ascending; null for the whole vocabulary, where token i has index i.
    const uint32_t* tokens;
    uint32_t size;
    // [size] in shared memory; null if the logits are not cached.
    const T* cached;

    __device__ __forceinline__ static ValidLogits of(const DenseBatch& batch, const DenseRow& row) {
        const uint32_t begin = batch.sets.begin(row.set);
        return {batch.logits_of<T>(row.position), batch.sets.offsets ? batch.sets.tokens + begin : nullptr,
                batch.sets.end(row.set) - begin, nullptr};
    }

    __device__ __forceinline__ uint32_t token(uint32_t index) const { return tokens ? tokens[index] : index; }

    __device__ __forceinline__ float operator[](uint32_t index) const {
        return number::widen(cached ? cached[index] : logits[token(index)]);
    }

    // Whether the valid logits are contiguous in memory. `packets` gives them as 16-byte packets then.
    __device__ __forceinline__ bool is_contiguous() const { return !tokens; }
    __device__ __forceinline__ PacketRow<const T> packets() const { return {cached ? cached : logits, size}; }

    // Distributes the logits over the threads of the block. Calls visit(first index, float (&logits)[n]), where n is 1
    // or the size of a packet; every logit is visited by exactly one thread.
    template <class Visit>
    __device__ __forceinline__ void visit(Visit visit) const {
        const auto visit_one = [&](uint32_t index) {
            float logit[1] = {(*this)[index]};
            visit(index, logit);
        };
        if (!is_contiguous()) {
            for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) visit_one(i);
            return;
        }
        const PacketRow<const T> row = packets();
#pragma unroll 2
        for (uint32_t p = row.full_begin() + threadIdx.x; p < row.full_end(); p += blockDim.x) {
            const Packet<T> packet = Packet<T>::load(row.address(p));
            float widened[Packet<T>::size];
#pragma unroll
            for (uint32_t k = 0; k < Packet<T>::size; ++k) widened[k] = number::widen(packet.values[k]);
            visit(row.first(p), widened);
        }
        // The partial packets at both ends of the row.
        for (uint32_t i = threadIdx.x; i < row.first(row.full_begin()); i += blockDim.x) visit_one(i);
        for (uint32_t i = row.first(row.full_end()) + threadIdx.x; i < size; i += blockDim.x) visit_one(i);
    }

    // Returns how many elements of shared memory `cache` needs. Contiguous logits keep their alignment to packets, so
    // their first and last packet count in full.
    __device__ __forceinline__ uint32_t cache_elements() const {
        return is_contiguous() ? packets().packets() * Packet<T>::size : size;
    }

    // Copies the logits to shared memory, with all threads of the block. Other threads may read them after the next
    // barrier.
    __device__ __forceinline__ void cache(T* memory) {
        if (is_contiguous()) {
            cache_packets(memory);
        } else {
            cache_listed(memory);
        }
        use_cache(memory);
    }

    // Reads logits that `cache` has copied to this address.
    __device__ __forceinline__ void use_cache(const T* memory) { cached = memory + (is_contiguous() ? packets().skew : 0); }

private:
    __device__ __forceinline__ void cache_packets(T* memory) const {
        const PacketRow<const T> row = packets();
#pragma unroll 4
        for (uint32_t p = threadIdx.x; p < row.packets(); p += blockDim.x) {
            T* target = memory + p * Packet<T>::size;
            if (row.is_full(p)) {
                Packet<T>::load(row.address(p)).store(target);
            } else {
                for (uint32_t i = row.first(p); i < row.first(p + 1); ++i) target[row.offset_from(i, p)] = logits[i];
            }
        }
    }

    // Each gather is two dependent loads (token, then logit). A batch of four overlaps their latencies.
    __device__ __forceinline__ void cache_listed(T* memory) const {
        constexpr uint32_t gathers = 4;
        for (uint32_t first = threadIdx.x; first < size; first += gathers * blockDim.x) {
            T values[gathers];
#pragma unroll
            for (uint32_t k = 0; k < gathers; ++k) {
                const uint32_t i = first + k * blockDim.x;
                if (i < size) values[k] = logits[tokens[i]];
            }
#pragma unroll
            for (uint32_t k = 0; k < gathers; ++k) {
                const uint32_t i = first + k * blockDim.x;
                if (i < size) memory[i] = values[k];
            }
        }
    }
};
