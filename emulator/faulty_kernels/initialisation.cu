// Reads of uninitialised bytes.

#include "params.cuh"

KERNEL(initialisation_sound, TestParams, 1024, 1) {
    float* staged = reinterpret_cast<float*>(device::shared_memory());
    staged[threadIdx.x] = params.input[threadIdx.x];
    __syncthreads();
    params.output[threadIdx.x] = staged[blockDim.x - 1 - threadIdx.x];
}

KERNEL(initialisation_of_global, TestParams, 1024, 1) {
    const float old = params.output[threadIdx.x];  // fault: global
    params.output[threadIdx.x] = old + params.input[threadIdx.x];
}

KERNEL(initialisation_of_shared, TestParams, 1024, 1) {
    float* staged = reinterpret_cast<float*>(device::shared_memory());
    if (threadIdx.x != 3) staged[threadIdx.x] = params.input[threadIdx.x];
    __syncthreads();
    const float value = staged[blockDim.x - 1 - threadIdx.x];  // fault: shared
    params.output[threadIdx.x] = value;
}

// Shared memory does not keep the values of an earlier block.
KERNEL(initialisation_by_block_before, TestParams, 1024, 1) {
    float* staged = reinterpret_cast<float*>(device::shared_memory());
    if (blockIdx.x == 0) staged[threadIdx.x] = 1.0f;
    const float value = staged[threadIdx.x];  // fault: before
    params.output[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

KERNEL(initialisation_of_output, TestParams, 1024, 1) {
    if (threadIdx.x != 5) params.output[threadIdx.x] = params.input[threadIdx.x];
}
