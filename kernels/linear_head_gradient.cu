// The gradient of a head [V, H] and of its bias [V], from the scores and softmax statistics that linear_forward.cu
// saved. Row t with token set C_t, hidden state h_t, loss weight w_t and upstream gradient g has, at temperature τ,
//
//     d_tv = g·w_t/τ·(p_v − [v = y_t]) for v in C_t,    head_v = Σ_{t: v ∈ C_t} d_tv h_t,    bias_v = Σ_{t: v ∈ C_t} d_tv
//
// (times τ where the convention multiplies the loss by τ). So d is dlogits, and the gradient of the head is a GEMM of
// the transposed sparse matrix d [rows, V] with the hidden states. Sums are in f32, in an order that depends on the
// batch alone, and rounded once. Tokens that are in no set of a row with a loss are not written: the caller has zeroed
// the gradient.
//
// The host sorts the distinct tokens of the batch and cuts them into tiles of 64. As token sets are sorted too, the
// tokens of a set that are in a tile are contiguous in the set. They form a segment. The segments of all tiles are an
// inverted index: token → rows.
//
// Of a head in two parts, only the tokens of `head` take a gradient. They are the end of each set, and no tile contains
// others.
//
// Launch: blocks of 256 threads. A block takes every gridDim-th tile of 64 tokens × 128 columns. For each tile:
//
//     1. Take the next 16 rows of the tile's segments. Write their dlogits [64, 16] and their hidden states [128, 16] in f32 to
//        shared memory.
//     2. Add the product of the two to the accumulators [64, 128] in registers, and the dlogits to the bias. Repeat from step 1.
//     3. Store the accumulators through shared memory, for 16-byte stores, and the bias if the tile has the first columns.
//
// Bytes moved: each tile of columns reads 4 bytes for each score of a row with a loss, and 16 for each segment. Each
// tile of tokens reads the hidden states of its rows. H + 1 elements are written for each token, in 16-byte stores if
// H·sizeof(T) is a multiple of 16.

#include <cfloat>

#include "fragments.cuh"
#include "linear.cuh"

// The tokens of a set that are in a tile of tokens. Mirrors launch::LinearSegment.
struct LinearSegment {
    // The index of the set's group.
    uint32_t group;
    // The tokens of the segment have ranks [first, first + count) in the group.
    uint32_t first;
    uint32_t count;
    // The number of rows of the preceding segments of the tile.
    uint32_t rows_before;
};
static_assert(sizeof(LinearSegment) == 16 && offsetof(LinearSegment, group) == 0 && offsetof(LinearSegment, first) ==
    4 && offsetof(LinearSegment, count) == 8 && offsetof(LinearSegment, rows_before) == 12, "mirrors launch::LinearSegment");

// Mirrors launch::LinearHeadGradientParams.
struct LinearHeadGradientParams {
    LinearBatch batch;
    GradientScale scale;
    // The scores of all groups, as LinearGroup::scores says.
    const float* scores;
    // [row_count], as the forward pass saved them.
    const Softmax* softmaxes;
    // The segments of tile i are segments[starts[i] .. starts[i + 1]]. Both are null over a part of the whole
    // vocabulary, where every tile has one segment, with the rows of group 0.
    const LinearSegment* segments;
    const uint32_t* starts;
    // [count]: the distinct tokens that take a gradient, ascending; null over a part of the whole vocabulary, where they
    // are those of group 0.
    const uint32_t* tokens;
    // [V − base_rows, width]: the gradient of the rows of `head`, contiguous; null if it is not wanted.
    void* head;
    // [V]: the gradient of the bias; null if it is not wanted.
    void* bias;
    // The number of distinct tokens that take a gradient.
    uint32_t count;
    uint32_t unused;
};
static_assert(sizeof(LinearHeadGradientParams) == 192 && offsetof(LinearHeadGradientParams, batch) == 0 &&
    offsetof(LinearHeadGradientParams, scale) == 104 && offsetof(LinearHeadGradientParams, scores) == 128 &&
    offsetof(LinearHeadGradientParams, softmaxes) == 136 && offsetof(LinearHeadGradientParams, segments) == 144 &&
    offsetof(LinearHeadGradientParams, starts) == 152 && offsetof(LinearHeadGradientParams, tokens) == 160 &&
    offsetof(LinearHeadGradientParams, head) == 168 && offsetof(LinearHeadGradientParams, bias) == 176 &&
    offsetof(LinearHeadGradientParams, count) == 184 && offsetof(LinearHeadGradientParams, unused) == 188,
    "mirrors launch::LinearHeadGradientParams");

namespace {

constexpr uint32_t tile_tokens = 64, tile_columns = 128, tile_rows = 16;
// The row pitch of the operands, in f32: 80 bytes, an odd multiple of 16, as the fragments require.
constexpr uint32_t pitch = tile_rows + 4;
// The row pitch of the sums, in f32. The padding makes rows begin in different banks.
constexpr uint32_t sum_pitch = tile_columns + 4;

// Mirrors `HeadTiles::SHARED_BYTES` of the launch plan.
struct HeadShared {
    // The tokens of the tile, ascending.
    uint32_t tokens[tile_tokens];
    // The gradient of the bias.
    float bias[tile_tokens];
    // Operand A [tile_tokens, pitch]: the dlogits of 16 rows.
    alignas(16) float dlogits[tile_tokens * pitch];
    // Operand B [tile_columns, pitch]: the hidden states of 16 rows. In the end, the sums [tile_tokens, sum_pitch].
    union {
        float hidden[tile_columns * pitch];
        float sums[tile_tokens * sum_pitch];
    };
};
static_assert(sizeof(HeadShared) == 39424, "mirrors HeadTiles::SHARED_BYTES of the launch plan");

template <class T>
class HeadTile {
public:
    __device__ __forceinline__ HeadTile(const LinearHeadGradientParams& params, uint32_t tokens_at, uint32_t columns_at)
        : params(params),
          batch(params.batch),
          shared(*reinterpret_cast<HeadShared*>(device::shared_memory())),
          first_token(tokens_at * tile_tokens),
          tokens(smaller(params.count - first_token, tile_tokens)),
          first_column(columns_at * tile_columns) {
        if (params.starts) {
            begin = params.starts[tokens_at];
            segments = params.starts[tokens_at + 1] - begin;
        }
    }

    __device__ __forceinline__ void process() {
        for (uint32_t i = threadIdx.x; i < tokens; i += blockDim.x) {
            shared.tokens[i] =
                params.tokens ? params.tokens[first_token + i] : batch.groups[0].first_token + first_token + i;
        }
        for (uint32_t i = threadIdx.x; i < tile_tokens; i += blockDim.x) shared.bias[i] = 0.0f;
        const uint32_t warp = threadIdx.x / reduce::warp_size, lane = threadIdx.x % reduce::warp_size;
        using F = Fragments<float>;
        const float* a_from = shared.dlogits + warp % 4 * 16 * pitch + F::lane_offset_a(lane, pitch);
        const float* b_from = shared.hidden + warp / 4 * 64 * pitch + F::lane_offset_b(lane, pitch);
        float sums[8][4] = {};
        const uint32_t rows = this->rows();
#pragma unroll 1
        for (uint32_t first = 0; first < rows; first += tile_rows) {
            for (uint32_t i = threadIdx.x; i < tile_tokens * pitch; i += blockDim.x) shared.dlogits[i] = 0.0f;
            // fill writes dlogits over zeros of other threads.
            __syncthreads();
            fill(first, rows);
            // Every warp reads operands that other warps have written.
            __syncthreads();
#pragma unroll
            for (uint32_t k = 0; k < tile_rows; k += F::depth) {
                F::A a;
                F::B b;
                F::load(a, a_from + k, pitch);
#pragma unroll
                for (uint32_t n = 0; n < 8; ++n) {
                    F::load(b, b_from + 8 * n * pitch + k, pitch);
                    F::multiply(sums[n], a, b);
                }
            }
            if (threadIdx.x < tile_tokens) {
                for (uint32_t k = 0; k < tile_rows; ++k) shared.bias[threadIdx.x] += shared.dlogits[threadIdx.x * pitch + k];
            }
            // The next rows overwrite the operands.
            __syncthreads();
        }
#pragma unroll
        for (uint32_t n = 0; n < 8; ++n) {
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) {
                const uint32_t row = warp % 4 * 16 + lane / 4 + j / 2 * 8, column = warp / 4 * 64 + 8 * n + lane % 4 * 2 + j % 2;
                shared.sums[row * sum_pitch + column] = sums[n][j];
            }
        }
        // A thread stores packets of sums that other threads have written.
        __syncthreads();
        store();
        // The next tile overwrites the tokens, the bias and the sums.
        __syncthreads();
    }

private:
    const LinearHeadGradientParams& params;
    const LinearBatch& batch;
    HeadShared& shared;
    uint32_t first_token, tokens, first_column;
    uint32_t begin = 0, segments = 0;

    __device__ __forceinline__ LinearSegment segment(uint32_t index) const {
        if (!params.starts) return {0, first_token, tokens, 0};
        const uint4 bits = device::load128(params.segments + begin + index);
        return {bits.x, bits.y, bits.z, bits.w};
    }

    // Returns the number of rows of all segments of the tile.
    __device__ __forceinline__ uint32_t rows() const {
        if (params.starts && segments == 0) return 0;
        const LinearSegment last = segment(params.starts ? segments - 1 : 0);
        return last.rows_before + batch.groups[last.group].rows;
    }

    // Returns the segment that contains a row of the tile, by binary search.
    __device__ __forceinline__ LinearSegment segment_of(uint32_t row) const {
        uint32_t low = 0, high = segments;
        while (high > low + 1) {
            const uint32_t middle = (low + high) / 2;
            if (params.segments[begin + middle].rows_before <= row) low = middle; else high = middle;
        }
        return segment(low);
    }

    // Writes the operands of the 16 rows from `first` on. 16 threads write the dlogits of each row.
    __device__ __forceinline__ void fill(uint32_t first, uint32_t rows) const {
        const uint32_t k = threadIdx.x / tile_rows;
        if (first + k < rows) {
            const LinearSegment segment = segment_of(first + k);
            const LinearRow row = row_of(segment, first + k);
            if (row.has_loss()) fill_dlogits(k, segment, first + k - segment.rows_before, row);
        }
        fill_hidden(first, rows);
    }

    // Writes the hidden states of 16 rows to shared memory, transposed. The 32 lanes of a warp take the same columns of
    // 16 rows and one half of a packet each, so that their stores fall into different banks.
    __device__ __forceinline__ void fill_hidden(uint32_t first, uint32_t rows) const {
        constexpr uint32_t half = Packet<T>::size / 2;
        const uint32_t k = threadIdx.x % tile_rows, upper = threadIdx.x / tile_rows % 2;
        LinearRow row = {};
        if (first + k < rows) row = row_of(segment_of(first + k), first + k);
        for (uint32_t p = threadIdx.x / reduce::warp_size; p < tile_columns / Packet<T>::size; p += 8) {
            const uint32_t column = first_column / Packet<T>::size + p;
            Packet<T> packet = Packet<T>::from_bits(uint4{0, 0, 0, 0});
            // The hidden state of a row without a loss may be NaN, and NaN·0 is not 0.
            if (row.has_loss()) packet = batch.hidden_row<T>(row.position).load(column);
            float* to = shared.hidden + (p * Packet<T>::size + upper * half) * pitch + k;
#pragma unroll
            for (uint32_t i = 0; i < half; ++i) {
                const float value = number::widen(upper ? packet.values[half + i] : packet.values[i]);
                // A hidden state that is not finite has made all dlogits of its row NaN, and so the gradient of the
                // row's own tokens. The others have dlogits of 0 here, and must not become NaN too.
                to[i * pitch] = fabsf(value) <= FLT_MAX ? value : 0.0f;
            }
        }
    }

    __device__ __forceinline__ LinearRow row_of(const LinearSegment& segment, uint32_t row) const {
        return LinearRow::load(batch.rows + batch.groups[segment.group].first_row + row - segment.rows_before);
    }

    // Writes row k of the operands: the dlogits of a row of a group, at the tokens of a segment.
    __device__ __forceinline__ void fill_dlogits(uint32_t k, const LinearSegment& segment, uint32_t in_group,
                                                const LinearRow& row) const {
        const LinearGroup group = LinearGroup::load(batch.groups + segment.group);
        const Softmax softmax = params.softmaxes[group.first_row + in_group];
        const Exponential exponential(softmax.maximum, params.scale.inverse_temperature());
        const float factor = params.scale.of(row), scale = factor * softmax.inverse_sum();
        const float* scores = params.scores + group.scores + in_group * static_cast<uint64_t>(group.stride());
        for (uint32_t i = threadIdx.x % tile_rows; i < segment.count; i += tile_rows) {
            const uint32_t at = segment.first + i;
            const bool is_target = at == row.rank - group.first_rank;
            const float dlogit = is_target ? factor * softmax.target_gradient() : exponential(scores[at]) * scale;
            shared.dlogits[tile_row(batch.token(group, at)) * pitch + k] = dlogit;
        }
    }

    // Returns the index of a token in the tile, by binary search.
    __device__ __forceinline__ uint32_t tile_row(uint32_t token) const {
        uint32_t low = 0, high = tokens;
        while (high > low + 1) {
            const uint32_t middle = (low + high) / 2;
            if (shared.tokens[middle] <= token) low = middle; else high = middle;
        }
        return low;
    }

    __device__ __forceinline__ void store() const {
        constexpr uint32_t packets = tile_columns / Packet<T>::size;
        T* head = static_cast<T*>(params.head);
        for (uint32_t i = threadIdx.x; head && i < tokens * packets; i += blockDim.x) {
            const uint32_t row = i / packets, p = i % packets, index = first_column / Packet<T>::size + p;
            if (index * Packet<T>::size >= batch.width) continue;
            Packet<T> packet;
#pragma unroll
            for (uint32_t k = 0; k < Packet<T>::size; ++k) {
                packet.values[k] = number::narrow<T>(shared.sums[row * sum_pitch + p * Packet<T>::size + k]);
            }
            const uint64_t head_row = shared.tokens[row] - batch.base_rows;
            store_packet(head + head_row * batch.width, batch.width, index, packet);
        }
        T* bias = static_cast<T*>(params.bias);
        if (!bias || first_column != 0) return;
        for (uint32_t i = threadIdx.x; i < tokens; i += blockDim.x) {
            bias[shared.tokens[i]] = number::narrow<T>(shared.bias[i]);
        }
    }
};

template <class T>
__device__ __forceinline__ void linear_head_gradient(const LinearHeadGradientParams& params) {
    const uint32_t columns = (params.batch.width + tile_columns - 1) / tile_columns;
    const uint32_t tiles = (params.count + tile_tokens - 1) / tile_tokens * columns;
    for (uint32_t i = blockIdx.x; i < tiles; i += gridDim.x) HeadTile<T>(params, i / columns, i % columns).process();
}

}  // namespace

KERNEL(linear_head_gradient_f32, LinearHeadGradientParams, 256, 2) { linear_head_gradient<float>(params); }
KERNEL(linear_head_gradient_f16, LinearHeadGradientParams, 256, 2) { linear_head_gradient<__half>(params); }
KERNEL(linear_head_gradient_bf16, LinearHeadGradientParams, 256, 2) { linear_head_gradient<__nv_bfloat16>(params); }
