// The only header that depends on the compiler: nvcc for the GPU, or the host's compiler for the emulator. It declares
// what the two must spell differently: kernel definitions, dynamic shared memory, 128-bit accesses, asynchronous copies
// (cp.async) and matrix operations (ldmatrix, mma).
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__

// Defines a kernel that takes one parameter struct by value. Its launch bounds are at most `threads` threads a block,
// and registers for at least `blocks` such blocks on a multiprocessor; launch plans rely on both. ptxas ignores a bound
// that the architecture cannot hold. The smallest (sm_86) holds 16 blocks, and 1536 threads in all.
#define KERNEL(name, Params, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params params)

namespace device {

// The block's dynamic shared memory. Kernels have no static shared memory: the emulator would share it among all
// blocks.
__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
}

__device__ __forceinline__ uint4 load128(const void* address) { return *static_cast<const uint4*>(address); }
__device__ __forceinline__ void store128(void* address, uint4 value) { *static_cast<uint4*>(address) = value; }

// Starts a copy of 16 bytes from global to shared memory (cp.async, cached in L2 only). The bytes do not pass through
// registers, which could not hold all the loads in flight of a pipeline. They are visible to this thread after it has
// awaited the copy, and to other threads after a barrier that follows.
__device__ __forceinline__ void copy128_async(void* shared, const void* global) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
// Commits the copies that this thread has started since its last commit as one group, which may be empty.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the newest `pending` commit groups of this thread are in flight. Uncommitted copies are not
// awaited.
template <int pending>
__device__ __forceinline__ void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
// Waits for all of this thread's copies, committed or not.
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Loads `count` 8×8 matrices of 16-bit elements from shared memory, with all lanes of the warp. Lane 8j + i passes the
// address of row i of matrix j, which is 16 bytes. For two matrices the addresses of lanes 16 to 31 are ignored. r[j]
// of a lane gets elements 2(lane % 4) and 2(lane % 4) + 1 of row lane / 4 of matrix j.
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
// Loads the transposes of `count` matrices: r[j] of a lane gets element lane / 4 of rows 2(lane % 4) and 2(lane % 4) +
// 1.
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

// C += A·B on the tensor cores (mma.m16n8k16), with all lanes of the warp: A is [16, 16], B [16, 8] and C [16, 8] in
// f32. With g = lane / 4 and t = 2(lane % 4), a lane holds
//     a[0], a[1], a[2], a[3]:  A[g][t, t+1], A[g+8][t, t+1], A[g][t+8, t+9], A[g+8][t+8, t+9]
//     b[0], b[1]:              B[t, t+1][g], B[t+8, t+9][g]
//     c[0], c[1], c[2], c[3]:  C[g][t], C[g][t+1], C[g+8][t], C[g+8][t+1]
// so `ldmatrix` loads A from the rows of A, and B from the rows of the transposed B.
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

// 2^x by one instruction, within two units in the last place. Results below 2⁻¹²⁶ are flushed to 0.
__device__ __forceinline__ float exp2(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

}  // namespace device

#else
#include <emulated_device.h>
#endif
