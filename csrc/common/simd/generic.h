#pragma once

#include <cstdint>
#include <cstring>

#include "common/half.h"
#include "common/macros.h"

namespace pearl::PEARL_SIMD {

// 128-bit vectors that every processor has; the compiler lowers them to SSE2, NEON and the like.
constexpr int kLanes = 4;
constexpr int kRegisters = 16;
typedef float Float __attribute__((vector_size(16)));
typedef int32_t Int __attribute__((vector_size(16)));
typedef uint32_t Word __attribute__((vector_size(16)));
typedef uint64_t Wide __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));  // each lane all ones or all zeros

static PEARL_INLINE Float broadcast(float value) { return Float{value, value, value, value}; }
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

static PEARL_INLINE Float choose(Mask mask, Float a, Float b) { return (Float)(((Int)a & mask) | ((Int)b & ~mask)); }
// As on x86: the second operand if either is NaN.
static PEARL_INLINE Float max(Float a, Float b) { return choose((Mask)(a > b), a, b); }
static PEARL_INLINE Float min(Float a, Float b) { return choose((Mask)(a < b), a, b); }
static PEARL_INLINE Float fma(Float a, Float b, Float c) { return a * b + c; }
static PEARL_INLINE float reduce_max(Float a) {
  const float low = a[0] > a[1] ? a[0] : a[1];
  const float high = a[2] > a[3] ? a[2] : a[3];
  return low > high ? low : high;
}
static PEARL_INLINE float reduce_add(Float a) { return (a[0] + a[1]) + (a[2] + a[3]); }

static PEARL_INLINE Mask greater(Float a, Float b) { return (Mask)(a > b); }
static PEARL_INLINE Mask greater_equal(Float a, Float b) { return (Mask)(a >= b); }
static PEARL_INLINE Mask unordered(Float a, Float b) { return (Mask)((a != a) | (b != b)); }
static PEARL_INLINE bool any(Mask mask) {
  const Wide halves = (Wide)mask;
  return (halves[0] | halves[1]) != 0;
}
static PEARL_INLINE uint32_t to_bits(Mask mask) {
  return (mask[0] & 1u) | (mask[1] & 2u) | (mask[2] & 4u) | (mask[3] & 8u);
}
static PEARL_INLINE Float zero_unless(Mask mask, Float a) { return (Float)((Int)a & mask); }
static PEARL_INLINE Mask first_lanes(int64_t count) {
  const Int lanes = {0, 1, 2, 3};
  return (Mask)(lanes < static_cast<int32_t>(count));
}

// a[0], b[0], a[1], b[1] of the first halves, and of the second.
static PEARL_INLINE Float interleave_first(Float a, Float b) { return Float{a[0], b[0], a[1], b[1]}; }
static PEARL_INLINE Float interleave_second(Float a, Float b) { return Float{a[2], b[2], a[3], b[3]}; }

static PEARL_INLINE Word max(Word a, Word b) {
  const Word first = (Word)(a > b);
  return (a & first) | (b & ~first);
}
static PEARL_INLINE Wide multiply_low_words(Wide a, Wide b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
static PEARL_INLINE Word interleave_even_pairs(Wide a, Wide b) { return (Word)Wide{a[0], b[0]}; }
static PEARL_INLINE Word interleave_odd_pairs(Wide a, Wide b) { return (Word)Wide{a[1], b[1]}; }

}  // namespace pearl::PEARL_SIMD
