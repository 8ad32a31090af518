#pragma once

// The vector vocabulary of the CPU kernels. Their sources are compiled once per level, each time with another
// PEARL_SIMD, which names both the level and the namespace its code lives in.
#if defined(__AVX512F__)
#include "common/simd/avx512.h"
#elif defined(__AVX2__)
#include "common/simd/avx2.h"
#else
#include "common/simd/generic.h"
#endif

namespace pearl::PEARL_SIMD {

static PEARL_INLINE Float broadcast(float value) {
  return Float{} + value;
}

static PEARL_INLINE Float load_float32(const float* p) {
  Float value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

static PEARL_INLINE void store_float32(float* p, Float value) {
  std::memcpy(p, &value, sizeof value);
}

constexpr float kSmallestExponent = -86.0f;

// exp(x) for x in [-inf, 87], relative error below 1e-7; exp(-86) for anything smaller. NaN stays NaN.
static PEARL_INLINE Float exp(Float x) {
  constexpr float kRounder = 0x1.8p23f;  // adding it leaves the rounded value in the low bits
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  x = max(broadcast(kSmallestExponent), x);
  const Float shifted = fma(x, broadcast(1.44269504f), broadcast(kRounder));
  const Float n = shifted - kRounder;
  Float r = fma(n, broadcast(-kLn2High), x);
  r = fma(n, broadcast(-kLn2Low), r);
  Float p = fma(broadcast(1.381432e-3f), r, broadcast(8.368852e-3f));
  p = fma(p, r, broadcast(4.16684e-2f));
  p = fma(p, r, broadcast(1.666652e-1f));
  p = fma(p, r, broadcast(4.9999994e-1f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return (Float)((Word)p + ((Word)shifted << 23));
}

}  // namespace pearl::PEARL_SIMD
