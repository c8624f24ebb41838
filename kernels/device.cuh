// The one header that knows which compiler reads it: nvcc for the GPU, or the host's for the emulator.
// It holds what the two must spell differently: a kernel's head, dynamic shared memory and 128-bit accesses.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__

// A kernel takes one parameter struct by value and is launched with at most `threads` threads a block. It leaves
// registers for 1024 threads on a multiprocessor, which launch plans rely on.
#define KERNEL(name, Params, threads) \
    extern "C" __global__ void __launch_bounds__(threads, 1024 / threads) name(const __grid_constant__ Params params)

namespace device {

// The block's dynamic shared memory. There is no other: a `static` array would be one for all blocks of the emulator.
__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
}

__device__ __forceinline__ uint4 load128(const void* address) { return *static_cast<const uint4*>(address); }
__device__ __forceinline__ void store128(void* address, uint4 value) { *static_cast<uint4*>(address) = value; }

// Sixteen bytes of global memory on their way to shared memory, past the registers, which so many loads at once would not
// find room in. They are there for this thread after `await_copies`, and for others after a barrier behind that.
__device__ __forceinline__ void copy128_async(void* shared, const void* global) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 2^x by one instruction, within two units in the last place; what is below 2⁻¹²⁶ is 0.
__device__ __forceinline__ float exp2(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

}  // namespace device

#else
#include <emulated_device.h>
#endif
