// Results that depend on the order of the threads, and results that do not.

#include "params.cuh"

KERNEL(schedule_sound, TestParams, 1024, 1) {
    atomicAdd(params.counter, threadIdx.x);
    atomicMax(params.counter + 1, threadIdx.x);
}

// A sum of floats by atomics depends on the order of the threads.
KERNEL(schedule_float_sum, TestParams, 1024, 1) { atomicAdd(params.output, params.input[threadIdx.x]); }

KERNEL(schedule_first_come, TestParams, 1024, 1) {
    const uint32_t place = atomicAdd(params.counter, 1u);
    params.output[place] = params.input[threadIdx.x];
}
