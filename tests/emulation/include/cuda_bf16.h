#pragma once

#include "common/half.h"

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) { return pearl::bfloat16_to_float(value.bits); }
