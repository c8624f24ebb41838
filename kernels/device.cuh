// The one header that knows which compiler reads it: nvcc for the GPU, or the host's for the emulator.
// It holds what the two must spell differently: a kernel's head, dynamic shared memory, 128-bit accesses, asynchronous
// copies and the matrix operations of a warp.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__

// A kernel takes one parameter struct by value and is launched with at most `threads` threads a block. The compiler gives
// it so few registers that at least `blocks` blocks of that many threads fit on a multiprocessor, which launch plans rely on.
// ptxas ignores a bound that the architecture cannot hold. The smallest (sm_86) holds 16 blocks, and 1536 threads in all.
#define KERNEL(name, Params, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params params)

namespace device {

// The block's dynamic shared memory. There is no other: a `static` array would be one for all blocks of the emulator.
__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
}

__device__ __forceinline__ uint4 load128(const void* address) { return *static_cast<const uint4*>(address); }
__device__ __forceinline__ void store128(void* address, uint4 value) { *static_cast<uint4*>(address) = value; }

// Sixteen bytes of global memory on their way to shared memory, past the registers, which so many loads at once would not
// find room in. They are there for this thread after it has awaited them, and for others after a barrier behind that.
__device__ __forceinline__ void copy128_async(void* shared, const void* global) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
// The copies that this thread has begun since the last group become a group, which may be empty.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all of this thread's groups but the newest `pending` have arrived. Copies of no group are not awaited.
template <int pending>
__device__ __forceinline__ void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
// Waits for all of this thread's copies, whether they are of a group or not.
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Loads `count` matrices of 8×8 16-bit elements from shared memory, with all lanes of the warp. Row i of matrix j is the
// sixteen bytes at the `row` of lane 8j + i. For two matrices the addresses of the lanes from 16 on are ignored. Of matrix
// j, `r[j]` of a lane gets elements 2(lane % 4) and 2(lane % 4) + 1 of row lane / 4.
template <int count>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[count], const void* row) {
    static_assert(count == 2 || count == 4, "two matrices or four");
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    if constexpr (count == 2) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    }
}
// The same of the transposed matrices: a lane gets elements lane / 4 of rows 2(lane % 4) and 2(lane % 4) + 1.
template <int count>
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[count], const void* row) {
    static_assert(count == 2 || count == 4, "two matrices or four");
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    if constexpr (count == 2) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    }
}

// Adds A·B to C on the tensor cores, with all lanes of the warp: A is [16, 16], B [16, 8] and C [16, 8] in f32. With
// g = lane / 4 and t = 2(lane % 4), a lane holds
//     a[0], a[1], a[2], a[3]:  A[g][t, t+1], A[g+8][t, t+1], A[g][t+8, t+9], A[g+8][t+8, t+9]
//     b[0], b[1]:              B[t, t+1][g], B[t+8, t+9][g]
//     c[0], c[1], c[2], c[3]:  C[g][t], C[g][t+1], C[g+8][t], C[g+8][t+1]
// so `ldmatrix` gives A from rows of A, and B from rows of the transposed B.
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

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
