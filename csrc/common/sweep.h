#pragma once

#include <cmath>

#include "common/row.h"

namespace pearl::PEARL_SIMD {

// Blocks whose sums fit float32 lanes without loss; then they are flushed to double.
constexpr int kFlushBlocks = 2048 / kBlock;

// How far (in nats) a logit may rise above the one that exponents are taken relative to.
constexpr float kHeadroom = 16.0f;

struct Maxima {
  float of_row = -kInfinity;
  bool has_nan = false;
};

struct Mass {
  double sum = 0;            // of exp(logit * inverse_temperature - reference)
  float reference = -1e38f;  // finite, so that exponents of -inf are -inf and not NaN
};

static PEARL_INLINE int64_t end_of_block(const Row& row, int64_t block) {
  return row.size < (block + 1) * kBlock ? row.size : (block + 1) * kBlock;
}

static PEARL_INLINE Float maximum(const Chunk& c) { return max(max(c.x[0], c.x[1]), max(c.x[2], c.x[3])); }

static PEARL_INLINE Mask nans(const Chunk& c) { return unordered(c.x[0], c.x[1]) | unordered(c.x[2], c.x[3]); }

static PEARL_INLINE double sum_of(const Float (&sum)[kChunkVectors]) {
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Notes the maxima of each block, one per lane, so that later sweeps can skip blocks.
static PEARL_INLINE Maxima sweep_maxima(const Row& row, Float* of_block) {
  Float row_max = broadcast(-kInfinity);
  Mask nan{};
  for (int64_t block = 0; block < row.blocks(); ++block) {
    Float block_max = broadcast(-kInfinity);
    for (int64_t i = block * kBlock; i < end_of_block(row, block); i += kChunk) {
      const Chunk c = load_chunk_unordered(row, i);
      block_max = max(block_max, maximum(c));
      nan |= nans(c);
    }
    of_block[block] = block_max;
    row_max = max(row_max, block_max);
  }
  return {reduce_max(row_max), any(nan)};
}

// The same and the row's mass, with the row read once: exponents are taken relative to a logit that is replaced, and
// the sum rescaled, whenever one turns up that is much larger.
static PEARL_INLINE Maxima sweep_maxima_and_mass(const Row& row, float inverse_temperature, Float* of_block,
                                                 Mass& mass) {
  Float row_max = broadcast(-kInfinity);
  float too_large = -kInfinity;  // for a logit, given the reference
  Float sum[kChunkVectors] = {};
  for (int64_t block = 0; block < row.blocks(); ++block) {
    Float block_max = broadcast(-kInfinity);
    for (int64_t i = block * kBlock; i < end_of_block(row, block); i += kChunk) {
      const Chunk c = load_chunk_unordered(row, i);
      const Float chunk_max = maximum(c);
      block_max = max(block_max, chunk_max);
      if (any(greater(chunk_max, broadcast(too_large)))) {
        const float reference = reduce_max(chunk_max) * inverse_temperature;
        const double factor = std::exp(static_cast<double>(mass.reference) - reference);
        for (Float& lane : sum) lane *= static_cast<float>(factor);
        mass.sum *= factor;
        mass.reference = reference;
        too_large = (reference + kHeadroom) / inverse_temperature;
      }
      for (int v = 0; v < kChunkVectors; ++v) {
        sum[v] += exp(fma(c.x[v], broadcast(inverse_temperature), broadcast(-mass.reference)));
      }
    }
    of_block[block] = block_max;
    row_max = max(row_max, block_max);
    if (block % kFlushBlocks == kFlushBlocks - 1 || block + 1 == row.blocks()) {
      mass.sum += sum_of(sum);
      for (Float& lane : sum) lane = Float{};
    }
  }
  return {reduce_max(row_max), std::isnan(mass.sum)};
}

// Sum over logit >= cut of exp(logit * inverse_temperature - reference).
static PEARL_INLINE double sweep_mass_above(const Row& row, const Float* of_block, float cut, float inverse_temperature,
                                            float reference) {
  double mass = 0;
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (!any(greater_equal(of_block[block], broadcast(cut)))) continue;
    Float sum[kChunkVectors] = {};
    for (int64_t i = block * kBlock; i < end_of_block(row, block); i += kChunk) {
      const Chunk c = load_chunk_unordered(row, i);
      for (int v = 0; v < kChunkVectors; ++v) {
        const Float all = exp(fma(c.x[v], broadcast(inverse_temperature), broadcast(-reference)));
        sum[v] += zero_unless(greater_equal(c.x[v], broadcast(cut)), all);
      }
    }
    mass += sum_of(sum);
  }
  return mass;
}

}  // namespace pearl::PEARL_SIMD
