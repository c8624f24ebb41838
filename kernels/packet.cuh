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
    __device__ __forceinline__ void store(T* address) const { device::store128(address, bits()); }
};

// Puts a value at a place of an array that is to stay in registers, or nowhere where there is no such place.
template <class T, int size>
__device__ __forceinline__ void put(T (&values)[size], uint32_t place, T value) {
    if (place >= size) return;
#pragma unroll
    for (uint32_t k = 0; k < size; ++k) {
        if (k == place) values[k] = value;
    }
}

// A row of elements as packets. It need not begin at a multiple of 16 bytes: packets are counted from the multiple
// before, so that the first and the last may hold fewer elements of the row.
template <class T>
class PacketRow {
public:
    static constexpr uint32_t packet = Packet<T>::size;

    __device__ __forceinline__ PacketRow(T* first, uint32_t width) : width(width) {
        skew = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(first) % sizeof(Packet<T>) / sizeof(T));
        aligned = first - skew;
    }

    __device__ __forceinline__ uint32_t packets() const { return (skew + width + packet - 1) / packet; }

    // The first element of the row that is in a packet, or in any after it.
    __device__ __forceinline__ uint32_t first(uint32_t index) const {
        const uint32_t begin = index * packet;
        if (begin <= skew) return 0;
        return begin - skew < width ? begin - skew : width;
    }

    // Whether all elements of a packet are the row's.
    __device__ __forceinline__ bool is_whole(uint32_t index) const {
        return index * packet >= skew && (index + 1) * packet <= skew + width;
    }

    // The packets of which that is true: from here...
    __device__ __forceinline__ uint32_t whole_begin() const { return skew != 0; }
    // ... to here.
    __device__ __forceinline__ uint32_t whole_end() const {
        const uint32_t end = (skew + width) / packet;
        return end > whole_begin() ? end : whole_begin();
    }

    __device__ __forceinline__ T* address(uint32_t index) const { return aligned + index * packet; }

    // Where an element is, counted from the beginning of a packet.
    __device__ __forceinline__ uint32_t place(uint32_t element, uint32_t index) const {
        return element + skew - index * packet;
    }

    // Elements before the row in its first packet.
    uint32_t skew;

private:
    T* aligned;
    uint32_t width;
};
