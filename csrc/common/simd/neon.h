#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace pearl::PEARL_SIMD {

constexpr int kLanes = 4;
constexpr int kRegisters = 32;
typedef float Float __attribute__((vector_size(16)));
typedef int32_t Int __attribute__((vector_size(16)));
typedef uint32_t Word __attribute__((vector_size(16)));
typedef uint64_t Wide __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));  // each lane all ones or all zeros

static PEARL_INLINE Float broadcast(float value) { return (Float)vdupq_n_f32(value); }
static PEARL_INLINE Float load_bfloat16(const uint16_t* p) { return (Float)vshll_n_u16(vld1_u16(p), 16); }
static PEARL_INLINE Float load_float16(const uint16_t* p) {
  return (Float)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static PEARL_INLINE Float load_int8(const int8_t* p) {
  uint32_t four;
  std::memcpy(&four, p, sizeof four);
  const int16x8_t words = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
  return (Float)vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}

static PEARL_INLINE Float choose(Mask mask, Float a, Float b) {
  return (Float)vbslq_f32((uint32x4_t)mask, (float32x4_t)a, (float32x4_t)b);
}
// As on x86: the second operand if either is NaN.
static PEARL_INLINE Float max(Float a, Float b) { return choose((Mask)(a > b), a, b); }
static PEARL_INLINE Float min(Float a, Float b) { return choose((Mask)(a < b), a, b); }
static PEARL_INLINE Float fma(Float a, Float b, Float c) {
  return (Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
static PEARL_INLINE float reduce_max(Float a) { return vmaxvq_f32((float32x4_t)a); }
static PEARL_INLINE float reduce_add(Float a) { return vaddvq_f32((float32x4_t)a); }

static PEARL_INLINE Mask greater(Float a, Float b) { return (Mask)(a > b); }
static PEARL_INLINE Mask greater_equal(Float a, Float b) { return (Mask)(a >= b); }
static PEARL_INLINE Mask unordered(Float a, Float b) { return (Mask)((a != a) | (b != b)); }
static PEARL_INLINE bool any(Mask mask) { return vmaxvq_u32((uint32x4_t)mask) != 0; }
static PEARL_INLINE uint32_t to_bits(Mask mask) {
  const Mask bits = {1, 2, 4, 8};
  return vaddvq_u32((uint32x4_t)(mask & bits));
}
static PEARL_INLINE Float zero_unless(Mask mask, Float a) { return (Float)((Int)a & mask); }
static PEARL_INLINE Mask first_lanes(int64_t count) {
  const Int lanes = {0, 1, 2, 3};
  return (Mask)(lanes < static_cast<int32_t>(count));
}

// a[0], b[0], a[1], b[1] of the first halves, and of the second.
static PEARL_INLINE Float interleave_first(Float a, Float b) {
  return (Float)vzip1q_f32((float32x4_t)a, (float32x4_t)b);
}
static PEARL_INLINE Float interleave_second(Float a, Float b) {
  return (Float)vzip2q_f32((float32x4_t)a, (float32x4_t)b);
}

static PEARL_INLINE Word max(Word a, Word b) { return (Word)vmaxq_u32((uint32x4_t)a, (uint32x4_t)b); }
static PEARL_INLINE Wide multiply_low_words(Wide a, Wide b) {
  return (Wide)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
}
static PEARL_INLINE Word interleave_even_pairs(Wide a, Wide b) {
  return (Word)vzip1q_u64((uint64x2_t)a, (uint64x2_t)b);
}
static PEARL_INLINE Word interleave_odd_pairs(Wide a, Wide b) { return (Word)vzip2q_u64((uint64x2_t)a, (uint64x2_t)b); }

}  // namespace pearl::PEARL_SIMD
