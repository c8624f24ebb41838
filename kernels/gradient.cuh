// Writes dense rows of a gradient that is 0 but for a few tokens: zeros and values in the same 16-byte stores, each byte
// once.
//
// A warp lays a tile of the row out in shared memory, which holds zeros, puts the set's values into it and stores it.
// The set's tokens rise, so the warp walks along them as it walks along the row.
// The first and the last packet of a row may be shared with its neighbours, and are stored by elements.
#pragma once

#include "dense.cuh"
#include "softmax.cuh"

template <class T>
using GradientRow = PacketRow<T>;

// Stores the elements of a packet that are the row's: all at once where it can.
template <class T>
__device__ __forceinline__ void store_packet(const GradientRow<T>& row, uint32_t index, const T* values) {
    if (row.is_whole(index)) {
        Packet<T>::load(values).store(row.address(index));
    } else {
        for (uint32_t i = row.first(index); i < row.first(index + 1); ++i) {
            const uint32_t place = row.place(i, index);
            row.address(index)[place] = values[place];
        }
    }
}

template <class T>
__device__ __forceinline__ void store_zeros(const GradientRow<T>& row, uint32_t index) {
    if (row.is_whole(index)) {
        device::store128(row.address(index), uint4{0, 0, 0, 0});
    } else {
        for (uint32_t i = row.first(index); i < row.first(index + 1); ++i) {
            row.address(index)[row.place(i, index)] = number::narrow<T>(0.0f);
        }
    }
}

// A warp's piece of shared memory. It holds zeros between uses.
template <class T>
struct Tile {
    static constexpr uint32_t packets = 64;
    static constexpr uint32_t bytes = packets * sizeof(Packet<T>);

    T* values;

    __device__ __forceinline__ static Tile of_warp(unsigned char* shared) {
        Tile tile = {reinterpret_cast<T*>(shared + threadIdx.x / reduce::warp_size * bytes)};
        for (uint32_t i = threadIdx.x % reduce::warp_size; i < packets; i += reduce::warp_size) tile.clear(i);
        // Each lane's zeros are for all lanes to write over.
        __syncwarp();
        return tile;
    }

    __device__ __forceinline__ T* packet(uint32_t index) const { return values + index * Packet<T>::size; }
    __device__ __forceinline__ void clear(uint32_t index) const {
        device::store128(packet(index), uint4{0, 0, 0, 0});
    }
};

// What the valid tokens of a row have for a gradient: factor·(p_v − [v = y]).
template <class T>
struct RowGradient {
    const ValidLogits<T>& logits;
    uint32_t rank;
    Exponential exponential;
    float scale;
    float of_target;

    __device__ __forceinline__ RowGradient(const ValidLogits<T>& logits, const Softmax& softmax,
                                           float inverse_temperature, uint32_t rank, float factor)
        : logits(logits),
          rank(rank),
          exponential(softmax.maximum, inverse_temperature),
          scale(factor * softmax.inverse_sum()),
          of_target(factor * softmax.target_gradient()) {}

    __device__ __forceinline__ T of(uint32_t index, float logit) const {
        return number::narrow<T>(index == rank ? of_target : exponential(logit) * scale);
    }

    // Of neighbours, in their place.
    __device__ __forceinline__ void of(uint32_t first, Packet<T>& packet) const {
#pragma unroll
        for (T& value : packet.values) value = number::narrow<T>(exponential(number::widen(value)) * scale);
        put(packet.values, rank - first, number::narrow<T>(of_target));
    }
};

// The first index in a set whose token is not below `token`, by all lanes of a warp: each round leaves a 32nd.
template <class T>
__device__ __forceinline__ uint32_t lower_bound(const ValidLogits<T>& logits, uint32_t token) {
    if (!logits.tokens) return token < logits.size ? token : logits.size;
    uint32_t begin = 0, end = logits.size;
    while (begin < end) {
        const uint32_t step = (end - begin + reduce::warp_size - 1) / reduce::warp_size;
        // The last index of this lane's part.
        const uint32_t last = begin + (threadIdx.x % reduce::warp_size + 1) * step - 1;
        const bool below = last < end && logits.tokens[last] < token;
        begin += __popc(__ballot_sync(reduce::whole_warp, below)) * step;
        // All of the next part but its last may be below.
        end = end < begin + step - 1 ? end : begin + step - 1;
    }
    return begin;
}

// Where the logits lie as the gradient does, a packet of the one gives a packet of the other.
template <class T>
__device__ __forceinline__ void write_stream(const GradientRow<T>& row, uint32_t begin, uint32_t end,
                                             const RowGradient<T>& gradient) {
    const ValidLogits<T>& logits = gradient.logits;
    const PacketRow<const T> source = logits.packets();
    for (uint32_t index = begin + threadIdx.x % reduce::warp_size; index < end; index += reduce::warp_size) {
        const uint32_t first = row.first(index);
        if (first >= logits.size) {
            store_zeros(row, index);
        } else if (source.is_whole(index)) {
            Packet<T> packet = Packet<T>::load(source.address(index));
            gradient.of(first, packet);
            packet.store(row.address(index));
        } else {
            for (uint32_t i = first; i < row.first(index + 1); ++i) {
                row.address(index)[row.place(i, index)] =
                    i < logits.size ? gradient.of(i, logits[i]) : number::narrow<T>(0.0f);
            }
        }
    }
}

// Writes packets [begin, end) of a row, by all lanes of a warp. The logits may lie where the gradient goes: this warp
// alone reads those of the tokens that it writes, before it does.
template <class T>
__device__ __forceinline__ void write_gradient(const GradientRow<T>& row, uint32_t begin, uint32_t end,
                                               const Tile<T>& tile, const RowGradient<T>& gradient) {
    const ValidLogits<T>& logits = gradient.logits;
    if (logits.stream() && logits.packets().skew == row.skew) {
        write_stream(row, begin, end, gradient);
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
                tile.values[row.place(token, first)] = gradient.of(index, logits[index]);
            }
            inside = __popc(__ballot_sync(reduce::whole_warp, token < limit));
            next += inside;
        } while (inside == reduce::warp_size);
        // A packet is stored by one lane and holds the values of any.
        __syncwarp();
        for (uint32_t index = first + lane; index < stop; index += reduce::warp_size) {
            store_packet(row, index, tile.packet(index - first));
            tile.clear(index - first);
        }
        // The next values go between the zeros of all lanes.
        __syncwarp();
    }
}

// Writes zeros over packets [begin, end) of a row, by all lanes of a warp.
template <class T>
__device__ __forceinline__ void write_zeros(const GradientRow<T>& row, uint32_t begin, uint32_t end) {
    for (uint32_t index = begin + threadIdx.x % reduce::warp_size; index < end; index += reduce::warp_size) {
        store_zeros(row, index);
    }
}
