#pragma once

#include "common/half.h"
#include "common/simd/lanes4.h"

namespace pearl::PEARL_SIMD {

constexpr int kRegisters = 16;

static PEARL_INLINE Float load_bfloat16(const uint16_t* p) {
  const Word words = {p[0], p[1], p[2], p[3]};
  return (Float)(words << 16);
}
static PEARL_INLINE Float load_float16(const uint16_t* p) {
  return Float{float16_to_float(p[0]), float16_to_float(p[1]), float16_to_float(p[2]), float16_to_float(p[3])};
}
static PEARL_INLINE Float load_int8(const int8_t* p) {
  return Float{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}

static PEARL_INLINE Float fma(Float a, Float b, Float c) { return a * b + c; }
static PEARL_INLINE float reduce_max(Float a) {
  const float low = a[0] > a[1] ? a[0] : a[1];
  const float high = a[2] > a[3] ? a[2] : a[3];
  return low > high ? low : high;
}
static PEARL_INLINE float reduce_add(Float a) { return (a[0] + a[1]) + (a[2] + a[3]); }

static PEARL_INLINE bool any(Mask mask) {
  const Wide halves = (Wide)mask;
  return (halves[0] | halves[1]) != 0;
}
static PEARL_INLINE uint32_t to_bits(Mask mask) {
  return (mask[0] & 1u) | (mask[1] & 2u) | (mask[2] & 4u) | (mask[3] & 8u);
}

static PEARL_INLINE Word max(Word a, Word b) {
  const Word first = (Word)(a > b);
  return (a & first) | (b & ~first);
}
static PEARL_INLINE Wide multiply_low_words(Wide a, Wide b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }

}  // namespace pearl::PEARL_SIMD
