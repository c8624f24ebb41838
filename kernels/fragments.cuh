// A block-level GEMM of tiles in shared memory, accumulated in registers: C [m, n] += A [m, depth]·B [n, depth]ᵀ.
//
// f16 and bf16 use the tensor cores (mma.m16n8k16 with f32 accumulators). f32 uses fused multiply-adds with the same
// layout of C, so that one kernel serves all types. A fragment of C is 16 × 8: lane 4g + t holds C[g + 8i][2t + j] in
// values[2i + j].
//
// The row pitch of the operands is an odd multiple of 16 bytes, so that eight consecutive rows are in different banks.
// The operands are padded to full fragments. Padding rows may hold anything, as nothing reads their sums; padding of
// the depth must be zeros in both operands.
#pragma once

#include "number.cuh"
#include "packet.cuh"
#include "reduce.cuh"

__device__ __forceinline__ uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }
__device__ __forceinline__ uint32_t round_up(uint32_t number, uint32_t multiple) {
    return (number + multiple - 1) / multiple * multiple;
}

// The fragments of the operands in registers. `lane_offset_*` gives the offset in shared memory, in elements, from
// which a lane loads its part of the fragment at the origin of a tile.
template <class T>
struct Fragments {
    // The depth of one multiplication.
    static constexpr uint32_t depth = 16;
    using A = uint32_t[4];
    using B = uint32_t[2];

    // A in shared memory as [m, depth]. Each lane addresses one row of one of the four 8 × 8 matrices of `ldmatrix`.
    __device__ __forceinline__ static uint32_t lane_offset_a(uint32_t lane, uint32_t pitch) {
        return lane % 16 * pitch + lane / 16 * 8;
    }
    __device__ __forceinline__ static void load(A& a, const T* from, uint32_t) { device::ldmatrix<4>(a, from); }

    // A in shared memory as [depth, m].
    __device__ __forceinline__ static uint32_t lane_offset_a_transposed(uint32_t lane, uint32_t pitch) {
        return (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8;
    }
    __device__ __forceinline__ static void load_transposed(A& a, const T* from, uint32_t) {
        device::ldmatrix_transposed<4>(a, from);
    }

    // B in shared memory as [n, depth].
    __device__ __forceinline__ static uint32_t lane_offset_b(uint32_t lane, uint32_t pitch) {
        return lane % 8 * pitch + lane / 8 % 2 * 8;
    }
    __device__ __forceinline__ static void load(B& b, const T* from, uint32_t) { device::ldmatrix<2>(b, from); }

    __device__ __forceinline__ static void multiply(float (&c)[4], const A& a, const B& b) {
        device::multiply(c, a, b, T());
    }
};

template <>
struct Fragments<float> {
    static constexpr uint32_t depth = 4;
    // A lane holds rows g and g + 8 of A, and rows 2t and 2t + 1 of B.
    struct A { float values[2][4]; };
    struct B { float values[2][4]; };

    __device__ __forceinline__ static uint32_t lane_offset_a(uint32_t lane, uint32_t pitch) { return lane / 4 * pitch; }
    __device__ __forceinline__ static void load(A& a, const float* from, uint32_t pitch) {
        load(a.values[0], from);
        load(a.values[1], from + 8 * pitch);
    }

    __device__ __forceinline__ static uint32_t lane_offset_a_transposed(uint32_t lane, uint32_t) { return lane / 4; }
    __device__ __forceinline__ static void load_transposed(A& a, const float* from, uint32_t pitch) {
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
            a.values[0][k] = from[k * pitch];
            a.values[1][k] = from[k * pitch + 8];
        }
    }

    __device__ __forceinline__ static uint32_t lane_offset_b(uint32_t lane, uint32_t pitch) { return lane % 4 * 2 * pitch; }
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

// The accumulators of C in the registers of a block of 256 threads. The rows of C are distributed over the warps, 16 at
// a time. If C has at most 64 rows, several warps (k_warps) accumulate the same rows, each over its part of the
// depth: a split-K inside the block, whose partial sums the caller adds up after `store`.
template <class T>
class BlockGemm {
public:
    static constexpr uint32_t warps = 8;
    // The fragments of C that a warp holds. They suffice for 128 rows of C with 64 columns, 256 with 32, 512 with 16
    // and 1024 with 8.
    static constexpr uint32_t max_fragments = 8;

    __device__ __forceinline__ BlockGemm(uint32_t m, uint32_t n)
        : m_tiles((m + 15) / 16), n_tiles((n + 7) / 8), log_n(ceil_log2(n_tiles)) {
        const uint32_t log_m = ceil_log2(smaller(m_tiles, warps)), warp = threadIdx.x / reduce::warp_size;
        m_warps = 1 << log_m;
        m_warp = warp & (m_warps - 1);
        k_warp = warp >> log_m;
#pragma unroll
        for (uint32_t i = 0; i < max_fragments; ++i) {
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) sums[i][j] = 0.0f;
        }
    }

    // Adds A·Bᵀ over a depth that is a multiple of Fragments::depth. A is stored as [m, depth], or as [depth, m] if
    // transposed.
    template <bool transposed>
    __device__ __forceinline__ void add(const T* a_tile, uint32_t a_pitch, const T* b_tile, uint32_t b_pitch, uint32_t depth) {
        using F = Fragments<T>;
        const uint32_t lane = threadIdx.x % reduce::warp_size, a_step = transposed ? a_pitch : 1;
        a_tile += (transposed ? F::lane_offset_a_transposed(lane, a_pitch) : F::lane_offset_a(lane, a_pitch)) +
                  16 * m_warp * (transposed ? 1 : a_pitch);
        b_tile += F::lane_offset_b(lane, b_pitch);
#pragma unroll 1
        for (uint32_t k = k_warp * F::depth; k < depth; k += k_warps() * F::depth) {
            const T* a = a_tile + k * a_step;
            const T* b = b_tile + k;
            if constexpr (sizeof(T) == sizeof(float)) {
                // An f32 fragment takes 8 registers, so a warp holds only one of A and one of B at a time.
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

    // The number of warps that hold partial sums of the same elements of C.
    __device__ __forceinline__ uint32_t k_warps() const { return warps / m_warps; }
    // The pitch of the columns of C as `store` writes them, in f32. The padding of 4 puts the stores of a warp in
    // different banks.
    __device__ __forceinline__ uint32_t pitch() const { return 16 * m_tiles + 4; }
    // The size of one split-K slice as `store` writes it, in f32.
    __device__ __forceinline__ uint32_t slice_size() const { return 8 * n_tiles * pitch(); }
    // The largest size of all slices, in bytes.
    static constexpr uint32_t bytes = warps * 64 * 20 * sizeof(float);

    // Stores the k_warps() split-K slices of C to shared memory, one after the other and each column by column. The sum
    // over the slices is C. The padding of the first `columns` columns is set to zeros.
    __device__ __forceinline__ void store(float* c, uint32_t columns) const {
        const uint32_t lane = threadIdx.x % reduce::warp_size;
        float* slice = c + k_warp * slice_size();
        for (uint32_t i = m_warp * reduce::warp_size + lane; i < columns; i += m_warps * reduce::warp_size) {
            device::store128(slice + i * pitch() + 16 * m_tiles, uint4{0, 0, 0, 0});
        }
        c = slice + lane % 4 * 2 * pitch() + lane / 4;
#pragma unroll
        for (uint32_t i = 0; i < max_fragments; ++i) {
            if (!in_bounds(i)) continue;
            float* to = c + 8 * column(i) * pitch() + 16 * row(i);
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) to[j % 2 * pitch() + j / 2 * 8] = sums[i][j];
        }
    }

private:
    float sums[max_fragments][4];
    uint32_t m_tiles, n_tiles, log_n;
    // The rows of C are distributed over `m_warps` warps (a power of two). This warp has index m_warp among these, and
    // index k_warp among the k_warps() that accumulate the same rows.
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

    // One step of the depth, for n_tiles rounded up to the power of two `columns`. A warp loads all fragments of B
    // before it multiplies, to reuse them for all fragments of A and to overlap the latencies of the loads.
    template <bool transposed, uint32_t columns>
    __device__ __forceinline__ void add_step(const T* a_from, uint32_t a_pitch, const T* b_from, uint32_t b_pitch) {
        // n_tiles > columns / 2, so half of the comparisons are resolved at compile time.
        const auto has_column = [&](uint32_t n) { return n <= columns / 2 || n < n_tiles; };
        typename Fragments<T>::B b[columns] = {};
#pragma unroll
        for (uint32_t n = 0; n < columns; ++n) {
            if (has_column(n)) Fragments<T>::load(b[n], b_from + n * 8 * b_pitch, b_pitch);
        }
#pragma unroll
        for (uint32_t m = 0; m < max_fragments / columns; ++m) {
            if (row(m * columns) >= m_tiles) break;
            typename Fragments<T>::A a;
            load_a<transposed>(a, a_from + m * 16 * m_warps * (transposed ? 1 : a_pitch), a_pitch);
#pragma unroll
            for (uint32_t n = 0; n < columns; ++n) {
                if (has_column(n)) Fragments<T>::multiply(sums[m * columns + n], a, b[n]);
            }
        }
    }

    // One step of the depth in f32, fragment by fragment.
    template <bool transposed>
    __device__ __forceinline__ void add_step(const T* a_from, uint32_t a_pitch, const T* b_from, uint32_t b_pitch) {
        typename Fragments<T>::A a = {};
        typename Fragments<T>::B b = {};
#pragma unroll
        for (uint32_t i = 0; i < max_fragments; ++i) {
            if (!in_bounds(i)) continue;
            // A fragment of A is loaded once and reused for all columns.
            if (column(i) == 0) load_a<transposed>(a, a_from + (row(i) - m_warp) * 16 * (transposed ? 1 : a_pitch), a_pitch);
            Fragments<T>::load(b, b_from + 8 * column(i) * b_pitch, b_pitch);
            Fragments<T>::multiply(sums[i], a, b);
        }
    }

    // The column and the row in C of this warp's fragment i, in fragments.
    __device__ __forceinline__ uint32_t column(uint32_t i) const { return i & ((1 << log_n) - 1); }
    __device__ __forceinline__ uint32_t row(uint32_t i) const { return (i >> log_n) * m_warps + m_warp; }
    __device__ __forceinline__ bool in_bounds(uint32_t i) const { return column(i) < n_tiles && row(i) < m_tiles; }
};
