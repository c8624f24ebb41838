// CUDA's vector types, with its alignments.
#pragma once

#include <cstdint>

#define EMULATOR_VECTORS(type, name, alignment2, alignment4)                                  \
    struct alignas(alignment2) name##2 { type x, y; };                                        \
    struct name##3 { type x, y, z; };                                                         \
    struct alignas(alignment4) name##4 { type x, y, z, w; };                                  \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                          \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }               \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

EMULATOR_VECTORS(float, float, 8, 16)
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(unsigned, uint, 8, 16)
EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
EMULATOR_VECTORS(double, double, 16, 16)

#undef EMULATOR_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
