#pragma once

#include <cmath>

#include "common/row.h"

namespace pearl::PEARL_SIMD {

// Ids that are read twice in a row, first for their maximum, then for their mass: small enough to stay in L1.
constexpr int kSegmentBlocks = 2048 / kBlock;

// Mass this far (in nats) below the maximum is left out: for any vocabulary it is under half a unit of
// float32.
constexpr float kNegligible = 32.0f;

struct Maxima {
  float of_row = -kInfinity;
  bool has_nan = false;
};

struct Mass {
  double sum = 0;  // of exp(logit * inverse_temperature - shift)
  float shift = -kInfinity;
};

// Notes the maxima of blocks [first, last), one per lane, so that later sweeps can skip blocks. Joins NaNs
// into `nan` and returns the maximum of all.
static PEARL_INLINE float sweep_maxima(const Row& row, int64_t first, int64_t last, Float* of_block,
                                       Mask& nan) {
  Float segment_max = broadcast(-kInfinity);
  for (int64_t block = first; block < last; ++block) {
    Float block_max = broadcast(-kInfinity);
    const int64_t end = row.size < (block + 1) * kBlock ? row.size : (block + 1) * kBlock;
    for (int64_t i = block * kBlock; i < end; i += kChunk) {
      const Chunk c = load_chunk(row, i);
      block_max = max(block_max, max(max(c.x[0], c.x[1]), max(c.x[2], c.x[3])));
      nan |= unordered(c.x[0], c.x[1]) | unordered(c.x[2], c.x[3]);
    }
    of_block[block] = block_max;
    segment_max = max(segment_max, block_max);
  }
  return reduce_max(segment_max);
}

// Sum over ids of blocks [first, last) with logit >= cut of exp(logit * inverse_temperature - shift). Blocks
// with nothing at or above `cut` are skipped; in the others, `kExact` says whether smaller logits are left
// out too.
template <bool kExact>
static PEARL_INLINE double sweep_mass(const Row& row, int64_t first, int64_t last, const Float* of_block,
                                      float cut, float inverse_temperature, float shift) {
  Float sum[kChunkVectors] = {};
  for (int64_t block = first; block < last; ++block) {
    if (!any(greater_equal(of_block[block], broadcast(cut)))) continue;
    const int64_t end = row.size < (block + 1) * kBlock ? row.size : (block + 1) * kBlock;
    for (int64_t i = block * kBlock; i < end; i += kChunk) {
      const Chunk c = load_chunk(row, i);
      for (int v = 0; v < kChunkVectors; ++v) {
        const Float mass = exp(c.x[v] * inverse_temperature - shift);
        sum[v] += kExact ? zero_unless(greater_equal(c.x[v], broadcast(cut)), mass) : mass;
      }
    }
  }
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

}  // namespace pearl::PEARL_SIMD
