// A row of a matrix as packets that are counted from its first element, padded with zeros to full packets. A packet is
// one 16-byte load if address and size of the row are multiples of 16 bytes, and otherwise one load for each element.
#pragma once

#include "number.cuh"
#include "packet.cuh"

template <class T>
struct Vector {
    const T* values;
    uint32_t width;
    bool aligned;

    __device__ __forceinline__ Vector(const T* values, uint32_t width)
        : values(values),
          width(width),
          aligned((reinterpret_cast<uintptr_t>(values) | width * sizeof(T)) % sizeof(Packet<T>) == 0) {}

    __device__ __forceinline__ static uint32_t packets(uint32_t width) {
        return (width + Packet<T>::size - 1) / Packet<T>::size;
    }

    __device__ __forceinline__ Packet<T> load(uint32_t index) const {
        const uint32_t first = index * Packet<T>::size;
        if (aligned && first < width) return Packet<T>::load(values + first);
        Packet<T> packet;
#pragma unroll
        for (uint32_t k = 0; k < Packet<T>::size; ++k) {
            packet.values[k] = first + k < width ? values[first + k] : number::narrow<T>(0.0f);
        }
        return packet;
    }
};

// Stores a packet of a row of `width` elements, without its padding.
template <class T>
__device__ __forceinline__ void store_packet(T* row, uint32_t width, uint32_t index, const Packet<T>& packet) {
    const uint32_t first = index * Packet<T>::size;
    if (Vector<T>(row, width).aligned) {
        packet.store(row + first);
        return;
    }
#pragma unroll
    for (uint32_t k = 0; k < Packet<T>::size; ++k) {
        if (first + k < width) row[first + k] = packet.values[k];
    }
}
