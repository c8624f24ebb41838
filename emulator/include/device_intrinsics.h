// Device functions: barriers, warp operations, arithmetic.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

namespace emulator {

template <class T>
__forceinline__ uint64_t bits(T value) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "the emulator carries values of up to eight bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <class T>
__forceinline__ T value(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace emulator

__forceinline__ void __syncthreads() { emulator_block_barrier(0, 0); }
__forceinline__ int __syncthreads_count(int predicate) { return emulator_block_barrier(1, predicate != 0); }
__forceinline__ int __syncthreads_or(int predicate) { return emulator_block_barrier(1, predicate != 0) != 0; }
__forceinline__ int __syncthreads_and(int predicate) { return emulator_block_barrier(1, predicate == 0) == 0; }

__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) { emulator_warp_barrier(mask); }
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) { return emulator_ballot(mask, predicate != 0); }
__forceinline__ int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
__forceinline__ int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// A shuffle within segments of `width` lanes. A source outside the segment gives the lane's own value.
template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const uint32_t segment = emulator_lane() & ~(width - 1);
    return emulator::value<T>(emulator_shuffle(mask, emulator::bits(value), segment + (source & (width - 1))));
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const uint32_t lane = emulator_lane(), source = lane ^ lanes, end = (lane & ~(width - 1)) + width;
    return emulator::value<T>(emulator_shuffle(mask, emulator::bits(value), source < end ? source : lane));
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
    const uint32_t lane = emulator_lane(), segment = lane & ~(width - 1);
    return emulator::value<T>(emulator_shuffle(mask, emulator::bits(value), lane >= segment + lanes ? lane - lanes : lane));
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
    const uint32_t lane = emulator_lane(), end = (lane & ~(width - 1)) + width;
    return emulator::value<T>(emulator_shuffle(mask, emulator::bits(value), lane + lanes < end ? lane + lanes : lane));
}

__forceinline__ void __threadfence() { emulator_fence(); }
__forceinline__ void __threadfence_block() { emulator_fence(); }

template <class T>
__forceinline__ T __ldg(const T* address) { return *address; }

__forceinline__ unsigned __float_as_uint(float value) { return static_cast<unsigned>(emulator::bits(value)); }
__forceinline__ float __uint_as_float(unsigned bits) { return emulator::value<float>(bits); }
__forceinline__ int __float_as_int(float value) { return static_cast<int>(emulator::bits(value)); }
__forceinline__ float __int_as_float(int bits) { return __uint_as_float(bits); }

__forceinline__ int __popc(unsigned bits) { return __builtin_popcount(bits); }
__forceinline__ int __ffs(int bits) { return __builtin_ffs(bits); }
__forceinline__ int __clz(int bits) { return bits ? __builtin_clz(bits) : 32; }

__forceinline__ float __expf(float x) { return expf(x); }
__forceinline__ float __logf(float x) { return logf(x); }
__forceinline__ float __fdividef(float a, float b) { return a / b; }
__forceinline__ float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
__forceinline__ float rsqrtf(float x) { return 1.0f / sqrtf(x); }

template <class T>
__forceinline__ T min(T a, T b) { return b < a ? b : a; }
template <class T>
__forceinline__ T max(T a, T b) { return a < b ? b : a; }
