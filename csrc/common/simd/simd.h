#pragma once

// The vector vocabulary of the CPU kernels. Their sources are compiled once per level, each time with another
// PEARL_SIMD, which names both the level and the namespace its code lives in.
#if defined(__AVX512F__)
#include "common/simd/avx512.h"
#elif defined(__AVX2__)
#include "common/simd/avx2.h"
#elif defined(__aarch64__)
#include "common/simd/neon.h"
#else
#include "common/simd/generic.h"
#endif

namespace pearl::PEARL_SIMD {

static PEARL_INLINE Float load_float32(const float* p) {
  Float value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

static PEARL_INLINE void store_float32(float* p, Float value) { std::memcpy(p, &value, sizeof value); }

#if !defined(__AVX512F__)
// Packs the masked lanes to the front of `out` and returns how many there are.
static PEARL_INLINE int compress(float* out, Float a, Mask mask) {
  int count = 0;
  for (uint32_t bits = to_bits(mask); bits != 0; bits &= bits - 1) out[count++] = a[__builtin_ctz(bits)];
  return count;
}
#endif

}  // namespace pearl::PEARL_SIMD

#if defined(__AVX512F__)
#include "common/simd/exp_table.h"
#else
#include "common/simd/exp_polynomial.h"
#endif
