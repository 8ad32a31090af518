#pragma once

#include "common/half.h"

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) { return pearl::float16_to_float(value.bits); }
