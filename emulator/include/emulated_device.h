// kernels/device.cuh for the emulator.
#pragma once

#include "cuda_runtime.h"
#include "kernel_list.h"

namespace device {

inline unsigned char* shared_memory() { return emulator_shared_memory(); }

// By one call each: the host's compiler would split the sixteen bytes.
__forceinline__ uint4 load128(const void* address) {
    uint4 value;
    emulator_load128(address, &value);
    return value;
}
__forceinline__ void store128(void* address, uint4 value) { emulator_store128(address, &value); }

__forceinline__ void copy128_async(void* shared, const void* global) { emulator_copy128(shared, global); }
__forceinline__ void await_copies() { emulator_await_copies(); }

__forceinline__ float exp2(float x) {
    const float power = exp2f(x);
    return power < 0x1p-126f ? 0.0f : power;
}

}  // namespace device
