// Multiplies tiles in shared memory `count` times, like the inner loop of a kernel that uses tensor cores.

#include "params.cuh"

KERNEL(speed_of_products, TestParams, 128, 8) {
    constexpr uint32_t row_bytes = 48;  // 16 elements, and no bank conflicts
    const uint32_t lane = threadIdx.x % 32;
    unsigned char* a_rows = device::shared_memory() + threadIdx.x / 32 * 24 * row_bytes;
    unsigned char* b_rows = a_rows + 16 * row_bytes;
    const uint32_t ones = 0x3f803f80;
    for (uint32_t i = lane; i < 24 * 2; i += 32) {
        device::store128(a_rows + i / 2 * row_bytes + i % 2 * 16, make_uint4(ones, ones, ones, ones));
    }
    __syncwarp();
    float c[4] = {};
    for (uint32_t turn = 0; turn < params.count; ++turn) {
        uint32_t a[4], b[2];
        device::ldmatrix(a, a_rows + lane % 16 * row_bytes + lane / 16 * 16);
        device::ldmatrix(b, b_rows + lane % 8 * row_bytes + lane / 8 % 2 * 16);
        device::multiply(c, a, b, __nv_bfloat16());
    }
    params.output[blockIdx.x * blockDim.x + threadIdx.x] = c[0];
}
