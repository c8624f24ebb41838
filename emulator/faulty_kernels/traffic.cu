// Accesses whose sectors and bank conflicts are known.

#include "packet.cuh"
#include "params.cuh"

// Thread i copies number i · count: whole sectors for a count of 1, a sector each for 8 and more.
KERNEL(traffic_stride, TestParams, 1024, 1) {
    const uint64_t i = threadIdx.x * params.count;
    params.output[i] = params.input[i];
}

KERNEL(traffic_packets, TestParams, 1024, 1) {
    const uint64_t i = threadIdx.x * Packet<float>::size;
    Packet<float>::load(params.input + i).store(params.output + i);
}

// Thread i stores word i · count of shared memory: a count of 32 sends all to one bank, an odd one none to the same.
KERNEL(traffic_banks, TestParams, 1024, 1) {
    float* words = reinterpret_cast<float*>(device::shared_memory());
    words[threadIdx.x * params.count] = 1.0f;
}

KERNEL(traffic_shared_packets, TestParams, 1024, 1) {
    float* words = reinterpret_cast<float*>(device::shared_memory());
    Packet<float>{{1.0f, 2.0f, 3.0f, 4.0f}}.store(words + threadIdx.x * params.count);
}

// The row of lane i is packet i · count.
KERNEL(traffic_matrices, TestParams, 1024, 1) {
    unsigned char* row = device::shared_memory() + threadIdx.x * params.count * 16;
    device::store128(row, make_uint4(1, 2, 3, 4));
    __syncthreads();
    uint32_t r[4];
    device::ldmatrix(r, row);
    params.output[threadIdx.x] = static_cast<float>(r[0]);
}

KERNEL(traffic_two_matrices, TestParams, 1024, 1) {
    unsigned char* row = device::shared_memory() + threadIdx.x * params.count * 16;
    device::store128(row, make_uint4(1, 2, 3, 4));
    __syncthreads();
    uint32_t r[2];
    device::ldmatrix_transposed(r, row);
    params.output[threadIdx.x] = static_cast<float>(r[0]);
}

// Lanes that take no part leave their place in a part of the warp empty, and those that skip a turn between two barriers are
// not joined with others behind the next.
KERNEL(traffic_some_lanes, TestParams, 1024, 1) {
    float* words = reinterpret_cast<float*>(device::shared_memory());
    for (uint32_t turn = 0; turn < 2; ++turn) {
        if (threadIdx.x % 2 == 0 || turn == 1) Packet<float>{}.store(words + threadIdx.x * 4 + turn * 1024);
        __syncthreads();
    }
}
