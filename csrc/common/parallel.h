#pragma once

#include <cstdint>

namespace pearl {

// Calls body(context, begin, end) on pieces that cover [0, count), by up to `threads` threads at once, and returns when
// all are done; the first exception of a piece is thrown then.
//
// The threads are those of the OpenMP runtime that torch brought into the process, if torch has as many for the calling
// thread, so that the two never compete for a core. If it has fewer, they are helpers of the calling thread's own: these
// wait awake for the next work for a moment, then asleep, and one that comes late is not waited for, so that on cores
// that are busy with other things the caller goes on alone.
void parallel_for(int64_t count, int64_t pieces, int threads, void (*body)(void*, int64_t, int64_t), void* context);

// The same for rows(begin, end) of a batch of `count` rows, in which each looks at about so many logits.
template <typename Rows>
void parallel_rows(int64_t count, int64_t logits, int threads, const Rows& rows) {
  constexpr int64_t kPieceLogits = 1 << 15;  // what takes longer to look at than a helper to come
  parallel_for(
      count, count * logits / kPieceLogits, threads,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<const Rows*>(context))(begin, end); },
      const_cast<Rows*>(&rows));
}

// Ends the OpenMP threads that wait for the next work of the calling thread; that work starts new ones. OpenMP counts the
// threads of all callers, and where they are more than there are cores it lets none wait awake. Does nothing where the
// runtime cannot.
void release_threads();

}  // namespace pearl
