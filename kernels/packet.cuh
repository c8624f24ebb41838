// Packets: 16 bytes of a tensor, which one instruction loads or stores.
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

// Assigns values[index] if the index is in bounds. It uses selects instead of a dynamic index, which would move the
// array from registers to local memory.
template <class T, int size>
__device__ __forceinline__ void set_element(T (&values)[size], uint32_t index, T value) {
    if (index >= size) return;
#pragma unroll
    for (uint32_t k = 0; k < size; ++k) {
        if (k == index) values[k] = value;
    }
}

// A row of `width` elements as packets at 16-byte boundaries. The row itself may begin anywhere: packet 0 begins at the
// boundary at or before its first element, so the first and the last packet may be partly outside the row.
template <class T>
class PacketRow {
public:
    static constexpr uint32_t packet = Packet<T>::size;

    __device__ __forceinline__ PacketRow(T* first, uint32_t width) : width(width) {
        skew = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(first) % sizeof(Packet<T>) / sizeof(T));
        aligned = first - skew;
    }

    __device__ __forceinline__ uint32_t packets() const { return (skew + width + packet - 1) / packet; }

    // The first element of the row that is in packet `index` or in a later one; `width` after the last packet.
    __device__ __forceinline__ uint32_t first(uint32_t index) const {
        const uint32_t begin = index * packet;
        if (begin <= skew) return 0;
        return begin - skew < width ? begin - skew : width;
    }

    // Whether all elements of a packet are inside the row.
    __device__ __forceinline__ bool is_full(uint32_t index) const {
        return index * packet >= skew && (index + 1) * packet <= skew + width;
    }

    // Packets [full_begin(), full_end()) are full.
    __device__ __forceinline__ uint32_t full_begin() const { return skew != 0; }
    __device__ __forceinline__ uint32_t full_end() const {
        const uint32_t end = (skew + width) / packet;
        return end > full_begin() ? end : full_begin();
    }

    __device__ __forceinline__ T* address(uint32_t index) const { return aligned + index * packet; }

    // The offset of an element of the row from the beginning of packet `index`, in elements.
    __device__ __forceinline__ uint32_t offset_from(uint32_t element, uint32_t index) const {
        return element + skew - index * packet;
    }

    // How many elements of packet 0 are before the row.
    uint32_t skew;

private:
    T* aligned;
    uint32_t width;
};
