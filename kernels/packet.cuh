// Sixteen bytes of a tensor, loaded or stored by one instruction.
#pragma once

#include "device.cuh"

template <class T>
struct alignas(16) Packet {
    static constexpr int size = 16 / sizeof(T);
    T values[size];

    __device__ __forceinline__ static Packet from_bits(uint4 bits) {
        Packet packet;
        static_assert(sizeof(Packet) == sizeof(bits), "a packet is 128 bits");
        memcpy(&packet, &bits, sizeof(bits));
        return packet;
    }

    __device__ __forceinline__ uint4 bits() const {
        uint4 bits;
        memcpy(&bits, values, sizeof(bits));
        return bits;
    }

    // The address must be a multiple of 16.
    __device__ __forceinline__ static Packet load(const T* address) { return from_bits(device::load128(address)); }
    __device__ __forceinline__ static Packet load_once(const T* address) { return from_bits(device::load128_once(address)); }
    __device__ __forceinline__ void store(T* address) const { device::store128(address, bits()); }
    __device__ __forceinline__ void store_once(T* address) const { device::store128_once(address, bits()); }
};
