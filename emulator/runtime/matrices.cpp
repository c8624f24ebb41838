// The matrix operations of a warp, `ldmatrix` and `mma.m16n8k16`, in the layouts of the PTX ISA. Each lane passes its operands and
// waits. When the last one has arrived, a function computes the results of all lanes. This file is not instrumented.

#include <cstdint>
#include <cstring>

#include "../include/emulator.h"
#include "../include/cuda_bf16.h"
#include "../include/cuda_fp16.h"

#define CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))

namespace {

constexpr uint32_t lanes = 32;

// The operands of a lane and, in the same memory, its results.
struct Matrices {
    union {
        uint16_t row[8];
        uint32_t words[4];
    };
};

struct Product {
    uint32_t a[4];
    uint32_t b[2];
    float c[4];
};

template <uint32_t count, bool transposed>
void load(void* const* parts) {
    uint16_t matrices[count][8][8];
    for (uint32_t lane = 0; lane < 8 * count; ++lane) {
        memcpy(matrices[lane / 8][lane % 8], static_cast<const Matrices*>(parts[lane])->row, 16);
    }
    for (uint32_t lane = 0; lane < lanes; ++lane) {
        const uint32_t major = lane / 4, minor = lane % 4 * 2;
        for (uint32_t j = 0; j < count; ++j) {
            const uint32_t low = transposed ? matrices[j][minor][major] : matrices[j][major][minor];
            const uint32_t high = transposed ? matrices[j][minor + 1][major] : matrices[j][major][minor + 1];
            static_cast<Matrices*>(parts[lane])->words[j] = low | high << 16;
        }
    }
}

float widen_bfloat16(uint32_t bits) { return __bfloat162float({static_cast<uint16_t>(bits)}); }
float widen_half(uint32_t bits) { return __half2float({static_cast<uint16_t>(bits)}); }

template <float (*widen)(uint32_t)>
void multiply(void* const* parts) {
    float a[16][16], b[16][8], c[16][8];
    for (uint32_t lane = 0; lane < lanes; ++lane) {
        const Product& part = *static_cast<const Product*>(parts[lane]);
        const uint32_t group = lane / 4, pair = lane % 4 * 2;
        for (uint32_t k = 0; k < 2; ++k) {
            for (uint32_t i = 0; i < 4; ++i) {
                a[group + i % 2 * 8][pair + i / 2 * 8 + k] = widen(part.a[i] >> 16 * k & 0xffff);
            }
            for (uint32_t i = 0; i < 2; ++i) b[pair + i * 8 + k][group] = widen(part.b[i] >> 16 * k & 0xffff);
            for (uint32_t i = 0; i < 2; ++i) c[group + i * 8][pair + k] = part.c[2 * i + k];
        }
    }
    // Products of two 16-bit numbers are exact in f32, except for overflow and underflow. Each sum is rounded.
    for (uint32_t row = 0; row < 16; ++row) {
        for (uint32_t k = 0; k < 16; ++k) {
            for (uint32_t column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
        }
    }
    for (uint32_t lane = 0; lane < lanes; ++lane) {
        Product& part = *static_cast<Product*>(parts[lane]);
        const uint32_t group = lane / 4, pair = lane % 4 * 2;
        for (uint32_t i = 0; i < 4; ++i) part.c[i] = c[group + i / 2 * 8][pair + i % 2];
    }
}

}  // namespace

// Implemented in Rust, in src/hooks.rs.
extern "C" {
uint32_t emulator_on_matrix_row(uintptr_t row, uintptr_t caller);
void emulator_on_ldmatrix(uint32_t count, uint32_t transposed, void* part, uint32_t row, void (*together)(void* const*),
                          uintptr_t caller);
void emulator_on_multiply(uint32_t half, void* part, void (*together)(void* const*), uintptr_t caller);
}

extern "C" {

EmulatorWords emulator_ldmatrix(const void* row, uint32_t count, uint32_t transposed) {
    Matrices part{};
    uint32_t place = 0;
    if (emulator_lane() < 8 * count) {
        place = emulator_on_matrix_row(reinterpret_cast<uintptr_t>(row), CALLER);
        // A store that comes before all lanes have arrived is a race.
        memcpy(part.row, row, 16);
    }
    const auto together = count == 2 ? transposed ? load<2, true> : load<2, false> : transposed ? load<4, true> : load<4, false>;
    emulator_on_ldmatrix(count, transposed, &part, place, together, CALLER);
    EmulatorWords words;
    memcpy(&words, part.words, 16);
    return words;
}

EmulatorSums emulator_multiply(EmulatorWords a, uint64_t b, EmulatorSums c, uint32_t half) {
    Product part;
    memcpy(part.a, &a, sizeof(part.a));
    memcpy(part.b, &b, sizeof(part.b));
    memcpy(part.c, &c, sizeof(part.c));
    emulator_on_multiply(half, &part, half ? multiply<widen_half> : multiply<widen_bfloat16>, CALLER);
    memcpy(&c, part.c, sizeof(c));
    return c;
}
}
