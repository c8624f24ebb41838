// A GEMM of small matrices in shared memory by a block: C [m, n] += A [m, depth]·B [n, depth]ᵀ.
//
// f16 and bf16 go through the tensor cores (mma.m16n8k16, summed in f32), f32 through fused multiply-adds in the same
// layout of C, so that one kernel serves all types. A fragment of C is 16 × 8: lane 4g + t holds C[g + 8i][2t + j] in
// values[2i + j].
//
// Rows of operands are `pitch` elements apart, an odd multiple of 16 bytes: eight rows then lie in different banks. Operands
// are whole fragments: what pads their rows gives sums that nobody stores, what pads the depth must be zeros in both.
#pragma once

#include "number.cuh"
#include "packet.cuh"
#include "reduce.cuh"

__device__ __forceinline__ uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }
__device__ __forceinline__ uint32_t round_up(uint32_t number, uint32_t multiple) {
    return (number + multiple - 1) / multiple * multiple;
}

// Fragments of operands, each from where its first element lies.
template <class T>
struct Fragments {
    // What one step sums over.
    static constexpr uint32_t depth = 16;
    using A = uint32_t[4];
    using B = uint32_t[2];

    // Of A as [m, depth]: where a lane loads from. Each names one row of one of the four 8 × 8 matrices.
    __device__ __forceinline__ static uint32_t of_lane_a(uint32_t lane, uint32_t pitch) { return lane % 16 * pitch + lane / 16 * 8; }
    __device__ __forceinline__ static void load(A& a, const T* from, uint32_t) { device::ldmatrix<4>(a, from); }

    // Of A as [depth, m].
    __device__ __forceinline__ static uint32_t of_lane_transposed(uint32_t lane, uint32_t pitch) {
        return (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8;
    }
    __device__ __forceinline__ static void load_transposed(A& a, const T* from, uint32_t) {
        device::ldmatrix_transposed<4>(a, from);
    }

    // Of B as [n, depth].
    __device__ __forceinline__ static uint32_t of_lane_b(uint32_t lane, uint32_t pitch) { return lane % 8 * pitch + lane / 8 % 2 * 8; }
    __device__ __forceinline__ static void load(B& b, const T* from, uint32_t) { device::ldmatrix<2>(b, from); }

    __device__ __forceinline__ static void multiply(float (&c)[4], const A& a, const B& b) {
        device::multiply(c, a, b, T());
    }
};

template <>
struct Fragments<float> {
    static constexpr uint32_t depth = 4;
    // Rows g and g + 8 of A, rows 2t and 2t + 1 of B.
    struct A { float values[2][4]; };
    struct B { float values[2][4]; };

    __device__ __forceinline__ static uint32_t of_lane_a(uint32_t lane, uint32_t pitch) { return lane / 4 * pitch; }
    __device__ __forceinline__ static void load(A& a, const float* from, uint32_t pitch) {
        load(a.values[0], from);
        load(a.values[1], from + 8 * pitch);
    }

    __device__ __forceinline__ static uint32_t of_lane_transposed(uint32_t lane, uint32_t) { return lane / 4; }
    __device__ __forceinline__ static void load_transposed(A& a, const float* from, uint32_t pitch) {
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
            a.values[0][k] = from[k * pitch];
            a.values[1][k] = from[k * pitch + 8];
        }
    }

    __device__ __forceinline__ static uint32_t of_lane_b(uint32_t lane, uint32_t pitch) { return lane % 4 * 2 * pitch; }
    __device__ __forceinline__ static void load(B& b, const float* from, uint32_t pitch) {
        load(b.values[0], from);
        load(b.values[1], from + pitch);
    }

    __device__ __forceinline__ static void multiply(float (&c)[4], const A& a, const B& b) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
#pragma unroll
            for (uint32_t k = 0; k < 4; ++k) c[i] += a.values[i / 2][k] * b.values[i % 2][k];
        }
    }

private:
    __device__ __forceinline__ static void load(float (&values)[4], const float* address) {
        const Packet<float> packet = Packet<float>::load(address);
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) values[k] = packet.values[k];
    }
};

// C of a block of 256 threads, in the registers of its warps. Warps share out the rows of C, 16 at a time; where C has fewer
// rows than that, several warps have the same, and each sums over its part of the depth.
template <class T>
class BlockGemm {
public:
    static constexpr uint32_t warps = 8;
    // Fragments that a warp holds: up to 128 rows of C with 64 columns, 256 with 32, 512 with 16 and 1024 with 8.
    static constexpr uint32_t most = 8;

    __device__ __forceinline__ BlockGemm(uint32_t m, uint32_t n)
        : m_tiles((m + 15) / 16), n_tiles((n + 7) / 8), log_n(ceil_log2(n_tiles)) {
        const uint32_t log_m = ceil_log2(smaller(m_tiles, warps)), warp = threadIdx.x / reduce::warp_size;
        m_warps = 1 << log_m;
        m_warp = warp & (m_warps - 1);
        k_warp = warp >> log_m;
#pragma unroll
        for (uint32_t i = 0; i < most; ++i) {
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) sums[i][j] = 0.0f;
        }
    }

    // Adds A·Bᵀ, summed over a multiple of the fragments' depth. A lies as [m, depth], or transposed.
    template <bool transposed>
    __device__ __forceinline__ void add(const T* a_tile, uint32_t a_pitch, const T* b_tile, uint32_t b_pitch, uint32_t depth) {
        using F = Fragments<T>;
        const uint32_t lane = threadIdx.x % reduce::warp_size, a_step = transposed ? a_pitch : 1;
        a_tile += (transposed ? F::of_lane_transposed(lane, a_pitch) : F::of_lane_a(lane, a_pitch)) +
                  16 * m_warp * (transposed ? 1 : a_pitch);
        b_tile += F::of_lane_b(lane, b_pitch);
#pragma unroll 1
        for (uint32_t k = k_warp * F::depth; k < depth; k += layers() * F::depth) {
            const T* a = a_tile + k * a_step;
            const T* b = b_tile + k;
            if constexpr (sizeof(T) == sizeof(float)) {
                // Fragments of f32 are so large that there is room for one of each.
                add_step<transposed>(a, a_pitch, b, b_pitch);
            } else {
                switch (log_n) {
                    case 0: add_step<transposed, 1>(a, a_pitch, b, b_pitch); break;
                    case 1: add_step<transposed, 2>(a, a_pitch, b, b_pitch); break;
                    case 2: add_step<transposed, 4>(a, a_pitch, b, b_pitch); break;
                    default: add_step<transposed, 8>(a, a_pitch, b, b_pitch);
                }
            }
        }
    }

    // How many warps have parts of the same sums.
    __device__ __forceinline__ uint32_t layers() const { return warps / m_warps; }
    // Numbers between two columns of C where `store` puts them: lanes then write to different banks.
    __device__ __forceinline__ uint32_t pitch() const { return 16 * m_tiles + 4; }
    // Numbers of a layer.
    __device__ __forceinline__ uint32_t layer() const { return 8 * n_tiles * pitch(); }
    // The most bytes of all layers.
    static constexpr uint32_t bytes = warps * 64 * 20 * sizeof(float);

    // Stores C in shared memory, column by column and layer by layer: all layers are to be added up. Behind each of the first
    // `columns` come four zeros, which fill its pitch.
    __device__ __forceinline__ void store(float* c, uint32_t columns) const {
        const uint32_t lane = threadIdx.x % reduce::warp_size;
        float* layer_begin = c + k_warp * layer();
        for (uint32_t i = m_warp * reduce::warp_size + lane; i < columns; i += m_warps * reduce::warp_size) {
            device::store128(layer_begin + i * pitch() + 16 * m_tiles, uint4{0, 0, 0, 0});
        }
        c = layer_begin + lane % 4 * 2 * pitch() + lane / 4;
#pragma unroll
        for (uint32_t i = 0; i < most; ++i) {
            if (!has(i)) continue;
            float* to = c + 8 * column(i) * pitch() + 16 * row(i);
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) to[j % 2 * pitch() + j / 2 * 8] = sums[i][j];
        }
    }

private:
    float sums[most][4];
    uint32_t m_tiles, n_tiles, log_n;
    // How many warps share out the rows, which of them this one is, and which of those that share its rows.
    uint32_t m_warps, m_warp, k_warp;

    __device__ __forceinline__ static uint32_t ceil_log2(uint32_t number) { return number > 1 ? 32 - __clz(number - 1) : 0; }

    template <bool transposed>
    __device__ __forceinline__ static void load_a(typename Fragments<T>::A& a, const T* from, uint32_t pitch) {
        if (transposed) {
            Fragments<T>::load_transposed(a, from, pitch);
        } else {
            Fragments<T>::load(a, from, pitch);
        }
    }

    // Where C has `columns` columns of fragments, rounded up to a power of two. A warp loads all of B before it uses any.
    template <bool transposed, uint32_t columns>
    __device__ __forceinline__ void add_step(const T* a_from, uint32_t a_pitch, const T* b_from, uint32_t b_pitch) {
        // There are more than half of them.
        const auto has_column = [&](uint32_t n) { return n <= columns / 2 || n < n_tiles; };
        typename Fragments<T>::B b[columns] = {};
#pragma unroll
        for (uint32_t n = 0; n < columns; ++n) {
            if (has_column(n)) Fragments<T>::load(b[n], b_from + n * 8 * b_pitch, b_pitch);
        }
#pragma unroll
        for (uint32_t m = 0; m < most / columns; ++m) {
            if (row(m * columns) >= m_tiles) break;
            typename Fragments<T>::A a;
            load_a<transposed>(a, a_from + m * 16 * m_warps * (transposed ? 1 : a_pitch), a_pitch);
#pragma unroll
            for (uint32_t n = 0; n < columns; ++n) {
                if (has_column(n)) Fragments<T>::multiply(sums[m * columns + n], a, b[n]);
            }
        }
    }

    template <bool transposed>
    __device__ __forceinline__ void add_step(const T* a_from, uint32_t a_pitch, const T* b_from, uint32_t b_pitch) {
        typename Fragments<T>::A a = {};
        typename Fragments<T>::B b = {};
#pragma unroll
        for (uint32_t i = 0; i < most; ++i) {
            if (!has(i)) continue;
            // One fragment of A for all of C in its rows.
            if (column(i) == 0) load_a<transposed>(a, a_from + (row(i) - m_warp) * 16 * (transposed ? 1 : a_pitch), a_pitch);
            Fragments<T>::load(b, b_from + 8 * column(i) * b_pitch, b_pitch);
            Fragments<T>::multiply(sums[i], a, b);
        }
    }

    // Where a fragment of this warp's is in C, counted in fragments.
    __device__ __forceinline__ uint32_t column(uint32_t i) const { return i & ((1 << log_n) - 1); }
    __device__ __forceinline__ uint32_t row(uint32_t i) const { return (i >> log_n) * m_warps + m_warp; }
    __device__ __forceinline__ bool has(uint32_t i) const { return column(i) < n_tiles && row(i) < m_tiles; }
};
