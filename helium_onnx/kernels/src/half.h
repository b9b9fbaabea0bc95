// float16 in plain C++.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace helium {

inline float from_half(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)fraction * 5.9604644775390625e-08f;  // 2^-24
    const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline uint16_t to_half(float x) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint16_t sign = bits >> 16 & 0x8000;
    const float size = std::fabs(x);
    if (size != size) return sign | 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 6.103515625e-05f) return sign | (uint16_t)std::nearbyintf(size * 16777216.0f);  // subnormal: steps of 2^-24
    const uint32_t rounded = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
    return sign | (uint16_t)((rounded >> 13) - (112 << 10));
}

}  // namespace helium
