// Accesses whose sectors and bank conflicts are known.

#include "packet.cuh"
#include "params.cuh"

// Thread i copies number i · count. A count of 1 touches full sectors, and a count of 8 or more touches one sector for each thread.
KERNEL(traffic_stride, TestParams, 1024, 1) {
    const uint64_t i = threadIdx.x * params.count;
    params.output[i] = params.input[i];
}

KERNEL(traffic_packets, TestParams, 1024, 1) {
    const uint64_t i = threadIdx.x * Packet<float>::size;
    Packet<float>::load(params.input + i).store(params.output + i);
}

// Thread i stores word i · count of shared memory. With a count of 32 all words are in one bank, and with an odd count all are in
// different banks.
KERNEL(traffic_banks, TestParams, 1024, 1) {
    float* words = reinterpret_cast<float*>(device::shared_memory());
    words[threadIdx.x * params.count] = 1.0f;
}

KERNEL(traffic_shared_packets, TestParams, 1024, 1) {
    float* words = reinterpret_cast<float*>(device::shared_memory());
    Packet<float>{{1.0f, 2.0f, 3.0f, 4.0f}}.store(words + threadIdx.x * params.count);
}

// The row of lane i is packet i · count of shared memory.
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

// Inactive lanes still count when a wide access is split into parts of a warp. Lanes that skip an iteration between two barriers are
// not combined with other lanes after the next barrier.
KERNEL(traffic_some_lanes, TestParams, 1024, 1) {
    float* words = reinterpret_cast<float*>(device::shared_memory());
    for (uint32_t turn = 0; turn < 2; ++turn) {
        if (threadIdx.x % 2 == 0 || turn == 1) Packet<float>{}.store(words + threadIdx.x * 4 + turn * 1024);
        __syncthreads();
    }
}
