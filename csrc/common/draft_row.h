#pragma once

#include "common/row_stats.h"

namespace pearl::PEARL_SIMD {

// A row of the draft's logits seen by target ids: through d2t (strictly increasing target ids, one per draft id) where
// the draft has a vocabulary of its own. Ids the draft does not have are at -inf.
class DraftRow {
 public:
  DraftRow(const Row& row, const int64_t* d2t, const RowStats& stats) : stats_(stats), row_(row), d2t_(d2t) {}

  const RowStats& stats() const { return stats_; }

  float logit(int64_t target_id) const {
    if (!d2t_) return target_id < row_.size ? row_.at(target_id) : -kInfinity;
    int64_t low = 0, high = row_.size;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (d2t_[middle] < target_id) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low < row_.size && d2t_[low] == target_id ? row_.at(low) : -kInfinity;
  }

  // draft_probs of ids [begin, begin + kChunk). `begin` must not fall from one call to the next, unless rewound.
  PEARL_INLINE Chunk probabilities(int64_t begin) {
    Chunk chunk = d2t_ ? gather(begin) : load_chunk(row_, begin);
    const bool filtered = stats_.threshold > -kInfinity;
    for (int v = 0; v < kChunkVectors; ++v) {
      const Float logit = chunk.x[v];
      chunk.x[v] = exp(fma(logit, broadcast(stats_.inverse_temperature), broadcast(-stats_.lse)));
      if (filtered) chunk.x[v] = zero_unless(greater_equal(logit, broadcast(stats_.threshold)), chunk.x[v]);
    }
    return chunk;
  }

  void rewind() { next_ = 0; }

 private:
  __attribute__((noinline)) Chunk gather(int64_t begin) {
    float values[kChunk];
    for (float& value : values) value = -kInfinity;
    while (next_ < row_.size && d2t_[next_] < begin) ++next_;
    for (; next_ < row_.size && d2t_[next_] < begin + kChunk; ++next_) {
      values[d2t_[next_] - begin] = row_.at(next_);
    }
    return chunk_from(values);
  }

  RowStats stats_;
  Row row_;
  const int64_t* d2t_;
  int64_t next_ = 0;  // the first draft id not yet passed
};

}  // namespace pearl::PEARL_SIMD
