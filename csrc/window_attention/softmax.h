#pragma once

#include "common/simd/simd.h"

namespace pearl::PEARL_SIMD {

// |error| below 3e-7, and as small beside tanh(x).
static PEARL_INLINE Float tanh(Float x) {
  const Float square = x * x;
  Float small = fma(broadcast(0.0218694885f), square, broadcast(-0.0539682540f));
  small = fma(small, square, broadcast(0.133333333f));
  small = fma(small, square, broadcast(-0.333333333f));
  small = fma(small * square, x, x);
  // Past 10 tanh is 1 to the last bit, and exp must not overflow.
  const Float power = exp(min(broadcast(20.0f), max(broadcast(-20.0f), x + x)));
  const Float large = (power - 1.0f) / (power + 1.0f);
  const Float bound = broadcast(0.3f);
  const Float found = choose(greater(x, bound), large, choose(greater(broadcast(-0.3f), x), large, small));
  return choose(unordered(x, x), x, found);
}

// Replaces `count` scores by exp(score - the greatest of them) and returns their sum. Whole vectors are read and written:
// up to kLanes - 1 floats past the last score come out as 0. With a softcap, scores are capped first.
static inline float softmax(float* scores, int64_t count, float softcap) {
  Float greatest = broadcast(-__builtin_inff());
  for (int64_t i = 0; i < count; i += kLanes) {
    Float x = load_float32(scores + i);
    if (softcap != 0.0f) {
      x = softcap * tanh(x / softcap);
      store_float32(scores + i, x);
    }
    if (i + kLanes > count) x = choose(first_lanes(count - i), x, greatest);
    greatest = max(greatest, x);
  }
  const float most = reduce_max(greatest);
  Float sum = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    Float x = exp(load_float32(scores + i) - most);
    if (i + kLanes > count) x = zero_unless(first_lanes(count - i), x);
    store_float32(scores + i, x);
    sum = sum + x;
  }
  return reduce_add(sum);
}

}  // namespace pearl::PEARL_SIMD
