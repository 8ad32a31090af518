#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace pearl::PEARL_SIMD {

// 128-bit vectors, and what compilers know how to do with them on any processor that has such.
constexpr int kLanes = 4;
typedef float Float __attribute__((vector_size(16)));
typedef int32_t Int __attribute__((vector_size(16)));
typedef uint32_t Word __attribute__((vector_size(16)));
typedef uint64_t Wide __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));  // each lane all ones or all zeros

static PEARL_INLINE Float broadcast(float value) { return Float{value, value, value, value}; }

static PEARL_INLINE Float choose(Mask mask, Float a, Float b) { return (Float)(((Int)a & mask) | ((Int)b & ~mask)); }
// As on x86: the second operand if either is NaN.
static PEARL_INLINE Float max(Float a, Float b) { return choose((Mask)(a > b), a, b); }
static PEARL_INLINE Float min(Float a, Float b) { return choose((Mask)(a < b), a, b); }

static PEARL_INLINE Mask greater(Float a, Float b) { return (Mask)(a > b); }
static PEARL_INLINE Mask greater_equal(Float a, Float b) { return (Mask)(a >= b); }
static PEARL_INLINE Mask unordered(Float a, Float b) { return (Mask)((a != a) | (b != b)); }
static PEARL_INLINE Float zero_unless(Mask mask, Float a) { return (Float)((Int)a & mask); }
static PEARL_INLINE Mask first_lanes(int64_t count) {
  const Int lanes = {0, 1, 2, 3};
  return (Mask)(lanes < static_cast<int32_t>(count));
}

// a[0], b[0], a[1], b[1] of the first halves, and of the second.
static PEARL_INLINE Float interleave_first(Float a, Float b) { return Float{a[0], b[0], a[1], b[1]}; }
static PEARL_INLINE Float interleave_second(Float a, Float b) { return Float{a[2], b[2], a[3], b[3]}; }

static PEARL_INLINE Word interleave_even_pairs(Wide a, Wide b) { return (Word)Wide{a[0], b[0]}; }
static PEARL_INLINE Word interleave_odd_pairs(Wide a, Wide b) { return (Word)Wide{a[1], b[1]}; }

}  // namespace pearl::PEARL_SIMD
