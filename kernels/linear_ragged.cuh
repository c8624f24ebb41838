// A ragged row in one pass, in the manner of flash attention with the head rows of its set for keys and values:
//
//     z_v = h·W_v + b_v,    gradient = Σ_{v ∈ C} p_v W_v − W_y
//
// The set is taken in tiles. A tile's head rows are read once, kept in shared memory and used twice: for the scores, and
// for the gradient, which is scaled down where a larger score comes. The target's (p_y − 1)·W_y waits for the last tile,
// or, of a row in parts, for the last part.
#pragma once

#include "linear_parts.cuh"

// Where a block keeps what it works on: numbers, then a hidden state, then head rows. Mirrors launch::linear's `Room`.
struct RaggedRoom {
    unsigned char* bytes;
    // Head rows of a tile, and whether they and a hidden state are kept.
    uint32_t rows;
    bool keeps_head;
    bool keeps_hidden;
    unsigned char* scratch;

    __device__ __forceinline__ float* scores() const { return reinterpret_cast<float*>(bytes); }
    // As many as rows, or as warps where they are more.
    __device__ __forceinline__ float* weights() const { return scores() + rows; }

    template <class T>
    __device__ __forceinline__ T* hidden() const {
        const uint32_t numbers = (2 * rows + blockDim.x / reduce::warp_size + 3) / 4 * 4;
        return reinterpret_cast<T*>(scores() + numbers);
    }
    template <class T>
    __device__ __forceinline__ T* head(uint32_t row, uint32_t packet, uint32_t packets) const {
        return hidden<T>() + ((row + keeps_hidden) * packets + packet) * Packet<T>::size;
    }
};

template <class T>
class RaggedRow {
public:
    __device__ __forceinline__ RaggedRow(const LinearBatch& batch, const LinearRow& row, const RaggedRoom& room)
        : row(row),
          room(room),
          valid(batch, row),
          hidden(static_cast<const T*>(batch.hidden) + row.position * batch.hidden_stride, batch.width),
          packets(Vector<T>::packets(batch.width)),
          limit(valid.size) {}

    // The tokens of a part, of so many, alone. Whether there are any.
    __device__ __forceinline__ bool narrow(uint32_t part, uint32_t tokens) {
        first = part * tokens;
        if (first >= valid.size) return false;
        limit = valid.size - first < tokens ? valid.size : first + tokens;
        return true;
    }

    __device__ __forceinline__ uint32_t size() const { return valid.size; }

    // By all threads of a block. Writes the gradient, of whole packets, where there is room for it.
    __device__ __forceinline__ Scored compute(float inverse_temperature, float* gradient) {
        keep_hidden();
        const Exponentials exponentials = {inverse_temperature};
        Scored scored = {};
        scored.others = exponentials.identity();
        for (begin = first; begin < limit; begin = end) {
            end = limit - begin < room.rows ? limit : begin + room.rows;
            score();
            const float before = scored.others.maximum;
            scored.others = exponentials.combine(
                scored.others, reduce::block(exponentials, exponentials_of_tile(exponentials), room.scratch));
            look(scored);
            Errors weigh = Errors::so_far(scored.others.maximum, inverse_temperature, row.rank);
            if (ends_row()) {
                scored.softmax = Softmax::of(scored.others, scored.target, inverse_temperature);
                weigh = Errors::of(scored.softmax, inverse_temperature, row.rank);
            }
            if (gradient) add_gradient(weigh, weigh.relative(before) * weigh.scale, gradient);
            // The next tile is kept where this one is.
            __syncthreads();
        }
        scored.moments = reduce::block(Moments(), scored.moments, room.scratch);
        return scored;
    }

    // The statistics alone.
    __device__ __forceinline__ Scored measure() {
        keep_hidden();
        Scored scored = {};
        for (begin = first; begin < limit; begin = end) {
            end = limit - begin < room.rows ? limit : begin + room.rows;
            score();
            // All threads read the first score and the target's.
            __syncthreads();
            look(scored);
            // The next tile's scores go where these are, but only past the barrier inside score().
        }
        scored.moments = reduce::block(Moments(), scored.moments, room.scratch);
        return scored;
    }

    // Puts the gradients of the parts, `stride` numbers apart, together, by all threads of a block.
    __device__ __forceinline__ void merge(const PartsOfRow& row_parts, const Errors& weigh, const float* gradients,
                                          uint64_t stride, float* gradient) const {
        const Vector<T> target = valid.head_row(row.rank);
        for (uint32_t p = threadIdx.x; p < packets; p += blockDim.x) {
            Sums sums = {};
#pragma unroll 2
            for (uint32_t k = 0; k < row_parts.count; ++k) {
                const float scale = weigh.relative(row_parts.parts[k].others.maximum) * weigh.scale;
                add_scaled(sums, scale, gradients + k * stride + p * Packet<T>::size);
            }
            add(sums, weigh.of_target, target.load(p));
            store(sums, gradient + p * Packet<T>::size);
        }
    }

    // p_v − [v = y] of each token, by all threads of a block: first the scores, and the errors over them.
    __device__ __forceinline__ void write_errors(float inverse_temperature, float* errors) {
        keep_hidden();
        const Exponentials exponentials = {inverse_temperature};
        Exponentials::Value others = exponentials.identity();
        for (begin = 0; begin < valid.size; begin = end) {
            end = valid.size - begin < room.rows ? valid.size : begin + room.rows;
            score();
            others = exponentials.combine(others, exponentials_of_tile(exponentials));
            for (uint32_t i = threadIdx.x; i < end - begin; i += blockDim.x) errors[begin + i] = room.scores()[i];
            // The next tile's sums go where the parts of this one's are still read.
            __syncthreads();
        }
        others = reduce::block(exponentials, others, room.scratch);
        const Errors error =
            Errors::of(Softmax::of(others, errors[row.rank], inverse_temperature), inverse_temperature, row.rank);
        // All threads have read the target's score.
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < valid.size; i += blockDim.x) errors[i] = error(i, errors[i]);
    }

private:
    const LinearRow& row;
    const RaggedRoom& room;
    ValidRows<T> valid;
    Vector<T> hidden;
    uint32_t packets;
    // The tokens that are taken: the set's, or a part's.
    uint32_t first = 0;
    uint32_t limit;
    // The tile.
    uint32_t begin = 0;
    uint32_t end = 0;

    // Whether all tokens of the set have been seen, by this block.
    __device__ __forceinline__ bool ends_row() const { return first == 0 && end == valid.size; }

    using Sums = float[Packet<T>::size];

    __device__ __forceinline__ void keep_hidden() const {
        if (!room.keeps_hidden) return;
        for (uint32_t p = threadIdx.x; p < packets; p += blockDim.x) {
            hidden.load(p).store(room.hidden<T>() + p * Packet<T>::size);
        }
        // Every warp reads all of it.
        __syncthreads();
    }

    __device__ __forceinline__ Packet<T> hidden_packet(uint32_t index) const {
        if (room.keeps_hidden) return Packet<T>::load(room.hidden<T>() + index * Packet<T>::size);
        return hidden.load(index);
    }

    __device__ __forceinline__ Packet<T> head_packet(uint32_t index, uint32_t packet) const {
        if (room.keeps_head) return Packet<T>::load(room.head<T>(index, packet, packets));
        return valid.head_row(begin + index).load(packet);
    }

    // The scores of the tile. A warp takes a row, or a part of one where there are more warps than rows.
    __device__ __forceinline__ void score() const {
        const uint32_t warps = blockDim.x / reduce::warp_size, lane = threadIdx.x % reduce::warp_size;
        const uint32_t rows = end - begin, parts = rows < warps ? warps / rows : 1, step = parts * reduce::warp_size;
        const uint32_t warp = threadIdx.x / reduce::warp_size;
        if (room.keeps_head) {
            for (uint32_t i = warp; i < rows * parts; i += warps) keep_head(i / parts, i % parts * reduce::warp_size + lane, step);
            // A lane looks at what it has kept itself.
            device::await_copies();
        }
        for (uint32_t i = warp; i < rows * parts; i += warps) {
            float sum = 0.0f;
#pragma unroll 4
            for (uint32_t p = i % parts * reduce::warp_size + lane; p < packets; p += step) {
                sum = add_products(sum, head_packet(i / parts, p), hidden_packet(p));
            }
            sum = reduce::warp(reduce::Sum<float>(), sum);
            if (lane == 0) room.weights()[i] = sum;
        }
        // A thread adds up what several warps found; every thread looks at head rows that others have kept.
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < rows; i += blockDim.x) {
            float sum = valid.bias(begin + i);
            for (uint32_t part = 0; part < parts; ++part) sum += room.weights()[i * parts + part];
            room.scores()[i] = sum;
        }
    }

    // Every step-th packet of a head row.
    __device__ __forceinline__ void keep_head(uint32_t index, uint32_t first, uint32_t step) const {
        const Vector<T> head = valid.head_row(begin + index);
        for (uint32_t p = first; p < packets; p += step) {
            T* kept = room.head<T>(index, p, packets);
            if (head.aligned) {
                device::copy128_async(kept, head.values + p * Packet<T>::size);
            } else {
                head.load(p).store(kept);
            }
        }
    }

    // At the scores of the tile, for statistics: each thread at those that it has written.
    __device__ __forceinline__ void look(Scored& scored) const {
        if (begin == first) scored.shift = room.scores()[0];
        if (row.rank >= begin && row.rank < end) scored.target = room.scores()[row.rank - begin];
        for (uint32_t i = threadIdx.x; i < end - begin; i += blockDim.x) {
            scored.moments = Moments().add(scored.moments, room.scores()[i] - scored.shift);
        }
    }

    // Of the scores that this thread has just written, without the target's.
    __device__ __forceinline__ Exponentials::Value exponentials_of_tile(const Exponentials& exponentials) const {
        Exponentials::Value others = exponentials.identity();
        for (uint32_t i = threadIdx.x; i < end - begin; i += blockDim.x) {
            if (begin + i != row.rank) others = exponentials.add(others, room.scores()[i]);
        }
        return others;
    }

    // Adds the tile's part of the gradient to what was there, times `carried`.
    __device__ __forceinline__ void add_gradient(const Errors& weigh, float carried, float* gradient) const {
        for (uint32_t i = threadIdx.x; i < end - begin; i += blockDim.x) {
            room.weights()[i] = weigh(begin + i, room.scores()[i]);
        }
        // Every thread reads all weights.
        __syncthreads();
        for (uint32_t p = threadIdx.x; p < packets; p += blockDim.x) {
            Sums sums = {};
            if (begin != first) add_scaled(sums, carried, gradient + p * Packet<T>::size);
            for (uint32_t i = 0; i < end - begin; ++i) {
                add(sums, room.weights()[i], head_packet(i, p));
            }
            store(sums, gradient + p * Packet<T>::size);
        }
        if (ends_row() && row.rank < begin) add_target(weigh.of_target, gradient);
    }

    // The target's part, where its tile has gone by: each thread where it has written.
    __device__ __forceinline__ void add_target(float error, float* gradient) const {
        const Vector<T> head = valid.head_row(row.rank);
        for (uint32_t p = threadIdx.x; p < packets; p += blockDim.x) {
            Sums sums = {};
            add_scaled(sums, 1.0f, gradient + p * Packet<T>::size);
            add(sums, error, head.load(p));
            store(sums, gradient + p * Packet<T>::size);
        }
    }

    __device__ __forceinline__ static void add_scaled(Sums& sums, float scale, const float* address) {
#pragma unroll
        for (uint32_t k = 0; k < Packet<T>::size; k += Packet<float>::size) {
            const Packet<float> part = Packet<float>::load(address + k);
#pragma unroll
            for (uint32_t j = 0; j < Packet<float>::size; ++j) sums[k + j] += part.values[j] * scale;
        }
    }

    __device__ __forceinline__ static void store(const Sums& sums, float* address) {
#pragma unroll
        for (uint32_t k = 0; k < Packet<T>::size; k += Packet<float>::size) {
            Packet<float> part;
#pragma unroll
            for (uint32_t j = 0; j < Packet<float>::size; ++j) part.values[j] = sums[k + j];
            part.store(address + k);
        }
    }

    __device__ __forceinline__ static void add(Sums& sums, float weight, const Packet<T>& packet) {
#pragma unroll
        for (uint32_t k = 0; k < Packet<T>::size; ++k) sums[k] += weight * number::widen(packet.values[k]);
    }
};
