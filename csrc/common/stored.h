#pragma once

#include "common/half.h"
#include "common/simd/simd.h"
#include "common/types.h"

// The types that tensors are stored in. Whatever the type, arithmetic is float32.
namespace pearl::PEARL_SIMD {

struct Float32 {
  using Stored = float;
  static PEARL_INLINE Float load(const float* p) { return load_float32(p); }
  static PEARL_INLINE float value(float stored) { return stored; }
  static PEARL_INLINE float stored(float value) { return value; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static PEARL_INLINE Float load(const uint16_t* p) { return load_bfloat16(p); }
  static PEARL_INLINE float value(uint16_t stored) { return bfloat16_to_float(stored); }
  static PEARL_INLINE uint16_t stored(float value) { return float_to_bfloat16(value); }
};

struct Float16 {
  using Stored = uint16_t;
  static PEARL_INLINE Float load(const uint16_t* p) { return load_float16(p); }
  static PEARL_INLINE float value(uint16_t stored) { return float16_to_float(stored); }
  static PEARL_INLINE uint16_t stored(float value) { return float_to_float16(value); }
};

// Of weights alone: what they stand for is this times a scale.
struct Int8 {
  using Stored = int8_t;
  static PEARL_INLINE Float load(const int8_t* p) { return load_int8(p); }
  static PEARL_INLINE float value(int8_t stored) { return stored; }
};

}  // namespace pearl::PEARL_SIMD
