// Writes rows of dlogits [N, V], which are dense in memory but nonzero only at the valid tokens of a row. Zeros and
// values go out in the same 16-byte stores, so each byte is written once.
//
// A warp owns a range of packets of one row and a tile of 64 packets in shared memory that holds zeros between uses:
//
//     1. Find the first valid token in the range, by a 32-ary search over the sorted token set.
//     2. Scatter the values of the valid tokens that fall into the next 64 packets to the tile. The tokens ascend, so the warp
//        advances through them in step with the row.
//     3. Store the tile to the row, clear it, and go on with step 2.
//
// Contiguous logits (the whole vocabulary) with the same alignment as the gradient need no tile: one packet of logits
// becomes one packet of dlogits. The first and the last packet of a row may overlap its neighbours and are stored
// element by element.
#pragma once

#include "dense.cuh"
#include "softmax.cuh"

template <class T>
using GradientRow = PacketRow<T>;

// Stores the elements of a packet that are inside the row, by one store if the packet is full.
template <class T>
__device__ __forceinline__ void store_packet(const GradientRow<T>& row, uint32_t index, const T* values) {
    if (row.is_full(index)) {
        Packet<T>::load(values).store(row.address(index));
    } else {
        for (uint32_t i = row.first(index); i < row.first(index + 1); ++i) {
            const uint32_t offset = row.offset_from(i, index);
            row.address(index)[offset] = values[offset];
        }
    }
}

template <class T>
__device__ __forceinline__ void store_zeros(const GradientRow<T>& row, uint32_t index) {
    if (row.is_full(index)) {
        device::store128(row.address(index), uint4{0, 0, 0, 0});
    } else {
        for (uint32_t i = row.first(index); i < row.first(index + 1); ++i) {
            row.address(index)[row.offset_from(i, index)] = number::narrow<T>(0.0f);
        }
    }
}

// A warp's tile in shared memory, which holds zeros between uses.
template <class T>
struct Tile {
    static constexpr uint32_t packets = 64;
    static constexpr uint32_t bytes = packets * sizeof(Packet<T>);

    T* values;

    __device__ __forceinline__ static Tile of_warp(unsigned char* shared) {
        Tile tile = {reinterpret_cast<T*>(shared + threadIdx.x / reduce::warp_size * bytes)};
        for (uint32_t i = threadIdx.x % reduce::warp_size; i < packets; i += reduce::warp_size) tile.clear(i);
        // Any lane may overwrite the zeros of another.
        __syncwarp();
        return tile;
    }

    __device__ __forceinline__ T* packet(uint32_t index) const { return values + index * Packet<T>::size; }
    __device__ __forceinline__ void clear(uint32_t index) const {
        device::store128(packet(index), uint4{0, 0, 0, 0});
    }
};

// dlogits of the valid tokens of a row: factor·(p_v − [v = y]).
template <class T>
struct RowGradient {
    const ValidLogits<T>& logits;
    uint32_t rank;
    Exponential exponential;
    float scale;
    float target_value;

    __device__ __forceinline__ RowGradient(const ValidLogits<T>& logits, const Softmax& softmax,
                                           float inverse_temperature, uint32_t rank, float factor)
        : logits(logits),
          rank(rank),
          exponential(softmax.maximum, inverse_temperature),
          scale(factor * softmax.inverse_sum()),
          target_value(factor * softmax.target_gradient()) {}

    __device__ __forceinline__ T at(uint32_t index, float logit) const {
        return number::narrow<T>(index == rank ? target_value : exponential(logit) * scale);
    }

    // Replaces a packet of contiguous logits, the first of which has index `first`, by their dlogits.
    __device__ __forceinline__ void apply(uint32_t first, Packet<T>& packet) const {
#pragma unroll
        for (T& value : packet.values) value = number::narrow<T>(exponential(number::widen(value)) * scale);
        set_element(packet.values, rank - first, number::narrow<T>(target_value));
    }
};

// Returns the first index in the token set whose token is at least `token`, with all lanes of a warp. Each round
// reduces the search range 32-fold.
template <class T>
__device__ __forceinline__ uint32_t lower_bound(const ValidLogits<T>& logits, uint32_t token) {
    if (!logits.tokens) return token < logits.size ? token : logits.size;
    uint32_t begin = 0, end = logits.size;
    while (begin < end) {
        const uint32_t step = (end - begin + reduce::warp_size - 1) / reduce::warp_size;
        // The last index of this lane's part of the range.
        const uint32_t last = begin + (threadIdx.x % reduce::warp_size + 1) * step - 1;
        const bool below = last < end && logits.tokens[last] < token;
        begin += __popc(__ballot_sync(reduce::full_warp_mask, below)) * step;
        // The last token of the next part is not below `token`, so the answer is in that part.
        end = end < begin + step - 1 ? end : begin + step - 1;
    }
    return begin;
}

// Writes packets [begin, end) of a row whose contiguous logits have the same alignment as the gradient, with all lanes
// of a warp.
template <class T>
__device__ __forceinline__ void write_contiguous(const GradientRow<T>& row, uint32_t begin, uint32_t end,
                                             const RowGradient<T>& gradient) {
    const ValidLogits<T>& logits = gradient.logits;
    const PacketRow<const T> source = logits.packets();
    for (uint32_t index = begin + threadIdx.x % reduce::warp_size; index < end; index += reduce::warp_size) {
        const uint32_t first = row.first(index);
        if (first >= logits.size) {
            store_zeros(row, index);
        } else if (source.is_full(index)) {
            Packet<T> packet = Packet<T>::load(source.address(index));
            gradient.apply(first, packet);
            packet.store(row.address(index));
        } else {
            for (uint32_t i = first; i < row.first(index + 1); ++i) {
                row.address(index)[row.offset_from(i, index)] =
                    i < logits.size ? gradient.at(i, logits[i]) : number::narrow<T>(0.0f);
            }
        }
    }
}

// Writes packets [begin, end) of a row, with all lanes of a warp. The gradient may overwrite the logits: no other warp
// reads the logits of these packets, and this warp reads them before it stores.
template <class T>
__device__ __forceinline__ void write_gradient(const GradientRow<T>& row, uint32_t begin, uint32_t end,
                                               const Tile<T>& tile, const RowGradient<T>& gradient) {
    const ValidLogits<T>& logits = gradient.logits;
    if (logits.is_contiguous() && logits.packets().skew == row.skew) {
        write_contiguous(row, begin, end, gradient);
        return;
    }
    const uint32_t lane = threadIdx.x % reduce::warp_size;
    uint32_t next = lower_bound(logits, row.first(begin));
    for (uint32_t first = begin; first < end; first += Tile<T>::packets) {
        const uint32_t stop = first + Tile<T>::packets < end ? first + Tile<T>::packets : end;
        const uint32_t limit = row.first(stop);
        uint32_t inside;
        do {
            const uint32_t index = next + lane;
            const uint32_t token = index < logits.size ? logits.token(index) : UINT32_MAX;
            if (token < limit) {
                tile.values[row.offset_from(token, first)] = gradient.at(index, logits[index]);
            }
            inside = __popc(__ballot_sync(reduce::full_warp_mask, token < limit));
            next += inside;
        } while (inside == reduce::warp_size);
        // A lane stores packets that hold values of other lanes.
        __syncwarp();
        for (uint32_t index = first + lane; index < stop; index += reduce::warp_size) {
            store_packet(row, index, tile.packet(index - first));
            tile.clear(index - first);
        }
        // The next values must not be overwritten by another lane's zeros.
        __syncwarp();
    }
}

// Writes zeros to packets [begin, end) of a row, with all lanes of a warp.
template <class T>
__device__ __forceinline__ void write_zeros(const GradientRow<T>& row, uint32_t begin, uint32_t end) {
    for (uint32_t index = begin + threadIdx.x % reduce::warp_size; index < end; index += reduce::warp_size) {
        store_zeros(row, index);
    }
}
