#pragma once

#include <cstddef>

namespace pearl {

enum class Scratch {
  kBlockMaxima,
  kDraftBlockMaxima,
  kCandidates,
  kCandidateMasses,
  kChain,
  kAttention,
  kLayer,
  kDecoder,
  kLinear,
  kSplit,
  kCount
};

// A buffer of this thread, 64-byte aligned, that only ever grows. Contents are undefined; the next call for the same
// slot may move it.
void* scratch(Scratch slot, std::size_t bytes);

}  // namespace pearl
