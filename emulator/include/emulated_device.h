// The part of kernels/device.cuh that depends on the compiler, for the emulator.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"
#include "kernel_list.h"

namespace device {

inline unsigned char* shared_memory() { return emulator_shared_memory(); }

// Each is one call to the emulator, because the host's compiler would split an access of 16 bytes.
__forceinline__ uint4 load128(const void* address) {
    uint4 value;
    emulator_load128(address, &value);
    return value;
}
__forceinline__ void store128(void* address, uint4 value) { emulator_store128(address, &value); }

__forceinline__ void copy128_async(void* shared, const void* global) { emulator_copy128(shared, global); }
__forceinline__ void commit_copies() { emulator_commit_copies(); }
template <int pending>
__forceinline__ void await_copies() {
    static_assert(pending >= 0, "how many groups may be pending");
    emulator_await_groups(pending);
}
__forceinline__ void await_copies() { emulator_await_copies(); }

template <int count>
__forceinline__ void unpack_matrices(uint32_t (&r)[count], EmulatorWords words) {
    static_assert(count == 2 || count == 4, "two matrices or four");
    r[0] = static_cast<uint32_t>(words.low);
    r[1] = static_cast<uint32_t>(words.low >> 32);
    if constexpr (count == 4) {
        r[2] = static_cast<uint32_t>(words.high);
        r[3] = static_cast<uint32_t>(words.high >> 32);
    }
}
template <int count>
__forceinline__ void ldmatrix(uint32_t (&r)[count], const void* row) {
    unpack_matrices(r, emulator_ldmatrix(row, count, 0));
}
template <int count>
__forceinline__ void ldmatrix_transposed(uint32_t (&r)[count], const void* row) {
    unpack_matrices(r, emulator_ldmatrix(row, count, 1));
}

__forceinline__ void multiply_bits(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], uint32_t half) {
    const auto pair = [](uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; };
    const EmulatorWords words{pair(a[0], a[1]), pair(a[2], a[3])};
    const EmulatorSums sums = emulator_multiply(words, pair(b[0], b[1]), {{c[0], c[1], c[2], c[3]}}, half);
    c[0] = sums.sums[0];
    c[1] = sums.sums[1];
    c[2] = sums.sums[2];
    c[3] = sums.sums[3];
}
__forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
    multiply_bits(c, a, b, 0);
}
__forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
    multiply_bits(c, a, b, 1);
}

__forceinline__ float exp2(float x) {
    const float power = exp2f(x);
    return power < 0x1p-126f ? 0.0f : power;
}

}  // namespace device
