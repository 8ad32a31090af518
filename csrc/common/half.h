#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace pearl {

PEARL_INLINE float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

PEARL_INLINE float bfloat16_to_float(uint16_t bits) { return float_from_bits(static_cast<uint32_t>(bits) << 16); }

PEARL_INLINE float float16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t rebiased = exponent == 0x1fu ? 0xffu : exponent + 112u;
  return float_from_bits(sign | rebiased << 23 | mantissa << 13);
}

PEARL_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// To the nearest, ties to even.
PEARL_INLINE uint16_t float_to_bfloat16(float value) {
  if (value != value) return 0x7fc0u;
  const uint32_t bits = bits_of(value);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// To the nearest, ties to even.
PEARL_INLINE uint16_t float_to_float16(float value) {
  const uint32_t sign = bits_of(value) >> 16 & 0x8000u;
  const uint32_t bits = bits_of(value) & 0x7fffffffu;
  uint32_t magnitude;
  if (bits > 0x7f800000u) {
    magnitude = 0x7e00u;
  } else if (bits >= 0x47800000u) {  // 2^16
    magnitude = 0x7c00u;
  } else if (bits < 0x38800000u) {  // 2^-14: the last bit of a half so small is that of 0.5f
    magnitude = bits_of(float_from_bits(bits) + 0.5f) - bits_of(0.5f);
  } else {
    magnitude = (bits - (112u << 23) + 0xfffu + (bits >> 13 & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | magnitude);
}

}  // namespace pearl
