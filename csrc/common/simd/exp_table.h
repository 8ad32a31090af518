#pragma once

namespace pearl::PEARL_SIMD {

constexpr float kSmallestExponent = -86.0f;

// exp(x), but exp(-86) for anything smaller; NaN stays NaN. The relative error is below 2.5e-7 above -20, where all mass
// that counts is, and below 5e-7 elsewhere.
//
// exp(x) = 2^n * exp(r) with n = k + j / 32: 2^(j / 32) comes from a table in two registers, which leaves so small an r
// that a parabola will do, and the scaling instruction applies 2^k.
static PEARL_INLINE Float exp(Float x) {
  const Float low = {1.0f,        1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,
                     1.13878858f, 1.1637249f,  1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f,
                     1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f};
  const Float high = {1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.5759809f,
                      1.61049032f, 1.64575553f, 1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f,
                      1.8340081f,  1.87416768f, 1.91520655f, 1.95714414f};
  constexpr float kRounder = 0x1.8p18f;  // adding it leaves a multiple of 1/32, with j in the low five bits
  x = max(broadcast(kSmallestExponent), x);
  const Float shifted = fma(x, broadcast(1.44269504f), broadcast(kRounder));
  const Float n = shifted - kRounder;
  const Float r = fma(n, broadcast(-0.6931472f), x);
  const Float power = _mm512_permutex2var_ps(low, (__m512i)shifted, high);
  const Float slope = fma(r, broadcast(0.5000002f), broadcast(1.0000153f));
  return _mm512_scalef_ps(fma(power * r, slope, power), n);
}

}  // namespace pearl::PEARL_SIMD
