// Matrix operations of a warp: rows that ldmatrix may not load, and lanes that do not take part.

#include "packet.cuh"
#include "params.cuh"

namespace {

using Numbers = Packet<float>;

constexpr uint32_t row_bytes = 16;

__device__ __forceinline__ unsigned char* row(uint32_t index) { return device::shared_memory() + index * row_bytes; }
__device__ __forceinline__ uint32_t neighbour() { return (threadIdx.x + 1) % blockDim.x; }

// The row of 16 bytes of a thread in shared memory.
__device__ __forceinline__ void store_row(uint32_t index) {
    device::store128(row(index), make_uint4(index, index + 1, index + 2, index + 3));
}

template <int count>
__device__ __forceinline__ void store(const TestParams& params, const uint32_t (&r)[count]) {
    uint32_t sum = 0;
    for (int j = 0; j < count; ++j) sum += r[j];
    params.output[threadIdx.x] = static_cast<float>(sum);
}

template <class T>
__device__ __forceinline__ void multiply_ones(float (&c)[4], uint32_t one) {
    const uint32_t a[4] = {one, one, one, one}, b[2] = {one, one};
    device::multiply(c, a, b, T());
}

constexpr uint32_t bf16_ones = 0x3f803f80, f16_ones = 0x3c003c00;

}  // namespace

KERNEL(matrix_sound, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncthreads();
    uint32_t four[4], two[2], transposed[4];
    device::ldmatrix(four, row(neighbour()));
    device::ldmatrix(two, row(neighbour()));
    device::ldmatrix_transposed(transposed, row(neighbour()));
    float c[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    multiply_ones<__nv_bfloat16>(c, bf16_ones);
    multiply_ones<__half>(c, f16_ones);
    store(params, four);
    params.output[threadIdx.x] = c[0] + c[1] + c[2] + c[3];
}

// The addresses of lanes 16 to 31 are invalid, and ignored for two matrices.
KERNEL(matrix_sound_two, TestParams, 1024, 1) {
    const uint32_t lane = threadIdx.x % 32;
    if (lane < 16) store_row(threadIdx.x);
    __syncwarp();
    uint32_t r[2];
    device::ldmatrix(r, lane < 16 ? row(threadIdx.x) : nullptr);
    device::ldmatrix_transposed(r, lane < 16 ? row(threadIdx.x) : nullptr);
    store(params, r);
}

KERNEL(matrix_of_nothing, TestParams, 1024, 1) {
    if (threadIdx.x % 32 < 31) store_row(threadIdx.x);
    __syncthreads();
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x));  // fault: nothing
    store(params, r);
}

// One of the eight elements of a row is uninitialised.
KERNEL(matrix_of_almost_all, TestParams, 1024, 1) {
    uint16_t* elements = reinterpret_cast<uint16_t*>(row(threadIdx.x));
    for (uint32_t i = 0; i < 8; ++i) {
        if (threadIdx.x != 9 || i != 5) elements[i] = 1;
    }
    __syncthreads();
    uint32_t r[4];
    device::ldmatrix_transposed(r, row(threadIdx.x));  // fault: element
    store(params, r);
}

KERNEL(matrix_sound_warp, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncwarp();
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x ^ 1));
    __syncwarp();
    store_row(threadIdx.x);
    store(params, r);
}

KERNEL(matrix_without_barrier, TestParams, 1024, 1) {
    Numbers{}.store(reinterpret_cast<float*>(row(threadIdx.x)));
    __syncwarp();
    store_row(threadIdx.x);
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x ^ 1));
    store(params, r);
}

// An ldmatrix is not a synchronisation of the warp.
KERNEL(matrix_overwritten, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncwarp();
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x ^ 1));
    *row(threadIdx.x) = 1;  // fault: overwritten
    store(params, r);
}

// Each lane passes the address of a row that it stored itself, and overwrites it afterwards. As all lanes load elements of every row,
// the warp must synchronise before and after.
KERNEL(matrix_sound_own_row, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncwarp();
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x));
    __syncwarp();
    store_row(threadIdx.x);
    store(params, r);
}

KERNEL(matrix_of_own_row, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x));  // fault: own
    store(params, r);
}

KERNEL(matrix_own_row_overwritten, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncwarp();
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x));
    *row(threadIdx.x) = 1;  // fault: own overwritten
    store(params, r);
}

KERNEL(matrix_past_the_end, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncthreads();
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x + 1));  // fault: past
    store(params, r);
}

KERNEL(matrix_misaligned, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncthreads();
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x) + (threadIdx.x == 4 ? 8 : 0));  // fault: misaligned
    store(params, r);
}

KERNEL(matrix_of_global, TestParams, 1024, 1) {
    uint32_t r[4];
    device::ldmatrix(r, params.input + threadIdx.x / 4 * 4);  // fault: global
    store(params, r);
}

KERNEL(matrix_of_stack, TestParams, 1024, 1) {
    Numbers mine = Numbers::load(params.input);
    uint32_t r[4];
    device::ldmatrix(r, &mine);  // fault: stack
    store(params, r);
}

KERNEL(matrix_sound_copy, TestParams, 1024, 1) {
    device::copy128_async(row(threadIdx.x), params.input + threadIdx.x / 4 * 4);
    device::await_copies();
    __syncwarp();
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x ^ 1));
    store(params, r);
}

KERNEL(matrix_of_copy_under_way, TestParams, 1024, 1) {
    device::copy128_async(row(threadIdx.x), params.input + threadIdx.x / 4 * 4);
    __syncwarp();
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x ^ 1));  // fault: copy
    device::await_copies();
    store(params, r);
}

KERNEL(matrix_of_copy_of_another, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncwarp();
    device::copy128_async(row(threadIdx.x), params.input + threadIdx.x / 4 * 4);
    device::await_copies();
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x ^ 1));
    store(params, r);
}

// Different warps may take different branches.
KERNEL(matrix_sound_branches, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncthreads();
    uint32_t r[4];
    if (threadIdx.x < 32) device::ldmatrix(r, row(threadIdx.x));
    else device::ldmatrix_transposed(r, row(threadIdx.x));
    store(params, r);
}

KERNEL(matrix_lane_returned, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 3) return;
    uint32_t r[4];
    device::ldmatrix(r, row(threadIdx.x));  // fault: returned
    store(params, r);
}

KERNEL(matrix_lane_elsewhere, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncthreads();
    uint32_t r[4] = {};
    if (threadIdx.x != 3) device::ldmatrix(r, row(threadIdx.x));
    __syncthreads();
    store(params, r);
}

KERNEL(product_lane_returned, TestParams, 1024, 1) {
    if (threadIdx.x == 3) return;
    const uint32_t a[4] = {}, b[2] = {};
    float c[4] = {};
    device::multiply(c, a, b, __half());  // fault: missing
    params.output[threadIdx.x] = c[0];
}

KERNEL(matrix_counts_differ, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncthreads();
    uint32_t four[4], two[2];
    if (threadIdx.x < 16) {
        device::ldmatrix(two, row(threadIdx.x));
        store(params, two);
    } else {
        device::ldmatrix(four, row(threadIdx.x));
        store(params, four);
    }
}

KERNEL(matrix_transposed_by_half, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncthreads();
    uint32_t r[4];
    if (threadIdx.x % 2 == 0) device::ldmatrix(r, row(threadIdx.x));
    else device::ldmatrix_transposed(r, row(threadIdx.x));
    store(params, r);
}

// The same operation, but not the same instruction.
KERNEL(matrix_at_two_lines, TestParams, 1024, 1) {
    store_row(threadIdx.x);
    __syncthreads();
    uint32_t r[4];
    if (threadIdx.x < 16) {
        device::ldmatrix(r, row(threadIdx.x));
        params.output[threadIdx.x] = static_cast<float>(r[0]);
    } else {
        device::ldmatrix(r, row(threadIdx.x));
        params.output[threadIdx.x] = static_cast<float>(r[1]);
    }
}

KERNEL(product_types_differ, TestParams, 1024, 1) {
    float c[4] = {};
    if (threadIdx.x < 16) multiply_ones<__nv_bfloat16>(c, bf16_ones);
    else multiply_ones<__half>(c, f16_ones);
    params.output[threadIdx.x] = c[0];
}

KERNEL(product_and_shuffle, TestParams, 1024, 1) {
    float c[4] = {};
    if (threadIdx.x != 8) multiply_ones<__half>(c, f16_ones);
    else c[0] = __shfl_sync(0xffffffffu, c[0], 0);
    params.output[threadIdx.x] = c[0];
}
