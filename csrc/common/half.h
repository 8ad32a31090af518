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

}  // namespace pearl
