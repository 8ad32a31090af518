#pragma once

#include <cstdint>

namespace pearl {

// Calls body(context, begin, end) on pieces that cover [0, count), by up to `threads` threads at once, and returns when
// all are done; the first exception of a piece is thrown then. Besides the calling thread these are helpers of its own:
// they wait awake for the next work for a moment, then asleep, and one that comes late is not waited for, so that on
// cores that are busy with other things the caller goes on alone.
void parallel_for(int64_t count, int64_t pieces, int threads, void (*body)(void*, int64_t, int64_t), void* context);

}  // namespace pearl
