// IEEE half precision as CUDA's header names it. Conversions round to nearest, ties to even.
#pragma once

#include "cuda_runtime.h"

struct __half {
    uint16_t bits;
};

inline float __half2float(__half value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
    const uint32_t exponent = (value.bits >> 10) & 0x1f, fraction = value.bits & 0x3ff;
    if (exponent == 0x1f) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
    if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    const float subnormal = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -subnormal : subnormal;
}

inline __half __float2half_rn(float value) {
    const uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7fffffff;
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
    if (magnitude > 0x7f800000) return {0x7fff};
    // 65520 is halfway between the largest half and the next power of two. From there on all values round to infinity.
    if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};
    if (magnitude < 0x38800000) {
        // A subnormal half is a multiple of 2⁻²⁴; adding this constant rounds to one, in the low bits.
        const float shifted = __uint_as_float(magnitude) + 0.5f;
        return {static_cast<uint16_t>(sign | (__float_as_uint(shifted) - 0x3f000000))};
    }
    const uint32_t rounded = magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1);
    return {static_cast<uint16_t>(sign | rounded >> 13)};
}
inline __half __float2half(float value) { return __float2half_rn(value); }
