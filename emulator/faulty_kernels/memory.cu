// Accesses outside of buffers, and alignment.

#include "packet.cuh"
#include "params.cuh"

KERNEL(memory_sound, TestParams, 1024, 1) {
    float* staged = reinterpret_cast<float*>(device::shared_memory());
    const uint64_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= params.count) return;
    staged[threadIdx.x] = params.input[i];
    params.output[i] = staged[threadIdx.x];
}

KERNEL(memory_load_past_end, TestParams, 1024, 1) {
    const uint64_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i > params.count) return;
    const float value = params.input[i];  // fault: load
    params.output[i] = value;
}

KERNEL(memory_store_before_start, TestParams, 1024, 1) {
    params.output[static_cast<int64_t>(threadIdx.x) - 1] = 1.0f;  // fault: store
}

KERNEL(memory_shared_past_end, TestParams, 1024, 1) {
    float* staged = reinterpret_cast<float*>(device::shared_memory());
    staged[threadIdx.x + 1] = 1.0f;  // fault: shared
}

KERNEL(memory_far_away, TestParams, 1024, 1) { params.output[params.count + threadIdx.x] = 1.0f; }

KERNEL(memory_stack_of_another, TestParams, 1024, 1) {
    float** slot = reinterpret_cast<float**>(device::shared_memory());
    float mine = 1.0f;
    if (threadIdx.x == 0) *slot = &mine;
    __syncthreads();
    params.output[threadIdx.x] = **slot;  // fault: stack
    __syncthreads();
}

KERNEL(alignment_sound, TestParams, 1024, 1) {
    const uint64_t i = threadIdx.x * Packet<float>::size;
    Packet<float>::load(params.input + i).store(params.output + i);
}

KERNEL(alignment_of_packet, TestParams, 1024, 1) {
    const uint64_t i = threadIdx.x * Packet<float>::size;
    const Packet<float> packet = Packet<float>::load(params.input + i + 1);  // fault: packet
    packet.store(params.output + i);
}

KERNEL(alignment_of_number, TestParams, 1024, 1) {
    const char* bytes = reinterpret_cast<const char*>(params.input) + 2;
    params.output[threadIdx.x] = reinterpret_cast<const float*>(bytes)[threadIdx.x];  // fault: number
}
