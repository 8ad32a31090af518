#pragma once

namespace pearl::PEARL_SIMD {

constexpr float kSmallestExponent = -86.0f;

// exp(x), relative error below 2e-7 in [-86, 86], and saturating outside. NaN stays NaN.
static PEARL_INLINE Float exp(Float x) {
  constexpr float kRounder = 0x1.8p23f;  // adding it leaves the rounded value in the low bits
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  x = min(broadcast(-kSmallestExponent), max(broadcast(kSmallestExponent), x));
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
