// Atomic read-modify-writes, which return the old value. They do not order other accesses, which takes a __threadfence.
#pragma once

#include "device_intrinsics.h"

namespace emulator {

template <class T, T (*change)(T, T, T)>
__forceinline__ T atomic(T* address, T a, T b) {
    const auto change_bits = [](uint64_t old, uint64_t a, uint64_t b) __attribute__((no_sanitize("thread"))) {
        return bits(change(value<T>(old), value<T>(a), value<T>(b)));
    };
    return value<T>(emulator_atomic(address, sizeof(T), change_bits, bits(a), bits(b)));
}

template <class T> T add(T old, T a, T) { return old + a; }
template <class T> T smaller(T old, T a, T) { return a < old ? a : old; }
template <class T> T larger(T old, T a, T) { return old < a ? a : old; }
template <class T> T exchange(T, T a, T) { return a; }
template <class T> T exchange_if(T old, T expected, T replacement) { return old == expected ? replacement : old; }
// CUDA's atomicInc: increments up to `last`, and then wraps to 0.
template <class T> T increment(T old, T last, T) { return old >= last ? 0 : old + 1; }

}  // namespace emulator

template <class T> __forceinline__ T atomicAdd(T* address, T value) { return emulator::atomic<T, emulator::add<T>>(address, value, T()); }
template <class T> __forceinline__ T atomicMin(T* address, T value) { return emulator::atomic<T, emulator::smaller<T>>(address, value, T()); }
template <class T> __forceinline__ T atomicMax(T* address, T value) { return emulator::atomic<T, emulator::larger<T>>(address, value, T()); }
template <class T> __forceinline__ T atomicExch(T* address, T value) { return emulator::atomic<T, emulator::exchange<T>>(address, value, T()); }
template <class T> __forceinline__ T atomicCAS(T* address, T expected, T value) { return emulator::atomic<T, emulator::exchange_if<T>>(address, expected, value); }
__forceinline__ unsigned atomicInc(unsigned* address, unsigned last) { return emulator::atomic<unsigned, emulator::increment<unsigned>>(address, last, 0u); }
