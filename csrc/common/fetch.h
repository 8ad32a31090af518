#pragma once

#include <cstdint>

#include "common/macros.h"

namespace pearl {

constexpr int64_t kAhead = 8192;  // bytes: the processor itself fetches ahead too late
constexpr int64_t kLine = 64;     // bytes of a line of the caches

// Fetches a line into the second cache, which can wait for more of memory at once than the nearest.
PEARL_INLINE void fetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// Fetches a line that is needed soon into the first cache.
PEARL_INLINE void fetch_near(const void* p) { __builtin_prefetch(p, 0, 3); }

}  // namespace pearl
