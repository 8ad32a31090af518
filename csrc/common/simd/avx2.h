#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace pearl::PEARL_SIMD {

constexpr int kLanes = 8;
constexpr int kRegisters = 16;
typedef float Float __attribute__((vector_size(32)));
typedef int32_t Int __attribute__((vector_size(32)));
typedef uint32_t Word __attribute__((vector_size(32)));
typedef uint64_t Wide __attribute__((vector_size(32)));
typedef int32_t Mask __attribute__((vector_size(32)));  // each lane all ones or all zeros

static PEARL_INLINE Float broadcast(float value) { return _mm256_set1_ps(value); }
static PEARL_INLINE Float load_bfloat16(const uint16_t* p) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return (Float)_mm256_slli_epi32(words, 16);
}
static PEARL_INLINE Float load_float16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static PEARL_INLINE Float load_int8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

static PEARL_INLINE Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
static PEARL_INLINE Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
static PEARL_INLINE Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
static PEARL_INLINE float reduce_max(Float a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
static PEARL_INLINE float reduce_add(Float a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static PEARL_INLINE Mask greater(Float a, Float b) { return (Mask)_mm256_cmp_ps(a, b, _CMP_GT_OQ); }
static PEARL_INLINE Mask greater_equal(Float a, Float b) { return (Mask)_mm256_cmp_ps(a, b, _CMP_GE_OQ); }
static PEARL_INLINE Mask unordered(Float a, Float b) { return (Mask)_mm256_cmp_ps(a, b, _CMP_UNORD_Q); }
static PEARL_INLINE uint32_t to_bits(Mask mask) { return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask)); }
static PEARL_INLINE bool any(Mask mask) { return to_bits(mask) != 0; }
static PEARL_INLINE Float zero_unless(Mask mask, Float a) { return (Float)((Int)a & mask); }
static PEARL_INLINE Float choose(Mask mask, Float a, Float b) { return _mm256_blendv_ps(b, a, (__m256)mask); }
static PEARL_INLINE Mask first_lanes(int64_t count) {
  const Int lanes = {0, 1, 2, 3, 4, 5, 6, 7};
  return (Mask)(lanes < static_cast<int32_t>(count));
}

// a[0], b[0], a[1], b[1] ... of the first halves, and of the second.
static PEARL_INLINE Float interleave_first(Float a, Float b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
static PEARL_INLINE Float interleave_second(Float a, Float b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}

static PEARL_INLINE Word max(Word a, Word b) { return (Word)_mm256_max_epu32((__m256i)a, (__m256i)b); }
static PEARL_INLINE Wide multiply_low_words(Wide a, Wide b) { return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
static PEARL_INLINE Word interleave_even_pairs(Wide a, Wide b) {
  return (Word)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
}
static PEARL_INLINE Word interleave_odd_pairs(Wide a, Wide b) {
  return (Word)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
}

}  // namespace pearl::PEARL_SIMD
