// The gradient of a head [V, H] and of its bias [V], from what linear_errors.cu left. With e_tv = p_v − [v = y_t] and
// x_t the hidden state of row t, scaled and with its factor behind it, token v has
//
//     Σ_{t: v ∈ C_t} e_tv·x_t
//
// whose first H numbers are its row of the gradient, and whose next is the gradient of its bias. Groups come as their
// products eᵀ·x, one row a token. Each sum is of f32, in the order of the rows, and rounded once. Tokens of no set that
// has a loss have the zeros that are there.
//
// Launch: a block takes every gridDim-th token, its threads the packets of columns. No shared memory.
//
// Bytes moved: H + 1 elements a token written, in 16-byte stores where H allows; 4 H + 4 read for each group of a token and
// for each ragged row of it, with its error; and of listed sets 24 for each set of a token, and 12 a token.

#include "linear.cuh"

// What a token has of one set: a row of a group's product, or the ragged rows of the set. Mirrors launch::LinearShare.
struct LinearShare {
    // Of the token in the first of the rows; `stride` further on in the next.
    uint64_t errors;
    // The row of the products, or the first of the ragged rows.
    uint32_t first;
    // 0 for a product.
    uint32_t rows;
    uint32_t stride;
    uint32_t unused;
};
static_assert(sizeof(LinearShare) == 24 && offsetof(LinearShare, first) == 8, "mirrors launch::LinearShare");

// Mirrors launch::LinearHeadGradientParams.
struct LinearHeadGradientParams {
    // Those of tokens[i] are shares[starts[i] .. starts[i + 1]]. Without `starts`, over the whole vocabulary, token i has
    // product i alone.
    const LinearShare* shares;
    const uint32_t* tokens;
    const uint32_t* starts;
    // [rows, stride] and [tokens of groups, stride]: H + 1 columns and zeros.
    const float* scaled;
    const float* products;
    uint64_t stride;
    const float* errors;
    // [V, width] and [V]; none for what is not wanted.
    void* head;
    void* bias;
    uint32_t width;
    uint32_t count;
};
static_assert(sizeof(LinearHeadGradientParams) == 80, "mirrors launch::LinearHeadGradientParams");
static_assert(offsetof(LinearHeadGradientParams, width) == 72, "mirrors launch::LinearHeadGradientParams");

namespace {

template <class T>
class TokenSum {
public:
    __device__ __forceinline__ TokenSum(const LinearHeadGradientParams& params, uint32_t packet)
        : params(params), first(packet * Packet<T>::size) {}

    __device__ __forceinline__ void add_product(uint32_t row) { add(1.0f, params.products + row * params.stride); }

    __device__ __forceinline__ void add(const LinearShare& share) {
        if (share.rows == 0) {
            add_product(share.first);
            return;
        }
#pragma unroll 4
        for (uint32_t t = 0; t < share.rows; ++t) {
            const float error = params.errors[share.errors + t * static_cast<uint64_t>(share.stride)];
            add(error, params.scaled + (share.first + t) * params.stride);
        }
    }

    __device__ __forceinline__ void store(uint32_t token) const {
        T* head = static_cast<T*>(params.head);
        if (head && first < params.width) {
            Packet<T> packet;
#pragma unroll
            for (uint32_t k = 0; k < Packet<T>::size; ++k) packet.values[k] = number::narrow<T>(sums[k]);
            store_packet(head + token * static_cast<uint64_t>(params.width), params.width, first / Packet<T>::size, packet);
        }
        T* bias = static_cast<T*>(params.bias);
        // Found by looking at each, as registers have no index.
#pragma unroll
        for (uint32_t k = 0; k < Packet<T>::size; ++k) {
            if (bias && first + k == params.width) bias[token] = number::narrow<T>(sums[k]);
        }
    }

private:
    const LinearHeadGradientParams& params;
    uint32_t first;
    float sums[Packet<T>::size] = {};

    __device__ __forceinline__ void add(float weight, const float* row) {
#pragma unroll
        for (uint32_t k = 0; k < Packet<T>::size; k += Packet<float>::size) {
            const Packet<float> part = Packet<float>::load(row + first + k);
#pragma unroll
            for (uint32_t j = 0; j < Packet<float>::size; ++j) sums[k + j] += weight * part.values[j];
        }
    }
};

template <class T>
__device__ __forceinline__ void linear_head_gradient(const LinearHeadGradientParams& params) {
    const uint32_t packets = Vector<T>::packets(params.width + 1);
    for (uint32_t i = blockIdx.x; i < params.count; i += gridDim.x) {
        const bool listed = params.starts;
        const uint32_t begin = listed ? params.starts[i] : 0, end = listed ? params.starts[i + 1] : 0;
        const uint32_t token = listed ? params.tokens[i] : i;
        for (uint32_t p = threadIdx.x; p < packets; p += blockDim.x) {
            TokenSum<T> sum(params, p);
            if (!listed) sum.add_product(i);
            for (uint32_t share = begin; share < end; ++share) sum.add(params.shares[share]);
            sum.store(token);
        }
    }
}

}  // namespace

KERNEL(linear_head_gradient_f32, LinearHeadGradientParams, 256, 4) { linear_head_gradient<float>(params); }
KERNEL(linear_head_gradient_f16, LinearHeadGradientParams, 256, 4) { linear_head_gradient<__half>(params); }
KERNEL(linear_head_gradient_bf16, LinearHeadGradientParams, 256, 4) { linear_head_gradient<__nv_bfloat16>(params); }
