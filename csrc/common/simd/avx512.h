#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace pearl::PEARL_SIMD {

constexpr int kLanes = 16;
constexpr int kRegisters = 32;
typedef float Float __attribute__((vector_size(64)));
typedef int32_t Int __attribute__((vector_size(64)));
typedef uint32_t Word __attribute__((vector_size(64)));
typedef uint64_t Wide __attribute__((vector_size(64)));
using Mask = __mmask16;

static PEARL_INLINE Float broadcast(float value) { return _mm512_set1_ps(value); }
static PEARL_INLINE Float load_bfloat16(const uint16_t* p) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return (Float)_mm512_slli_epi32(words, 16);
}
static PEARL_INLINE Float load_float16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static PEARL_INLINE Float load_int8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

static PEARL_INLINE Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
static PEARL_INLINE Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
static PEARL_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
static PEARL_INLINE float reduce_max(Float a) { return _mm512_reduce_max_ps(a); }
static PEARL_INLINE float reduce_add(Float a) { return _mm512_reduce_add_ps(a); }

static PEARL_INLINE Mask greater(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static PEARL_INLINE Mask greater_equal(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static PEARL_INLINE Mask unordered(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
static PEARL_INLINE bool any(Mask mask) { return mask != 0; }
static PEARL_INLINE uint32_t to_bits(Mask mask) { return mask; }
static PEARL_INLINE Float zero_unless(Mask mask, Float a) { return _mm512_maskz_mov_ps(mask, a); }
static PEARL_INLINE Float choose(Mask mask, Float a, Float b) { return _mm512_mask_blend_ps(mask, b, a); }
static PEARL_INLINE Mask first_lanes(int64_t count) { return static_cast<Mask>((1u << count) - 1); }

// a[0], b[0], a[1], b[1] ... of the first halves, and of the second.
static PEARL_INLINE Float interleave_first(Float a, Float b) {
  const __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return _mm512_permutex2var_ps(a, order, b);
}
static PEARL_INLINE Float interleave_second(Float a, Float b) {
  const __m512i order = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return _mm512_permutex2var_ps(a, order, b);
}

// Packs the masked lanes to the front of `out`, writes a whole vector, and returns how many there are.
static PEARL_INLINE int compress(float* out, Float a, Mask mask) {
  _mm512_storeu_ps(out, _mm512_maskz_compress_ps(mask, a));
  return __builtin_popcount(mask);
}

static PEARL_INLINE Word max(Word a, Word b) { return (Word)_mm512_max_epu32((__m512i)a, (__m512i)b); }
static PEARL_INLINE Wide multiply_low_words(Wide a, Wide b) { return (Wide)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
static PEARL_INLINE Word interleave_even_pairs(Wide a, Wide b) {
  return (Word)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b);
}
static PEARL_INLINE Word interleave_odd_pairs(Wide a, Wide b) {
  return (Word)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
}

}  // namespace pearl::PEARL_SIMD
