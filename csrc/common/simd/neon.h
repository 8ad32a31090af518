#pragma once

#include <arm_neon.h>

#include "common/simd/lanes4.h"

namespace pearl::PEARL_SIMD {

constexpr int kRegisters = 32;

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

static PEARL_INLINE Float fma(Float a, Float b, Float c) {
  return (Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
static PEARL_INLINE float reduce_max(Float a) { return vmaxvq_f32((float32x4_t)a); }
static PEARL_INLINE float reduce_add(Float a) { return vaddvq_f32((float32x4_t)a); }

static PEARL_INLINE bool any(Mask mask) { return vmaxvq_u32((uint32x4_t)mask) != 0; }
static PEARL_INLINE uint32_t to_bits(Mask mask) {
  const Mask bits = {1, 2, 4, 8};
  return vaddvq_u32((uint32x4_t)(mask & bits));
}

static PEARL_INLINE Word max(Word a, Word b) { return (Word)vmaxq_u32((uint32x4_t)a, (uint32x4_t)b); }
static PEARL_INLINE Wide multiply_low_words(Wide a, Wide b) {
  return (Wide)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
}

}  // namespace pearl::PEARL_SIMD
